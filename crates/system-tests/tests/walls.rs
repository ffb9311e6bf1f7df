//! The escape drills of the threat model, behind the real supervisor.

use system_tests::Identity;
use system_tests::identity::caller_is_root;
use system_tests::walls::{Bait, Place, battery, parse};
use system_tests::{Binaries, walls};

/// A battery that shrinks unnoticed proves less than it says.
const AT_LEAST: usize = 150;

#[track_caller]
fn demand_denied(identity: Identity, place: Place) {
    let drills = battery(identity, place);
    let open: Vec<&walls::Drill> = drills.iter().filter(|drill| !drill.denied).collect();
    assert!(
        open.is_empty(),
        "open in a {place:?} as {}: {open:#?}",
        identity.name()
    );
    assert!(drills.len() >= AT_LEAST, "only {} drills", drills.len());
}

#[test]
fn nothing_escapes_from_a_sandbox() {
    demand_denied(Identity::Caller, Place::Sandbox);
}

#[test]
fn nothing_escapes_from_a_runner() {
    demand_denied(Identity::Caller, Place::Runner);
}

#[test]
fn nothing_escapes_from_a_terminal() {
    demand_denied(Identity::Caller, Place::Terminal);
}

#[test]
fn nothing_escapes_from_a_sandbox_of_an_ordinary_user() {
    demand_denied(Identity::Ordinary, Place::Sandbox);
}

#[test]
fn nothing_escapes_from_a_runner_of_an_ordinary_user() {
    demand_denied(Identity::Ordinary, Place::Runner);
}

#[test]
fn nothing_escapes_from_a_terminal_of_an_ordinary_user() {
    demand_denied(Identity::Ordinary, Place::Terminal);
}

/// On a bare machine a drill that gets through would do what it tries.
#[test]
fn drills_refuse_to_run_outside_namespaces_of_their_own() {
    let output = std::process::Command::new(Binaries::find().program("drill"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("refused"), "{said}");
}

/// The drills can fail: what the host laid out is found when there are no walls. Only
/// drills that are harmless are tried, in namespaces that hide nothing.
#[test]
fn without_walls_the_drills_are_open() {
    let bait = Bait::lay();
    for drill in ["host_abstract_socket", "host_loopback", "host_paths"] {
        let output = std::process::Command::new("unshare")
            .args(["--user", "--pid", "--fork"])
            .arg(Binaries::find().program("drill"))
            .args(bait.arguments(&[]))
            .args(["--only", drill])
            .output()
            .unwrap();
        let found = parse(&String::from_utf8_lossy(&output.stdout));
        let tried: Vec<&walls::Drill> = found
            .iter()
            .filter(|one| one.name.contains(drill))
            .collect();
        assert!(tried.iter().any(|one| !one.denied), "{drill}: {tried:?}");
    }
    assert!(!caller_is_root() || Identity::available().len() == 2);
}

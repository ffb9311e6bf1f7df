//! The escape drills of the threat model, behind the real supervisor.

use serde_json::json;
use system_tests::identity::caller_is_root;
use system_tests::walls::{Bait, Place, battery, parse};
use system_tests::{Account, Binaries, Identity, Setup, walls};
use types::Role;

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

/// Behind a real hypervisor: with the environment, the descriptors, the groups and the channels
/// that it gives to guests, commands and terminals, and its own sockets and data to look for.
async fn demand_denied_by_a_hypervisor(identity: Identity) {
    let bait = Bait::lay();
    let programs = Binaries::find();
    let shown = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::copy(programs.program("drill"), shown.path().join("drill")).unwrap();
    for path in [shown.path().to_owned(), shown.path().join("drill")] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mounts = format!(
        "[sandbox]\nmounts = [{{ source = {:?}, target = \"/opt/drills\" }}]",
        shown.path()
    );
    let setup = Setup::default()
        .identity(identity)
        .config(&mounts)
        .hostile_guest();
    let installation = setup.start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let mut argv = vec!["/opt/drills/drill".to_owned()];
    argv.extend(bait.arguments(&[installation.data_dir(), installation.data_dir().join("run")]));
    let judge = |place: &str, output: &str| {
        let drills = parse(output);
        let open: Vec<_> = drills.iter().filter(|drill| !drill.denied).collect();
        assert!(
            open.is_empty(),
            "open in {place} as {}: {open:#?}",
            identity.name()
        );
        assert!(drills.len() >= AT_LEAST, "only {} drills", drills.len());
    };
    alice.enter(Role::Live).await;
    let said = alice
        .runtime(Role::Live, "POST", "/hostile/program", Some(json!(argv)))
        .await
        .expect(200);
    judge("the guest", &said.text());
    for (place, capabilities) in [
        ("a command", json!([])),
        ("an agent", json!(["provider:call"])),
    ] {
        let request = json!({ "argv": argv, "capabilities": capabilities });
        let (_, output) = alice.command(Role::Live, &request).await;
        judge(place, &output);
    }
    // Nobody is attached to the terminal; what is said in it goes to a file.
    let script = "\"$@\" > /workspace/saying; mv /workspace/saying /workspace/said";
    let mut in_terminal = vec!["sh", "-c", script, "sh"];
    in_terminal.extend(argv.iter().map(String::as_str));
    let request = json!({ "argv": in_terminal, "terminal": { "cols": 80, "rows": 24 } });
    let commands = "/me/sandboxes/live/commands";
    alice
        .control("POST", commands, Some(request))
        .await
        .expect(201);
    let output = system_tests::wait::until("the drills in the terminal", async || {
        let read = json!({ "argv": ["cat", "/workspace/said"] });
        let (code, output) = alice.command(Role::Live, &read).await;
        (code == Some(0)).then_some(output)
    })
    .await;
    judge("a terminal", &output);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_escapes_from_guest_commands_and_terminals_of_a_hypervisor() {
    demand_denied_by_a_hypervisor(Identity::Caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_escapes_from_guest_commands_and_terminals_of_an_ordinary_users_hypervisor() {
    demand_denied_by_a_hypervisor(Identity::Ordinary).await;
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

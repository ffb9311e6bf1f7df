//! `hypervisor doctor` on machines that lack something: each is this one with a part taken
//! away, within namespaces of the test's own.

use std::process::{Command, Stdio};

use serde_json::Value;
use system_tests::identity::caller_is_root;
use system_tests::{Account, Binaries, Identity, Setup};
use types::Role;

/// What doctor finds when a shell has run `before` first, in the namespaces of `unshare`.
fn doctor(unshare: &[&str], before: &str) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!("{before} && exec \"$0\" --data-dir \"$1\" --port 0 doctor --json");
    let answer = Command::new("unshare")
        .args(unshare)
        .args(["--", "sh", "-c", &script])
        .arg(Binaries::find().program("hypervisor"))
        .arg(scratch.path())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    serde_json::from_slice(&answer.stdout).unwrap()
}

/// The check of this name: whether it is well, and what is said to do.
fn check(findings: &Value, name: &str) -> (bool, String) {
    let all = findings["checks"].as_array().unwrap();
    let found = all
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no check {name}: {findings}"));
    (
        found["ok"] == true,
        format!("{} {}", found["detail"], found["remedy"]),
    )
}

#[test]
fn a_machine_without_user_namespaces_is_told_which_setting_switches_them_off() {
    let found = doctor(
        &["--user", "--map-root-user"],
        "echo 0 > /proc/sys/user/max_user_namespaces",
    );
    assert_eq!(found["ok"], false);
    let (ok, said) = check(&found, "user namespace");
    assert!(!ok && said.contains("user.max_user_namespaces=0"), "{said}");
}

#[test]
fn a_machine_without_cgroups_is_told_how_to_get_them_or_to_go_without() {
    if !caller_is_root() {
        eprintln!(
            "SKIPPED: hiding a file system takes root; an ordinary user meets the real thing"
        );
        return;
    }
    let hide = "mount -t tmpfs none /sys/fs/cgroup";
    let found = doctor(&["--mount"], hide);
    assert_eq!(found["ok"], false, "nothing falls back silently");
    let (ok, said) = check(&found, "cgroup limits");
    assert!(!ok && said.contains("cgroup_limits"), "{said}");
    assert!(said.contains("Delegate"), "{said}");

    let (ok, _) = check(&doctor(&["--mount"], "true"), "cgroup limits");
    assert!(ok, "it is there when nobody hides it");
}

/// Starts a sandbox that cannot be started; returns what its owner is shown.
async fn refused_start(setup: Setup) -> String {
    let installation = setup.start().await;
    let alice = Account::admin(&installation, "alice").await;
    let target = format!("/me/sandboxes/{}/start", Role::Live);
    alice.control("POST", &target, None).await;
    let view = system_tests::wait::until("the refusal", async || {
        let view = alice.sandbox(Role::Live).await;
        (view["state"] == "failed").then_some(view)
    })
    .await;
    view.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_delegated_cgroups_is_refused_and_says_what_to_do() {
    if !caller_is_root() {
        eprintln!(
            "SKIPPED: whether this user has delegated cgroups is not known; root becomes one without"
        );
        return;
    }
    let setup = Setup::default().identity(Identity::Ordinary);
    let said = refused_start(setup.demand_cgroups()).await;
    assert!(said.contains("no limits by cgroups"), "{said}");
    assert!(said.contains("accept_missing"), "{said}");
    assert!(said.contains("Delegate"), "{said}");
}

/// Takes the processor's controller away, and leaves the others.
const WITHOUT_CPU: &str = "umount /sys/fs/cgroup/cpu";

/// Whether the machine has the controllers in hierarchies of their own, so that one can be taken
/// away alone.
fn can_lose_cpu() -> bool {
    let can = caller_is_root()
        && std::fs::read_to_string("/proc/mounts")
            .unwrap()
            .contains(" /sys/fs/cgroup/cpu cgroup ");
    if !can {
        eprintln!("SKIPPED: taking one controller away takes root and cgroups of version 1");
    }
    can
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_cpu_controller_is_refused_and_says_what_to_do() {
    if !can_lose_cpu() {
        return;
    }
    let (ok, said) = check(&doctor(&["--mount"], WITHOUT_CPU), "cgroup processor time");
    assert!(!ok && said.contains("Delegate=memory pids cpu"), "{said}");
    assert!(said.contains("cgroup_cpu"), "{said}");
    let (ok, said) = check(&doctor(&["--mount"], WITHOUT_CPU), "cgroup limits");
    assert!(ok, "{said}");

    let setup = Setup::default().take_away(WITHOUT_CPU);
    let said = refused_start(setup).await;
    assert!(said.contains("cannot limit processor time"), "{said}");
    assert!(said.contains("Delegate=memory pids cpu"), "{said}");
    assert!(said.contains("cgroup_cpu"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_cpu_controller_goes_on_when_the_configuration_says_so() {
    if !can_lose_cpu() {
        return;
    }
    let accept = "[sandbox]\naccept_missing = [\"cgroup_cpu\"]";
    let setup = Setup::default().take_away(WITHOUT_CPU).config(accept);
    let installation = setup.start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    // And is not silent about it.
    let target = "/me/sandboxes/live/explain";
    let said = alice.control("GET", target, None).await.expect(200).text();
    assert!(said.contains("processor time"), "{said}");
    assert!(said.contains("as much of it as there is"), "{said}");
}

/// The real version 2, with whatever version 1 has left it: neither memory nor pids.
#[test]
fn a_cgroup_of_version_2_without_controllers_says_what_it_has_and_what_to_delegate() {
    if !caller_is_root() {
        eprintln!("SKIPPED: mounting cgroups takes root");
        return;
    }
    let only_unified = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";
    let found = doctor(&["--mount"], only_unified);
    let (ok, said) = check(&found, "cgroup limits");
    if ok {
        eprintln!("SKIPPED: version 2 has every controller here, as every other test sees");
        return;
    }
    assert!(
        said.contains("the cgroup /sys/fs/cgroup has the controllers"),
        "{said}"
    );
    assert!(said.contains("Delegate=memory pids cpu"), "{said}");
}

#[test]
fn a_host_that_takes_no_limits_of_inotify_is_told_whose_hold_instead() {
    if !caller_is_root() {
        eprintln!("SKIPPED: making a part of /proc read-only takes root");
        return;
    }
    const LIMITED: &str = "inotify has limits of a sandbox's own";
    let (ok, _) = check(&doctor(&["--mount"], "true"), LIMITED);
    assert!(ok);
    let read_only = "mount --bind /proc/sys/user /proc/sys/user \
                     && mount -o remount,bind,ro /proc/sys/user";
    let (ok, said) = check(&doctor(&["--mount"], read_only), LIMITED);
    assert!(!ok && said.contains("for all sandboxes together"), "{said}");
}

/// A filter around the hypervisor that listens, so that none of ours can.
fn behind_a_listener(program: &str) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp-listener.py");
    format!("exec python3 {script} {program}")
}

/// A kernel whose Landlock came before its scopes, which are ABI 6 (Linux 6.12).
fn before_scopes(program: &str) -> String {
    behind_a_listener(&format!("--landlock 5 {program}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_scopes_of_landlock_is_refused_unless_the_configuration_says_so() {
    if !caller_is_root() {
        eprintln!("SKIPPED: what runs before a hypervisor here takes root");
        return;
    }
    let program = "\"$0\" --data-dir \"$1\" --port 0 doctor --json";
    let found = doctor(&["--mount"], &before_scopes(program));
    let (ok, said) = check(&found, "Landlock scopes");
    assert!(!ok && said.contains("landlock_scopes"), "{said}");
    assert!(check(&found, "Landlock files").0);
    assert_eq!(found["ok"], false);

    let setup = || Setup::default().take_away(&before_scopes("\"$0\" \"$@\""));
    let said = refused_start(setup()).await;
    assert!(said.contains("Landlock ruleset"), "{said}");
    assert!(said.contains("landlock_scopes"), "{said}");

    let accept = "[sandbox]\naccept_missing = [\"landlock_scopes\"]";
    let installation = setup().config(accept).start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    // And is not silent about it.
    let target = "/me/sandboxes/live/explain";
    let said = alice.control("GET", target, None).await.expect(200).text();
    assert!(said.contains("Landlock's scopes"), "{said}");
    assert!(said.contains("missing on this host"), "{said}");
}

/// Nothing listed is no proof that nothing was tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_count_denied_calls_says_so_and_denies_them() {
    if !caller_is_root() {
        eprintln!("SKIPPED: what runs before a hypervisor here takes root");
        return;
    }
    const COUNTED: &str = "denied system calls are counted";
    let (ok, _) = check(&doctor(&["--mount"], "true"), COUNTED);
    assert!(ok);
    let listener = behind_a_listener("\"$0\" --data-dir \"$1\" --port 0 doctor --json");
    let found = doctor(&["--mount"], &listener);
    let (ok, said) = check(&found, COUNTED);
    assert!(!ok && said.contains("no other seccomp filter"), "{said}");
    let (walls, said) = check(&found, "seccomp");
    assert!(walls, "{said}");

    let setup = Setup::default().take_away(&behind_a_listener("\"$0\" \"$@\""));
    let installation = setup.start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let request = serde_json::json!({ "argv": ["unshare", "--user", "true"] });
    let (code, output) = alice.command(Role::Live, &request).await;
    assert_eq!(code, Some(1), "{output}");
    let target = "/me/sandboxes/live/explain";
    let said = alice.control("GET", target, None).await.expect(200).text();
    assert!(
        said.contains("refused and not counted on this host"),
        "{said}"
    );
}

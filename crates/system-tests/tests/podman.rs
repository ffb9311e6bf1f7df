//! `docs/runbooks/podman-smoke.md`, as it is written.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use system_tests::Binaries;
use system_tests::identity::caller_is_root;

/// The text of a runbook's shell blocks, one after the other.
fn shell_blocks(runbook: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in runbook.lines() {
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, line) => {
                script.push_str(line);
                script.push('\n');
            }
            (false, _) => {}
        }
    }
    script
}

#[test]
fn the_podman_runbook_does_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks/podman-smoke.md");
    let script = shell_blocks(&std::fs::read_to_string(path).unwrap());
    assert!(script.lines().count() > 40, "{script}");
    let work = tempfile::Builder::new()
        .prefix("choir-podman-")
        .tempdir()
        .unwrap();
    // Should a command hang: its end is the test's failure, and the script's own trap cleans up.
    let output = Command::new("timeout")
        .args([
            "--kill-after=20",
            "180",
            "bash",
            "-euo",
            "pipefail",
            "-c",
            &script,
        ])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", work.path())
        .env("BIN", Binaries::find().dir())
        .env("WORK", work.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    for wanted in [
        "\"status\":\"ok\"",
        "\"sandbox_id\":\"smoke\"",
        "<title>",
        "hello from outside",
        "the guest renewed its token",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "interfaces: lo\n",
        "/ ro",
        "/run/choir/channel ro",
        "no provider key inside",
        "exit code 0",
    ] {
        assert!(
            said.contains(wanted),
            "{wanted:?} is not in:\n{said}\n{complained}"
        );
    }
}

/// Podman with storage of its own below `$WORK`, as the runbook has it.
const POD: &str = r#"
pod() {
  podman --root "$WORK/storage" --runroot "$WORK/run" --tmpdir "$WORK/tmp" \
    --storage-driver vfs --events-backend file --cgroup-manager cgroupfs --runtime runc "$@"
}
"#;

/// An image with the hypervisor, its libraries, and what a machine has besides.
const DOCTORS_IMAGE: &str = r#"
for dir in choir/bin etc tmp usr/bin; do mkdir -p "$WORK/image/$dir"; done
strip -o "$WORK/image/choir/bin/hypervisor" "$BIN/hypervisor"
touch "$WORK/image/choir/bin/supervisor" "$WORK/image/choir/bin/sandbox"
ldd "$BIN/hypervisor" | grep -o '/[^ ]*' | while read -r library; do
  install -D "$library" "$WORK/image$library"
done
echo 'choir:x:1000:1000::/tmp:/nonexistent' > "$WORK/image/etc/passwd"
tar -C "$WORK/image" -c . | pod import --quiet \
  --change 'ENTRYPOINT ["/choir/bin/hypervisor"]' --change 'USER 1000:1000' - localhost/doctor:test >&2
"#;

/// What doctor finds in a container that nobody gave any privilege, but for `options`.
const DOCTOR: &str = r#"
pod run --rm --network none --ulimit nofile=4096:4096 --ulimit nproc=2048:2048 $OPTIONS \
  localhost/doctor:test --data-dir /tmp/data --port 0 doctor --json || [ $? = 1 ]
"#;

/// A real container: Podman's own seccomp profile, a masked /proc, read-only cgroups, no root.
/// What doctor says to do about it helps.
#[test]
fn doctor_in_an_unprivileged_container_names_what_is_in_the_way_and_what_helps() {
    if !caller_is_root() {
        eprintln!("SKIPPED: images are built as root here");
        return;
    }
    let work = tempfile::Builder::new()
        .prefix("choir-podman-")
        .tempdir()
        .unwrap();
    let shell = |script: &str, options: &str| {
        let output = Command::new("timeout")
            .args(["--kill-after=20", "120", "bash", "-euo", "pipefail", "-c"])
            .arg(format!("{POD}{script}"))
            .env("BIN", Binaries::find().dir())
            .env("WORK", work.path())
            .env("OPTIONS", options)
            .stdin(Stdio::null())
            .output()
            .expect("bash runs");
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complained}");
        output.stdout
    };
    shell(DOCTORS_IMAGE, "");
    let find = |options: &str| -> Value {
        serde_json::from_slice(&shell(DOCTOR, options)).expect("findings")
    };
    let check = |findings: &Value, name: &str| {
        let all = findings["checks"].as_array().expect("checks");
        let found = all.iter().find(|check| check["name"] == name);
        let found = found.unwrap_or_else(|| panic!("no check {name}: {findings}"));
        let said = format!("{} {}", found["detail"], found["remedy"]);
        (found["ok"] == true, said)
    };

    let bare = find("");
    assert_eq!(bare["ok"], false);
    for name in ["fresh /proc", "nested namespaces"] {
        let (ok, said) = check(&bare, name);
        assert!(!ok && said.contains("hides parts of /proc"), "{said}");
        assert!(said.contains("podman: --security-opt unmask=ALL"), "{said}");
    }
    let (ok, said) = check(&bare, "cgroup limits");
    assert!(!ok && said.contains("is read-only"), "{said}");
    assert!(said.contains("this is probably a container"), "{said}");
    assert!(said.contains("accept_missing"), "{said}");

    let unmasked = find("--security-opt unmask=ALL");
    for name in ["fresh /proc", "nested namespaces", "private root"] {
        let (ok, said) = check(&unmasked, name);
        assert!(ok, "{name}: {said}");
    }
}

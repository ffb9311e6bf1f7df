//! `docs/runbooks/podman-smoke.md`, as it is written.

use std::path::Path;
use std::process::{Command, Stdio};

use system_tests::Binaries;

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

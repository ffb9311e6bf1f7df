//! Snapshot, restore and clone of 1 GB in 20,000 files, next to cp, rsync and tar over the
//! same files in the same run. All of them up to the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::{Account, Response, Setup};
use types::Role;

use super::report::Table;

/// Runs of each.
const RUNS: usize = 3;

/// Files, and the bytes of each: 1 GB together.
const FILES: usize = 20_000;
const BYTES: usize = 50_000;

/// Makes the files inside the sandbox, two hundred in a directory.
const FILL: &str = "import os, sys
files, size = int(sys.argv[1]), int(sys.argv[2])
for n in range(files):
    d = '/workspace/tree/%03d' % (n // 200)
    os.makedirs(d, exist_ok=True)
    with open('%s/%d' % (d, n), 'wb') as f:
        f.write(os.urandom(size))
";

/// How long one copy, or the removal of one, may take on a busy disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

const COLUMNS: &[&str] = &[
    "what",
    "run",
    "took_ms",
    "frozen_ms",
    "down_ms",
    "reflinked",
];

pub(crate) async fn run() -> Vec<Table> {
    let installation = Setup::default()
        .config("[sandbox.snapshots]\nmax_bytes = 1099511627776")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
    }
    let fill = json!({ "argv": ["python3", "-c", FILL, FILES.to_string(), BYTES.to_string()] });
    let (code, output) = alice.command(Role::Live, &fill).await;
    assert_eq!(code, Some(0), "{output}");
    let live = alice.sandbox(Role::Live).await["id"].to_string();
    let state = installation
        .data_dir()
        .join("sandboxes")
        .join(live.trim_matches('"'))
        .join("state");

    let mut table = Table::new(
        "copies",
        format!("Copies of {FILES} files of {BYTES} bytes, up to the disk"),
        COLUMNS,
    );
    for run in 1..=RUNS {
        let snapshots = "/me/sandboxes/live/snapshots";
        let taken = copying(&alice, snapshots).await;
        let id = taken["snapshot"]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        table.push(row("snapshot, running", run, &taken));
        let one = format!("{snapshots}/{id}");
        let restored = copying(&alice, &format!("{one}/restore")).await;
        table.push(row("restore, running", run, &restored));
        let cloned = copying(&alice, "/me/sandboxes/clone").await;
        table.push(row("clone, both running", run, &cloned));
        for (role, outcome) in [
            (Role::Live, &taken),
            (Role::Live, &restored),
            (Role::Dev, &cloned),
        ] {
            let id = outcome["snapshot"]["id"].as_str().unwrap_or_default();
            let target = format!("/me/sandboxes/{role}/snapshots/{id}");
            ask(&alice, Ask::new("DELETE", "localhost", &target))
                .await
                .expect(204);
        }
        for (what, script) in [
            (
                "cp -a --reflink=auto",
                "cp -a --reflink=auto \"$0/.\" \"$1\"",
            ),
            ("rsync -a", "rsync -a \"$0/\" \"$1/\""),
            ("tar | tar", "tar -C \"$0\" -cf - . | tar -C \"$1\" -xpf -"),
        ] {
            if let Some(took_ms) = peer(script, &state, &installation.data_dir()) {
                table.push(json!({ "what": what, "run": run, "took_ms": took_ms }));
            }
        }
    }
    vec![table]
}

fn row(what: &str, run: usize, outcome: &Value) -> Value {
    json!({
        "what": what, "run": run, "took_ms": outcome["took_ms"], "frozen_ms": outcome["frozen_ms"],
        "down_ms": outcome["down_ms"], "reflinked": outcome["reflinked"],
    })
}

/// A call on the control origin that takes as long as the disk does.
async fn ask(alice: &Account, ask: Ask) -> Response {
    let control = format!("http://localhost:{}", alice.client.port());
    alice
        .client
        .send_within(ANSWER_WITHIN, ask.same_origin(&control))
        .await
}

async fn copying(alice: &Account, target: &str) -> Value {
    let answer = ask(
        alice,
        Ask::new("POST", "localhost", target).json(&json!({})),
    )
    .await;
    let text = answer.expect(200).text();
    let last: Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a line of JSON");
    assert_eq!(last["event"], "done", "{last:#}");
    last
}

/// How long a program takes for the same files, in milliseconds; `None` where there is none.
fn peer(script: &str, from: &Path, beside: &Path) -> Option<u64> {
    let program = script.split(' ').next().unwrap_or_default();
    let found =
        std::env::split_paths(&std::env::var_os("PATH")?).any(|dir| dir.join(program).exists());
    if !found {
        return None;
    }
    let to: PathBuf = beside.join("peer");
    std::fs::create_dir(&to).expect("a directory for a peer");
    let began = Instant::now();
    let done = Command::new("sh")
        .args(["-c", &format!("{script} && sync -f \"$1\"")])
        .args([from, &to])
        .status()
        .expect("a shell");
    let took = began.elapsed();
    assert!(done.success(), "{script}");
    std::fs::remove_dir_all(&to).expect("a peer's copy can be removed");
    u64::try_from(took.as_millis()).ok()
}

//! What a neighbour notices of each bomb: its latency through the proxy while nothing else
//! happens and while another user's sandbox does its worst, in the same run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::wait::until;
use system_tests::{Account, Setup};
use types::Role;

/// How long each bomb goes on, and how long the quiet before it is measured.
const FOR: Duration = Duration::from_secs(6);

/// Wall time of a bomb, in milliseconds: longer than it is measured, so that it is there all
/// the while.
const WALL_MS: u64 = 8_000;

/// What bounds the bombs. Without limits of processor time, as by default.
const LIMITS: &str = r#"
[sandbox.limits]
processes = 256
memory = "256 MiB"
sandbox_disk = "256 MiB"
"#;

/// Each bomb, by name, as a program that begins again as long as it is let.
const BOMBS: &[(&str, &[&str])] = &[
    (
        "fork bomb",
        &[
            "bash",
            "-c",
            "b() { b | b & }; while :; do b 2>/dev/null; sleep 0.1; done",
        ],
    ),
    (
        "memory bomb",
        &[
            "sh",
            "-c",
            "while :; do python3 -c 'x = bytearray(1 << 30)'; done 2>/dev/null",
        ],
    ),
    (
        "disk fill",
        &[
            "sh",
            "-c",
            "n=0; while :; do n=$((n+1)); head -c 20M /dev/zero > /workspace/fill$n; sleep 0.1; done",
        ],
    ),
    (
        "descriptors",
        &[
            "python3",
            "-c",
            "import os\nwhile True:\n    fds = []\n    try:\n        while True: fds.append(os.open('/dev/null', 0))\n    except OSError: pass\n    for fd in fds: os.close(fd)",
        ],
    ),
    (
        "inotify",
        &[
            "python3",
            "-c",
            "import ctypes, os\nlibc = ctypes.CDLL(None)\nwhile True:\n    fds = []\n    while (fd := libc.inotify_init()) >= 0: fds.append(fd)\n    for fd in fds: os.close(fd)",
        ],
    ),
    ("log flood", &["yes", "a line of a flood"]),
    (
        "busy processors",
        &[
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait",
        ],
    ),
];

/// Measures everything and shows it.
pub(crate) async fn run(as_json: bool) {
    let rows = measure().await;
    if as_json {
        println!("{}", Value::Array(rows));
    } else {
        show(&rows);
    }
}

/// A row per bomb: the neighbour's latencies and whether the bomb was ended by a limit.
pub(crate) async fn measure() -> Vec<Value> {
    let installation = Setup::default().config(LIMITS).start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    for account in [&alice, &bob] {
        account.start(Role::Live).await;
        account.enter(Role::Live).await;
    }
    let mut rows = Vec::new();
    for (name, argv) in BOMBS {
        let mut quiet = latencies(&bob).await;
        // Detached: what a flood prints is not read by anybody.
        let request = json!({ "argv": argv, "limits": { "wall_ms": WALL_MS }, "detach": true });
        let begun = alice
            .control("POST", "/me/sandboxes/live/commands", Some(request))
            .await
            .expect(201)
            .json();
        let path = format!(
            "/me/sandboxes/live/commands/{}",
            begun["id"].as_str().expect("an id")
        );
        let mut under = latencies(&bob).await;
        let exit = until("the end of the bomb", async || {
            let view = alice.control("GET", &path, None).await.expect(200).json();
            view.get("exit").filter(|exit| !exit.is_null()).cloned()
        })
        .await;
        let (quiet_p99, under_p99) = (percentile(&mut quiet, 99), percentile(&mut under, 99));
        rows.push(json!({
            "bomb": name,
            "quiet_p50_ms": percentile(&mut quiet, 50),
            "quiet_p99_ms": quiet_p99,
            "under_p50_ms": percentile(&mut under, 50),
            "under_p99_ms": under_p99,
            "p99_ratio": (under_p99 / quiet_p99.max(0.01) * 100.0).round() / 100.0,
            "requests": under.len(),
            "limit": exit.get("limit").cloned().unwrap_or_default(),
        }));
        tidy_up(&alice).await;
    }
    rows
}

/// Deletes what the disk bomb left: in a terminal, which a sandbox over its limit still opens,
/// of a guest that may have been stopped as well.
async fn tidy_up(alice: &Account) {
    until("room on the disk", async || {
        let start = "/me/sandboxes/live/start";
        alice.control("POST", start, Some(json!({}))).await;
        let remove = json!({
            "argv": ["sh", "-c", "rm -f /workspace/fill*"],
            "terminal": { "cols": 80, "rows": 24 },
        });
        let path = "/me/sandboxes/live/commands";
        alice.control("POST", path, Some(remove)).await;
        let probe = json!({ "argv": ["true"] });
        let answer = alice.control("POST", path, Some(probe)).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Asks one request after the other, in milliseconds each.
async fn latencies(neighbour: &Account) -> Vec<f64> {
    let until = Instant::now() + FOR;
    let mut seen = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let answer = neighbour.runtime(Role::Live, "GET", "/health", None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        seen.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    seen
}

/// A percentile in hundredths of a millisecond.
fn percentile(seen: &mut [f64], part: usize) -> f64 {
    seen.sort_by(f64::total_cmp);
    let at = (seen.len() * part / 100).min(seen.len().saturating_sub(1));
    (seen[at] * 100.0).round() / 100.0
}

/// The rows for people.
pub(crate) fn show(rows: &[Value]) {
    println!("A neighbour's GET /health through the proxy, in milliseconds\n");
    println!(
        "{:<16} {:>9} {:>9} {:>9} {:>9} {:>9}  limit met",
        "bomb", "quiet p50", "p99", "under p50", "p99", "p99 ratio"
    );
    for row in rows {
        let limit = row["limit"]["resource"].as_str().unwrap_or("none");
        println!(
            "{:<16} {:>9} {:>9} {:>9} {:>9} {:>9}  {limit}",
            row["bomb"].as_str().unwrap_or_default(),
            row["quiet_p50_ms"],
            row["quiet_p99_ms"],
            row["under_p50_ms"],
            row["under_p99_ms"],
            row["p99_ratio"],
        );
    }
}

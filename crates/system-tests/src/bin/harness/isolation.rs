//! What the walls cost: a runner's `true` and the start of a sandbox, next to bubblewrap
//! and crun with the same view of the files, in the same run and in turns, so that whatever
//! else the machine does meets everybody.

mod peers;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::walls::Sandbox;
use system_tests::{Account, Identity, Setup, wait};
use types::Role;

use peers::{Bubblewrap, Crun};

/// Measurements of each contender, and those before them that are not counted.
const COMMANDS: usize = 200;
const STARTS: usize = 20;
const WARM_UP: usize = 5;

/// Pause between two looks at a guest that is starting.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// The program that does nothing.
const TRUE: &str = "/usr/bin/true";

/// Somebody who is measured: its name, and how long each time took.
struct Contender {
    name: &'static str,
    took: Vec<Duration>,
}

impl Contender {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            took: Vec::new(),
        }
    }
}

/// Measures everything and shows it.
pub(crate) async fn run(as_json: bool) {
    let commands = commands().await;
    let starts = starts();
    let bombs = crate::bombs::measure().await;
    if as_json {
        println!(
            "{}",
            json!({ "commands": table(&commands), "starts": table(&starts), "bombs": bombs })
        );
        return;
    }
    println!(
        "`true` in fresh walls until its exit is known, {COMMANDS} times each, in milliseconds"
    );
    show(&commands);
    println!();
    println!(
        "The same guest in fresh walls until it answers for its health, {STARTS} times each, in milliseconds"
    );
    show(&starts);
    println!();
    crate::bombs::show(&bombs);
}

/// A runner's `true`: asked of the supervisor, asked of the hypervisor, and of the peers.
async fn commands() -> Vec<Contender> {
    let sandbox = Sandbox::idle(Identity::Caller);
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let bubblewrap = Bubblewrap::new();
    let mut crun = Crun::new();

    let mut contenders = vec![
        Contender::new("bwrap --unshare-all"),
        Contender::new("runner, supervisor asked"),
        Contender::new("runner, hypervisor asked"),
    ];
    if crun.is_some() {
        contenders.push(Contender::new("crun run"));
    }
    let request = json!({ "argv": [TRUE] });
    for round in 0..WARM_UP + COMMANDS {
        for (at, contender) in contenders.iter_mut().enumerate() {
            let begun = Instant::now();
            match at {
                0 => bubblewrap.run(&[TRUE]),
                1 => assert_eq!(sandbox.run(&[TRUE]).exit.code, Some(0), "true"),
                2 => assert_eq!(alice.command(Role::Live, &request).await.0, Some(0), "true"),
                _ => crun.as_mut().expect("crun").run_true(),
            }
            if round >= WARM_UP {
                contender.took.push(begun.elapsed());
            }
        }
    }
    contenders
}

/// A sandbox from nothing to health: supervisor, guest and workbench, against one set of
/// walls around the same guest.
fn starts() -> Vec<Contender> {
    let mut contenders = vec![
        Contender::new("bwrap --unshare-all"),
        Contender::new("supervisor"),
    ];
    let crun = Crun::new();
    if crun.is_some() {
        contenders.push(Contender::new("crun run"));
    }
    for _ in 0..STARTS {
        for (at, contender) in contenders.iter_mut().enumerate() {
            let took = match at {
                0 => peers::start_in_bubblewrap(),
                1 => start_supervised(),
                _ => crun.as_ref().expect("crun").start_guest(),
            };
            contender.took.push(took);
        }
    }
    contenders
}

fn start_supervised() -> Duration {
    let begun = Instant::now();
    let sandbox = Sandbox::guest(Identity::Caller);
    await_health(&sandbox.start_dir().join("app/app.sock"));
    begun.elapsed()
}

/// Waits until a guest answers for its health on its app socket.
fn await_health(socket: &Path) {
    let deadline = Instant::now() + wait::PATIENCE;
    while !is_healthy(socket) {
        assert!(Instant::now() < deadline, "the guest did not get healthy");
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_healthy(socket: &Path) -> bool {
    // Through a directory descriptor: the name may be longer than a socket address.
    let ask = || -> std::io::Result<String> {
        use std::os::fd::AsRawFd as _;
        let dir = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
        let path = format!("/proc/self/fd/{}/app.sock", dir.as_raw_fd());
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// One row per contender; the first is who the others are compared with.
fn table(contenders: &[Contender]) -> Vec<Value> {
    let mut base = None;
    contenders
        .iter()
        .map(|contender| {
            let mut took: Vec<f64> = contender
                .took
                .iter()
                .map(|took| took.as_secs_f64() * 1000.0)
                .collect();
            took.sort_by(f64::total_cmp);
            let (least, median) = (took[0], took[took.len() / 2]);
            let p99 = took[(took.len() * 99 / 100).min(took.len() - 1)];
            let base = *base.get_or_insert(median);
            json!({
                "who": contender.name,
                "times": took.len(),
                "min_ms": hundredths(least),
                "p50_ms": hundredths(median),
                "p99_ms": hundredths(p99),
                "ratio_to_bwrap": hundredths(median / base),
            })
        })
        .collect()
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn show(contenders: &[Contender]) {
    println!(
        "{:<28} {:>8} {:>8} {:>8} {:>14}",
        "", "least", "median", "p99", "ratio to bwrap"
    );
    for row in table(contenders) {
        println!(
            "{:<28} {:>8} {:>8} {:>8} {:>14}",
            row["who"].as_str().unwrap_or_default(),
            row["min_ms"].to_string(),
            row["p50_ms"].to_string(),
            row["p99_ms"].to_string(),
            row["ratio_to_bwrap"].to_string(),
        );
    }
}

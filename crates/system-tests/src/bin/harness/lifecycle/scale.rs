//! What sandboxes cost as their number grows, and how long taking them over takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use rustix::process::Signal;
use serde_json::json;
use system_tests::processes::Process;
use system_tests::{Account, Installation, Setup};
use types::Role;

use super::peers;
use super::report::{Table, quantile, two_digits};

/// Running sandboxes at which the cost is read.
const NUMBERS: &[usize] = &[10, 50, 100];

/// Idle guests of each that are compared with peers.
const PEERS: usize = 10;

/// Stopped sandboxes beside none running.
const STOPPED: usize = 1000;

/// How long everything is left alone before it is read.
const SETTLE: Duration = Duration::from_secs(5);

/// How long idling is watched for wake-ups and processor time.
const WATCH: Duration = Duration::from_secs(10);

/// Requests under way at the same time while the scene is set.
const AT_ONCE: usize = 4;

/// Clock ticks per second of `/proc/PID/stat`.
const TICKS: f64 = 100.0;

/// What processes hold at one moment.
#[derive(Default, Clone, Copy)]
struct Held {
    pss_kib: u64,
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
    ticks: u64,
    switches: u64,
}

impl Held {
    fn by(processes: &[Process]) -> Self {
        let mut held = Self::default();
        for process in processes {
            let (pss, rss) = process.memory_kib().unwrap_or_default();
            let usage = process.usage().unwrap_or_default();
            held.pss_kib += pss;
            held.rss_kib += rss;
            held.descriptors += usage.descriptors;
            held.threads += usage.threads;
            held.ticks += usage.cpu_ticks;
            held.switches += usage.context_switches;
        }
        held
    }
}

pub(crate) async fn run() -> Vec<Table> {
    let most = *NUMBERS.last().expect("a number");
    let limits = format!("[sandbox]\nidle_stop = \"never\"\nlimits.running_per_host = {most}\n");
    let mut installation = Setup::default()
        .config(&limits)
        .leave_running()
        .start()
        .await;
    let admin = Account::admin(&installation, "user0").await;
    tokio::time::sleep(SETTLE).await;
    let empty = Held::by(&[installation.process()]);
    let mut people = vec![admin];
    let mut cost = Table::new(
        "scale",
        "Running idle sandboxes: memory in KiB (Pss divides shared pages among those who share \
         them), open descriptors, and what idling costs",
        &[
            "sandboxes",
            "pss_per_sandbox_kib",
            "rss_per_sandbox_kib",
            "descriptors_per_sandbox",
            "processes_per_sandbox",
            "hypervisor_pss_kib",
            "hypervisor_descriptors",
            "pss_in_all_mib",
            "cpu_ms_per_s",
            "wakeups_per_s_and_sandbox",
        ],
    );
    for number in NUMBERS {
        populate(&installation, &mut people, number / 2).await;
        start_all(&people).await;
        tokio::time::sleep(SETTLE).await;
        cost.push(read(&installation, *number, empty).await);
    }
    let mut taking_over = Table::new(
        "adoption",
        "From starting the hypervisor again after kill -9 until it is ready and has every sandbox",
        &["sandboxes", "ready_ms", "adopted", "restarted"],
    );
    taking_over.push(take_over(&mut installation, &people, most).await);
    stop_all(&people).await;
    let beside = beside(&installation, &people[..PEERS / 2]).await;
    let stopped = stopped(&mut installation, &mut people, empty).await;
    vec![cost, beside, taking_over, stopped]
}

/// So many of ours and then of each peer, one after the other: guests of the same program share
/// its pages only with their own kind.
async fn beside(installation: &Installation, people: &[Account]) -> Table {
    let mut table = Table::new(
        "idle_peers",
        format!(
            "{PEERS} idle guests of each, with everything that keeps them; `ours_times`: how many times the peer's Pss ours is"
        ),
        &[
            "what",
            "pss_per_sandbox_kib",
            "rss_per_sandbox_kib",
            "descriptors_per_sandbox",
            "processes_per_sandbox",
            "ours_times",
        ],
    );
    let row = |what: &str, (held, processes): (Held, usize), ours_times| {
        json!({
            "what": what,
            "pss_per_sandbox_kib": held.pss_kib / PEERS as u64,
            "rss_per_sandbox_kib": held.rss_kib / PEERS as u64,
            "descriptors_per_sandbox": held.descriptors / PEERS,
            "processes_per_sandbox": processes / PEERS,
            "ours_times": ours_times,
        })
    };
    let read = |processes: &[Process]| (Held::by(processes), processes.len());
    start_all(people).await;
    tokio::time::sleep(SETTLE).await;
    let ours = read(&installation.others());
    stop_all(people).await;
    table.push(row("sandbox", ours, None));
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let float = |value: u64| value as f64;
    for (peer, held) in peers::idle(installation.binaries(), PEERS, SETTLE, read).await {
        let times = two_digits(float(ours.0.pss_kib) / float(held.0.pss_kib));
        table.push(row(peer, held, Some(times)));
    }
    table
}

/// Registers people until there are this many.
async fn populate(installation: &Installation, people: &mut Vec<Account>, wanted: usize) {
    let admin = &people[0];
    let more: Vec<Account> = stream::iter(people.len()..wanted)
        .map(|number| async move {
            Account::invited(installation, admin, &format!("user{number}")).await
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    people.extend(more);
}

async fn start_all(people: &[Account]) {
    stream::iter(people)
        .for_each_concurrent(AT_ONCE, async |person| {
            for role in Role::ALL {
                person.start(role).await;
            }
        })
        .await;
}

async fn stop_all(people: &[Account]) {
    stream::iter(people)
        .for_each_concurrent(AT_ONCE, async |person| {
            for role in Role::ALL {
                person.stop(role).await;
            }
        })
        .await;
}

async fn read(installation: &Installation, number: usize, empty: Held) -> serde_json::Value {
    let hypervisor = [installation.process()];
    let others = installation.others();
    let before = Held::by(&others);
    let host_before = Held::by(&hypervisor);
    tokio::time::sleep(WATCH).await;
    let after = Held::by(&others);
    let host = Held::by(&hypervisor);
    let per = |total: u64| total / number as u64;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let float = |value: u64| value as f64;
    let seconds = WATCH.as_secs_f64();
    let ticks = (after.ticks - before.ticks) + (host.ticks - host_before.ticks);
    let wakeups = after.switches.saturating_sub(before.switches);
    json!({
        "sandboxes": number,
        "pss_per_sandbox_kib": per(after.pss_kib),
        "rss_per_sandbox_kib": per(after.rss_kib),
        "descriptors_per_sandbox": after.descriptors / number,
        "processes_per_sandbox": others.len() / number,
        "threads_per_sandbox": after.threads / number,
        "hypervisor_pss_kib": host.pss_kib,
        "hypervisor_pss_per_sandbox_kib": per(host.pss_kib.saturating_sub(empty.pss_kib)),
        "hypervisor_descriptors": host.descriptors,
        "hypervisor_descriptors_per_sandbox":
            host.descriptors.saturating_sub(empty.descriptors) / number,
        "pss_in_all_mib": (after.pss_kib + host.pss_kib) / 1024,
        "cpu_ms_per_s": float(ticks) * 1000.0 / TICKS / seconds,
        "wakeups_per_s_and_sandbox": float(wakeups) / seconds / float(number as u64),
    })
}

async fn take_over(
    installation: &mut Installation,
    people: &[Account],
    number: usize,
) -> serde_json::Value {
    let before: BTreeSet<Process> = installation.supervisors().into_iter().collect();
    installation.end(Signal::KILL);
    let begun = Instant::now();
    installation.spawn().await;
    let ready = begun.elapsed();
    let mut running = 0;
    for person in people {
        for role in Role::ALL {
            running += usize::from(person.sandbox(role).await["state"] == "running");
        }
    }
    let after: BTreeSet<Process> = installation.supervisors().into_iter().collect();
    json!({
        "sandboxes": number,
        "ready_ms": ready.as_secs_f64() * 1000.0,
        "adopted": running,
        "restarted": after.difference(&before).count(),
    })
}

/// A thousand sandboxes of which none runs: rows, and the directories that a first start makes.
async fn stopped(installation: &mut Installation, people: &mut Vec<Account>, empty: Held) -> Table {
    populate(installation, people, STOPPED / 2).await;
    let mut sandboxes = Vec::new();
    for person in people.iter() {
        for role in Role::ALL {
            let view = person.sandbox(role).await;
            sandboxes.push(view["id"].as_str().expect("an id").to_owned());
        }
    }
    let all = installation.data_dir().join("sandboxes");
    let template = all.join(&sandboxes[0]);
    for sandbox in &sandboxes {
        let own = all.join(sandbox);
        if !own.exists() {
            copy_tree(&template, &own).expect("a copy of a stopped sandbox");
        }
    }
    let disk = disk_bytes(&all) / sandboxes.len() as u64;
    let mut ready = Vec::new();
    for _ in 0..3 {
        installation.end(Signal::TERM);
        let begun = Instant::now();
        installation.spawn().await;
        ready.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    tokio::time::sleep(SETTLE).await;
    let host = Held::by(&[installation.process()]);
    let mut table = Table::new(
        "stopped",
        "Stopped sandboxes, after a restart of the hypervisor; `empty` is one user after \
         registration",
        &[
            "sandboxes",
            "processes",
            "hypervisor_pss_kib",
            "hypervisor_descriptors",
            "disk_kib_per_sandbox",
            "ready_ms",
        ],
    );
    table.push(json!({
        "sandboxes": "empty",
        "processes": 0,
        "hypervisor_pss_kib": empty.pss_kib,
        "hypervisor_descriptors": empty.descriptors,
    }));
    table.push(json!({
        "sandboxes": sandboxes.len(),
        "processes": installation.others().len(),
        "hypervisor_pss_kib": host.pss_kib,
        "hypervisor_descriptors": host.descriptors,
        "disk_kib_per_sandbox": disk / 1024,
        "ready_ms": quantile(&mut ready, 0.5),
    }));
    table
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Blocks on disk below a directory, in bytes.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        total += metadata.blocks() * 512;
        if metadata.is_dir() {
            total += disk_bytes(&entry.path());
        }
    }
    total
}

//! How long a start takes, and what idling costs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::processes::Process;
use system_tests::{Account, Setup};
use types::Role;

/// Cold starts that are measured.
const STARTS: usize = 10;

/// How long everything is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// Starts and stops one sandbox several times.
pub(crate) async fn start(as_json: bool) {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        alice.start(Role::Live).await;
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
        alice.stop(Role::Live).await;
    }
    // The very first start also makes the directories.
    let first = took[0];
    took.sort_by(f64::total_cmp);
    let (least, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
    if as_json {
        println!(
            "{}",
            json!({ "starts": STARTS, "first_ms": first, "min_ms": least, "p50_ms": median, "max_ms": most })
        );
        return;
    }
    println!("Cold start of a sandbox until it is healthy, {STARTS} starts, in milliseconds");
    println!(
        "{:>8} {:>8} {:>8} {:>8}",
        "first", "least", "median", "most"
    );
    println!("{first:>8.0} {least:>8.0} {median:>8.0} {most:>8.0}");
}

/// Reads the memory of an idle hypervisor, without and with one idle sandbox.
pub(crate) async fn memory(as_json: bool) {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    tokio::time::sleep(SETTLE).await;
    let hypervisor = installation.process();
    let alone = kib(hypervisor);
    alice.start(Role::Live).await;
    tokio::time::sleep(SETTLE).await;
    let with_one = kib(hypervisor);
    let sandbox: Vec<Value> = installation
        .others()
        .into_iter()
        .map(|process| {
            let (pss, rss) = kib(process);
            json!({ "process": process.command_line(), "pss_kib": pss, "rss_kib": rss })
        })
        .collect();
    let total = |key: &str| {
        sandbox
            .iter()
            .filter_map(|one| one[key].as_u64())
            .sum::<u64>()
    };
    let result = json!({
        "hypervisor_idle": { "pss_kib": alone.0, "rss_kib": alone.1 },
        "hypervisor_with_one_sandbox": { "pss_kib": with_one.0, "rss_kib": with_one.1 },
        "sandbox_idle": { "pss_kib": total("pss_kib"), "rss_kib": total("rss_kib"), "processes": sandbox },
    });
    if as_json {
        println!("{result}");
        return;
    }
    println!("Resident memory in KiB; `shared` divides what several processes share among them");
    println!("{:<44} {:>8} {:>8}", "", "shared", "resident");
    let line = |name: &str, pss: &Value, rss: &Value| {
        println!("{name:<44} {:>8} {:>8}", pss.to_string(), rss.to_string());
    };
    for (name, key) in [
        ("hypervisor, idle", "hypervisor_idle"),
        (
            "hypervisor, one idle sandbox",
            "hypervisor_with_one_sandbox",
        ),
    ] {
        line(name, &result[key]["pss_kib"], &result[key]["rss_kib"]);
    }
    line(
        "idle sandbox, all its processes",
        &result["sandbox_idle"]["pss_kib"],
        &result["sandbox_idle"]["rss_kib"],
    );
    for one in &sandbox {
        let name: String = one["process"]
            .as_str()
            .unwrap_or_default()
            .chars()
            .take(40)
            .collect();
        line(&format!("  {name}"), &one["pss_kib"], &one["rss_kib"]);
    }
}

fn kib(process: Process) -> (u64, u64) {
    process.memory_kib().unwrap_or_default()
}

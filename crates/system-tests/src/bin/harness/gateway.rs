//! Model calls through the gateway and through others, to one upstream in a process of its
//! own, in the same run.

mod client;
mod places;
mod shown;
mod train;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};
use system_tests::{Account, Setup};
use types::Role;

pub(crate) use client::caller;
use client::{Load, Seen, load, load_apart};
use places::{Place, Upstream};
pub(crate) use train::train;

/// The load before a measurement that is not counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// What is measured: name, connections, streamed.
const LOADS: [(&str, usize, bool); 5] = [
    ("plain", 1, false),
    ("plain", 16, false),
    ("plain", 64, false),
    ("stream", 1, true),
    ("stream", 16, true),
];

/// Who stands in front of the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Who {
    /// What everything is compared with.
    Nginx,
    /// ChoirOS.
    Gateway,
    /// LiteLLM's proxy.
    Litellm,
    /// Portkey's gateway.
    Portkey,
}

/// Measures everything and shows it. Fails when a call failed that we answer for.
pub(crate) async fn run(seconds: Duration, only: &[Who], as_json: bool) -> ExitCode {
    let wanted = |who| only.is_empty() || only.contains(&who);
    let upstream = Upstream::start("bench", None);
    let other = Upstream::start("quiet", None);
    let installation = Setup::default()
        .hostile_guest()
        .config(&Upstream::config(&[&upstream, &other]))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    for account in [&alice, &bob] {
        account.start(Role::Live).await;
        account.enter(Role::Live).await;
    }
    let mut neighbours = vec![Place::gateway(&installation, &bob, &other).await];
    let mut places = vec![upstream.place()];
    if wanted(Who::Nginx) {
        let (place, neighbour) = upstream.nginx(&other, installation.scratch());
        places.push(place);
        neighbours.push(neighbour);
    }
    if wanted(Who::Gateway) {
        let mut place = Place::gateway(&installation, &alice, &upstream).await;
        // The gateway is there for several sandboxes, and each keeps to one of its threads.
        let second = Place::gateway(&installation, &bob, &upstream).await;
        place.second = Some(Box::new(second));
        places.push(place);
    }
    if wanted(Who::Litellm) {
        places.extend(upstream.litellm(installation.scratch()));
    }
    if wanted(Who::Portkey) {
        places.extend(upstream.portkey(installation.scratch()));
    }
    let mut rows: Vec<Value> = Vec::new();
    for (name, connections, streamed) in LOADS {
        let what = Load {
            connections,
            streamed,
            shared: true,
        };
        let first = rows.len();
        for place in &places {
            let warm = load(place, what, WARM_UP).await;
            let before = place.ticks();
            let mut seen = load(place, what, seconds).await;
            let cpu = place.ticks() - before;
            seen.errors += warm.errors;
            seen.failed_with = warm.failed_with.or(seen.failed_with);
            let row = row(place, what, name, &seen, cpu, seconds);
            rows.push(compared(row, &rows[first..]));
        }
    }
    let mut after = Vec::new();
    for place in places.iter().skip(1) {
        let Some(neighbour) = neighbours.iter().find(|other| other.name == place.name) else {
            continue;
        };
        after.push(long(place, seconds * 2).await);
        after.push(fairness(place, neighbour, seconds).await);
    }
    let targets = shown::targets(&rows, &after);
    let failures = shown::failures(&rows, &after);
    if as_json {
        println!(
            "{}",
            json!({ "rows": rows, "after": after, "targets": targets, "failures": failures })
        );
    } else {
        shown::show(&rows, &after, &targets, seconds);
    }
    for failure in &failures {
        eprintln!("CALLS FAILED: {failure}");
    }
    // A peer that fails is the peer's business; its row says so.
    let ours =
        |failure: &&String| !failure.starts_with("litellm") && !failure.starts_with("portkey");
    match failures.iter().find(ours) {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

fn micros(seconds: f64) -> f64 {
    (seconds * 1e6).round()
}

fn row(
    place: &Place,
    what: Load,
    name: &str,
    seen: &Seen,
    cpu: Duration,
    within: Duration,
) -> Value {
    json!({
        "load": name,
        "connections": what.connections,
        "place": place.name,
        "per_second": seen.per_second(within).round(),
        "p50_us": micros(seen.p50()),
        "p99_us": micros(seen.p99()),
        "first_byte_p50_us": micros(seen.first_p50()),
        "cpu_us": (cpu.as_secs_f64() * 1e7 / seen.count().max(1) as f64).round() / 10.0,
        "rss_mib": place.rss_mib(),
        "errors": seen.errors,
        "failed_with": seen.failed_with,
    })
}

/// Adds how a row compares with the upstream's own and with nginx's under the same load.
fn compared(mut row: Value, others: &[Value]) -> Value {
    let of = |place: &str| others.iter().find(|other| other["place"] == place);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_default();
    if let Some(direct) = of("upstream") {
        for (added, key) in [
            ("added_p50_us", "p50_us"),
            ("added_first_byte_us", "first_byte_p50_us"),
        ] {
            row[added] = json!(number(&row, key) - number(direct, key));
        }
    }
    if let Some(nginx) = of("nginx") {
        for key in ["per_second", "p50_us", "p99_us", "cpu_us", "rss_mib"] {
            let ratio = number(&row, key) / number(nginx, key);
            row["to_nginx"][key] = json!((ratio * 100.0).round() / 100.0);
        }
    }
    row
}

/// Memory after a load that goes on for longer.
async fn long(place: &Place, within: Duration) -> Value {
    let what = Load {
        connections: 64,
        streamed: false,
        shared: true,
    };
    let seen = load(place, what, within).await;
    json!({
        "what": "memory", "place": place.name, "rss_mib": place.rss_mib(),
        "after_s": within.as_secs(), "errors": seen.errors, "failed_with": seen.failed_with,
    })
}

/// What one caller notices of another one's calls. The one that is measured is a process of its
/// own and calls an upstream of its own: what is left in common is the gateway and the machine.
async fn fairness(loud: &Place, neighbour: &Place, within: Duration) -> Value {
    let one = Load {
        connections: 1,
        streamed: false,
        shared: false,
    };
    let many = Load {
        connections: 64,
        ..one
    };
    load_apart(neighbour, one, WARM_UP).await;
    let quiet = load_apart(neighbour, one, within).await;
    let (hammer, beside) = tokio::join!(
        load(loud, many, within + WARM_UP),
        load_apart(neighbour, one, within)
    );
    json!({
        "what": "fairness", "place": loud.name,
        "quiet_p50_us": micros(quiet.p50()), "quiet_p99_us": micros(quiet.p99()),
        "beside_p50_us": micros(beside.p50()), "beside_p99_us": micros(beside.p99()),
        "ratio_p99": (beside.p99() / quiet.p99() * 100.0).round() / 100.0,
        "errors": quiet.errors + hammer.errors + beside.errors,
        "failed_with": quiet.failed_with.or(hammer.failed_with).or(beside.failed_with),
    })
}

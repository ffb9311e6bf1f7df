//! Model calls through the gateway and through others, to one upstream in a process of its
//! own, in the same run.

mod client;
mod places;

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::processes::Process;
use system_tests::{Account, Setup};
use types::Role;

use client::{Load, Seen, load};
use places::{Place, Upstream};

/// How long each measurement goes on, and the load before it that is not counted.
const FOR: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);

/// Load after which the gateway's memory is read.
const LONG: Duration = Duration::from_secs(10);

/// What is measured: name, connections, streamed.
const LOADS: [(&str, usize, bool); 4] = [
    ("plain", 1, false),
    ("plain", 16, false),
    ("plain", 64, false),
    ("stream", 16, true),
];

/// Measures everything and shows it.
pub(crate) async fn run(as_json: bool) {
    let upstream = Upstream::start();
    let installation = Setup::default()
        .hostile_guest()
        .config(&upstream.config())
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    for account in [&alice, &bob] {
        account.start(Role::Live).await;
        account.enter(Role::Live).await;
    }
    let hypervisor = installation.process();
    let of = async |account| Place::gateway(&installation, account, hypervisor).await;
    let (gateway, neighbour) = (of(&alice).await, of(&bob).await);
    let mut places = vec![
        upstream.place(),
        upstream.nginx(installation.scratch()),
        gateway,
    ];
    places.extend(upstream.litellm(installation.scratch()));
    let mut rows = Vec::new();
    for (name, connections, streamed) in LOADS {
        let mut direct = None;
        let mut nginx = None;
        for place in &places {
            let what = Load {
                connections,
                streamed,
            };
            load(place, what, WARM_UP).await;
            let before = place.ticks();
            let seen = load(place, what, FOR).await;
            let cpu = place.ticks() - before;
            let row = row(place, name, connections, &seen, cpu, &direct, &nginx);
            if place.name == "upstream" {
                direct = Some(seen);
            } else if place.name == "nginx" {
                nginx = Some(seen);
            }
            rows.push(row);
        }
    }
    let gateway = &places[2];
    let what = Load {
        connections: 64,
        streamed: false,
    };
    load(gateway, what, LONG).await;
    let memory = json!({ "rss_mib": rss_mib(hypervisor), "after_s": LONG.as_secs() });
    let fairness = fairness(gateway, &neighbour).await;
    if as_json {
        println!(
            "{}",
            json!({ "rows": rows, "memory": memory, "fairness": fairness })
        );
        return;
    }
    show(&rows);
    println!(
        "\nMemory of the hypervisor after 64 connections for {} s: {} MiB",
        LONG.as_secs(),
        memory["rss_mib"]
    );
    println!(
        "One connection of a neighbour, p99 in ms: {} alone, {} while another sandbox makes calls over 64",
        fairness["quiet_p99_ms"], fairness["beside_p99_ms"]
    );
}

fn row(
    place: &Place,
    name: &str,
    connections: usize,
    seen: &Seen,
    cpu: Duration,
    direct: &Option<Seen>,
    nginx: &Option<Seen>,
) -> Value {
    let per_second = seen.per_second(FOR);
    let micros = |seconds: f64| (seconds * 1e6).round();
    json!({
        "load": name,
        "connections": connections,
        "place": place.name,
        "per_second": per_second.round(),
        "p50_us": micros(seen.p50()),
        "p99_us": micros(seen.p99()),
        "first_byte_p50_us": micros(seen.first_p50()),
        "added_p50_us": direct.as_ref().map(|direct| micros(seen.p50() - direct.p50())),
        "added_first_byte_us": direct.as_ref().map(|direct| micros(seen.first_p50() - direct.first_p50())),
        "cpu_us": (cpu.as_secs_f64() * 1e6 / seen.count().max(1) as f64).round(),
        "errors": seen.errors,
        "to_nginx": nginx.as_ref().map(|nginx| {
            (per_second / nginx.per_second(FOR) * 100.0).round() / 100.0
        }),
    })
}

fn show(rows: &[Value]) {
    println!(
        "Model calls to one upstream, {} s each; the gateway checks the token, counts and bounds tokens and money,\n\
         reads the usage and writes a record and a log line per call; nginx writes its access log\n",
        FOR.as_secs()
    );
    let columns = [
        ("load", "load", 7),
        ("connections", "conns", 6),
        ("place", "through", 10),
        ("per_second", "calls/s", 8),
        ("p50_us", "p50 µs", 8),
        ("p99_us", "p99 µs", 8),
        ("added_p50_us", "added", 7),
        ("first_byte_p50_us", "first µs", 9),
        ("added_first_byte_us", "added", 7),
        ("cpu_us", "cpu µs", 7),
        ("errors", "errors", 6),
        ("to_nginx", "to nginx", 8),
    ];
    for (_, title, width) in columns {
        print!("{title:>width$} ");
    }
    println!();
    for row in rows {
        for (key, _, width) in columns {
            let text = match &row[key] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                value => value.to_string().trim_end_matches(".0").to_owned(),
            };
            print!("{text:>width$} ");
        }
        println!();
    }
}

/// What one sandbox notices of another one's calls.
async fn fairness(loud: &Place, neighbour: &Place) -> Value {
    let one = Load {
        connections: 1,
        streamed: false,
    };
    let many = Load {
        connections: 64,
        streamed: false,
    };
    load(neighbour, one, WARM_UP).await;
    let quiet = load(neighbour, one, FOR).await;
    let (_, beside) = tokio::join!(load(loud, many, FOR), load(neighbour, one, FOR));
    let millis = |seconds: f64| (seconds * 1e5).round() / 100.0;
    json!({
        "quiet_p50_ms": millis(quiet.p50()), "quiet_p99_ms": millis(quiet.p99()),
        "beside_p50_ms": millis(beside.p50()), "beside_p99_ms": millis(beside.p99()),
    })
}

fn rss_mib(process: Process) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .and_then(|number| number.parse::<f64>().ok());
    (kib.unwrap_or_default() / 102.4).round() / 10.0
}

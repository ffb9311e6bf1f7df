//! Our proxy and nginx on the same Unix socket, in the same run, under the same load.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use system_tests::{Account, Installation, Setup, installation, wait};
use types::Role;

use crate::nginx::{self, Running};

/// Connections that are kept open at the same time.
const CONNECTIONS: &[u32] = &[1, 16, 64];

/// Seconds of load per measurement, and of load before it that is not counted.
const SECONDS: u32 = 5;
const WARM_UP: u32 = 1;

/// What is asked for: a small fixed body.
const TARGET: &str = "/bench";

/// Somebody who proxies.
struct Proxy {
    name: &'static str,
    url: String,
    headers: Vec<String>,
}

/// What `wrk` saw.
struct Seen {
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

/// Measures everybody at every number of connections.
pub(crate) async fn run(engine: Option<&Path>, as_json: bool) {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let socket = app_socket(&installation, &alice).await;

    let (nginx, nginx_url) = start_nginx(&installation, &socket);
    let engine = engine.map(|program| start_engine(program, &socket));
    let mut proxies = vec![Proxy {
        name: "nginx",
        url: nginx_url,
        headers: Vec::new(),
    }];
    if let Some((_, url)) = &engine {
        proxies.push(Proxy {
            name: "engine",
            url: url.clone(),
            headers: Vec::new(),
        });
    }
    let host = alice.host(Role::Live);
    proxies.push(Proxy {
        name: "hypervisor",
        url: format!("http://127.0.0.1:{}", installation.port()),
        headers: vec![
            format!("Host: {host}:{}", installation.port()),
            format!("Cookie: {}", alice.client.cookies(&host)),
        ],
    });

    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let mut baseline = None;
        for proxy in &proxies {
            wrk(proxy, *connections, WARM_UP);
            let seen = wrk(proxy, *connections, SECONDS);
            let base = *baseline.get_or_insert(seen.requests_per_second);
            rows.push(json!({
                "connections": connections,
                "proxy": proxy.name,
                "requests_per_second": seen.requests_per_second.round(),
                "p50_ms": seen.p50_ms,
                "p99_ms": seen.p99_ms,
                "errors": seen.errors,
                "ratio_to_nginx": (seen.requests_per_second / base * 100.0).round() / 100.0,
            }));
        }
    }
    drop((nginx, engine));
    show(&rows, as_json);
}

fn show(rows: &[Value], as_json: bool) {
    if as_json {
        println!("{}", json!({ "seconds": SECONDS, "rows": rows }));
        return;
    }
    println!(
        "Proxied requests over one Unix socket, {SECONDS} s each; ratio is requests per second to nginx's"
    );
    println!(
        "{:>11} {:<11} {:>10} {:>9} {:>9} {:>7} {:>6}",
        "connections", "proxy", "requests/s", "p50 ms", "p99 ms", "errors", "ratio"
    );
    for row in rows {
        println!(
            "{:>11} {:<11} {:>10} {:>9} {:>9} {:>7} {:>6}",
            row["connections"].to_string(),
            row["proxy"].as_str().unwrap_or_default(),
            row["requests_per_second"].to_string(),
            row["p50_ms"].to_string(),
            row["p99_ms"].to_string(),
            row["errors"].to_string(),
            row["ratio_to_nginx"].to_string(),
        );
    }
}

async fn app_socket(installation: &Installation, account: &Account) -> PathBuf {
    let view = account.sandbox(Role::Live).await;
    let start = view["start_id"].as_str().expect("a start");
    installation
        .data_dir()
        .join("run")
        .join(start)
        .join("app/app.sock")
}

/// nginx with keep-alive to the upstream.
fn start_nginx(installation: &Installation, socket: &Path) -> (Running, String) {
    let dir = nginx::directory(installation.scratch(), "nginx");
    let port = installation::free_port();
    let http = format!(
        "upstream guest {{ server unix:{socket}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{\n\
           proxy_pass http://guest; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}",
        socket = socket.display(),
    );
    nginx::configure(&dir, &http);
    let running = nginx::start(&dir).expect("nginx is installed");
    wait::until_blocking("nginx", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (running, format!("http://127.0.0.1:{port}"))
}

fn start_engine(program: &Path, socket: &Path) -> (Running, String) {
    let mut child = Command::new(program)
        .arg("forward")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the engine's bench program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("a line");
    let address = line
        .trim()
        .strip_prefix("ready: ")
        .expect("the line `ready: ADDRESS`")
        .to_owned();
    let url = if address.starts_with("http") {
        address
    } else {
        format!("http://{address}")
    };
    (Running(child), url)
}

fn wrk(proxy: &Proxy, connections: u32, seconds: u32) -> Seen {
    let threads = connections.min(2);
    let mut command = Command::new("wrk");
    command.args([
        "--latency".to_owned(),
        format!("-t{threads}"),
        format!("-c{connections}"),
        format!("-d{seconds}s"),
    ]);
    for header in &proxy.headers {
        command.args(["-H", header]);
    }
    let output = command
        .arg(format!("{}{TARGET}", proxy.url))
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    read(&text)
}

fn read(text: &str) -> Seen {
    let after = |start: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(start))
            .map(|rest| rest.trim().to_owned())
            .unwrap_or_default()
    };
    let errors = text
        .lines()
        .filter(|line| line.contains("Non-2xx") || line.contains("Socket errors"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|number| number.parse::<u64>().ok())
        // "Non-2xx" has a digit of its own.
        .filter(|number| *number != 2)
        .sum();
    Seen {
        requests_per_second: after("Requests/sec:").parse().unwrap_or_default(),
        p50_ms: milliseconds(&after("50%")),
        p99_ms: milliseconds(&after("99%")),
        errors,
    }
}

/// `123.45us`, `1.23ms`, `1.23s`.
fn milliseconds(text: &str) -> f64 {
    let at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.trim().parse().unwrap_or_default();
    let factor = match unit.trim() {
        "us" => 0.001,
        "ms" => 1.0,
        _ => 1000.0,
    };
    (number * factor * 1000.0).round() / 1000.0
}

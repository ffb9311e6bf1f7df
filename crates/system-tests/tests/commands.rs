//! Commands and terminals: what a runner can reach, and what it cannot.

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::http::{Ask, Client};
use system_tests::installation::free_port;
use system_tests::wait::{until, within};
use system_tests::{Account, Setup};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use types::Role;

/// Asks paths below the gateway's origin and prints the status of each, `0` for no answer.
const ASK: &str = r#"
import os, sys, urllib.request, urllib.error
base = os.environ.get("CHOIR_PROVIDER_GATEWAY_BASE_URL", "http://127.0.0.1:9090/provider/v1")
origin = base.rsplit("/provider/v1", 1)[0]
token = os.environ.get("CHOIR_PROVIDER_GATEWAY_TOKEN", "none")
for path in sys.argv[1:]:
    request = urllib.request.Request(origin + path, headers={"authorization": "Bearer " + token})
    try:
        status = urllib.request.urlopen(request, timeout=5).status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError:
        status = 0
    print(path, status)
"#;

fn ask(capabilities: &[&str]) -> Value {
    json!({
        "argv": ["python3", "-c", ASK, "/provider/v1", "/commands", "/token/renew", "/me/sandboxes"],
        "capabilities": capabilities,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_reaches_providers_only_when_granted_and_the_router_never() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let (_, granted) = alice.command(Role::Live, &ask(&["provider:call"])).await;
    assert!(granted.contains("/provider/v1 200"), "{granted}");
    for closed in ["/commands", "/me/sandboxes"] {
        let answers: Vec<String> = [401, 403, 404, 405]
            .iter()
            .map(|status| format!("{closed} {status}"))
            .collect();
        assert!(answers.iter().any(|one| granted.contains(one)), "{granted}");
    }
    let (_, ungranted) = alice.command(Role::Live, &ask(&[])).await;
    assert!(ungranted.contains("/provider/v1 0"), "{ungranted}");
    let (_, seen) = alice
        .command(
            Role::Live,
            &json!({ "argv": ["sh", "-c", "env; ls -A /run/choir /run/choir/* /var/lib/choir 2>&1"] }),
        )
        .await;
    assert!(!seen.contains("choirgw_"), "{seen}");
    assert!(!seen.contains("events.db"), "{seen}");
    assert!(!seen.contains(".sock"), "{seen}");
    // What nobody may be granted is refused, not ignored.
    let unknown = json!({ "argv": ["true"], "capabilities": ["root:everything"] });
    let refused = alice
        .control("POST", "/me/sandboxes/live/commands", Some(unknown))
        .await;
    assert!(matches!(refused.status, 400 | 403), "{}", refused.text());
}

/// With a limit of 0 the kernel still runs a `core_pattern` program of the host over what
/// crashed; with 1 it does not (`fs/coredump.c`, and core(5)).
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_inside_runs_no_program_of_the_host() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let limits = json!({ "argv": ["sh", "-c", "ulimit -Sc; ulimit -Hc; grep 'core file' /proc/self/limits"] });
    let (_, output) = alice.command(Role::Live, &limits).await;
    let fields: Vec<&str> = output.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(fields[4..6], ["1", "1"], "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_of_one_sandbox_share_a_workbench_and_end_with_their_command() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    // A service answers the next command on localhost, and nobody else's.
    let serve = json!({
        "argv": ["python3", "-m", "http.server", "8123", "--bind", "127.0.0.1"],
        "detach": true,
        "label": "server",
    });
    alice
        .control("POST", "/me/sandboxes/live/commands", Some(serve))
        .await
        .expect(201);
    let fetch = json!({ "argv": ["sh", "-c",
        "for i in $(seq 100); do python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8123/\").status)' 2>/dev/null && exit 0; sleep 0.1; done; exit 1"] });
    let (code, output) = alice.command(Role::Live, &fetch).await;
    assert_eq!((code, output.trim()), (Some(0), "200"));
    let once = json!({ "argv": ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8123/')"] });
    let (code, _) = alice.command(Role::Dev, &once).await;
    assert_eq!(code, Some(1), "another sandbox reached the service");
    // What a command leaves in the background dies with it.
    let leave = json!({ "argv": ["sh", "-c", "sleep 300 & echo left"] });
    assert_eq!(alice.command(Role::Live, &leave).await.1, "left\n");
    let look = json!({ "argv": ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"] });
    let (_, processes) = alice.command(Role::Live, &look).await;
    assert!(!processes.contains("sleep 300"), "{processes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_echoes_resizes_and_comes_back_with_its_scroll_back() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let made = alice
        .runtime(
            Role::Live,
            "POST",
            "/api/terminals",
            Some(json!({ "cols": 80, "rows": 24 })),
        )
        .await
        .expect(201)
        .json();
    let id = made["id"].as_str().unwrap();
    let mut socket = open(&alice, id).await;
    type_in(&mut socket, "echo one-$((20 + 22))\n").await;
    read_until(&mut socket, "one-42").await;
    let resize = json!({ "type": "resize", "cols": 100, "rows": 30 }).to_string();
    socket.send(Message::text(resize)).await.unwrap();
    type_in(&mut socket, "stty size\n").await;
    read_until(&mut socket, "30 100").await;
    drop(socket);
    // Another connection gets what was there.
    let mut again = open(&alice, id).await;
    read_until(&mut again, "one-42").await;
    alice
        .runtime(Role::Live, "DELETE", &format!("/api/terminals/{id}"), None)
        .await;
    let ended = within("the end of the terminal", async {
        while let Some(Ok(message)) = again.next().await {
            if message.is_text() && message.to_text().unwrap().contains("exited") {
                return true;
            }
        }
        false
    })
    .await;
    assert!(ended, "nothing said that the terminal ended");
}

/// What they type meets a socket that is closed for the end that it is about to tell.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_terminal_is_told_also_to_somebody_who_types_on() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    for round in 0..20 {
        let size = json!({ "cols": 80, "rows": 24 });
        let made = alice.runtime(Role::Live, "POST", "/api/terminals", Some(size));
        let made = made.await.expect(201).json();
        let socket = open(&alice, made["id"].as_str().unwrap()).await;
        let (mut keys, mut seen) = socket.split();
        let typing = async {
            let _ = keys.send(Message::binary(b"exit\n".to_vec())).await;
            while keys.send(Message::binary(b"x".to_vec())).await.is_ok() {
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        let ended = async {
            while let Some(Ok(message)) = seen.next().await {
                if message.to_text().is_ok_and(|text| text.contains("exited")) {
                    return true;
                }
            }
            false
        };
        let ended = within("the end of the terminal", async {
            tokio::select! {
                ended = ended => ended,
                () = typing => false,
            }
        });
        assert!(ended.await, "nothing said that it ended, in round {round}");
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn open(account: &Account, id: &str) -> Socket {
    let target = format!("/ws/terminal/{id}?from=0");
    let origin = account.origin(Role::Live);
    account
        .client
        .websocket(&account.host(Role::Live), &target, Some(&origin))
        .await
        .expect("a terminal")
}

async fn type_in(socket: &mut Socket, keys: &str) {
    let message = Message::binary(keys.as_bytes().to_vec());
    socket.send(message).await.expect("the terminal listens");
}

async fn read_until(socket: &mut Socket, text: &str) {
    let mut seen = String::new();
    within(text, async {
        while !seen.contains(text) {
            let message = socket.next().await.expect("the terminal goes on");
            if let Message::Binary(bytes) = message.expect("a message") {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    })
    .await;
}

/// What a command was denied is told to its owner, by name and number, again after a restart of
/// the hypervisor, and counted for the operator.
#[tokio::test(flavor = "multi_thread")]
async fn denied_system_calls_are_told_to_the_owner_and_counted() {
    let metrics = free_port();
    let mut installation = Setup::default()
        .config(&format!(
            "[listen]\nmetrics_address = \"127.0.0.1:{metrics}\""
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let denied = json!({ "argv": ["sh", "-c", "unshare --user true; unshare --user true; true"] });
    let told = async |call: &str| {
        until("a notice", async || {
            let answer = alice.control("GET", "/me/sandboxes/live/notices", None);
            let notices = answer.await.json()["notices"].clone();
            // They are told once per second at most, so perhaps in two parts.
            let of_call = |notice: &&Value| {
                notice["message"].to_string().contains(call) && notice["count"] == 2
            };
            notices.as_array().unwrap().iter().find(of_call).cloned()
        })
        .await
    };
    alice.command(Role::Live, &denied).await;
    let notice = told("unshare").await;
    assert_eq!(notice["kind"], "syscall_denied");
    assert!(notice["message"].to_string().contains("`sh`"), "{notice}");
    assert!(
        notice["hint"].to_string().contains("namespaces"),
        "{notice}"
    );
    let scraper = Client::new(metrics);
    let text = scraper
        .send(Ask::new("GET", "localhost", "/metrics"))
        .await
        .text();
    let counter = "choir_syscalls_denied_total{who=\"command\",call=\"unshare\"} 2";
    assert!(text.contains(counter), "{text}");

    installation.end(Signal::KILL);
    installation.spawn().await;
    alice.command(Role::Live, &denied).await;
    told("unshare").await;
}

/// Tries names that no rule allows, and calls that no profile does, so often each.
const FLOOD: &str = r#"
import ctypes, os, socket, sys
names, calls = map(int, sys.argv[1:])
port = int(os.environ["HTTPS_PROXY"].rsplit(":", 1)[1])
refused = 0
for number in range(names):
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(f"CONNECT name-{number}.example:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        refused += b" 403 " in s.recv(65536)
libc = ctypes.CDLL(None)
for _ in range(calls): refused += libc.unshare(0x10000000) == -1
print(refused)
"#;

/// Few records and few lines, of which the last has the true number: whoever fills the disk of
/// the host or drowns what others do has to wait for more than a second.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_denials_leave_few_records_and_lines_and_their_true_number() {
    const NAMES: u64 = 1500;
    const CALLS: u64 = 3000;
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let began = installation.log().len();
    let (names, calls) = (NAMES.to_string(), CALLS.to_string());
    let request = json!({
        "argv": ["/usr/bin/python3", "-c", FLOOD, names, calls], "network": "allowlist",
    });
    let (code, output) = alice.command(Role::Live, &request).await;
    assert_eq!((code, output.trim()), (Some(0), "4500"));
    let stop = "/me/sandboxes/live/stop";
    alice.control("POST", stop, Some(json!({}))).await;

    // One each, until there are too many; one that says that more follow, and their number.
    let records = until("the last record", async || {
        let answer = alice.control("GET", "/admin/audit?tail=1000", None).await;
        let all = answer.expect(200).text();
        let records: Vec<Value> = all
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|record: &Value| record["action"] == "network.connect")
            .collect();
        (records.last()?["actor"]["kind"] == "internal").then_some(records)
    })
    .await;
    assert!(records.len() < 300, "{}", records.len());
    let told: u64 = records
        .iter()
        .map(|record| match &record["details"]["refused"] {
            Value::String(many) => many.parse().unwrap(),
            _ => 1,
        })
        .sum();
    assert_eq!(told, NAMES);

    let log = installation.log()[began..].to_owned();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["target"] != "hypervisor::http")
        .collect();
    assert!(lines.len() < 30, "{lines:#?}");
    for (kind, count) in [("network_denied", NAMES), ("syscall_denied", CALLS)] {
        let last = lines.iter().rfind(|line| line["kind"] == kind);
        assert_eq!(last.unwrap()["count"], count, "{lines:#?}");
    }
    // Not one line of a request each, either.
    assert!(log.lines().count() < 60, "{log}");
}

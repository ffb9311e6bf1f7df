//! A channel over a real socket: what it serves, to whom, and for how long.

mod cuts;

use std::path::Path;
use std::time::Duration;

use crypto::{Token, TokenKind};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use types::Role;

use crate::actor::{Actor, User};
use crate::services::sandboxes::Whose;
use crate::services::sandboxes::testing::{Installation, add_user};
use cuts::runner;

/// How long a token lives by default.
const LIFETIME: Duration = Duration::from_secs(900);

/// One HTTP/1.1 connection, spoken by hand so that nothing corrects what is sent.
struct Wire(UnixStream);

impl Wire {
    async fn open(path: &Path) -> Self {
        // Through the directory: the path of a test may be longer than a socket address.
        let dir = std::fs::File::open(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let short = format!(
            "/proc/self/fd/{}/{name}",
            std::os::fd::AsRawFd::as_raw_fd(&dir)
        );
        Self(UnixStream::connect(short).await.unwrap())
    }

    async fn ask(&mut self, line: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let authorization = token
            .map(|token| format!("Authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        let text = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> (u16, String) {
        let mut seen = Vec::new();
        let head_end = loop {
            let mut byte = [0];
            if self.0.read(&mut byte).await.unwrap_or(0) == 0 {
                return (0, String::new());
            }
            seen.push(byte[0]);
            if seen.ends_with(b"\r\n\r\n") {
                break String::from_utf8(seen).unwrap().to_ascii_lowercase();
            }
        };
        let status = head_end.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head_end
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.trim().parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

async fn started(installation: &Installation, role: Role) -> (std::path::PathBuf, String) {
    installation
        .app
        .sandboxes
        .start(&installation.actor(), Whose::Own, role)
        .await
        .unwrap();
    let sandbox = installation.sandbox(role).await;
    (
        installation.driver.channel(sandbox),
        installation.driver.token(sandbox),
    )
}

#[tokio::test]
async fn serves_models_to_whoever_shows_the_token() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    let (status, body) = wire.ask("GET /provider/v1", Some(&token), "").await;
    assert_eq!(status, 200);
    let listing: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        listing["default"],
        serde_json::json!({"provider": "demo", "model": "choir-demo"})
    );
    assert_eq!(listing["providers"][0]["demo"], true);
    let chat = r#"{"model":"choir-demo","messages":[{"role":"user","content":"hello"}]}"#;
    let (status, body) = wire
        .ask(
            "POST /provider/v1/demo/chat/completions",
            Some(&token),
            chat,
        )
        .await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("Demo provider"));
    let (status, _) = wire
        .ask(
            "POST /provider/v1/openai/chat/completions",
            Some(&token),
            chat,
        )
        .await;
    assert_eq!(status, 404);
    let (status, body) = wire.ask("POST /token/renew", Some(&token), "").await;
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"expires_in_seconds":900}"#)
    );
}

#[tokio::test]
async fn every_request_of_a_connection_has_to_show_the_token() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let (_, foreign) = started(&installation, Role::Dev).await;
    let mut wire = Wire::open(&channel).await;
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 200);
    for wrong in [
        None,
        Some(foreign.as_str()),
        Some(&token[..40]),
        Some("choirpat_x"),
    ] {
        let (status, body) = wire.ask("GET /provider/v1", wrong, "").await;
        assert_eq!(status, 401, "{wrong:?}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], "unauthenticated");
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("CHOIR_PROVIDER_GATEWAY_TOKEN"),
            "{body}"
        );
    }
    // The connection still serves whoever shows it.
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 200);
    installation.app.clock.advance(LIFETIME);
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 401);
    assert_eq!(
        wire.ask("POST /token/renew", Some(&token), "").await.0,
        401,
        "too late"
    );
}

/// Somebody who administers the installation.
async fn admin(installation: &Installation) -> Actor {
    let name = "root".parse().unwrap();
    let known = installation.app.store.user_by_name(&name).await;
    let user = match known.unwrap() {
        Some(row) => User {
            id: row.id,
            name: row.name,
            is_admin: true,
        },
        None => User {
            is_admin: true,
            ..add_user(&installation.app, "root").await
        },
    };
    Actor {
        user: Some(user),
        ..installation.actor()
    }
}

/// What the ledger has of misused tokens, oldest first.
async fn misuses(installation: &Installation) -> Vec<ledger::Entry> {
    let admin = admin(installation).await;
    let entries = installation.app.audit.tail(&admin, 10_000).await.unwrap();
    let misuse = |entry: &ledger::Entry| entry.record.action == "token.misuse";
    entries.into_iter().filter(misuse).collect()
}

fn counted(installation: &Installation, reason: &str) -> Option<String> {
    let text = installation.app.sandboxes.plane().metrics.text();
    let name = format!("choir_channel_refusals_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map(str::to_owned)
}

#[tokio::test]
async fn a_misused_token_is_refused_with_advice_counted_and_recorded() {
    let installation = Installation::new("").await;
    let (channel, own) = started(&installation, Role::Live).await;
    let (_, foreign) = started(&installation, Role::Dev).await;
    let live = installation.sandbox(Role::Live).await;
    let dev = installation.sandbox(Role::Dev).await.to_string();
    let start = installation.app.sandboxes.running(live).unwrap().start_id;
    let made_up = Token::generate(TokenKind::Gateway, &installation.app.random).unwrap();
    let secrets = [own.clone(), foreign.clone(), made_up.expose().to_owned()];
    let mut wire = Wire::open(&channel).await;
    for (at, (reason, shown, advice)) in [
        ("missing", None, "send the gateway token"),
        ("malformed", Some(&own[..40]), "send the whole value"),
        ("foreign", Some(&foreign[..]), "belongs to another channel"),
        ("unknown", Some(made_up.expose()), "restart the sandbox"),
        ("expired", Some(&own[..]), "was not renewed"),
    ]
    .into_iter()
    .enumerate()
    {
        if reason == "expired" {
            installation.app.clock.advance(LIFETIME);
        }
        assert_eq!(counted(&installation, reason), None, "{reason}");
        let (status, body) = wire.ask("GET /provider/v1", shown, "").await;
        assert_eq!(status, 401, "{reason}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], "unauthenticated", "{reason}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(advice), "{reason}: {detail}");
        assert_eq!(counted(&installation, reason).as_deref(), Some("1"));

        let recorded = misuses(&installation).await;
        assert_eq!(recorded.len(), at + 1, "{reason}");
        let record = &recorded[at].record;
        assert_eq!(record.outcome, ledger::Outcome::Denied);
        assert_eq!(record.reason.as_deref(), Some(reason));
        assert_eq!(record.sandbox, Some(live));
        let details = &record.details;
        assert_eq!(details["start"], start.to_string());
        assert_eq!(details["route"], "/provider/v1");
        let of = (reason == "foreign").then_some(&dev);
        assert_eq!(
            details.get("token_of"),
            of,
            "whose it is, when it is somebody's"
        );
        let text = format!("{record:?}{body}");
        for secret in &secrets {
            assert!(!text.contains(&secret[..16]), "{reason}: {text}");
        }
    }
}

#[tokio::test]
async fn misuse_in_a_loop_is_counted_and_does_not_fill_the_ledger() {
    let installation = Installation::new("").await;
    let (channel, _) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    for _ in 0..40 {
        assert_eq!(wire.ask("GET /provider/v1", None, "").await.0, 401);
    }
    assert_eq!(counted(&installation, "missing").as_deref(), Some("40"));
    assert_eq!(misuses(&installation).await.len(), 32);
    // The bound is a channel's own: another one's misuse is still heard of.
    let (channel, _) = started(&installation, Role::Dev).await;
    let mut wire = Wire::open(&channel).await;
    assert_eq!(wire.ask("GET /provider/v1", None, "").await.0, 401);
    assert_eq!(misuses(&installation).await.len(), 33);
}

#[tokio::test]
async fn renewal_keeps_the_token_alive() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    for _ in 0..3 {
        installation.app.clock.advance(LIFETIME * 2 / 3);
        assert_eq!(wire.ask("POST /token/renew", Some(&token), "").await.0, 200);
    }
}

#[tokio::test]
async fn a_token_does_not_age_while_nobody_can_renew_it() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    installation.app.clock.suspend(LIFETIME * 100);
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 200);
    installation.app.clock.advance(LIFETIME);
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 401);
}

#[tokio::test]
async fn a_token_is_refused_on_every_channel_but_its_own() {
    let installation = Installation::new("").await;
    let (guests, guests_token) = started(&installation, Role::Live).await;
    let (one, other) = (runner(&installation).await, runner(&installation).await);
    let parties = [
        ("guest", &guests, &guests_token),
        ("one runner", &one.channel, &one.token),
        ("another runner", &other.channel, &other.token),
    ];
    for (whose, channel, own) in parties {
        let mut wire = Wire::open(channel).await;
        for (of, _, token) in parties {
            let (status, said) = wire.ask("GET /provider/v1", Some(token), "").await;
            let expected = if token == own { 200 } else { 401 };
            assert_eq!(status, expected, "{of}'s on the channel of {whose}");
            assert_eq!(said.contains("belongs to another channel"), token != own);
        }
    }
    assert_eq!(counted(&installation, "foreign").as_deref(), Some("6"));
}

/// Reads until the other side hangs up.
async fn hung_up(stream: &mut TcpStream) {
    while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
}

/// Time stands still while this is alive, for half a minute of real time at most: no timer
/// fires, and whatever happens was brought about by what happened before.
fn time_stands_still() -> std::sync::mpsc::Sender<()> {
    tokio::time::pause();
    let (goes_on, waits) = std::sync::mpsc::channel();
    // While something blocks, the paused clock is not moved on.
    tokio::task::spawn_blocking(move || waits.recv_timeout(Duration::from_secs(30)));
    goes_on
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_above_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let installation = Installation::new(&format!(
        "[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = {base:?}\nmodels = [\"m\"]\n\
         addresses = \"private_network_too\"\n"
    ))
    .await;
    let (channel, token) = started(&installation, Role::Live).await;
    let next = format!("GET /provider/v1 HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n");
    let many = next.repeat(10_000);
    for (what, stream, reply) in [
        ("before the head", false, ""),
        ("before the head of a stream", true, ""),
        (
            "in a reply",
            false,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        ),
        (
            "in a stream",
            true,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n",
        ),
    ] {
        for (after, leaves_by) in [
            ("", Leaving::Closing),
            ("\r\n", Leaving::Closing),
            (next.as_str(), Leaving::Closing),
            (many.as_str(), Leaving::Closing),
            // As the relay in the guest does it.
            ("", Leaving::EndingWhatItSends),
            (next.as_str(), Leaving::EndingWhatItSends),
        ] {
            let what = format!("{what}, with {} more bytes, {leaves_by:?}", after.len());
            let mut wire = Wire::open(&channel).await;
            let body = format!(r#"{{"model":"m","stream":{stream},"messages":[]}}"#);
            let request = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}{after}",
                body.len()
            );
            // As much of it as the socket takes: nobody reads the rest.
            let _ = wire.0.try_write(request.as_bytes()).unwrap();
            let (mut upstream, _) = listener.accept().await.unwrap();
            assert!(upstream.read(&mut [0; 4096]).await.unwrap() > 0);
            upstream.write_all(reply.as_bytes()).await.unwrap();
            if !reply.is_empty() {
                assert!(wire.0.read(&mut [0; 4096]).await.unwrap() > 0, "{what}");
            }
            let goes_on = time_stands_still();
            let began = tokio::time::Instant::now();
            let half = match leaves_by {
                Leaving::Closing => {
                    drop(wire);
                    None
                }
                Leaving::EndingWhatItSends => {
                    wire.0.shutdown().await.unwrap();
                    Some(wire)
                }
            };
            // Nothing more comes from above that could fail to be written.
            hung_up(&mut upstream).await;
            assert_eq!(began.elapsed(), Duration::ZERO, "{what}");
            drop((goes_on, half));
            tokio::time::resume();
        }
    }
}

#[tokio::test]
async fn what_came_before_a_reply_broke_off_reaches_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let installation = Installation::new(&format!(
        "[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = {base:?}\nmodels = [\"m\"]\n\
         addresses = \"private_network_too\"\nretries = 0\n"
    ))
    .await;
    let (channel, token) = started(&installation, Role::Live).await;
    let event = "data: 1\n\n".repeat(100_000);
    let chunked =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (reply, came) in [
        (format!("{chunked}9\r\ndata: 1\n\n\r\n"), "data: 1\n\n"),
        (chunked.to_owned(), ""),
        // More than the sockets in between hold.
        (
            format!("{chunked}{:x}\r\n{event}\r\n", event.len()),
            event.as_str(),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"half\"".to_owned(),
            "{\"half\"",
        ),
    ] {
        let mut wire = Wire::open(&channel).await;
        let body = r#"{"model":"m","messages":[]}"#;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        wire.0.write_all(request.as_bytes()).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        assert!(upstream.read(&mut [0; 4096]).await.unwrap() > 0);
        upstream.write_all(reply.as_bytes()).await.unwrap();
        drop(upstream);
        let mut answer = Vec::new();
        let _ = wire.0.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!body.ends_with("0\r\n\r\n"), "it looks whole");
        let data: String = if head.contains("chunked") {
            let size =
                |line: &&str| !line.is_empty() && line.bytes().all(|b| b.is_ascii_hexdigit());
            body.split("\r\n").filter(|line| !size(line)).collect()
        } else {
            body.to_owned()
        };
        assert!(data == came, "{} of {} bytes", data.len(), came.len());
    }
}

#[derive(Debug, Clone, Copy)]
enum Leaving {
    Closing,
    EndingWhatItSends,
}

#[tokio::test]
async fn what_was_asked_for_before_the_end_is_still_answered() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let request =
        format!("GET /provider/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    for count in [1, 2] {
        let mut wire = Wire::open(&channel).await;
        let requests = request.repeat(count);
        wire.0.write_all(requests.as_bytes()).await.unwrap();
        wire.0.shutdown().await.unwrap();
        for _ in 0..count {
            assert_eq!(wire.answer().await.0, 200, "of {count}");
        }
        assert_eq!(wire.answer().await.0, 0, "and then the connection ends");
    }
}

#[tokio::test]
async fn never_serves_the_control_plane() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    for target in [
        "GET /me/sandboxes",
        "GET /admin/sandboxes",
        "GET /auth/me",
        "GET /login",
        "GET //me/sandboxes",
        "GET /commands/../me/sandboxes",
        "GET /provider/v1/demo/..%2f..%2f..%2fme",
        "GET /provider/v1/demo/%2e%2e/%2e%2e/me",
        "GET http://localhost:9090/me/sandboxes",
        "GET http://localhost/commands",
        "OPTIONS *",
    ] {
        let mut wire = Wire::open(&channel).await;
        let (status, body) = wire.ask(target, Some(&token), "").await;
        assert_eq!(status, 404, "{target}: {body}");
    }
    let mut wire = Wire::open(&channel).await;
    let (status, body) = wire.ask("CONNECT example.com:443", Some(&token), "").await;
    assert_eq!(status, 403);
    assert!(body.contains("no network here"), "{body}");
    // The preface of HTTP/2 is no request here.
    let mut wire = Wire::open(&channel).await;
    wire.0
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let (status, _) = wire.answer().await;
    assert!(status == 0 || status >= 400, "{status}");
}

#[tokio::test]
async fn ends_with_its_start() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 200);
    installation
        .app
        .sandboxes
        .stop(&installation.actor(), Whose::Own, Role::Live)
        .await
        .unwrap();
    assert_eq!(wire.answer().await.0, 0, "the connection was cut");
    // The next start has a token of its own, and does not take the old one.
    let (channel, next) = started(&installation, Role::Live).await;
    assert_ne!(token, next);
    let mut wire = Wire::open(&channel).await;
    assert_eq!(wire.ask("GET /provider/v1", Some(&token), "").await.0, 401);
    assert_eq!(wire.ask("GET /provider/v1", Some(&next), "").await.0, 200);
}

#[tokio::test]
async fn a_command_that_is_out_of_bounds_is_refused_before_anything_is_asked() {
    let installation = Installation::new("").await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut wire = Wire::open(&channel).await;
    for (body, word) in [
        ("{", "well formed"),
        (r#"{"argv":[]}"#, "argv"),
        (r#"{"argv":["a"],"cwd":"/etc"}"#, "cwd"),
        (r#"{"argv":["a"],"nope":1}"#, "nope"),
    ] {
        let (status, answer) = wire.ask("POST /commands", Some(&token), body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains(word), "{answer}");
    }
    assert_eq!(wire.ask("DELETE /commands", Some(&token), "").await.0, 405);
}

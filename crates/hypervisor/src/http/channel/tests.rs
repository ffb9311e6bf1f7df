//! A channel over a real socket: what it serves, to whom, and for how long.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use types::Role;

use crate::services::sandboxes::Whose;
use crate::services::sandboxes::testing::Installation;

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
async fn a_token_that_lapses_takes_with_it_what_it_began() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let installation = Installation::new(&format!(
        "[gateway]\ntoken_lifetime = \"1s\"\n\
         [[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = {base:?}\nmodels = [\"m\"]\n\
         addresses = \"private_network_too\"\n"
    ))
    .await;
    let (channel, token) = started(&installation, Role::Live).await;
    let mut idle = Wire::open(&channel).await;
    assert_eq!(idle.ask("GET /provider/v1", Some(&token), "").await.0, 200);
    let mut upload = Wire::open(&channel).await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n{{"
    );
    upload.0.write_all(head.as_bytes()).await.unwrap();
    let mut streaming = Wire::open(&channel).await;
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let request = head.replace("Content-Length: 9\r\n\r\n{", "");
    let request = format!("{request}Content-Length: {}\r\n\r\n{body}", body.len());
    streaming.0.write_all(request.as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut seen = vec![0; 4096];
    assert!(upstream.read(&mut seen).await.unwrap() > 0);
    let reply = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n";
    upstream.write_all(reply.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"data: 1\n\r\n") {
        seen.push(streaming.0.read_u8().await.unwrap());
    }

    installation.app.clock.advance(Duration::from_secs(1));
    for (what, wire) in [
        ("idle", &mut idle),
        ("upload", &mut upload),
        ("stream", &mut streaming),
    ] {
        let left = wire.0.read(&mut [0; 64]).await.unwrap_or(0);
        assert_eq!(
            left, 0,
            "{what}: it breaks off, and nothing looks like its end"
        );
    }
    let hung_up = async {
        while upstream
            .read(&mut [0; 4096])
            .await
            .is_ok_and(|read| read > 0)
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), hung_up)
        .await
        .expect("the provider is left");
    // The channel itself is there, and says why.
    let mut wire = Wire::open(&channel).await;
    let (status, said) = wire.ask("GET /provider/v1", Some(&token), "").await;
    assert_eq!(status, 401);
    assert!(said.contains("has expired"), "{said}");
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

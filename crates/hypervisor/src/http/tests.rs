//! The public listener: whose host is it, and what is refused before anybody is asked.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Listener, authority};
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, RawConfig};

fn request(target: &str, hosts: &[&str]) -> Request<Body> {
    let mut builder = Request::builder().uri(target);
    for host in hosts {
        builder = builder.header("host", *host);
    }
    builder.body(Body::empty()).unwrap()
}

#[test]
fn target_and_host_have_to_agree() {
    assert_eq!(
        authority(&request("/x", &["Localhost:9090"])).unwrap(),
        "localhost:9090"
    );
    assert_eq!(
        authority(&request("http://a.localhost:1/x", &[])).unwrap(),
        "a.localhost:1"
    );
    assert_eq!(
        authority(&request("http://a.localhost:1/x", &["A.localhost:1"])).unwrap(),
        "a.localhost:1"
    );
    assert!(authority(&request("http://a.localhost:1/x", &["localhost:1"])).is_err());
    assert!(authority(&request("/x", &["a", "b"])).is_err());
    assert!(authority(&request("/x", &[])).is_err());
}

/// A hypervisor on a free port, for raw bytes.
struct Served {
    app: Arc<App>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Served {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut raw = RawConfig {
            data_dir: Some(dir.path().to_owned()),
            ..RawConfig::default()
        };
        raw.listen.address = Some(address.to_string());
        let app = App::open(Config::build(raw).unwrap(), Clock::system())
            .await
            .unwrap();
        let listener = Listener::new(socket, None).unwrap();
        let task = tokio::spawn(listener.serve(Arc::clone(&app), super::control::router(&app)));
        Self {
            app,
            address,
            task,
            _dir: dir,
        }
    }

    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(&self, host: &str, target: &str) -> String {
        self.say(
            format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await
    }
}

#[tokio::test]
async fn a_host_that_is_nobodys_gets_421_and_ours_is_served() {
    let served = Served::new().await;
    let own = format!("localhost:{}", served.address.port());
    assert!(
        served
            .ask(&own, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    for host in [
        "127.0.0.1",
        "evil.example",
        "localhost",
        "localhost.evil.example",
    ] {
        let answer = served.ask(host, "/healthz").await;
        assert!(
            answer.starts_with("HTTP/1.1 421") && answer.contains("misdirected_request"),
            "{host}: {answer}"
        );
    }
    let absolute = served
        .ask("evil.example", &format!("http://{own}/healthz"))
        .await;
    assert!(absolute.starts_with("HTTP/1.1 400"), "{absolute}");
}

#[tokio::test]
async fn smuggled_and_oversized_heads_are_refused() {
    let served = Served::new().await;
    let own = format!("localhost:{}", served.address.port());
    let both = format!(
        "POST /auth/logout HTTP/1.1\r\nHost: {own}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
    );
    assert!(
        served
            .say(both.as_bytes())
            .await
            .starts_with("HTTP/1.1 400")
    );
    let folded = format!("GET /healthz HTTP/1.1\r\nHost: {own}\r\nX: a\r\n b\r\n\r\n");
    assert!(
        served
            .say(folded.as_bytes())
            .await
            .starts_with("HTTP/1.1 400")
    );
    let large = format!(
        "GET /healthz HTTP/1.1\r\nHost: {own}\r\nX: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    assert!(
        served
            .say(large.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
}

#[tokio::test]
async fn draining_ends_the_listener_and_frees_the_port() {
    let served = Served::new().await;
    let own = format!("localhost:{}", served.address.port());
    assert!(served.ask(&own, "/readyz").await.contains("ready"));
    // A kept-alive connection without a request must not hold up the end.
    let idle = TcpStream::connect(served.address).await.unwrap();
    served.app.draining.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(15), served.task)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn http2_passes_the_same_gate_by_host() {
    let served = Served::new().await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let own = format!("localhost:{}", served.address.port());
    for (host, status) in [(own.as_str(), 200), ("evil.example", 421)] {
        let request = request(&format!("http://{host}/healthz"), &[]);
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.version(), http::Version::HTTP_2);
        assert_eq!(answer.status(), status, "{host}");
    }
}

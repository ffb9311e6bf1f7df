//! A test bed: an app on a Unix socket, the engine, and an HTTP server in front of it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gateway::{
    AppSocket, ForwardError, Forwarder, HeaderRules, Limits, RequestBody, ResponseBody, Scheme,
    ServiceWorkers, Upstream,
};
use http::{HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use types::StartId;

/// Longest wait for anything that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Bed {
    pub(crate) upstream: Upstream,
    pub(crate) ended: CancellationToken,
    pub(crate) front: SocketAddr,
    pub(crate) forwarder: Forwarder,
    /// How many connections the app has accepted.
    pub(crate) accepted: Arc<AtomicUsize>,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) fn limits() -> Limits {
    Limits {
        first_byte: PATIENCE,
        websocket_greeting: Duration::ZERO,
        ..Limits::app()
    }
}

pub(crate) fn rules(prefix: Option<&'static str>) -> HeaderRules {
    HeaderRules {
        scheme: Scheme::Http,
        host: HeaderValue::from_static("alice.localhost:9090"),
        client: "127.0.0.1".parse().unwrap(),
        prefix,
        set: vec![(
            HeaderName::from_static("x-choir-role"),
            HeaderValue::from_static("live"),
        )],
        service_workers: ServiceWorkers::Refuse,
        counts_as_activity: true,
    }
}

pub(crate) fn app_socket(directory: &Path) -> AppSocket {
    AppSocket::new(std::fs::File::open(directory).unwrap().into())
}

impl Bed {
    /// An app whose every connection is served by `serve`.
    pub(crate) fn new<F, S>(limits: Limits, serve: S) -> Self
    where
        S: Fn(UnixStream, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("app.sock")).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let index = counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, index));
            }
        });
        Self::with_directory(limits, directory, accepted)
    }

    pub(crate) fn with_directory(
        limits: Limits,
        directory: tempfile::TempDir,
        accepted: Arc<AtomicUsize>,
    ) -> Self {
        let ended = CancellationToken::new();
        let upstream = Upstream::app(
            StartId::generate(),
            app_socket(directory.path()),
            ended.clone(),
            limits,
        );
        let forwarder = Forwarder::new();
        let front = front(forwarder.clone(), upstream.clone());
        Self {
            upstream,
            ended,
            front,
            forwarder,
            accepted,
            directory,
        }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.directory.path().join("app.sock")
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.front).await.unwrap()
    }

    /// Sends `request` on a connection of its own and returns all that comes back.
    pub(crate) async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        within(read_all(&mut stream)).await
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
        .await
    }
}

/// An HTTP server that forwards everything; what goes wrong becomes a status and the
/// header `x-error`. A path beneath `/dev` is forwarded under that prefix.
fn front(forwarder: Forwarder, upstream: Upstream) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let forwarder = forwarder.clone();
            let upstream = upstream.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let forwarder = forwarder.clone();
                let upstream = upstream.clone();
                async move {
                    let prefix = request.uri().path().starts_with("/dev").then_some("/dev");
                    let rules = rules(prefix);
                    let request = request.map(RequestBody::from);
                    Ok::<_, std::convert::Infallible>(
                        forwarder
                            .forward(request, &upstream, &rules)
                            .await
                            .unwrap_or_else(problem),
                    )
                }
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn problem(error: ForwardError) -> Response<ResponseBody> {
    let text = format!("{error}{}", source_text(&error));
    Response::builder()
        .status(error.status())
        .header(
            "x-error",
            text.replace(|c: char| !c.is_ascii_graphic(), " "),
        )
        .body(ResponseBody::empty())
        .unwrap()
}

fn source_text(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map(|source| format!(": {source}{}", source_text(source)))
        .unwrap_or_default()
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes too long")
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(condition(), "{what}");
}

pub(crate) async fn read_all<R: AsyncRead + Unpin>(stream: &mut R) -> String {
    let mut bytes = Vec::new();
    // A connection that was cut may end in a reset; what came before it counts.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and including `end`.
pub(crate) async fn read_until<R: AsyncRead + Unpin>(stream: &mut R, end: &str) -> String {
    let mut bytes = Vec::new();
    within(async {
        while !bytes.ends_with(end.as_bytes()) {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap() == 0 {
                break;
            }
            bytes.push(byte[0]);
        }
    })
    .await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one request head.
pub(crate) async fn read_head<R: AsyncRead + Unpin>(stream: &mut R) -> String {
    read_until(stream, "\r\n\r\n").await
}

pub(crate) async fn say<W: AsyncWrite + Unpin>(stream: &mut W, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// An app that answers every request with `reply` and keeps the connection.
pub(crate) fn canned(
    reply: &'static str,
) -> impl Fn(UnixStream, usize) -> futures_util::future::BoxFuture<'static, ()> {
    move |mut stream, _| {
        Box::pin(async move {
            while !read_head(&mut stream).await.is_empty() {
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
    }
}

/// Answers with its number, on the first connection with another reply behind the first one: in
/// the same piece, or in one of its own.
pub(crate) async fn answers_once_too_often<S>(mut stream: S, index: usize, together: bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while !read_head(&mut stream).await.is_empty() {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{index}");
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        match (index, together) {
            (0, true) => say(&mut stream, &format!("{reply}{evil}")).await,
            (0, false) => {
                say(&mut stream, &reply).await;
                say(&mut stream, evil).await;
            }
            _ => say(&mut stream, &reply).await,
        }
    }
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

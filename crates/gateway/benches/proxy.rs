//! The engine as a minimal proxy, to be measured from outside next to other proxies.
//!
//! ```text
//! proxy upstream SOCKET           an app that answers everything with a small body
//! proxy forward SOCKET [ADDRESS]  forwards ADDRESS (default 127.0.0.1:0) to SOCKET
//! ```
//!
//! `SOCKET` is the path of an `app.sock`. Each prints `ready: WHERE` once it listens and
//! runs until it is killed. `cargo xtask bench proxy` starts both.

#![expect(
    clippy::print_stdout,
    reason = "a program that is driven by its output"
)]

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use gateway::{
    APP_SOCKET_NAME, AppSocket, Forwarder, HeaderRules, Limits, RequestBody, ResponseBody, Scheme,
    ServiceWorkers, Upstream,
};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use types::StartId;

/// What the app answers.
const BODY: &[u8] = b"{\"status\":\"ok\",\"message\":\"a small fixed body for the proxy bench\"}\n";

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match arguments.as_slice() {
        ["upstream", socket, ..] => runtime.block_on(upstream(socket)),
        ["forward", socket] => runtime.block_on(forward(socket, "127.0.0.1:0")),
        ["forward", socket, address, ..] if !address.starts_with('-') => {
            runtime.block_on(forward(socket, address))
        }
        ["forward", socket, ..] => runtime.block_on(forward(socket, "127.0.0.1:0")),
        // `cargo bench` runs every bench program without arguments of its own.
        _ => {
            println!("usage: proxy upstream SOCKET | proxy forward SOCKET [ADDRESS]");
            Ok(())
        }
    }
}

async fn upstream(socket: &str) -> Outcome {
    let listener = UnixListener::bind(socket)?;
    println!("ready: {socket}");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, |_| async {
            let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }));
    }
}

async fn forward(socket: &str, address: &str) -> Outcome {
    let path = Path::new(socket);
    if path.file_name().is_none_or(|name| name != APP_SOCKET_NAME) {
        return Err(format!("the socket has to be called {APP_SOCKET_NAME}").into());
    }
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let upstream = Upstream::app(
        StartId::generate(),
        AppSocket::new(directory.into()),
        CancellationToken::new(),
        Limits::app(),
    );
    let forwarder = Forwarder::new();
    let listener = TcpListener::bind(address).await?;
    println!("ready: http://{}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let forwarder = forwarder.clone();
        let upstream = upstream.clone();
        let rules = Arc::new(rules(peer.ip()));
        tokio::spawn(serve(stream, move |request| {
            let forwarder = forwarder.clone();
            let upstream = upstream.clone();
            let rules = Arc::clone(&rules);
            async move {
                let request = request.map(RequestBody::from);
                match forwarder.forward(request, &upstream, &rules).await {
                    Ok(response) => response,
                    Err(error) => {
                        let mut response = Response::new(ResponseBody::empty());
                        *response.status_mut() = error.status();
                        response
                    }
                }
            }
        }));
    }
}

/// The headers that the hypervisor sets too.
fn rules(client: std::net::IpAddr) -> HeaderRules {
    let set = [
        ("x-choir-role", "live"),
        ("x-choir-user", "alice"),
        ("x-choir-generation", "1"),
        ("x-request-id", "0193b0a0-0000-7000-8000-000000000000"),
    ];
    HeaderRules {
        scheme: Scheme::Http,
        host: HeaderValue::from_static("alice.localhost:9090"),
        client,
        prefix: None,
        set: set
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .into(),
        service_workers: ServiceWorkers::Allow,
        counts_as_activity: true,
    }
}

async fn serve<S, F, B>(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    answer: S,
) where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    // A client that leaves is no event here.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

//! The hypervisor's two ends of a sandbox, without a hypervisor: a channel that knows one
//! token, and the proxy's engine in front of the app socket. For sandboxes that somebody
//! started by hand (`docs/runbooks/podman-smoke.md`).

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use gateway::{
    AppSocket, Forwarder, HeaderRules, Limits, RequestBody, ResponseBody, Scheme, ServiceWorkers,
    Upstream,
};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use types::StartId;

/// Serves until it is ended. Says where the proxy listens, and each request on the channel.
pub(crate) async fn run(channel: &Path, app: &Path, token: &str) -> Result<(), Box<dyn Error>> {
    let socket = channel.join("channel.sock");
    let calls = UnixListener::bind(&socket)?;
    // Whoever runs inside may connect; the directory is mounted read-only.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    let shown = HeaderValue::from_str(&format!("Bearer {token}"))?;
    let upstream = Upstream::app(
        StartId::generate(),
        AppSocket::new(fs::File::open(app)?.into()),
        CancellationToken::new(),
        Limits::app(),
    );
    let pages = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready: http://{}", pages.local_addr()?);
    tokio::spawn(serve_channel(calls, shown));
    let forwarder = Forwarder::new();
    loop {
        let (stream, peer) = pages.accept().await?;
        let (forwarder, upstream) = (forwarder.clone(), upstream.clone());
        let rules = Arc::new(rules(peer.ip()));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (forwarder, upstream) = (forwarder.clone(), upstream.clone());
                let rules = Arc::clone(&rules);
                async move {
                    let request = request.map(RequestBody::from);
                    let forwarded = forwarder.forward(request, &upstream, &rules).await;
                    Ok::<_, Infallible>(forwarded.unwrap_or_else(|error| {
                        let mut response = Response::new(ResponseBody::empty());
                        *response.status_mut() = error.status();
                        response
                    }))
                }
            });
            // A client that leaves is no event here.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

async fn serve_channel(listener: UnixListener, shown: HeaderValue) {
    while let Ok((stream, _)) = listener.accept().await {
        let shown = shown.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let known = request.headers().get(AUTHORIZATION) == Some(&shown);
                let (status, body) = match (known, request.uri().path()) {
                    (false, _) => (StatusCode::UNAUTHORIZED, "{}"),
                    (true, "/token/renew") => (StatusCode::OK, "{\"expires_in_seconds\":900}"),
                    (true, "/provider/v1") => (StatusCode::OK, "{\"providers\":[]}"),
                    (true, _) => (StatusCode::NOT_FOUND, "{}"),
                };
                println!(
                    "channel: {} {} {}",
                    request.method(),
                    request.uri().path(),
                    status.as_u16()
                );
                let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
                *response.status_mut() = status;
                async { Ok::<_, Infallible>(response) }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The headers that the hypervisor sets.
fn rules(client: std::net::IpAddr) -> HeaderRules {
    let set = [
        ("x-choir-role", "live"),
        ("x-choir-user", "alice"),
        ("x-choir-generation", "1"),
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

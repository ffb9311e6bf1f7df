//! The accept loop: TLS, HTTP/1.1 and HTTP/2, and a bound on everything a stranger can hold.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::failures::Failures;
use super::{Client, dispatch};
use crate::app::App;
use crate::config::TlsFiles;

/// A connection has to bring its first request within this time, handshake included.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(20);

/// Between two requests of a connection, and for the headers of each.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);

/// Silence after which an HTTP/2 peer is asked whether it is still there, and for the answer.
const H2_PING_AFTER: Duration = Duration::from_secs(30);
const H2_PONG_WITHIN: Duration = Duration::from_secs(20);

/// Bounds of a request head. hyper answers a larger one with 431.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
const MAX_H2_HEADER_LIST: u32 = 64 * 1024;

/// Requests in flight on one HTTP/2 connection.
const MAX_H2_STREAMS: u32 = 128;

/// Streams a peer may open and reset before they are accepted (rapid reset, CVE-2023-44487).
const MAX_H2_PENDING_RESETS: usize = 20;

/// Why the listener cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: is another program using the port?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A TLS file cannot be used.
    #[error("listen.tls: {what} cannot be used")]
    Tls {
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A bound socket that is not yet served.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Takes a bound socket, and the TLS files if there are any.
    ///
    /// # Errors
    /// The socket or a file cannot be used.
    pub fn new(socket: std::net::TcpListener, tls: Option<&TlsFiles>) -> Result<Self, ListenError> {
        let address = socket
            .local_addr()
            .unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let bind = |source| ListenError::Bind { address, source };
        socket.set_nonblocking(true).map_err(bind)?;
        let socket = TcpListener::from_std(socket).map_err(bind)?;
        Ok(Self {
            socket,
            tls: tls.map(acceptor).transpose()?,
        })
    }

    /// Whether certificate and key can be used, for `check-config`.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not fit together.
    pub fn check_tls(files: &TlsFiles) -> Result<(), ListenError> {
        acceptor(files).map(drop)
    }

    /// Serves until `app.draining` is cancelled, then lets connections finish for a while.
    pub async fn serve(self, app: Arc<App>, control: axum::Router) {
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(app.config.listen.max_connections));
        let mut failures = Failures::of("public");
        loop {
            let accepted = tokio::select! {
                () = app.draining.cancelled() => break,
                accepted = self.accept(&slots, &mut failures) => accepted,
            };
            let Some((stream, peer, slot)) = accepted else {
                continue;
            };
            let watcher = graceful.watcher();
            let (app, control, tls) = (Arc::clone(&app), control.clone(), self.tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve_connection(app, control, peer, stream, watcher).await,
                    Some(tls) => {
                        match tokio::time::timeout(FIRST_REQUEST_WITHIN, tls.accept(stream)).await {
                            Ok(Ok(stream)) => {
                                serve_connection(app, control, peer, stream, watcher).await;
                            }
                            Ok(Err(error)) => {
                                tracing::debug!(%peer, %error, "TLS handshake failed");
                            }
                            Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
                        }
                    }
                }
                drop(slot);
            });
        }
        drop(self.socket);
        if tokio::time::timeout(app.config.drain, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("connections were still busy at the end of the drain, and were closed");
        }
    }

    async fn accept(
        &self,
        slots: &Arc<Semaphore>,
        failures: &mut Failures,
    ) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        match self.socket.accept().await {
            Ok((stream, peer)) => {
                // Without it a small answer waits for the peer's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
                }
                Some((stream, peer, slot))
            }
            Err(error) => {
                failures.wait_after(&error).await;
                None
            }
        }
    }
}

async fn serve_connection<S>(
    app: Arc<App>,
    control: axum::Router,
    peer: SocketAddr,
    stream: S,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let (app, control) = (Arc::clone(&app), control.clone());
        async move {
            let client = Client::new(
                peer.ip(),
                request.headers(),
                &app.config.listen.trusted_proxies,
            );
            Ok::<_, std::convert::Infallible>(
                Box::pin(dispatch(app, control, client, request.map(Body::new))).await,
            )
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_AFTER)
        .keep_alive_timeout(H2_PONG_WITHIN)
        .max_concurrent_streams(MAX_H2_STREAMS)
        .max_pending_accept_reset_streams(MAX_H2_PENDING_RESETS)
        .max_header_list_size(MAX_H2_HEADER_LIST);
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    let mut connection = pin!(watcher.watch(connection));
    // hyper's own header timeout begins only once it knows the protocol version, so a
    // silent connection has to be found out here.
    let first = tokio::time::timeout(FIRST_REQUEST_WITHIN, connection.as_mut()).await;
    let ended = match first {
        Ok(ended) => ended,
        Err(_) if asked.load(Ordering::Relaxed) => connection.await,
        Err(_) => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ListenError> {
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| ListenError::Tls {
            what: "cert_file",
            source: Box::new(source),
        })?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|source| ListenError::Tls {
        what: "key_file",
        source: Box::new(source),
    })?;
    let unusable = |source| ListenError::Tls {
        what: "the pair of cert_file and key_file",
        source: Box::new(source),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

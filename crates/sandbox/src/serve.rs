//! Listeners and connections: the app socket, and a loopback port when told.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections served at a time, on each listener.
pub const MAX_CONNECTIONS: usize = 512;
/// How long a connection may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest request head.
const MAX_HEAD: usize = 64 * 1024;
/// How long requests may take to end once the process was told to.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a listener could not accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where requests come from.
#[derive(Debug)]
pub enum Listener {
    /// The app socket.
    Unix(UnixListener),
    /// A loopback port.
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    /// Binds a Unix socket; a socket that an earlier start left behind is replaced,
    /// anything else of that name is not.
    ///
    /// # Errors
    /// When the name is taken by something else, or binding fails.
    pub fn unix(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        UnixListener::bind(path).map(Self::Unix)
    }

    /// Binds a port of the IPv4 loopback address.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn loopback(port: u16) -> io::Result<Self> {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map(Self::Tcp)
    }

    /// The TCP address, when it is one.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        poll_fn(|context| match self {
            Self::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| Box::new(stream) as Box<dyn Stream>),
            Self::Tcp(listener) => match listener.poll_accept(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok((stream, _))) => Poll::Ready(
                    stream
                        .set_nodelay(true)
                        .map(|()| Box::new(stream) as Box<dyn Stream>),
                ),
            },
        })
        .await
    }
}

/// Serves until cancelled, then lets requests end for [`DRAIN_TIMEOUT`].
pub async fn serve(listener: Listener, router: Router, cancelled: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let accepted = tokio::select! {
            () = cancelled.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            None => break,
            Some((place, Ok(stream))) => {
                let service = TowerToHyperService::new(router.clone());
                let connection = protocol
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                let cancelled = cancelled.clone();
                connections.spawn(async move {
                    let mut connection = std::pin::pin!(connection);
                    let result = tokio::select! {
                        result = connection.as_mut() => result,
                        () = cancelled.cancelled() => {
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    };
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection ended early");
                    }
                    drop(place);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "connections cannot be accepted for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait())
        .await
        .is_err()
    {
        tracing::info!("some requests were cut off because they took too long to end");
    }
}

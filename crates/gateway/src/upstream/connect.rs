//! Making connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use types::StartId;

use crate::connection::Connection;
use crate::egress::not_public;
use crate::transport::Transport;
use crate::{AppSocket, AppSocketError, ConnectError, Limits, LocalSocket, PortError};

/// Makes connections to one port of a workbench, which lies in a network of its own: whoever
/// is inside connects and hands the socket out.
pub type PortConnector =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<OwnedFd, PortError>> + Send>> + Send + Sync>;

/// What an upstream connects to.
pub(crate) enum Target {
    App {
        start: StartId,
        socket: AppSocket,
    },
    Port {
        start: StartId,
        port: u16,
        connector: PortConnector,
    },
    Provider(ProviderAddress),
}

/// Where a provider listens.
pub(crate) struct ProviderAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Whether private, loopback and link-local addresses will do.
    pub(crate) private: bool,
    /// Where names are looked up, which blocks a thread: not on the caller's runtime, which may
    /// have few of them.
    pub(crate) home: Handle,
    /// `None` for plain HTTP.
    pub(crate) tls: Option<(ServerName<'static>, Arc<rustls::ClientConfig>)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App { start, .. } => write!(f, "App({start})"),
            Self::Port { start, port, .. } => write!(f, "Port({start}:{port})"),
            Self::Provider(address) => write!(f, "Provider({}:{})", address.host, address.port),
        }
    }
}

impl Target {
    /// A new connection, within `limits.connect`.
    pub(super) async fn connect(&self, limits: &Limits) -> Result<Connection, ConnectError> {
        let (transport, probe) = match self {
            Self::App { socket, .. } => match socket.connect(limits.connect).await {
                Ok(stream) => {
                    let socket = stream.into_std().and_then(LocalSocket::new);
                    (Transport::Unix(socket.map_err(AppSocketError::Io)?), None)
                }
                Err(AppSocketError::Timeout(after)) => return Err(ConnectError::Timeout(after)),
                Err(error) => return Err(error.into()),
            },
            Self::Port { connector, .. } => {
                let socket = tokio::time::timeout(limits.connect, connector())
                    .await
                    .map_err(|_| ConnectError::Timeout(limits.connect))??;
                let (transport, probe) =
                    adopt(socket).map_err(|error| PortError::Failed(error.to_string()))?;
                (transport, Some(probe))
            }
            Self::Provider(address) => {
                let (transport, probe) = tokio::time::timeout(limits.connect, address.connect())
                    .await
                    .map_err(|_| ConnectError::Timeout(limits.connect))??;
                (transport, Some(probe))
            }
        };
        Connection::new(transport, probe, limits, Instant::now()).await
    }
}

/// Takes over a socket that was connected elsewhere.
fn adopt(socket: OwnedFd) -> io::Result<(Transport, OwnedFd)> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let probe = stream.as_fd().try_clone_to_owned()?;
    Ok((Transport::Tcp(TcpStream::from_std(stream)?), probe))
}

impl ProviderAddress {
    /// The addresses that may be connected to: looked up once, checked, and connected to as
    /// they were checked, so that a name cannot change in between.
    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let name = (self.host.clone(), self.port);
        let lookup = self.home.spawn(async move {
            let found = tokio::net::lookup_host(name).await;
            found.map(Iterator::collect::<Vec<SocketAddr>>)
        });
        // An error means that the process ends.
        let found = lookup.await.map_err(io::Error::other)??;
        let mut refused = None;
        let addresses: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| match not_public(address.ip()) {
                Some(class) if !self.private => {
                    refused = Some(class);
                    false
                }
                _ => true,
            })
            .collect();
        match (addresses.is_empty(), refused) {
            (true, Some(class)) => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "the name stands for a {class} address; for a model server of your own set \
                     providers.addresses = \"private_network_too\""
                ),
            )),
            _ => Ok(addresses),
        }
    }

    async fn connect(&self) -> Result<(Transport, OwnedFd), ConnectError> {
        let tcp_error = |source| ConnectError::Tcp {
            host: format!("{}:{}", self.host, self.port),
            source,
        };
        let addresses = self.addresses().await.map_err(tcp_error)?;
        let stream = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(tcp_error)?;
        // Nagle's algorithm against delayed acknowledgements costs 40 ms per event.
        stream.set_nodelay(true).map_err(tcp_error)?;
        let probe = stream.as_fd().try_clone_to_owned().map_err(tcp_error)?;
        let Some((name, config)) = &self.tls else {
            return Ok((Transport::Tcp(stream), probe));
        };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), stream)
            .await
            .map_err(|source| ConnectError::Tls {
                host: format!("{}:{}", self.host, self.port),
                source,
            })?;
        Ok((Transport::Tls(Box::new(stream)), probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::without_a_thread_left;

    #[tokio::test]
    async fn a_provider_is_looked_up_on_no_thread_of_the_runtime_that_calls_it() {
        let address = ProviderAddress {
            host: "localhost".to_owned(),
            port: 1,
            private: true,
            home: Handle::current(),
            tls: None,
        };
        let found = without_a_thread_left(async move || address.addresses().await).await;
        let found = found.expect("the only thread was waited for");
        assert!(found.unwrap().iter().all(|found| found.port() == 1));
    }
}

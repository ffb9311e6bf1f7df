//! Names and connections of the host that the hypervisor runs on.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::name::DomainName;

/// A future without borrowed parts.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Look-ups at once, each of which blocks a thread; further ones wait.
const MAX_LOOKUPS: usize = 16;

/// What egress needs of a network. The host's is [`HostNetwork`]; tests have their own, so
/// that a resolver may lie and every address that is connected to is seen.
pub trait Network: fmt::Debug + Send + Sync {
    /// The addresses of a name, looked up once. The caller's turn is held until the look-up
    /// is really over, also when nobody waits for it any more.
    fn resolve(
        &self,
        name: &DomainName,
        turn: OwnedSemaphorePermit,
    ) -> BoxFuture<io::Result<Vec<IpAddr>>>;

    /// A connection to one address.
    fn connect(&self, address: SocketAddr) -> BoxFuture<io::Result<TcpStream>>;

    /// Whether an address is one of this host's own, whose services may listen there behind
    /// a firewall that does not stand between the host and itself.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// The network of the host: its resolver, its routes.
#[derive(Debug)]
pub struct HostNetwork {
    lookups: Arc<Semaphore>,
    /// Whose threads wait for the resolver.
    home: Option<Handle>,
}

impl HostNetwork {
    /// The network of this host. Its look-ups wait on threads of the runtime that it is made
    /// on, whichever asks: one that has few such threads is not to lose them to names that
    /// never resolve.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            home: Handle::try_current().ok(),
        }
    }
}

impl Default for HostNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl Network for HostNetwork {
    fn resolve(
        &self,
        name: &DomainName,
        turn: OwnedSemaphorePermit,
    ) -> BoxFuture<io::Result<Vec<IpAddr>>> {
        let (lookups, name) = (Arc::clone(&self.lookups), name.to_string());
        let home = self.home.clone();
        Box::pin(async move {
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            let home = home.unwrap_or_else(Handle::current);
            home.spawn_blocking(move || {
                // Whoever asked may have gone; the thread is taken until the answer is there.
                let _held = (permit, turn);
                // The port is beside the point: only addresses are wanted.
                let found = (name.as_str(), 0).to_socket_addrs()?;
                Ok(found.map(|address| address.ip()).collect())
            })
            .await
            .map_err(io::Error::other)?
        })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<io::Result<TcpStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // A datagram socket is bound to addresses of this host only, and sends nothing. With
        // `ip_nonlocal_bind` every address looks like an own one: refused rather than allowed.
        UdpSocket::bind((address, 0)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{HostNetwork, Network};
    use crate::egress::DomainName;
    use crate::testing::without_a_thread_left;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// A lane has two threads for long work, and one sandbox may ask for four names.
    #[tokio::test]
    async fn a_lookup_takes_no_thread_of_the_runtime_that_asks_for_it() {
        let network = HostNetwork::new();
        let found = without_a_thread_left(async move || {
            let name = DomainName::from_ascii(b"localhost").unwrap();
            let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            network.resolve(&name, turn).await
        });
        let found = found.await.expect("the only thread was waited for");
        assert!(!found.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_host_knows_its_own_addresses_and_names() {
        let network = HostNetwork::new();
        assert!(network.is_own("127.0.0.1".parse().unwrap()));
        assert!(!network.is_own("192.0.2.1".parse().unwrap()));
        let name = DomainName::from_ascii(b"localhost").unwrap();
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let found = network.resolve(&name, turn).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(std::net::IpAddr::is_loopback));
    }
}

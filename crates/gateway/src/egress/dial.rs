//! One connection out of several addresses (RFC 8305, as far as it goes without a resolver
//! of our own).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::EgressLimits;
use super::network::Network;

/// Alternates between the address families, beginning with that of the first address.
pub(super) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (front, back): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::with_capacity(front.len() + back.len());
    let (mut front, mut back) = (front.into_iter(), back.into_iter());
    loop {
        let pair = [front.next(), back.next()];
        if pair == [None, None] {
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

/// The first connection that stands. Each address has a head start before the next one is
/// tried as well; attempts that are left over are given up.
pub(super) async fn dial(
    network: &Arc<dyn Network>,
    addresses: Vec<SocketAddr>,
    limits: &EgressLimits,
) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut rest = addresses.into_iter();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match rest.next() {
            Some(address) => {
                attempts.spawn(network.connect(address));
            }
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        let waits = rest.len() > 0;
        tokio::select! {
            Some(done) = attempts.join_next() => match done {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(error) => last = io::Error::other(error),
            },
            () = sleep(limits.stagger), if waits => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::interleave;
    use std::net::SocketAddr;

    #[test]
    fn families_take_turns() {
        let list = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            interleave(list(&[
                "[2606::1]:1",
                "[2606::2]:1",
                "[2606::3]:1",
                "1.1.1.1:1"
            ])),
            list(&["[2606::1]:1", "1.1.1.1:1", "[2606::2]:1", "[2606::3]:1"])
        );
        assert_eq!(
            interleave(list(&["1.1.1.1:1", "[2606::1]:1"])),
            list(&["1.1.1.1:1", "[2606::1]:1"])
        );
        assert_eq!(interleave(Vec::new()), Vec::new());
    }
}

//! Who is at the other end of a connection.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use types::RequestId;

use crate::config::Network;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Entries of `X-Forwarded-For` that are looked at, from the right.
const MAX_HOPS: usize = 16;

/// The client of one request.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Made by us, never taken from a header.
    pub request_id: RequestId,
    /// The client's address; the last untrusted one when trusted proxies stand in between.
    pub address: IpAddr,
}

impl Client {
    /// Looks through trusted proxies, and only through those (arch §2).
    #[must_use]
    pub fn new(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> Self {
        Self {
            request_id: RequestId::generate(),
            address: client_address(peer.to_canonical(), headers, trusted),
        }
    }
}

fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer;
    if !is_trusted(peer) {
        return address;
    }
    let hops = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut entries: Vec<&str> = hops.flat_map(|value| value.split(',')).collect();
    for _ in 0..MAX_HOPS {
        let Some(entry) = entries.pop() else { break };
        let Ok(hop) = entry.trim().parse::<IpAddr>() else {
            break;
        };
        address = hop.to_canonical();
        if !is_trusted(address) {
            break;
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::client_address;
    use http::HeaderMap;
    use std::net::IpAddr;

    fn seen(peer: &str, forwarded: &str, trusted: &str) -> IpAddr {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", forwarded.parse().unwrap());
        client_address(peer.parse().unwrap(), &headers, &[trusted.parse().unwrap()])
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(
            seen("203.0.113.1", "10.9.9.9", "10.0.0.0/8").to_string(),
            "203.0.113.1"
        );
    }

    #[test]
    fn what_a_trusted_proxy_appended_counts_and_nothing_left_of_it() {
        assert_eq!(
            seen("10.0.0.1", "1.1.1.1, 198.51.100.7", "10.0.0.0/8").to_string(),
            "198.51.100.7"
        );
        assert_eq!(
            seen("10.0.0.1", "198.51.100.7, 10.0.0.2", "10.0.0.0/8").to_string(),
            "198.51.100.7"
        );
        assert_eq!(
            seen("10.0.0.1", "nonsense", "10.0.0.0/8").to_string(),
            "10.0.0.1"
        );
    }
}

//! The address of a control plane.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

use crate::Error;

/// Where `cargo xtask up` serves.
const DEFAULT: &str = "http://localhost:9090";

/// An origin: scheme, host and port, nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(Url);

impl Server {
    /// Reads an address such as `https://choir.example.com`.
    ///
    /// # Errors
    /// It is no origin, or one to which a token must not be sent.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |why| Error::Server {
            given: text.to_owned(),
            why,
        };
        let url = Url::parse(text)
            .map_err(|_| refuse("give a whole address, such as https://choir.example.com"))?;
        let bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !matches!(url.scheme(), "http" | "https") || !bare || url.host().is_none() {
            return Err(refuse(
                "give scheme, host and port only, such as https://choir.example.com",
            ));
        }
        let server = Self(url);
        if server.0.scheme() == "http" && !server.is_loopback() {
            return Err(refuse(
                "a token is sent over http to this machine only: use https, or tunnel with `ssh -L`",
            ));
        }
        Ok(server)
    }

    /// The address of a path on it. The path is one of ours, with its parts escaped.
    pub(crate) fn at(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(p, q)| (p, Some(q)));
        url.set_path(path);
        url.set_query(query);
        url
    }

    /// Whether it is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => is_localhost(name),
            Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
            Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
            None => false,
        }
    }

    /// How to name it on a command line; nothing for the default.
    pub(crate) fn as_flag(&self) -> String {
        if *self == Self::default() {
            String::new()
        } else {
            format!(" --server {self}")
        }
    }
}

/// `localhost` and everything below it is this machine (RFC 6761 §6.3), also where the
/// system's resolver does not know.
pub(crate) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

impl Default for Server {
    #[expect(clippy::expect_used, reason = "a constant, covered by a test")]
    fn default() -> Self {
        Self(Url::parse(DEFAULT).expect("the default is an address"))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::{Server, is_localhost};

    #[test]
    fn reads_origins() {
        assert_eq!(Server::default().to_string(), "http://localhost:9090");
        for text in [
            "https://choir.example.com",
            "http://127.0.0.1:9",
            "http://[::1]:9090",
            "http://a.localhost",
        ] {
            assert_eq!(Server::parse(text).unwrap().to_string(), text);
        }
        let server = Server::parse("HTTPS://Choir.Example.com:443/").unwrap();
        assert_eq!(server.to_string(), "https://choir.example.com");
        assert_eq!(
            server.at("/me?x=1").as_str(),
            "https://choir.example.com/me?x=1"
        );
        assert_eq!(server.as_flag(), " --server https://choir.example.com");
    }

    #[test]
    fn refuses_what_is_no_origin_or_would_carry_a_token_in_clear() {
        for text in [
            "localhost:9090",
            "choir",
            "ftp://a",
            "https://a/b",
            "https://u:p@a",
            "https://a?q",
            "http://choir.example.com",
            "http://10.0.0.1:9090",
        ] {
            assert!(Server::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_localhost_name_is_this_machine() {
        for name in [
            "localhost",
            "LOCALHOST",
            "alice.localhost",
            "dev--alice.localhost.",
        ] {
            assert!(is_localhost(name), "{name}");
        }
        for name in ["localhost.example.com", "notlocalhost", ""] {
            assert!(!is_localhost(name), "{name}");
        }
    }
}

//! Names and targets as callers write them, read in one way only.

use std::fmt;
use std::net::IpAddr;

use url::Host as UrlHost;

/// Longest text that is looked at as a host; a DNS name has at most 253 bytes, and an
/// internationalised one is not much longer before it is mapped.
const MAX_TEXT: usize = 1024;

/// Longest DNS name and label (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A DNS name in its one form: A-labels in lower case, without the trailing dot, letters,
/// digits and hyphens only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// Reads a name that is in ASCII already, as a `ClientHello` has it (RFC 6066 §3).
    /// Case is folded, nothing else is mapped.
    ///
    /// # Errors
    /// It is no host name.
    pub fn from_ascii(text: &[u8]) -> Result<Self, NameError> {
        let text = std::str::from_utf8(text).map_err(|_| NameError::NotAName)?;
        check(text)?;
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies beneath another name, at whatever depth; no name lies beneath itself.
    #[must_use]
    pub fn is_beneath(&self, base: &Self) -> bool {
        self.0
            .strip_suffix(base.as_str())
            .is_some_and(|front| front.ends_with('.'))
    }

    /// Labels, `1` for a bare name such as `localhost`.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.0.split('.').count()
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Characters or lengths that no host name has.
    #[error("it is no host name: labels of letters, digits and hyphens, 253 characters at most")]
    NotAName,
    /// The port is no number from 1 to 65535.
    #[error("its port is no number from 1 to 65535")]
    Port,
    /// There is no port where one is needed.
    #[error("it names no port")]
    NoPort,
    /// User information (`user@`) in front of a host.
    #[error("it has user information in front of the host")]
    UserInfo,
}

/// A host as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// By name.
    Name(DomainName),
    /// By address, in whatever spelling.
    Address(IpAddr),
}

impl Host {
    /// Reads a host in any spelling that some client or resolver would understand: dotted,
    /// hexadecimal, octal and integer IPv4, IPv6 in brackets, Unicode names (WHATWG URL
    /// §3.5, UTS 46). What no spelling fits is refused.
    ///
    /// # Errors
    /// It is no host.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        // The URL parser would decode percent signs first; nobody else does.
        if text.is_empty() || text.len() > MAX_TEXT || text.contains('%') {
            return Err(NameError::NotAName);
        }
        match UrlHost::parse(text).map_err(|_| NameError::NotAName)? {
            UrlHost::Ipv4(address) => Ok(Self::Address(address.into())),
            UrlHost::Ipv6(address) => Ok(Self::Address(address.into())),
            UrlHost::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name);
                check(name)?;
                Ok(Self::Name(DomainName(name.to_ascii_lowercase())))
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Host and port that a connection is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

impl Target {
    /// Reads `host:port`, or `host` alone where there is a port to fall back on.
    ///
    /// # Errors
    /// A host or port that is none, user information, or no port without a default.
    pub fn parse(authority: &str, default_port: Option<u16>) -> Result<Self, NameError> {
        if authority.contains('@') {
            return Err(NameError::UserInfo);
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The colon of an IPv6 address stands within its brackets.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port {
            Some(text) => parse_port(text)?,
            None => default_port.ok_or(NameError::NoPort)?,
        };
        Ok(Self {
            host: Host::parse(host)?,
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A port in decimal digits; not `+443`, which the number parser would take.
pub(super) fn parse_port(text: &str) -> Result<u16, NameError> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(NameError::Port),
    }
}

/// Letters, digits and hyphens in labels of lawful length; the last label is no number, so
/// that no resolver takes the name for an address.
fn check(name: &str) -> Result<(), NameError> {
    let label_ok = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if name.len() > MAX_NAME || numeric || !name.split('.').all(label_ok) {
        return Err(NameError::NotAName);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DomainName, Host, NameError, Target};
    use std::net::IpAddr;

    fn name(text: &str) -> Option<String> {
        match Host::parse(text) {
            Ok(Host::Name(name)) => Some(name.to_string()),
            _ => None,
        }
    }

    #[test]
    fn a_name_has_one_form() {
        for text in [
            "example.com",
            "EXAMPLE.com",
            "example.com.",
            "Example.COM.",
            "ｅｘａｍｐｌｅ.com",
            "example。com",
        ] {
            assert_eq!(name(text).as_deref(), Some("example.com"), "{text}");
        }
        assert_eq!(
            name("bücher.example").as_deref(),
            Some("xn--bcher-kva.example")
        );
        assert_eq!(
            name("XN--BCHER-KVA.example").as_deref(),
            Some("xn--bcher-kva.example")
        );
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a.b..",
            "_dmarc.example.com",
            "exa_mple.com",
            "-a.example",
            "a-.example",
            "a b.example",
            "a%2eb",
            "%31%32%37.0.0.1",
            "a/b",
            "a\\b",
            "a\0b",
            "a?b",
            "a#b",
            "a@b",
            "xn--a",
            "example.123",
            "example.0x7f",
            "example.1.2.3.4",
            "256.256.256.256",
            "1.2.3.4.5",
            "[::1",
            "[fe80::1%eth0]",
            "::1",
            "user:pw",
        ] {
            assert!(
                Host::parse(text).is_err(),
                "{text:?}: {:?}",
                Host::parse(text)
            );
        }
        assert!(Host::parse(&format!("{}.com", "a".repeat(64))).is_err());
        assert!(Host::parse(&format!("{}com", "abcdefg.".repeat(32))).is_err());
    }

    #[test]
    fn an_address_is_an_address_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0x7F.1",
            "0177.0.0.1",
            "017700000001",
            "0x7f.0x0.0x0.0x1",
            "１２７．０．０．１",
            "127。0。0。1",
        ] {
            let Ok(Host::Address(address)) = Host::parse(text) else {
                panic!("{text}: {:?}", Host::parse(text));
            };
            assert_eq!(address, "127.0.0.1".parse::<IpAddr>().unwrap(), "{text}");
        }
        for text in [
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
        ] {
            assert!(matches!(Host::parse(text), Ok(Host::Address(_))), "{text}");
        }
    }

    #[test]
    fn a_target_has_a_host_and_a_port() {
        let target = Target::parse("Example.com.:8443", None).unwrap();
        assert_eq!(target.to_string(), "example.com:8443");
        assert_eq!(
            Target::parse("example.com", Some(80)).unwrap().to_string(),
            "example.com:80"
        );
        assert_eq!(
            Target::parse("[2001:DB8::1]:443", None)
                .unwrap()
                .to_string(),
            "[2001:db8::1]:443"
        );
        assert_eq!(Target::parse("example.com", None), Err(NameError::NoPort));
        assert_eq!(Target::parse("[::1]", None), Err(NameError::NoPort));
        assert_eq!(
            Target::parse("a@example.com:443", None),
            Err(NameError::UserInfo)
        );
        for port in [
            "",
            "0",
            "+443",
            "-1",
            "65536",
            "0443443",
            "4 43",
            "４４３",
            "0x1bb",
        ] {
            assert_eq!(
                Target::parse(&format!("example.com:{port}"), Some(80)),
                Err(NameError::Port),
                "{port}"
            );
        }
    }

    #[test]
    fn beneath_is_decided_on_whole_labels() {
        let name = |text: &str| DomainName::from_ascii(text.as_bytes()).unwrap();
        let base = name("example.com");
        assert!(name("a.example.com").is_beneath(&base));
        assert!(name("a.b.example.com").is_beneath(&base));
        assert!(!name("example.com").is_beneath(&base));
        assert!(!name("badexample.com").is_beneath(&base));
        assert!(!name("example.com.evil.net").is_beneath(&base));
    }
}

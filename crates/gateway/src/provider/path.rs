//! The provider's base URL, and what may be joined to it.

use bytes::Bytes;
use http::HeaderValue;
use http::uri::{PathAndQuery, Uri};
use url::{Host, Url};

use crate::Refusal;

/// Longest path and query together, in bytes.
const MAX_TARGET: usize = 4096;

/// A base URL, taken apart.
pub(super) struct Base {
    pub(super) host: Host<String>,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// For `Host`.
    pub(super) authority: HeaderValue,
    pub(super) path: BasePath,
}

/// The path that every request stays beneath, without a trailing slash.
pub(super) struct BasePath(String);

/// Parses a base URL; the error says what is wrong with it. With a key, plain HTTP is for
/// loopback only: anything else would show the key to the network.
pub(super) fn parse_base(text: &str, has_key: bool) -> Result<Base, &'static str> {
    let url = Url::parse(text).map_err(|_| "not a URL; expected https://HOST/PATH")?;
    let tls = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err("the scheme has to be https or http"),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong in a URL; use the key file");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a base URL has neither query nor fragment");
    }
    let host = url.host().ok_or("a host is missing")?.to_owned();
    let loopback = match &host {
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    if !tls && has_key && !loopback {
        return Err("plain http would show the key to the network; use https");
    }
    let port = url.port_or_known_default().ok_or("a port is missing")?;
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_string(),
    };
    let authority = HeaderValue::try_from(authority).map_err(|_| "the host is not valid")?;
    let path = url.path().trim_end_matches('/').to_owned();
    Ok(Base {
        host,
        port,
        tls,
        authority,
        path: BasePath(path),
    })
}

impl BasePath {
    /// The request target for `rest`, which is untrusted and still percent-encoded.
    ///
    /// Refused is everything that a server might read as leaving the base, after decoding
    /// it once or twice: dot segments, empty segments (an absolute URL has one), encoded
    /// slashes, dots, backslashes and percent signs, parameters on dot segments.
    pub(super) fn join(&self, rest: &str, query: Option<&str>) -> Result<Uri, Refusal> {
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        check(rest)?;
        // As long as it will be, with the marks between its parts: then it is kept as it is.
        let length = self.0.len() + 1 + rest.len() + query.map_or(0, |query| 1 + query.len());
        let mut target = String::with_capacity(length);
        target.push_str(&self.0);
        if !rest.is_empty() || target.is_empty() {
            target.push('/');
            target.push_str(rest);
        }
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        if target.len() > MAX_TARGET {
            return Err(Refusal::Path);
        }
        PathAndQuery::from_maybe_shared(Bytes::from(target))
            .map(Uri::from)
            .map_err(|_| Refusal::Path)
    }
}

fn check(rest: &str) -> Result<(), Refusal> {
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        // A trailing slash makes a last empty segment; any other empty one is refused.
        if segment.is_empty() && (segments.peek().is_some() || rest == "/") {
            return Err(Refusal::Path);
        }
        let name = segment.split(';').next().unwrap_or_default();
        if name == "." || name == ".." {
            return Err(Refusal::Path);
        }
    }
    let mut bytes = rest.bytes();
    while let Some(byte) = bytes.next() {
        let allowed = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
        if byte == b'%' {
            let high = bytes.next().and_then(hex);
            let low = bytes.next().and_then(hex);
            let (Some(high), Some(low)) = (high, low) else {
                return Err(Refusal::Path);
            };
            let decoded = high * 16 + low;
            if matches!(decoded, b'/' | b'\\' | b'.' | b'%' | b'?' | b'#' | b';')
                || decoded.is_ascii_control()
            {
                return Err(Refusal::Path);
            }
        } else if !allowed {
            return Err(Refusal::Path);
        }
    }
    Ok(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;

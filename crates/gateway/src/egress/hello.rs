//! The first message of a TLS client, read for one thing: the name it asks for.
//!
//! Nothing is decrypted and nothing is kept. Whatever is not exactly one `ClientHello` that
//! names one host in clear is refused (RFC 8446 §4.1.2 and §5.1, RFC 6066 §3).

use super::name::DomainName;

/// Bytes of a hello, the framing of its records included. A hello with a post-quantum key
/// share and a session ticket has about 3 KiB.
pub const MAX_HELLO: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const MAX_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// `encrypted_client_hello` (RFC 9849), and ESNI of the drafts before it.
const ENCRYPTED_HELLO: [u16; 2] = [0xfe0d, 0xffce];

/// What the bytes so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// No hello yet; none can be complete before there are this many bytes.
    Partial(usize),
    /// A complete hello that names this host.
    Names(DomainName),
}

/// Why a tunnel's first bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It is not TLS.
    #[error("what was sent is not TLS")]
    NotTls,
    /// It is TLS, and no well-formed `ClientHello`.
    #[error("what was sent is no well-formed TLS ClientHello")]
    Malformed,
    /// It is longer than [`MAX_HELLO`].
    #[error("the TLS ClientHello is longer than {MAX_HELLO} bytes")]
    TooLong,
    /// It names no host.
    #[error("the TLS ClientHello names no server (SNI)")]
    NoName,
    /// It hides its name.
    #[error("the TLS ClientHello hides its server name (ECH)")]
    Encrypted,
}

/// Looks at the first bytes of a connection. Pure: the same bytes, whole or in pieces, get
/// the same answer.
///
/// # Errors
/// They are not the beginning of an acceptable hello, however they may go on.
pub fn inspect(bytes: &[u8]) -> Result<Hello, HelloError> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // A first byte that is no handshake record settles it: no need to wait for five.
        if rest.first().is_some_and(|kind| *kind != RECORD_HANDSHAKE) {
            return Err(if message.is_empty() {
                HelloError::NotTls
            } else {
                HelloError::Malformed
            });
        }
        if rest.get(1).is_some_and(|major| *major != 3) {
            return Err(HelloError::NotTls);
        }
        let consumed = bytes.len() - rest.len();
        let [_, _, minor, high, low, after @ ..] = rest else {
            return partial(consumed + 5);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *minor > 4 || length == 0 || length > MAX_RECORD {
            return Err(HelloError::NotTls);
        }
        let whole = consumed + 5 + length;
        if whole > MAX_HELLO {
            return Err(HelloError::TooLong);
        }
        let Some((fragment, after)) = after.split_at_checked(length) else {
            // The kind of message stands in its first byte.
            if message.is_empty() && after.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Err(HelloError::Malformed);
            }
            return partial(whole);
        };
        message.extend_from_slice(fragment);
        rest = after;
        if let [kind, high, middle, low, body @ ..] = message.as_slice() {
            if *kind != CLIENT_HELLO {
                return Err(HelloError::Malformed);
            }
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if length > MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            match body.len() {
                have if have == length => return server_name(body).map(Hello::Names),
                // Nothing may follow in the same flight (RFC 8446 §5.1).
                have if have > length => return Err(HelloError::Malformed),
                _ => {}
            }
        } else if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::Malformed);
        }
    }
}

fn partial(needed: usize) -> Result<Hello, HelloError> {
    if needed > MAX_HELLO {
        Err(HelloError::TooLong)
    } else {
        Ok(Hello::Partial(needed))
    }
}

/// The one name in the body of a `ClientHello`.
fn server_name(body: &[u8]) -> Result<DomainName, HelloError> {
    let mut body = Reader(body);
    // legacy_version and random
    body.take(2 + 32)?;
    let session = body.vector8()?;
    if session.0.len() > 32 {
        return Err(HelloError::Malformed);
    }
    let suites = body.vector16()?;
    if suites.0.len() < 2 || suites.0.len() % 2 != 0 {
        return Err(HelloError::Malformed);
    }
    if body.vector8()?.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    if body.0.is_empty() {
        // A hello without extensions, as TLS 1.0 had it.
        return Err(HelloError::NoName);
    }
    let mut extensions = body.vector16()?;
    if !body.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut kinds = Vec::new();
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        kinds.push(kind);
        if ENCRYPTED_HELLO.contains(&kind) {
            return Err(HelloError::Encrypted);
        }
        if kind == SERVER_NAME {
            name = Some(host_name(content)?);
        }
    }
    // Two parsers may choose differently among two extensions of one kind.
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(HelloError::Malformed);
    }
    name.ok_or(HelloError::NoName)
}

/// The list of names has exactly one entry, a host name.
fn host_name(mut extension: Reader<'_>) -> Result<DomainName, HelloError> {
    let mut list = extension.vector16()?;
    let [kind] = list.take(1)? else {
        return Err(HelloError::Malformed);
    };
    let name = list.vector16()?;
    if *kind != HOST_NAME || !list.0.is_empty() || !extension.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    DomainName::from_ascii(name.0).map_err(|_| HelloError::Malformed)
}

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, HelloError> {
        match self.take(2)? {
            [high, low] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(HelloError::Malformed),
        }
    }

    fn vector8(&mut self) -> Result<Self, HelloError> {
        match self.take(1)? {
            [length] => self.take(usize::from(*length)).map(Self),
            _ => Err(HelloError::Malformed),
        }
    }

    fn vector16(&mut self) -> Result<Self, HelloError> {
        let length = self.number16()?;
        self.take(usize::from(length)).map(Self)
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;

//! SHA-256 (FIPS 180-4), plain and with domain separation.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::hex;

/// A SHA-256 value of something public, such as an audit record. Not for secrets: comparing
/// two of these takes as long as their common beginning. For tokens there is `TokenHash`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a SHA-256 value: expected 64 lower-case hexadecimal digits")]
pub struct ParseDigestError;

impl Digest {
    /// All zeros: stands where there is nothing to hash yet.
    pub const ZERO: Self = Self([0; 32]);

    /// Takes bytes that were read back.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::parse(text).map(Self).ok_or(ParseDigestError)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// SHA-256 of bytes as they are.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut value = [0; 32];
    for (to, from) in value.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    Digest(value)
}

/// SHA-256 over a domain and then bytes, piece by piece.
///
/// The domain goes in first with its length, so that a value made for one purpose is never
/// one made for another. The pieces are concatenated as they are: the caller frames them.
#[derive(Clone)]
pub struct Hasher(Context);

impl Hasher {
    /// Starts with a domain such as `choir ledger record v1`.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&(domain.len() as u64).to_be_bytes());
        context.update(domain.as_bytes());
        Self(context)
    }

    /// Adds bytes.
    #[must_use]
    pub fn update(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }

    /// The value.
    #[must_use]
    pub fn finish(self) -> Digest {
        let mut value = [0; 32];
        for (to, from) in value.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        Digest(value)
    }
}

/// The same as a [`Hasher`] gives, in one go: a context of its own costs more than hashing the
/// few bytes that a token has.
pub(crate) fn sha256_of_few(domain: &str, bytes: &[u8]) -> Digest {
    let mut framed = Zeroizing::new([0; 96]);
    let mut length = 0;
    for part in [
        &(domain.len() as u64).to_be_bytes()[..],
        domain.as_bytes(),
        bytes,
    ] {
        let end = length + part.len();
        let Some(place) = framed.get_mut(length..end) else {
            return Hasher::new(domain).update(bytes).finish();
        };
        place.copy_from_slice(part);
        length = end;
    }
    sha256(framed.get(..length).unwrap_or_default())
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher(SHA-256)")
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Hasher, sha256, sha256_of_few};

    #[test]
    fn agrees_with_the_standard_vector() {
        // FIPS 180-4, "abc".
        assert_eq!(
            sha256(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_domain_changes_the_value_and_cannot_be_shifted_into_the_bytes() {
        let one = Hasher::new("a").update(b"bc").finish();
        assert_ne!(one, Hasher::new("ab").update(b"c").finish());
        assert_ne!(one, sha256(b"abc"));
        assert_eq!(one, Hasher::new("a").update(b"b").update(b"c").finish());
    }

    #[test]
    fn in_one_go_it_is_the_same_for_few_bytes_and_for_many() {
        for length in [0, 58, 80, 81, 300] {
            let bytes = vec![b'x'; length];
            let whole = Hasher::new("a domain").update(&bytes).finish();
            assert_eq!(sha256_of_few("a domain", &bytes), whole, "{length}");
        }
    }

    #[test]
    fn has_exactly_one_spelling() {
        let text = sha256(b"abc").to_string();
        assert_eq!(text.parse::<Digest>().unwrap(), sha256(b"abc"));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[..63].parse::<Digest>().is_err());
        let json = serde_json::to_string(&sha256(b"abc")).unwrap();
        assert_eq!(
            serde_json::from_str::<Digest>(&json).unwrap(),
            sha256(b"abc")
        );
    }
}

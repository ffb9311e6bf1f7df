//! Segment files: their names and their headers.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crypto::{Digest, Hasher, Random, RandomError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Length of a segment's header in bytes.
pub(crate) const HEADER: usize = 108;
const MAGIC: &[u8; 8] = b"CHOIRLED";
const VERSION: u16 = 1;
const DOMAIN: &str = "choir ledger segment v1";

/// Identifies one log. Two logs never share it, so a segment of one is not one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId([u8; 16]);

impl LogId {
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub(crate) fn generate(random: &dyn Random) -> Result<Self, RandomError> {
        let mut bytes = [0; 16];
        random.fill(&mut bytes)?;
        Ok(Self(
            *uuid::Builder::from_random_bytes(bytes)
                .into_uuid()
                .as_bytes(),
        ))
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl FromStr for LogId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(|id| Self(*id.as_bytes()))
    }
}

impl Serialize for LogId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LogId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) log: LogId,
    pub(crate) index: u64,
    pub(crate) first_seq: u64,
    /// Hash of the last record of the previous segment.
    pub(crate) previous: Digest,
}

impl Header {
    /// The header's bytes, and the hash that the segment's first frame chains to.
    pub(crate) fn encode(&self) -> (Vec<u8>, Digest) {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(self.log.as_bytes());
        bytes.extend_from_slice(&self.index.to_be_bytes());
        bytes.extend_from_slice(&self.first_seq.to_be_bytes());
        bytes.extend_from_slice(self.previous.as_bytes());
        let hash = Hasher::new(DOMAIN).update(&bytes).finish();
        bytes.extend_from_slice(hash.as_bytes());
        (bytes, hash)
    }

    /// Reads a header; `None` when it is none of this version or was changed.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<(Self, Digest)> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (zero, rest) = rest.split_first_chunk::<2>()?;
        let (log, rest) = rest.split_first_chunk::<16>()?;
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let (first_seq, rest) = rest.split_first_chunk::<8>()?;
        let (previous, stored) = rest.split_first_chunk::<32>()?;
        let header = Self {
            log: LogId::from_bytes(*log),
            index: u64::from_be_bytes(*index),
            first_seq: u64::from_be_bytes(*first_seq),
            previous: Digest::from_bytes(*previous),
        };
        let (_, hash) = header.encode();
        let known = u16::from_be_bytes(*version) == VERSION && *zero == [0; 2];
        (known && hash.as_bytes() == stored).then_some((header, hash))
    }
}

/// The path of a segment.
pub(crate) fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("segment-{index:08}.log"))
}

/// Indices of the segments in a directory, ascending. Other files are none of ours.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut indices = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let index = name
            .to_str()
            .and_then(|name| name.strip_prefix("segment-")?.strip_suffix(".log"))
            .and_then(|digits| digits.parse::<u64>().ok());
        indices.extend(index.filter(|index| path(dir, *index).ends_with(&name)));
    }
    indices.sort_unstable();
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use crypto::sha256;

    use super::{HEADER, Header, LogId};

    #[test]
    fn a_header_reads_back_and_every_changed_byte_is_noticed() {
        let header = Header {
            log: LogId::from_bytes([3; 16]),
            index: 2,
            first_seq: 900,
            previous: sha256(b"last"),
        };
        let (bytes, hash) = header.encode();
        let bytes: [u8; HEADER] = bytes.try_into().unwrap();
        assert_eq!(Header::decode(&bytes), Some((header, hash)));
        for at in 0..HEADER {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(Header::decode(&changed), None, "byte {at}");
        }
    }
}

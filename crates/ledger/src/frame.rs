//! One frame: a record's bytes with what chains them to the ones before.

use crypto::{Digest, Hasher};

use crate::encoding::MAX_RECORD;

/// Length, seq and previous hash, before the payload.
pub(crate) const FRAME_HEAD: usize = 4 + 8 + 32;
/// All that a frame adds to its payload.
pub(crate) const FRAME_OVERHEAD: usize = FRAME_HEAD + 32;
const DOMAIN: &str = "choir ledger record v1";

/// A frame whose own hash is right. Whether it belongs where it stands is not said yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) seq: u64,
    pub(crate) previous: Digest,
    pub(crate) payload: &'a [u8],
    pub(crate) hash: Digest,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// They end before the frame does.
    Incomplete,
    /// The length is none that a record can have.
    Length,
    /// The hash is not that of the bytes.
    Hash,
}

/// Appends a frame to `out` and returns its hash.
///
/// The caller keeps the payload within 1 to [`MAX_RECORD`] bytes, which the encoding does.
pub(crate) fn write(out: &mut Vec<u8>, seq: u64, previous: Digest, payload: &[u8]) -> Digest {
    // A longer payload cannot come here; were it to, its length would be refused on reading.
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let seq = seq.to_be_bytes();
    let hash = hash(&length, &seq, previous.as_bytes(), payload);
    out.reserve(FRAME_OVERHEAD + payload.len());
    out.extend_from_slice(&length);
    out.extend_from_slice(&seq);
    out.extend_from_slice(previous.as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(hash.as_bytes());
    hash
}

/// How long the whole frame is that begins with these bytes.
pub(crate) fn length(bytes: &[u8]) -> Result<usize, FrameError> {
    let length = bytes.first_chunk::<4>().ok_or(FrameError::Incomplete)?;
    match usize::try_from(u32::from_be_bytes(*length)) {
        Ok(payload @ 1..=MAX_RECORD) => Ok(FRAME_OVERHEAD + payload),
        _ => Err(FrameError::Length),
    }
}

/// Reads the frame at the beginning of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let whole = length(bytes)?;
    let bytes = bytes.get(..whole).ok_or(FrameError::Incomplete)?;
    let (length, rest) = bytes
        .split_first_chunk::<4>()
        .ok_or(FrameError::Incomplete)?;
    let (seq, rest) = rest
        .split_first_chunk::<8>()
        .ok_or(FrameError::Incomplete)?;
    let (previous, rest) = rest
        .split_first_chunk::<32>()
        .ok_or(FrameError::Incomplete)?;
    let (payload, stored) = rest
        .split_last_chunk::<32>()
        .ok_or(FrameError::Incomplete)?;
    let hash = hash(length, seq, previous, payload);
    if hash.as_bytes() != stored {
        return Err(FrameError::Hash);
    }
    Ok(Frame {
        seq: u64::from_be_bytes(*seq),
        previous: Digest::from_bytes(*previous),
        payload,
        hash,
    })
}

fn hash(length: &[u8; 4], seq: &[u8; 8], previous: &[u8; 32], payload: &[u8]) -> Digest {
    Hasher::new(DOMAIN)
        .update(length)
        .update(seq)
        .update(previous)
        .update(payload)
        .finish()
}

#[cfg(test)]
mod tests {
    use crypto::{Digest, sha256};
    use proptest::prelude::*;

    use super::{FRAME_OVERHEAD, FrameError, read, write};

    proptest! {
        #[test]
        fn what_was_written_reads_back(
            seq: u64,
            previous: [u8; 32],
            payload in proptest::collection::vec(any::<u8>(), 1..500),
        ) {
            let mut bytes = Vec::new();
            let hash = write(&mut bytes, seq, Digest::from_bytes(previous), &payload);
            prop_assert_eq!(bytes.len(), FRAME_OVERHEAD + payload.len());
            let frame = read(&bytes).unwrap();
            prop_assert_eq!(frame.seq, seq);
            prop_assert_eq!(frame.previous, Digest::from_bytes(previous));
            prop_assert_eq!(frame.payload, &payload[..]);
            prop_assert_eq!(frame.hash, hash);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, sha256(b"before"), b"payload");
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(read(&changed).is_err(), "bit {at}");
        }
    }

    #[test]
    fn every_cut_is_incomplete() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, sha256(b"before"), b"payload");
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), Err(FrameError::Incomplete));
        }
    }
}

//! Bounded output: the last bytes that a process wrote, each known by its offset.

use std::collections::VecDeque;

use crate::protocol::{MAX_DATA, Stream};

/// Small writes to the same stream are joined up to this many bytes, so that a log of
/// single bytes costs about what it holds.
const JOINED: usize = 16 << 10;

/// A ring of output. Writers never wait: what exceeds the bound pushes the oldest out.
#[derive(Debug)]
pub(crate) struct Log {
    chunks: VecDeque<Chunk>,
    /// Offset of the oldest byte kept.
    start: u64,
    /// Offset after the newest byte.
    end: u64,
    bound: u64,
}

#[derive(Debug)]
struct Chunk {
    stream: Stream,
    offset: u64,
    bytes: Vec<u8>,
}

impl Log {
    /// Keeps at most `bound` bytes, and at least one chunk.
    pub(crate) fn new(bound: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            start: 0,
            end: 0,
            bound,
        }
    }

    /// Most bytes that are kept, or one chunk where that is more.
    pub(crate) const fn bound(&self) -> u64 {
        self.bound
    }

    /// Offset after the newest byte.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that were dropped so far: exactly those before the oldest kept.
    pub(crate) const fn dropped(&self) -> u64 {
        self.start
    }

    /// Adds what a process wrote.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.chunks.back_mut() {
            Some(last) if last.stream == stream && last.bytes.len() + bytes.len() <= JOINED => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => self.chunks.push_back(Chunk {
                stream,
                offset: self.end,
                bytes: bytes.to_vec(),
            }),
        }
        self.end += length(bytes);
        while self.end - self.start > self.bound && self.chunks.len() > 1 {
            if let Some(oldest) = self.chunks.pop_front() {
                self.start = oldest.offset + length(&oldest.bytes);
            }
        }
    }

    /// What stands at offset `from`, or at the oldest byte kept if that is later: stream,
    /// offset of the first byte, and at most [`MAX_DATA`] bytes of one stream.
    pub(crate) fn read(&self, from: u64) -> Option<(Stream, u64, &[u8])> {
        let from = from.max(self.start);
        let after = self.chunks.partition_point(|chunk| chunk.offset <= from);
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        let skip = usize::try_from(from - chunk.offset).ok()?;
        let rest = chunk.bytes.get(skip..).filter(|rest| !rest.is_empty())?;
        Some((chunk.stream, from, rest.get(..MAX_DATA).unwrap_or(rest)))
    }
}

const fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use super::Log;
    use crate::protocol::Stream;

    #[test]
    fn keeps_order_streams_and_offsets() {
        let mut log = Log::new(100);
        log.append(Stream::Stdout, b"ab");
        log.append(Stream::Stdout, b"c");
        log.append(Stream::Stderr, b"de");
        assert_eq!(log.read(0), Some((Stream::Stdout, 0, b"abc".as_slice())));
        assert_eq!(log.read(2), Some((Stream::Stdout, 2, b"c".as_slice())));
        assert_eq!(log.read(3), Some((Stream::Stderr, 3, b"de".as_slice())));
        assert_eq!(log.read(5), None);
        assert_eq!(log.read(99), None);
    }

    #[test]
    fn drops_the_oldest_and_counts_it() {
        let mut log = Log::new(40 << 10);
        for round in 0..100_u8 {
            log.append(Stream::Stdout, &[round; 1000]);
        }
        assert_eq!(log.end(), 100_000);
        assert!(log.end() - log.dropped() <= 40 << 10);
        let (_, offset, bytes) = log.read(0).unwrap();
        assert_eq!(offset, log.dropped());
        assert_eq!(u64::from(bytes[0]), offset / 1000);
    }
}

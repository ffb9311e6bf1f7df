//! Output as the model and the transcript get it: bounded, beginning and end kept.

use std::collections::VecDeque;

/// Bytes kept of the beginning.
const HEAD: usize = 8 * 1024;
/// Bytes kept of the end: that is where errors stand.
const TAIL: usize = 16 * 1024;

/// Collects bytes and keeps the first [`HEAD`] and the last [`TAIL`] of them.
#[derive(Debug, Default)]
pub(crate) struct BoundedOutput {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl BoundedOutput {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = HEAD.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
        self.dropped += over as u64;
    }

    /// Counts bytes that were dropped before they came here.
    pub(crate) const fn dropped(&mut self, bytes: u64) {
        self.dropped = self.dropped.saturating_add(bytes);
    }

    /// The text, and whether something of it was left out.
    pub(crate) fn finish(self) -> (String, bool) {
        let Self {
            mut head,
            tail,
            dropped,
        } = self;
        if dropped == 0 {
            head.extend(tail);
            return (printable(&String::from_utf8_lossy(&head)), false);
        }
        let tail = Vec::from(tail);
        let text = format!(
            "{}\n[… {dropped} bytes were left out …]\n{}",
            printable(&String::from_utf8_lossy(&head)),
            printable(&String::from_utf8_lossy(&tail))
        );
        (text, true)
    }
}

/// Without control characters but line ends and tabs: they mean nothing to a model, and
/// each would take six bytes in JSON, which breaks the bound of an event.
pub(crate) fn printable(text: &str) -> String {
    let keep = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(keep).collect()
}

/// A text cut to the same bound.
pub(crate) fn bounded(text: &str) -> (String, bool) {
    let mut output = BoundedOutput::default();
    output.push(text.as_bytes());
    output.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BoundedOutput, HEAD, TAIL};

    proptest! {
        #[test]
        fn keeps_both_ends_however_it_arrives(
            length in 0usize..60_000,
            pieces in proptest::collection::vec(1usize..9_000, 1..40),
        ) {
            let bytes: Vec<u8> = (0..length).map(|n| b'a' + (n % 26) as u8).collect();
            let mut output = BoundedOutput::default();
            let mut rest = bytes.as_slice();
            for size in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                output.push(piece);
                rest = after;
            }
            let (text, truncated) = output.finish();
            prop_assert_eq!(truncated, length > HEAD + TAIL);
            if truncated {
                prop_assert!(text.as_bytes().starts_with(&bytes[..HEAD]));
                prop_assert!(text.as_bytes().ends_with(&bytes[length - TAIL..]));
                prop_assert!(text.len() < HEAD + TAIL + 100);
            } else {
                prop_assert_eq!(text.into_bytes(), bytes);
            }
        }
    }
}

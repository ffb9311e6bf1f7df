//! Keeps a provider's key out of what the provider sends (threats, Information disclosure).
//!
//! Every occurrence is overwritten by as many asterisks, so that lengths stay true. A piece
//! that may be the beginning of the key is held back until the next bytes decide.

use bytes::{Bytes, BytesMut};

use super::ProviderKey;

const MASK: u8 = b'*';

/// Follows one body.
#[derive(Debug)]
pub(crate) struct Scrubber {
    key: Option<ProviderKey>,
    held: BytesMut,
}

impl Scrubber {
    /// For a body of a provider with this key.
    pub(crate) fn new(key: Option<ProviderKey>) -> Self {
        Self {
            key,
            held: BytesMut::new(),
        }
    }

    /// What may be passed on of what was held back and these bytes.
    pub(crate) fn feed(&mut self, bytes: Bytes) -> Bytes {
        let Some(key) = &self.key else {
            return bytes;
        };
        let key = key.bare().as_bytes();
        if self.held.is_empty() && clean(&bytes, key) {
            return bytes;
        }
        self.held.extend_from_slice(&bytes);
        while let Some(at) = find(&self.held, key) {
            if let Some(found) = self.held.get_mut(at..at + key.len()) {
                found.fill(MASK);
            }
        }
        let keep = partial(&self.held, key);
        let ready = self.held.len() - keep;
        self.held.split_to(ready).freeze()
    }

    /// Bytes held back.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// What was held back, at the end: it was no key after all.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

/// Neither the key nor the beginning of one at the end.
fn clean(bytes: &[u8], key: &[u8]) -> bool {
    find(bytes, key).is_none() && partial(bytes, key) == 0
}

fn find(bytes: &[u8], key: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, key)
}

/// How many bytes at the end are the beginning of the key.
fn partial(bytes: &[u8], key: &[u8]) -> usize {
    (1..key.len().min(bytes.len() + 1))
        .rev()
        .find(|length| bytes.ends_with(key.get(..*length).unwrap_or_default()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scrub(text: &[u8], chunk: usize) -> Vec<u8> {
        let mut scrubber = Scrubber::new(Some(ProviderKey::new("sk-sk-canary").unwrap()));
        let mut out = Vec::new();
        for piece in text.chunks(chunk) {
            out.extend_from_slice(&scrubber.feed(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&scrubber.finish());
        out
    }

    #[test]
    fn a_key_is_masked_however_it_is_cut() {
        let text = b"bad key sk-sk-sk-canary, sk-sk-canarysk-sk-canary; sk-sk-can";
        let expected = b"bad key sk-************, ************************; sk-sk-can";
        for chunk in 1..text.len() + 1 {
            assert_eq!(scrub(text, chunk), expected, "{chunk}");
        }
    }

    #[test]
    fn an_ordinary_piece_is_not_copied() {
        let mut scrubber = Scrubber::new(Some(ProviderKey::new("sk-canary").unwrap()));
        let piece = Bytes::from_static(b"data: {}\n\n");
        assert_eq!(scrubber.feed(piece.clone()).as_ptr(), piece.as_ptr());
    }

    proptest! {
        #[test]
        fn lengths_stay_and_no_key_comes_through(text in "([ks\\-]|sk-|canary|sk-sk-canary){0,30}", chunk in 1_usize..20) {
            let out = scrub(text.as_bytes(), chunk);
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(!String::from_utf8_lossy(&out).contains("sk-sk-canary"));
        }
    }
}

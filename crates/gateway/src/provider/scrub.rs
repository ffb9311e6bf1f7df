//! Keeps a provider's key out of what the provider sends (threats, Information disclosure).
//!
//! Every occurrence, however it is spelled, is overwritten by as many asterisks, so that lengths stay true. A piece
//! that may be the beginning of the key is held back until the next bytes decide.

use bytes::{Bytes, BytesMut};

use super::ProviderKey;
use super::key::Found;

const MASK: u8 = b'*';

/// Follows one body.
#[derive(Debug)]
pub(crate) struct Scrubber {
    key: Option<ProviderKey>,
    /// Whether the body may hold it within base64.
    has_base64: bool,
    held: BytesMut,
}

impl Scrubber {
    /// For a body of a provider with this key.
    pub(crate) fn new(key: Option<ProviderKey>, has_base64: bool) -> Self {
        Self {
            key,
            has_base64,
            held: BytesMut::new(),
        }
    }

    /// What may be passed on of what was held back and these bytes.
    pub(crate) fn feed(&mut self, bytes: Bytes) -> Bytes {
        let Some(key) = &self.key else {
            return bytes;
        };
        let find = if self.has_base64 {
            ProviderKey::find_in_base64_too
        } else {
            ProviderKey::find
        };
        if self.held.is_empty() && find(key, &bytes).is_none() {
            return bytes;
        }
        self.held.extend_from_slice(&bytes);
        let mut ready = 0;
        while let Some(rest) = self.held.get_mut(ready..) {
            match find(key, rest) {
                Some(Found::Whole(at)) => {
                    ready += at.end;
                    if let Some(found) = rest.get_mut(at) {
                        found.fill(MASK);
                    }
                }
                Some(Found::Beginning(at)) => {
                    ready += at;
                    break;
                }
                None => {
                    ready = self.held.len();
                    break;
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scrub(text: &[u8], chunk: usize) -> Vec<u8> {
        let mut scrubber = Scrubber::new(Some(ProviderKey::new("sk-sk-canary").unwrap()), true);
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
    fn a_key_is_masked_however_it_is_spelled_and_cut() {
        let text = b"{\"a\\n\":\"sk-sk-c\\u0061n%61ry \\u0073k-sk-canar\\u0079\"}";
        let expected = b"{\"a\\n\":\"******************* **********************\"}";
        for chunk in 1..text.len() + 1 {
            let out = scrub(text, chunk);
            assert_eq!(out, expected, "{chunk}: {}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn a_key_is_masked_within_base64_however_it_is_cut() {
        // `"bad key sk-sk-canary, sk-sk-canary!"`; what stands around the key stays readable.
        let text = b"ImJhZCBrZXkgc2stc2stY2FuYXJ5LCBzay1zay1jYW5hcnkhIg";
        let expected = b"ImJhZCBrZXkg****************LCB***************khIg";
        for chunk in 1..text.len() + 1 {
            let out = scrub(text, chunk);
            assert_eq!(out, expected, "{chunk}: {}", String::from_utf8_lossy(&out));
        }
        let mut plain = Scrubber::new(Some(ProviderKey::new("sk-sk-canary").unwrap()), false);
        assert_eq!(plain.feed(Bytes::from_static(text)), &text[..]);
    }

    #[test]
    fn an_ordinary_piece_is_not_copied() {
        let mut scrubber = Scrubber::new(Some(ProviderKey::new("sk-canary").unwrap()), true);
        let piece = Bytes::from_static(b"data: {\"a\":\"s\\n%\"}\n\n");
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

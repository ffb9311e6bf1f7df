//! A provider's key.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::HeaderValue;
use memchr::memmem::Finder;

/// Fewer characters of base64 say too little to be taken for a key.
const MIN_BASE64: usize = 8;

/// A provider's key. It has no `Display` and no revealing `Debug`. Cheap to clone.
#[derive(Clone)]
pub struct ProviderKey(Arc<Inner>);

struct Inner {
    bare: HeaderValue,
    bearer: HeaderValue,
    plain: Pattern,
    /// What of the key's base64 is the same whatever stands around it: one for each place in a
    /// group of three bytes at which it may begin.
    in_base64: Vec<Pattern>,
}

/// What is looked for; made once, because every piece of every reply is searched.
struct Pattern(Finder<'static>);

/// A key that cannot stand in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the provider key is empty or has characters that cannot stand in a header")]
pub struct ProviderKeyError;

impl ProviderKey {
    /// Takes a key as it stands in its file; surrounding white space is cut off.
    ///
    /// # Errors
    /// When nothing is left, or when a character is not visible ASCII.
    pub fn new(key: &str) -> Result<Self, ProviderKeyError> {
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProviderKeyError);
        }
        let sensitive = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| ProviderKeyError)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self(Arc::new(Inner {
            bare: sensitive(key)?,
            bearer: sensitive(&format!("Bearer {key}"))?,
            plain: Pattern::new(key.as_bytes()),
            in_base64: (0..3)
                .map(|before| in_base64(key.as_bytes(), before))
                .filter(|text| text.len() >= MIN_BASE64)
                .map(|text| Pattern::new(&text))
                .collect(),
        })))
    }

    /// For `x-api-key`.
    pub(super) fn bare(&self) -> &HeaderValue {
        &self.0.bare
    }

    /// For `Authorization`.
    pub(super) fn bearer(&self) -> &HeaderValue {
        &self.0.bearer
    }

    /// Whether the key stands in `text`, however it is spelled.
    pub(super) fn occurs_in(&self, text: &[u8]) -> bool {
        matches!(self.find(text), Some(Found::Whole(_)))
    }

    /// The first place of `text` where the key stands, or where its beginning stands at the
    /// end of it.
    pub(super) fn find(&self, text: &[u8]) -> Option<Found> {
        self.0.plain.find(text)
    }

    /// The same, where the key may stand within base64 as well.
    pub(super) fn find_in_base64_too(&self, text: &[u8]) -> Option<Found> {
        let all = std::iter::once(&self.0.plain).chain(&self.0.in_base64);
        all.filter_map(|pattern| pattern.find(text))
            .min_by_key(Found::start)
    }
}

/// The characters that stand for bits of the key alone, when so many bytes of a group of three
/// stand before it.
fn in_base64(key: &[u8], before: usize) -> Vec<u8> {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(key);
    let text = STANDARD_NO_PAD.encode(&bytes);
    let (first, end) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    text.as_bytes().get(first..end).unwrap_or_default().to_vec()
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        Self(Finder::new(bytes).into_owned())
    }

    /// A key of base64 has characters that JSON and URLs spell in several ways: `/` is `\/`,
    /// `\u002f` and `%2F` as well. Each character may be spelled in each way.
    fn find(&self, text: &[u8]) -> Option<Found> {
        let key = self.0.needle();
        let first = *key.first()?;
        if memchr::memchr2(b'\\', b'%', text).is_none() {
            return match self.0.find(text) {
                Some(at) => Some(Found::Whole(at..at + key.len())),
                None => beginning(text, key).map(Found::Beginning),
            };
        }
        memchr::memchr3_iter(first, b'\\', b'%', text).find_map(|at| {
            match spelled(text.get(at..)?, key) {
                Spelled::Whole(length) => Some(Found::Whole(at..at + length)),
                Spelled::Beginning => Some(Found::Beginning(at)),
                Spelled::Not => None,
            }
        })
    }
}

/// Where a key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// The whole of it.
    Whole(Range<usize>),
    /// What may be the beginning of it, from here to the end.
    Beginning(usize),
}

impl Found {
    const fn start(&self) -> usize {
        match self {
            Self::Whole(at) => at.start,
            Self::Beginning(at) => *at,
        }
    }
}

/// Where at the end of a text the beginning of the key stands as it is.
fn beginning(text: &[u8], key: &[u8]) -> Option<usize> {
    let from = text.len().saturating_sub(key.len() - 1);
    let end = text.get(from..)?;
    memchr::memchr_iter(*key.first()?, end)
        .find(|at| end.get(*at..).is_some_and(|rest| key.starts_with(rest)))
        .map(|at| from + at)
}

enum Spelled {
    Whole(usize),
    Beginning,
    Not,
}

/// How much of the beginning of a text spells the key.
fn spelled(text: &[u8], key: &[u8]) -> Spelled {
    let mut at = 0;
    for character in key {
        let rest = text.get(at..).unwrap_or_default();
        match character_in(rest, *character) {
            Spelled::Whole(length) => at += length,
            other => return other,
        }
    }
    Spelled::Whole(at)
}

/// How much of the beginning of a text spells one character.
fn character_in(text: &[u8], character: u8) -> Spelled {
    let escaped = match text {
        [] => Spelled::Beginning,
        [b'\\', b'u', digits @ ..] => hexadecimal(digits, u32::from(character), 4, 2),
        [b'%', digits @ ..] => hexadecimal(digits, u32::from(character), 2, 1),
        [b'\\'] => Spelled::Beginning,
        [b'\\', next, ..] if *next == character => Spelled::Whole(2),
        _ => Spelled::Not,
    };
    match (escaped, text.first()) {
        (Spelled::Not, Some(first)) if *first == character => Spelled::Whole(1),
        (escaped, _) => escaped,
    }
}

/// A number in `count` hexadecimal digits after a mark of `mark` bytes.
fn hexadecimal(digits: &[u8], number: u32, count: usize, mark: usize) -> Spelled {
    let there = digits.get(..count.min(digits.len())).unwrap_or_default();
    let same = there.iter().enumerate().all(|(at, digit)| {
        let shift = 4 * (count - 1 - at);
        char::from(*digit).to_digit(16) == Some((number >> shift) & 15)
    });
    match same {
        true if there.len() == count => Spelled::Whole(mark + count),
        true => Spelled::Beginning,
        false => Spelled::Not,
    }
}

impl fmt::Debug for ProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProviderKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_shows_itself() {
        let key = ProviderKey::new(" sk-canary-1 \n").unwrap();
        assert_eq!(key.bearer(), "Bearer sk-canary-1");
        assert!(key.occurs_in(b"invalid key sk-canary-1 given"));
        assert!(!key.occurs_in(b"invalid key sk-canary- given"));
        let shown = format!("{key:?} {:?} {:?}", key.bare(), key.bearer());
        assert!(!shown.contains("canary"), "{shown}");
        for bad in ["", " \n", "a b", "a\nb", "é"] {
            assert!(ProviderKey::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_found_in_base64_wherever_it_begins() {
        let key = ProviderKey::new("sk-canary-1").unwrap();
        for before in 0..7 {
            for after in 0..4 {
                let text = format!("{}sk-canary-1{}", "b".repeat(before), "e".repeat(after));
                let text = STANDARD_NO_PAD.encode(text);
                let framed = format!("{{\"bytes\":\"{text}\"}}");
                let found = key.find_in_base64_too(framed.as_bytes());
                let Some(Found::Whole(at)) = found else {
                    panic!("{framed}: {found:?}");
                };
                assert!(at.len() * 6 > "sk-canary".len() * 8, "{framed}: {at:?}");
                assert_eq!(key.find(framed.as_bytes()), None);
            }
        }
        // The first of several, whichever spelling it has.
        let both = format!("sk-canary-1 {}", STANDARD_NO_PAD.encode("sk-canary-1"));
        let found = key.find_in_base64_too(both.as_bytes());
        assert_eq!(found, Some(Found::Whole(0..11)));
        let short = ProviderKey::new("none").unwrap();
        assert_eq!(short.find_in_base64_too(b"bm9uZQ"), None);
    }

    #[test]
    fn a_key_is_found_however_its_characters_are_spelled() {
        let key = ProviderKey::new("ab/c+d==").unwrap();
        for text in [
            "ab/c+d==",
            "ab\\/c+d==",
            "ab\\u002fc\\u002Bd\\u003d=",
            "ab%2Fc%2bd%3D%3D",
            "\\u0061b/c+d==",
        ] {
            let framed = format!("x\\n{text}%");
            let found = key.find(framed.as_bytes());
            assert_eq!(found, Some(Found::Whole(3..3 + text.len())), "{text}");
            for length in 1..text.len() {
                let part = text.get(..length).unwrap();
                assert_eq!(
                    key.find(format!("x{part}").as_bytes()),
                    Some(Found::Beginning(1)),
                    "{part}"
                );
            }
        }
        for text in ["ab/c+d=", "ab//c+d==", "ab\\u012fc+d==", "ab%2", "\\n\\n"] {
            let framed = format!("{text} ");
            assert_eq!(key.find(framed.as_bytes()), None, "{text}");
        }
        let odd = ProviderKey::new("%\\%41").unwrap();
        assert!(odd.occurs_in(b"%\\%41") && odd.occurs_in(b"%25\\\\%2541"));
    }
}

//! Masks what has the shape of a secret.

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::packed::Searcher;
use crypto::TokenKind;

/// Beginnings of keys that are not ours; `crypto` knows our own tokens.
const FOREIGN: &[&str] = &[
    "sk-",
    "sk_live_",
    "xai-",
    "gsk_",
    "AIza",
    "AKIA",
    "ASIA",
    "hf_",
    "pplx-",
    "nvapi-",
    "ghp_",
    "github_pat_",
];

/// Fewer characters after the beginning are a word, not a secret.
const MIN_SECRET: usize = 12;

/// What stands in the place of a secret.
const MASK: &str = "[redacted]";

/// A recovery code has four groups of four characters.
const CODE_GROUPS: usize = 4;
const CODE_GROUP: usize = 4;

/// Replaces everything after the beginning of a secret, so that the log still says which
/// kind it was, and whole recovery codes.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    if !may_hold_secrets(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    mask(text)
}

fn mask(text: &str) -> Cow<'_, str> {
    let own = crypto::redact_tokens(text);
    let foreign = redact_words(&own);
    match (own, foreign) {
        (own, None) => own,
        (_, Some(text)) => Cow::Owned(text),
    }
}

/// What a secret begins with: our own tokens, and [`FOREIGN`]. All are looked for at once.
static BEGINNINGS: LazyLock<Option<Searcher>> = LazyLock::new(|| {
    let own = TokenKind::ALL.iter().map(|kind| kind.prefix());
    Searcher::new(own.chain(FOREIGN.iter().copied()))
});

/// Whether it is worth going over the words of a text: nearly all that is logged holds
/// nothing of a secret's shape, and searching for the few beginnings is a tenth of the work.
fn may_hold_secrets(text: &[u8]) -> bool {
    let begins = |all: &Searcher| all.find(text).is_some();
    BEGINNINGS.as_ref().is_none_or(begins) || may_hold_code(text)
}

/// Whether there is a `-` that stands as the first one of a recovery code does, at the beginning
/// of a word: in the middle of one are those of ids, of which every line has some.
fn may_hold_code(text: &[u8]) -> bool {
    memchr::memchr_iter(b'-', text).any(|at| {
        let Some(start) = at.checked_sub(CODE_GROUP) else {
            return false;
        };
        let before = text.get(start.saturating_sub(LONGEST_ESCAPE)..start);
        let before = before.unwrap_or_default();
        if before.last().is_some_and(|byte| is_word(*byte)) && !before.contains(&b'\\') {
            return false;
        }
        let mut groups = text.get(start..).unwrap_or_default().chunks(CODE_GROUP + 1);
        groups.by_ref().take(CODE_GROUPS - 1).all(
            |group| matches!(group, [code @ .., b'-'] if code.iter().all(|byte| is_code(*byte))),
        )
    })
}

/// An escape of JSON, `\u0000`, in bytes.
const LONGEST_ESCAPE: usize = 6;

/// The first characters of all of [`FOREIGN`].
const FIRST: &[u8] = b"sxgAhpn";

/// The shortest thing that is masked: a recovery code, or the shortest beginning with a
/// secret after it. Nearly every word of a log is shorter.
const SHORTEST: usize = 3 + MIN_SECRET;

/// Goes over the words of a text; `None` when all of them may stay.
fn redact_words(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut kept = 0;
    let mut start = 0;
    let bytes = text.as_bytes();
    while let Some(rest) = bytes.get(start..) {
        // In a line that is escaped already a line break is a letter.
        let escape = escape_length(bytes.get(..start).unwrap_or_default(), rest);
        start += escape;
        let rest = rest.get(escape..).unwrap_or_default();
        let length = rest.iter().take_while(|byte| is_word(**byte)).count();
        // A word is ASCII, so it begins and ends between characters.
        if length >= SHORTEST
            && let Some(word) = text.get(start..start + length)
            && let Some(prefix) = secret_prefix(word)
        {
            out.push_str(text.get(kept..start).unwrap_or_default());
            out.push_str(prefix);
            out.push_str(MASK);
            kept = start + length;
        }
        start += length + 1;
    }
    if kept == 0 {
        return None;
    }
    out.push_str(text.get(kept..).unwrap_or_default());
    Some(out)
}

/// How much of the beginning of a word belongs to an escape of JSON that stands before it.
fn escape_length(before: &[u8], word: &[u8]) -> usize {
    match (before, word) {
        ([.., b'\\'], [b'n' | b'r' | b't' | b'b' | b'f', ..]) => 1,
        ([.., b'\\'], [b'u', digits @ ..])
            if digits
                .first_chunk::<4>()
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) =>
        {
            5
        }
        _ => 0,
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// What of a word may stay, when the word is a secret.
fn secret_prefix(word: &str) -> Option<&str> {
    if is_recovery_code(word) {
        return Some("");
    }
    let mut before = b'-';
    for (at, byte) in word.bytes().enumerate() {
        // A key may be glued to what stands before it, but not to the middle of a word.
        let begins = !before.is_ascii_alphanumeric();
        before = byte;
        if !begins || !FIRST.contains(&byte) {
            continue;
        }
        let rest = word.get(at..)?;
        let found = FOREIGN
            .iter()
            .find(|prefix| rest.starts_with(**prefix) && rest.len() >= prefix.len() + MIN_SECRET);
        if let Some(prefix) = found {
            return word.get(..at + prefix.len());
        }
    }
    None
}

fn is_recovery_code(word: &str) -> bool {
    let mut groups = word.split('-');
    let fits = groups
        .by_ref()
        .take(CODE_GROUPS)
        .filter(|group| group.len() == CODE_GROUP && group.bytes().all(is_code));
    fits.count() == CODE_GROUPS && groups.next().is_none()
}

const fn is_code(byte: u8) -> bool {
    byte.is_ascii_digit() || byte.is_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::{mask, may_hold_secrets, redact};
    use crypto::{OsRandom, RecoveryCode, Token, TokenKind};
    use proptest::prelude::*;

    #[test]
    fn masks_every_kind_of_token_and_says_which_it_was() {
        for kind in TokenKind::ALL {
            let token = Token::generate(kind, &OsRandom::new()).unwrap();
            let line = format!("{{\"error\":\"bad {}\"}}", token.expose());
            assert_eq!(
                redact(&line),
                format!("{{\"error\":\"bad {}[redacted]\"}}", kind.prefix())
            );
        }
    }

    #[test]
    fn masks_keys_of_providers_and_recovery_codes() {
        let key = "a1".repeat(12);
        assert_eq!(
            redact(&format!("key=sk-{key}, next")),
            "key=sk-[redacted], next"
        );
        let code = RecoveryCode::generate(&OsRandom::new()).unwrap();
        assert_eq!(redact(&format!("({})", code.expose())), "([redacted])");
    }

    #[test]
    fn what_stands_behind_an_escaped_character_is_found() {
        let key = "a1".repeat(12);
        let code = "ABCD-EF12-GH34-JK56";
        for escape in ["\\n", "\\r", "\\t", "\\u001b", "\\\\n"] {
            assert_eq!(
                redact(&format!("body:{escape}sk-{key}")),
                format!("body:{escape}sk-[redacted]")
            );
            assert_eq!(
                redact(&format!("code:{escape}{code}\"")),
                format!("code:{escape}[redacted]\"")
            );
        }
    }

    #[test]
    fn knows_every_beginning_and_finds_it_behind_others() {
        let key = "k".repeat(super::MIN_SECRET);
        for prefix in super::FOREIGN {
            assert!(super::FIRST.contains(&prefix.as_bytes()[0]), "{prefix}");
            assert!(prefix.len() + super::MIN_SECRET >= super::SHORTEST);
            assert_eq!(
                redact(&format!("{prefix}{key}")),
                format!("{prefix}[redacted]")
            );
            let glued = format!("é=risk-{prefix}{key}!");
            assert_eq!(redact(&glued), format!("é=risk-{prefix}[redacted]!"));
        }
    }

    #[test]
    fn leaves_words_and_ids_alone() {
        for line in [
            "a task-list-with-many-words",
            "choirgw_ is the prefix",
            "",
            "sk-8",
            "019ac1d2-7e3f-7abc-8def-0123456789ab",
            "risk-assessment-of-everything",
        ] {
            assert_eq!(redact(line), line);
        }
    }

    #[test]
    fn the_digits_of_an_id_are_no_reason_to_look_at_every_word() {
        let id = "01912345-1234-7123-8123-012345678901";
        for line in [format!("{{\"request_id\":\"{id}\"}}"), id.to_owned()] {
            assert!(!may_hold_secrets(line.as_bytes()), "{line}");
        }
        for line in ["1234-1234-7123-8123", "\\u001b1234-1234-7123-8123"] {
            assert!(may_hold_secrets(line.as_bytes()), "{line}");
        }
    }

    proptest! {
        #[test]
        fn never_loses_other_text(before in "[^a-zA-Z0-9_-]{0,20}", after in "[^a-zA-Z0-9_-]{0,20}") {
            let line = format!("{before}sk-{}{after}", "x".repeat(40));
            prop_assert_eq!(redact(&line), format!("{before}sk-[redacted]{after}"));
        }

        #[test]
        fn what_is_not_looked_into_holds_nothing(
            text in "(sk-|AKIA|choirgw_|choirss_|[A-Z0-9]{4}-|[a-f0-9]{4}-|x{13}|é| |-|.){0,12}",
        ) {
            prop_assert_eq!(redact(&text), mask(&text));
        }

        #[test]
        fn takes_any_text(text in ".{0,200}") {
            prop_assert_eq!(redact(&text), mask(&text));
        }
    }
}

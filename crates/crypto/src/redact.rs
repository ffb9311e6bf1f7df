//! Takes our tokens out of a text before it goes where it may be read.

use std::borrow::Cow;

use crate::token::{BODY_LENGTH, TokenKind};

/// As many token characters after a prefix are taken for a token, also a damaged or cut one:
/// half a token in a log is still half a secret.
const SUSPICIOUS_LENGTH: usize = BODY_LENGTH / 4;

/// The text with every token of ours (whole, cut or damaged) replaced by its prefix and
/// `[redacted]`. Recovery codes have no prefix and cannot be found this way.
#[must_use]
pub fn redact_tokens(text: &str) -> Cow<'_, str> {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((before, prefix, after)) = next_token(rest) {
        clean.push_str(before);
        clean.push_str(prefix);
        clean.push_str("[redacted]");
        rest = after;
    }
    if clean.is_empty() {
        return Cow::Borrowed(text);
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// What stands before the first token, its prefix, and what stands after it.
fn next_token(text: &str) -> Option<(&str, &'static str, &str)> {
    let mut from = 0;
    while let Some(found) = text.get(from..)?.find("choir") {
        let at = from + found;
        let (before, candidate) = text.split_at_checked(at)?;
        for kind in TokenKind::ALL {
            let Some(body) = candidate.strip_prefix(kind.prefix()) else {
                continue;
            };
            let length = body
                .bytes()
                .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
                .count();
            if length >= SUSPICIOUS_LENGTH {
                return Some((before, kind.prefix(), body.get(length..)?));
            }
        }
        from = at + "choir".len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::redact_tokens;
    use crate::{OsRandom, Token, TokenKind};

    #[test]
    fn takes_out_every_kind_and_leaves_the_rest() {
        for kind in TokenKind::ALL {
            let token = Token::generate(kind, &OsRandom::new()).unwrap();
            let line = format!("a {} b {}, c", token.expose(), token.expose());
            let prefix = kind.prefix();
            assert_eq!(
                redact_tokens(&line),
                format!("a {prefix}[redacted] b {prefix}[redacted], c")
            );
        }
    }

    #[test]
    fn takes_out_a_cut_token() {
        let token = Token::generate(TokenKind::Gateway, &OsRandom::new()).unwrap();
        assert_eq!(redact_tokens(&token.expose()[..25]), "choirgw_[redacted]");
    }

    #[test]
    fn leaves_words_alone() {
        for text in [
            "",
            "choir sandbox swap",
            "choirgw_",
            "choirgw_short ä",
            "choirchoir",
        ] {
            assert!(
                matches!(redact_tokens(text), std::borrow::Cow::Borrowed(same) if same == text)
            );
        }
    }
}

//! Masks what has the shape of a secret.

use std::borrow::Cow;

/// Beginnings of secrets: our own tokens, and the keys of providers.
const SHAPES: &[&str] = &[
    "choirgw_",
    "choirpat_",
    "choirses_",
    "choirrun_",
    "choirinv_",
    "choirset_",
    "choirdev_",
    "choirhnd_",
    "choirrec_",
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

/// Replaces everything after the beginning of a secret, so that the log still says which
/// kind it was.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((at, shape)) = first_shape(rest) {
        let (before, from) = rest.split_at(at);
        let after = from.get(shape.len()..).unwrap_or_default();
        let length = after.bytes().take_while(|b| is_secret_byte(*b)).count();
        let (secret, tail) = after.split_at(length);
        out.push_str(before);
        out.push_str(shape);
        out.push_str(if length >= MIN_SECRET { MASK } else { secret });
        rest = tail;
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn first_shape(text: &str) -> Option<(usize, &'static str)> {
    SHAPES
        .iter()
        .filter_map(|shape| text.find(shape).map(|at| (at, *shape)))
        .min()
}

const fn is_secret_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::redact;
    use proptest::prelude::*;

    #[test]
    fn masks_every_secret_and_says_its_kind() {
        let token = "a1".repeat(24);
        let line =
            format!("{{\"error\":\"bad choirgw_{token}\",\"b\":\"choirpat_{token}\"}} sk-{token}");
        let shown = redact(&line);
        assert!(!shown.contains(&token));
        assert_eq!(
            shown,
            "{\"error\":\"bad choirgw_[redacted]\",\"b\":\"choirpat_[redacted]\"} sk-[redacted]"
        );
    }

    #[test]
    fn leaves_words_alone() {
        for line in ["a task-list", "choirgw_ is the prefix", "", "sk-8"] {
            assert_eq!(redact(line), line);
        }
    }

    proptest! {
        #[test]
        fn never_loses_other_text(before in "[^a-zA-Z0-9_-]{0,20}", after in "[^a-zA-Z0-9_-]{0,20}") {
            let line = format!("{before}choirses_{}{after}", "x".repeat(40));
            prop_assert_eq!(redact(&line), format!("{before}choirses_[redacted]{after}"));
        }

        #[test]
        fn takes_any_text(text in ".{0,200}") {
            let _ = redact(&text);
        }
    }
}

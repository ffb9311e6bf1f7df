//! What a JSON request says about itself: the model it names, whether it wants a stream, and
//! how many tokens it may be answered with.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;

/// Most keys of the top-level object; no API has a tenth of them.
const MAX_KEYS: usize = 512;

/// Longest model name, in bytes.
pub const MAX_MODEL: usize = 256;

/// Keys by which a caller lets a router, LiteLLM or OpenRouter for instance, choose another
/// model, another place or another account than those that are configured.
pub(super) const ROUTING: &[&str] = &[
    "api_base",
    "api_key",
    "base_url",
    "content_policy_fallbacks",
    "context_window_fallbacks",
    "fallbacks",
    "model_list",
    "models",
    "preset",
    "route",
    "user_config",
];

/// Why a request cannot be read the one way that matters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// It is not JSON.
    #[error("the request body is not JSON: {0}")]
    NotJson(String),
    /// It is JSON of another kind.
    #[error("the request body is not a JSON object")]
    NotAnObject,
    /// A key stands twice, so that two readers could see two requests (threats, Tampering).
    #[error("the key {0:?} stands twice in the request body")]
    DuplicateKey(String),
    /// A key that servers which do not look at case read as `model`.
    #[error("some servers read the key {0:?} as `model`; write it in small letters")]
    Spelling(String),
    /// There are too many keys.
    #[error("the request body has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// The model is not a short text.
    #[error("`model` is not a text of 1 to {MAX_MODEL} printable characters")]
    Model,
}

/// What a request says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// The model it names.
    pub model: Option<String>,
    /// Whether it asks for a stream of events.
    pub stream: bool,
    /// The most tokens it may be answered with.
    pub max_output_tokens: Option<u64>,
    /// The first key in it that lets a router choose.
    pub routing: Option<&'static str>,
    /// Where the model stands in the body, quotation marks included.
    model_at: Option<Range<usize>>,
}

impl Shape {
    /// Reads a JSON request body.
    ///
    /// # Errors
    /// [`ShapeError`]; what cannot be read is refused, never passed on unread.
    pub fn read(body: &[u8]) -> Result<Self, ShapeError> {
        serde_json::from_slice::<IgnoredAny>(body)
            .map_err(|error| ShapeError::NotJson(error.to_string()))?;
        let mut shape = Self::default();
        members(body, |key, value, at| shape.take(key, value, at))?;
        Ok(shape)
    }

    fn take(&mut self, key: &str, value: &[u8], at: &Range<usize>) -> Result<(), ShapeError> {
        match key {
            "model" => {
                let model: Cow<'_, str> = decode(value).map_err(|_| ShapeError::Model)?;
                let plain = !model.is_empty()
                    && model.len() <= MAX_MODEL
                    && model.bytes().all(|byte| byte.is_ascii_graphic());
                if !plain {
                    return Err(ShapeError::Model);
                }
                self.model = Some(model.into_owned());
                self.model_at = Some(at.clone());
            }
            "stream" => self.stream = value == b"true",
            // Gemini's and Bedrock's are one level deeper.
            "generationConfig"
            | "generation_config"
            | "inferenceConfig"
            | "textGenerationConfig"
                if value.first() == Some(&b'{') =>
            {
                members(value, |key, value, _| {
                    self.take_bound(key, value);
                    Ok(())
                })?;
            }
            key if key.eq_ignore_ascii_case("model") => {
                return Err(ShapeError::Spelling(key.to_owned()));
            }
            key => {
                let same = |name: &&&str| name.eq_ignore_ascii_case(key);
                self.routing = self.routing.or(ROUTING.iter().find(same).copied());
                self.take_bound(key, value);
            }
        }
        Ok(())
    }

    fn take_bound(&mut self, key: &str, value: &[u8]) {
        match key {
            "max_tokens"
            | "max_completion_tokens"
            | "max_output_tokens"
            | "max_gen_len"
            | "max_tokens_to_sample"
            | "max_new_tokens"
            | "maxOutputTokens"
            | "maxTokens"
            | "maxTokenCount" => self.max_output_tokens = self.max_output_tokens.max(count(value)),
            _ => {}
        }
    }

    /// The body with another model's name in it, everything else byte for byte.
    #[must_use]
    pub fn with_model(&self, body: &Bytes, model: &str) -> Bytes {
        let (Some(at), Ok(name)) = (&self.model_at, serde_json::to_vec(model)) else {
            return body.clone();
        };
        let before = body.get(..at.start).unwrap_or_default();
        let after = body.get(at.end..).unwrap_or_default();
        let mut changed = BytesMut::with_capacity(before.len() + name.len() + after.len());
        changed.extend_from_slice(before);
        changed.extend_from_slice(&name);
        changed.extend_from_slice(after);
        changed.freeze()
    }
}

/// The members of the object that a JSON text begins with, in turn.
fn members(
    body: &[u8],
    mut take: impl FnMut(&str, &[u8], &Range<usize>) -> Result<(), ShapeError>,
) -> Result<(), ShapeError> {
    let mut seen: HashSet<Cow<'_, str>> = HashSet::with_capacity(16);
    let mut text = Scan { body, at: 0 };
    text.space();
    if text.next() != Some(b'{') {
        return Err(ShapeError::NotAnObject);
    }
    loop {
        text.space();
        if text.peek() != Some(b'"') {
            return Ok(());
        }
        let key = text.value();
        let key: Cow<'_, str> = decode(text.slice(&key))?;
        text.space();
        text.next();
        text.space();
        let value = text.value();
        take(&key, text.slice(&value), &value)?;
        if seen.len() >= MAX_KEYS {
            return Err(ShapeError::TooManyKeys);
        }
        if seen.contains(&key) {
            return Err(ShapeError::DuplicateKey(key.into_owned()));
        }
        seen.insert(key);
        text.space();
        if text.next() != Some(b',') {
            return Ok(());
        }
    }
}

/// A number of tokens however it is written: protocol buffers read `"8"` and `8.0` as well. One
/// below nothing is no bound: servers of one's own take `-1` for as many as there are.
fn count(value: &[u8]) -> Option<u64> {
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    let value = value.strip_suffix(b"\"").unwrap_or(value);
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not below nothing, and what does not fit becomes the most"
        )]
        let number = (number.is_finite() && number >= 0.0).then_some(number as u64);
        number
    })
}

fn decode<'a>(text: &'a [u8]) -> Result<Cow<'a, str>, ShapeError> {
    // Nearly all are plain ASCII between quotation marks, and mean what stands there.
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if let [b'"', plain @ .., b'"'] = text
        && plain.iter().all(is_plain)
        && let Ok(plain) = std::str::from_utf8(plain)
    {
        return Ok(Cow::Borrowed(plain));
    }
    // `Cow` alone would always be made an owned one.
    if let Ok(plain) = serde_json::from_slice::<&'a str>(text) {
        return Ok(Cow::Borrowed(plain));
    }
    serde_json::from_slice::<String>(text)
        .map(Cow::Owned)
        .map_err(|error| ShapeError::NotJson(error.to_string()))
}

/// Walks over text that is known to be JSON.
struct Scan<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    fn slice(&self, range: &Range<usize>) -> &'a [u8] {
        self.body.get(range.clone()).unwrap_or_default()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Steps over one value and tells where it stands.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => break,
                Some(b'"') => {
                    self.string();
                    if depth == 0 {
                        break;
                    }
                    continue;
                }
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']' | b',') if depth == 0 => break,
                Some(b'}' | b']') => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        break;
                    }
                }
                Some(b' ' | b'\t' | b'\r' | b'\n') if depth == 0 => break,
                Some(_) => {}
            }
            self.at += 1;
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.next() {
            match byte {
                b'\\' => self.at += 1,
                b'"' => return,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(text: &str) -> Result<Option<String>, ShapeError> {
        Shape::read(text.as_bytes()).map(|shape| shape.model)
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        for (text, expected) in [
            (r#"{"model":"gpt-x"}"#, Some("gpt-x")),
            (
                r#" { "messages" : [ {"model":"no"}, "}" ] , "model" : "yes" } "#,
                Some("yes"),
            ),
            (
                r#"{"a":"\"model\":\"no\"","mod\u0065l":"yes"}"#,
                Some("yes"),
            ),
            (r#"{"model":"a\u002db"}"#, Some("a-b")),
            (r#"{"tools":{"model":"no"},"n":1e3,"b":null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(model(text).unwrap().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        assert_eq!(
            model(r#"{"model":"a","model":"b"}"#),
            Err(ShapeError::DuplicateKey("model".into()))
        );
        assert_eq!(
            model(r#"{"model":"a","mod\u0065l":"b"}"#),
            Err(ShapeError::DuplicateKey("model".into()))
        );
        assert_eq!(
            model(r#"{"model":"a","MODEL":"b"}"#),
            Err(ShapeError::Spelling("MODEL".into()))
        );
        assert_eq!(model("[1]"), Err(ShapeError::NotAnObject));
        for bad in [
            r#"{"model":{}}"#,
            r#"{"model":""}"#,
            r#"{"model":"a b"}"#,
            r#"{"model":3}"#,
        ] {
            assert_eq!(model(bad), Err(ShapeError::Model), "{bad}");
        }
        for bad in ["", "{", r#"{"model":"a"} x"#, "{'model':'a'}", "\u{feff}{}"] {
            assert!(matches!(model(bad), Err(ShapeError::NotJson(_))), "{bad}");
        }
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(model(&deep), Ok(None), "depth costs no stack");
        let many: Vec<String> = (0..=MAX_KEYS).map(|n| format!("\"{n}\":0")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(model(&many), Err(ShapeError::TooManyKeys));
    }

    #[test]
    fn stream_and_bounds_are_read() {
        let shape = Shape::read(br#"{"stream": true, "max_tokens": 5, "max_completion_tokens":7}"#)
            .unwrap();
        assert!(shape.stream);
        assert_eq!(shape.max_output_tokens, Some(7));
        assert!(!Shape::read(br#"{"stream":"true"}"#).unwrap().stream);
    }

    #[test]
    fn bounds_are_read_where_each_api_has_them() {
        let bound = |text: &str| Shape::read(text.as_bytes()).map(|shape| shape.max_output_tokens);
        for (text, expected) in [
            (
                r#"{"generationConfig":{"a":{},"maxOutputTokens":9}}"#,
                Some(9),
            ),
            (
                r#"{"generation_config":{"max_output_tokens":"9"}}"#,
                Some(9),
            ),
            (r#"{"inferenceConfig":{"maxTokens":9.0}}"#, Some(9)),
            (r#"{"inferenceConfig":{"max_new_tokens":9}}"#, Some(9)),
            (r#"{"textGenerationConfig":{"maxTokenCount":9}}"#, Some(9)),
            (r#"{"max_gen_len":9}"#, Some(9)),
            (
                r#"{"max_tokens":1e20}"#,
                Some(100_000_000_000_000_000_000_u128),
            ),
            (r#"{"max_tokens":-1,"max_tokens_to_sample":3}"#, Some(3)),
            (r#"{"max_tokens":-1}"#, None),
            (r#"{"max_tokens":"-1"}"#, None),
            (r#"{"max_tokens":{},"x":{"maxTokens":9}}"#, None),
            (r#"{"inferenceConfig":[{"maxTokens":9}]}"#, None),
            (
                r#"{"inferenceConfig":{"inferenceConfig":{"maxTokens":9}}}"#,
                None,
            ),
        ] {
            let expected = expected.map(|most| u64::try_from(most).unwrap_or(u64::MAX));
            assert_eq!(bound(text).unwrap(), expected, "{text}");
        }
        assert_eq!(
            bound(r#"{"inferenceConfig":{"maxTokens":9,"max\u0054okens":8}}"#),
            Err(ShapeError::DuplicateKey("maxTokens".into()))
        );
    }

    #[test]
    fn keys_that_let_a_router_choose_are_told() {
        let routing = |text: &[u8]| Shape::read(text).unwrap().routing;
        assert_eq!(routing(br#"{"model":"a","models":["b"]}"#), Some("models"));
        assert_eq!(
            routing(br#"{"model":"a","Fallbacks":[]}"#),
            Some("fallbacks")
        );
        assert_eq!(routing(br#"{"model":"a","metadata":{"models":1}}"#), None);
    }

    #[test]
    fn another_model_changes_nothing_else() {
        let body = Bytes::from_static(b"{ \"x\":[1, 2],\"model\" :\t\"fast\" ,\"y\":\"\\u00e9\"}");
        let shape = Shape::read(&body).unwrap();
        assert_eq!(
            shape.with_model(&body, "gpt-\"x"),
            "{ \"x\":[1, 2],\"model\" :\t\"gpt-\\\"x\" ,\"y\":\"\\u00e9\"}"
        );
        let none = Bytes::from_static(b"{}");
        assert_eq!(Shape::read(&none).unwrap().with_model(&none, "m"), none);
    }

    proptest! {
        #[test]
        fn it_reads_what_a_json_parser_reads(
            keys in proptest::collection::hash_set("[a-z\"\\\\é]{0,6}", 0..8),
            name in "[!-~]{1,20}",
            at in 0_usize..8,
        ) {
            let mut map: Vec<(String, serde_json::Value)> = keys
                .into_iter()
                .filter(|key| key != "model" && key != "stream")
                .map(|key| (key.clone(), serde_json::json!([{ "model": key }, "}", 1.5, null])))
                .collect();
            map.insert(at.min(map.len()), ("model".into(), serde_json::json!(name)));
            let text = map
                .iter()
                .map(|(key, value)| format!("{} : {value}", serde_json::json!(key)))
                .collect::<Vec<_>>()
                .join(" , ");
            let body = Bytes::from(format!("{{{text}}}"));
            let shape = Shape::read(&body).unwrap();
            prop_assert_eq!(shape.model.as_deref(), Some(name.as_str()));
            let changed = shape.with_model(&body, "other");
            let value: serde_json::Value = serde_json::from_slice(&changed).unwrap();
            prop_assert_eq!(&value["model"], "other");
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Shape::read(&bytes);
        }
    }
}

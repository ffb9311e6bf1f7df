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
const ROUTING: &[&str] = &[
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
        let mut seen = HashSet::new();
        let mut text = Scan { body, at: 0 };
        text.space();
        if text.next() != Some(b'{') {
            return Err(ShapeError::NotAnObject);
        }
        loop {
            text.space();
            if text.peek() != Some(b'"') {
                return Ok(shape);
            }
            let key = text.value();
            let key: Cow<'_, str> = decode(text.slice(&key))?;
            text.space();
            text.next();
            text.space();
            let value = text.value();
            shape.take(&key, text.slice(&value), &value)?;
            if seen.len() >= MAX_KEYS {
                return Err(ShapeError::TooManyKeys);
            }
            let key = key.into_owned();
            if !seen.insert(key.clone()) {
                return Err(ShapeError::DuplicateKey(key));
            }
            text.space();
            if text.next() != Some(b',') {
                return Ok(shape);
            }
        }
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
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                let bound = serde_json::from_slice::<u64>(value).ok();
                self.max_output_tokens = self.max_output_tokens.max(bound);
            }
            key if key.eq_ignore_ascii_case("model") => {
                return Err(ShapeError::Spelling(key.to_owned()));
            }
            key => {
                let same = |name: &&&str| name.eq_ignore_ascii_case(key);
                self.routing = self.routing.or(ROUTING.iter().find(same).copied());
            }
        }
        Ok(())
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

fn decode<'a>(text: &'a [u8]) -> Result<Cow<'a, str>, ShapeError> {
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

//! What a form with files (`multipart/form-data`, RFC 7578) says about itself: the model it
//! names.
//!
//! Readers of such forms differ in what they forgive: white space after a boundary, lines that
//! end with `\n` alone, text around the parts. Nothing of that is passed on here, so that nobody
//! above can read another model than was read here.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use memchr::memmem;

use super::shape::{MAX_MODEL, ROUTING};

/// Most parts of a form; no API has a tenth of them.
const MAX_PARTS: usize = 128;

/// Longest head of a part, in bytes.
const MAX_HEAD: usize = 8 << 10;

/// Longest boundary, in bytes (RFC 2046 §5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Why a form cannot be read the one way that matters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The boundary in `Content-Type`.
    #[error("the Content-Type of the form has no boundary, or more than that")]
    Boundary,
    /// What is around the parts.
    #[error("the form is not made of parts between boundaries alone, with lines that end in CR LF")]
    Framing,
    /// The head of a part.
    #[error(
        "a part of the form has a head that is not plain: a Content-Disposition with a name, no encoding, and for `model` no type but text/plain in UTF-8"
    )]
    Head,
    /// There are too many parts.
    #[error("the form has more than {MAX_PARTS} parts")]
    TooManyParts,
    /// The model stands twice, or under a name that some servers read as `model`.
    #[error("the form names its model twice, or in another way than by one part `model`")]
    TwoModels,
    /// The model is not a short text.
    #[error("the part `model` is not a text of 1 to {MAX_MODEL} printable characters")]
    Model,
}

/// What a form says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// The model it names.
    pub model: Option<String>,
    /// The first part in it that lets a router choose.
    pub routing: Option<&'static str>,
    /// Where the model stands in the body.
    model_at: Range<usize>,
}

impl Form {
    /// Whether a request says that its body is such a form.
    #[must_use]
    pub fn is_one(headers: &HeaderMap) -> bool {
        let says = |value: &HeaderValue| {
            let name = value.as_bytes().split(|byte| *byte == b';').next();
            name.is_some_and(|name| {
                name.trim_ascii()
                    .eq_ignore_ascii_case(b"multipart/form-data")
            })
        };
        headers.get_all(CONTENT_TYPE).iter().any(says)
    }

    /// Reads a form that is there in whole.
    ///
    /// # Errors
    /// [`FormError`]; what cannot be read is refused, never passed on unread.
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, FormError> {
        let delimiter = delimiter(headers).ok_or(FormError::Boundary)?;
        let mut form = Self::default();
        // The first one stands at the very beginning, the others after the end of a line.
        let mut at = skip(body, 0, delimiter.get(2..).unwrap_or_default())?;
        for _ in 0..MAX_PARTS {
            at = skip(body, at, b"\r\n")?;
            let rest = body.get(at..).unwrap_or_default();
            let head = memmem::find(rest, b"\r\n\r\n").filter(|length| *length <= MAX_HEAD);
            let head = head.ok_or(FormError::Head)?;
            let name = name(rest.get(..head).unwrap_or_default()).ok_or(FormError::Head)?;
            let start = at + head + 4;
            let content = body.get(start..).unwrap_or_default();
            // Also where the end of the line is another one: there some see a boundary.
            let dashes = delimiter.get(2..).unwrap_or_default();
            let length = memmem::find_iter(content, dashes)
                .find(|at| match at.checked_sub(1) {
                    Some(before) => matches!(content.get(before), Some(b'\n' | b'\r')),
                    None => true,
                })
                .and_then(|at| at.checked_sub(2))
                .ok_or(FormError::Framing)?;
            skip(body, start + length, &delimiter)?;
            form.take(&name, body, start..start + length)?;
            at = start + length + delimiter.len();
            if body.get(at..at + 2) == Some(b"--") {
                let after = body.get(at + 2..).unwrap_or_default();
                return if after.is_empty() || after == b"\r\n" {
                    Ok(form)
                } else {
                    Err(FormError::Framing)
                };
            }
        }
        Err(FormError::TooManyParts)
    }

    fn take(&mut self, name: &str, body: &[u8], at: Range<usize>) -> Result<(), FormError> {
        if name == "model" {
            let text = body.get(at.clone()).unwrap_or_default();
            if self.model.is_some() {
                return Err(FormError::TwoModels);
            }
            let plain =
                (1..=MAX_MODEL).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
            let text = std::str::from_utf8(text).ok().filter(|_| plain);
            self.model = Some(text.ok_or(FormError::Model)?.to_owned());
            self.model_at = at;
            return Ok(());
        }
        // Some servers do not look at case, and some take brackets for a list.
        let base = name.split('[').next().unwrap_or_default().trim();
        if base.eq_ignore_ascii_case("model") {
            return Err(FormError::TwoModels);
        }
        let same = |key: &&&str| key.eq_ignore_ascii_case(base);
        self.routing = self.routing.or(ROUTING.iter().find(same).copied());
        Ok(())
    }

    /// The body with another model's name in it, everything else byte for byte.
    #[must_use]
    pub fn with_model(&self, body: &Bytes, model: &str) -> Bytes {
        if self.model.is_none() {
            return body.clone();
        }
        let before = body.get(..self.model_at.start).unwrap_or_default();
        let after = body.get(self.model_at.end..).unwrap_or_default();
        let mut changed = BytesMut::with_capacity(before.len() + model.len() + after.len());
        changed.extend_from_slice(before);
        changed.extend_from_slice(model.as_bytes());
        changed.extend_from_slice(after);
        changed.freeze()
    }
}

/// Steps over what has to stand there.
fn skip(body: &[u8], at: usize, text: &[u8]) -> Result<usize, FormError> {
    let there = body.get(at..).is_some_and(|rest| rest.starts_with(text));
    there.then_some(at + text.len()).ok_or(FormError::Framing)
}

/// What stands between two parts: an end of a line, two dashes, the boundary.
fn delimiter(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut all = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return None;
    };
    let (_, parameters) = value.to_str().ok()?.split_once(';')?;
    let (key, boundary) = parameters.trim().split_once('=')?;
    let quoted = boundary
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"'+_-.".contains(&byte);
    let boundary = match quoted {
        Some(boundary) => boundary.bytes().all(plain).then_some(boundary)?,
        None => boundary.bytes().all(token).then_some(boundary)?,
    };
    let fits = key.eq_ignore_ascii_case("boundary") && (1..=MAX_BOUNDARY).contains(&boundary.len());
    fits.then(|| [b"\r\n--", boundary.as_bytes()].concat())
}

/// The name of a part, from its head. `None`: the head could be read in two ways.
fn name(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let (mut name, mut text) = (None, true);
    for line in head.split("\r\n") {
        let (field, value) = line.split_once(':')?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let plain = !field.is_empty()
            && field.bytes().all(is_token)
            && !value.contains(|char: char| char.is_control() && char != '\t');
        if !plain || field.eq_ignore_ascii_case("content-transfer-encoding") {
            return None;
        }
        if field.eq_ignore_ascii_case("content-type") {
            text &= is_plain_text(value);
        }
        if field.eq_ignore_ascii_case("content-disposition") {
            let before = name.replace(disposition(value)?);
            if before.is_some() {
                return None;
            }
        }
    }
    name.filter(|name: &String| text || !name.eq_ignore_ascii_case("model"))
}

/// Whether a part of this type is read as the text that it is. Some readers decode others
/// first: JSON, or another character set (RFC 7578 §4.4 and §5.1.2).
fn is_plain_text(content_type: &str) -> bool {
    let (kind, charset) = content_type.split_once(';').unwrap_or((content_type, ""));
    let charset = charset.trim().to_ascii_lowercase().replace('"', "");
    kind.trim().eq_ignore_ascii_case("text/plain")
        && matches!(
            charset.as_str(),
            "" | "charset=utf-8" | "charset=us-ascii" | "charset=ascii"
        )
}

/// The `name` of `form-data; name="model"; filename="a.wav"`.
fn disposition(value: &str) -> Option<String> {
    // How a backslash is read has changed over the years.
    if value.contains('\\') {
        return None;
    }
    let mut rest = value.trim().strip_prefix("form-data")?;
    let (mut name, mut filename) = (None, false);
    while !rest.is_empty() {
        let (key, value) = rest.strip_prefix(';')?.trim_start().split_once('=')?;
        let value = value.strip_prefix('"')?;
        let (value, after) = value.split_once('"')?;
        rest = after;
        match key {
            "name" if name.is_none() => name = Some(value.to_owned()),
            "filename" if !filename => filename = true,
            _ => return None,
        }
    }
    // What has a file's name is a file, and no text.
    let is_model = |name: &String| name.eq_ignore_ascii_case("model");
    // What some readers decode first (`=?UTF-8?Q?model?=`, `_charset_`) is not plain.
    let plain = |name: &String| {
        name != "_charset_"
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-[]".contains(&byte))
    };
    name.filter(|name| plain(name) && !(filename && is_model(name)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, value.parse().unwrap());
        headers
    }

    fn read(body: &str) -> Result<Form, FormError> {
        let body = body.replace('\n', "\r\n").replace("<LF>", "\n");
        Form::read(&headers("multipart/form-data; boundary=b"), body.as_bytes())
    }

    fn part(name: &str, value: &str) -> String {
        format!("--b\nContent-Disposition: form-data; name=\"{name}\"\n\n{value}\n")
    }

    const FILE: &str = "--b\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\nContent-Type: audio/wav\n\nRIFF--b\n\n";

    #[test]
    fn the_model_is_found_wherever_it_stands_and_replaced_there() {
        let model = part("model", "whisper-1");
        for body in [
            format!("{FILE}{model}--b--\n"),
            format!("{model}{FILE}--b--"),
            format!("{}{model}{FILE}--b--", part("x", "")),
        ] {
            let form = read(&body).unwrap();
            assert_eq!(form.model.as_deref(), Some("whisper-1"), "{body}");
            let body = Bytes::from(body.replace('\n', "\r\n"));
            let other = form.with_model(&body, "a-longer-name");
            let expected = String::from_utf8_lossy(&body).replace("whisper-1", "a-longer-name");
            assert_eq!(other, expected.as_bytes());
        }
        let none = read(&format!("{FILE}--b--")).unwrap();
        assert_eq!((none.model, none.routing), (None, None));
        let routed = read(&format!("{}--b--", part("Fallbacks[]", "x"))).unwrap();
        assert_eq!(routed.routing, Some("fallbacks"));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let model = part("model", "m");
        let other = |head: &str| format!("--b\n{head}\n\nx\n{model}--b--");
        for (body, error) in [
            (format!("{model}{model}--b--"), FormError::TwoModels),
            (
                format!("{model}{}--b--", part("Model", "x")),
                FormError::TwoModels,
            ),
            (
                format!("{model}{}--b--", part("model[]", "x")),
                FormError::TwoModels,
            ),
            (
                format!("{}--b--", part("model", "two words")),
                FormError::Model,
            ),
            (format!("{}--b--", part("model", "")), FormError::Model),
            (
                format!("{model}{}--b--", part("=?UTF-8?Q?model?=", "x")),
                FormError::Head,
            ),
            (
                format!("{model}{}--b--", part("_charset_", "utf-16")),
                FormError::Head,
            ),
            (format!("text\n{model}--b--"), FormError::Framing),
            (format!("{model}--b--\n{model}--b--"), FormError::Framing),
            (format!("{model}--b --\n"), FormError::Framing),
            (format!("{model}--bc\n{model}--b--"), FormError::Framing),
            (
                other("Content-Disposition: form-data; name=\"a\"\n\n--b"),
                FormError::Framing,
            ),
            (
                format!("{}<LF>--b\n--b--", model.trim_end()),
                FormError::Framing,
            ),
            (model.clone(), FormError::Framing),
            (String::new(), FormError::Framing),
            ("--b--".to_owned(), FormError::Framing),
            (
                other("Content-Disposition: form-data; name=model"),
                FormError::Head,
            ),
            (
                other("Content-Disposition: form-data; name*=\"model\""),
                FormError::Head,
            ),
            (
                other("Content-Disposition: form-data; name=\"a\"; name=\"model\""),
                FormError::Head,
            ),
            (
                other("Content-Disposition: form-data; name=\"mod\\el\""),
                FormError::Head,
            ),
            (
                other("Content-Disposition: attachment; name=\"a\""),
                FormError::Head,
            ),
            (
                other("Content-Disposition: form-data; name=\"model\"; filename=\"a\""),
                FormError::Head,
            ),
            (
                other(
                    "Content-Disposition: form-data; name=\"a\"\nContent-Disposition: form-data; name=\"model\"",
                ),
                FormError::Head,
            ),
            (
                other("Content-Disposition: form-data;\n name=\"a\""),
                FormError::Head,
            ),
            (
                other(
                    "Content-Disposition: form-data; name=\"a\"\nContent-Transfer-Encoding: base64",
                ),
                FormError::Head,
            ),
            (other("Content-Type: text/plain"), FormError::Head),
            (
                other("X: <LF>Content-Disposition: form-data; name=\"model\""),
                FormError::Head,
            ),
            (
                part("a", "x").repeat(MAX_PARTS + 1) + "--b--",
                FormError::TooManyParts,
            ),
        ] {
            assert_eq!(read(&body), Err(error), "{body}");
        }
    }

    #[test]
    fn a_model_that_some_decode_first_is_refused() {
        let typed = |name: &str, kind: &str| {
            let head = format!("Content-Disposition: form-data; name=\"{name}\"");
            read(&format!("--b\n{head}\nContent-Type: {kind}\n\nm\n--b--"))
        };
        for good in [
            "text/plain",
            "Text/Plain; charset=UTF-8",
            "text/plain;charset=\"us-ascii\"",
        ] {
            let form = typed("model", good).unwrap();
            assert_eq!(form.model.as_deref(), Some("m"), "{good}");
        }
        for bad in [
            "application/json",
            "text/plain; charset=utf-7",
            "text/plain; charset=utf-8; charset=utf-7",
            "text/plain\nContent-Type: application/json",
        ] {
            assert_eq!(typed("model", bad), Err(FormError::Head), "{bad}");
            assert!(typed("file", bad).is_ok(), "{bad}");
        }
    }

    #[test]
    fn a_boundary_is_one_and_plain() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b--";
        for good in [
            "multipart/form-data; boundary=b",
            "Multipart/Form-Data;Boundary=\"b\"",
        ] {
            assert!(Form::is_one(&headers(good)));
            assert!(Form::read(&headers(good), body).is_ok(), "{good}");
        }
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=b; boundary=c",
            "multipart/form-data; charset=utf-8; boundary=b",
            "multipart/form-data; boundary=\"b",
            "multipart/form-data; boundary=b c",
            long.as_str(),
        ] {
            assert_eq!(
                Form::read(&headers(bad), body),
                Err(FormError::Boundary),
                "{bad}"
            );
        }
        let mut two = headers("multipart/form-data; boundary=b");
        two.append(CONTENT_TYPE, "application/json".parse().unwrap());
        assert!(Form::is_one(&two));
        assert_eq!(Form::read(&two, body), Err(FormError::Boundary));
        assert!(!Form::is_one(&headers("application/json")));
    }

    proptest! {
        #[test]
        fn parts_are_found_whatever_is_in_them(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            after in proptest::collection::vec(any::<u8>(), 0..200),
            model in "[!-~]{1,40}",
        ) {
            let boundary = "----a-boundary-that-is-in-no-file-7MA4YWxkTrZu0gW";
            let mut body = Vec::new();
            for (name, content) in [("file", &before[..]), ("model", model.as_bytes()), ("mask", &after[..])] {
                body.extend_from_slice(format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
                body.extend_from_slice(content);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
            let form = Form::read(&headers(&format!("multipart/form-data; boundary={boundary}")), &body).unwrap();
            prop_assert_eq!(form.model.as_deref(), Some(model.as_str()));
            prop_assert_eq!(&body[form.model_at.clone()], model.as_bytes());
            prop_assert_eq!(form.with_model(&Bytes::from(body.clone()), &model), Bytes::from(body));
        }

        #[test]
        fn no_bytes_make_it_fail(
            pieces in proptest::collection::vec(prop_oneof![
                Just("\r\n".to_owned()), Just("--b".to_owned()), Just("--".to_owned()), Just("\n".to_owned()),
                Just("Content-Disposition: form-data; name=\"model\"".to_owned()), "[ -~]{0,5}",
            ], 0..30),
        ) {
            let body = pieces.concat();
            let read = Form::read(&headers("multipart/form-data; boundary=b"), body.as_bytes());
            if let Ok(form) = read && let Some(model) = form.model {
                let part = format!("name=\"model\"\r\n\r\n{model}\r\n--b");
                prop_assert!(body.contains(&part));
            }
        }
    }
}

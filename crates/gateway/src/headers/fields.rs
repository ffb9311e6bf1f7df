//! Fields that belong to one connection, and fields that frame a message.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};

/// Most names that one message may list in `Connection`.
const MAX_LISTED: usize = 16;

/// Headers that contradict each other, so that two parsers may frame them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FramingError(pub(crate) &'static str);

/// Refuses what request smuggling is made of: more than one `Content-Length`, one next to
/// `Transfer-Encoding`, and any transfer coding but `chunked` (RFC 9112 §6.1, §6.3).
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), FramingError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(FramingError("more than one Content-Length"));
    }
    if let Some(length) = length
        && !length.as_bytes().iter().all(u8::is_ascii_digit)
    {
        return Err(FramingError("Content-Length is not a number"));
    }
    if let Some(coding) = codings.next() {
        if length.is_some() {
            return Err(FramingError("Content-Length beside Transfer-Encoding"));
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(FramingError("a transfer coding other than chunked"));
        }
    }
    Ok(())
}

/// Drops the fields that concern one connection only, and those that `Connection` lists
/// (RFC 9110 §7.6.1).
pub(crate) fn drop_hop_by_hop(headers: &mut HeaderMap) -> Result<(), FramingError> {
    let mut doomed: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        collect_listed(value, &mut doomed)?;
    }
    for name in headers.keys() {
        if is_hop_by_hop(name.as_str()) {
            doomed.push(name.clone());
        }
    }
    for name in doomed {
        headers.remove(name);
    }
    Ok(())
}

fn collect_listed(value: &HeaderValue, doomed: &mut Vec<HeaderName>) -> Result<(), FramingError> {
    for token in value.as_bytes().split(|byte| *byte == b',') {
        let token = token.trim_ascii();
        if token.is_empty()
            || token.eq_ignore_ascii_case(b"close")
            || token.eq_ignore_ascii_case(b"keep-alive")
        {
            continue;
        }
        let name = HeaderName::from_bytes(token)
            .map_err(|_| FramingError("Connection lists something that is no field name"))?;
        // Listing these is a trick to make a proxy drop what frames or routes the message.
        if name == CONTENT_LENGTH || name == http::header::HOST {
            return Err(FramingError(
                "Connection lists a field that frames the message",
            ));
        }
        if doomed.len() == MAX_LISTED {
            return Err(FramingError("Connection lists too many fields"));
        }
        doomed.push(name);
    }
    Ok(())
}

/// Whether a field belongs to one connection. `name` is lower-case.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether `name` starts with `prefix`, where `_` counts as `-`: some app frameworks fold
/// the two, so `x_choir_role` must not pass where `x-choir-role` does not.
pub(super) fn has_prefix_folded(name: &str, prefix: &str) -> bool {
    name.len() >= prefix.len()
        && name
            .bytes()
            .zip(prefix.bytes())
            .all(|(have, want)| have == want || (have == b'_' && want == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn contradicting_framing_is_refused() {
        let bad: &[&[(&str, &str)]] = &[
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5"), ("content-length", "6")],
            &[("content-length", "5, 5")],
            &[("content-length", "+5")],
            &[("transfer-encoding", "gzip, chunked")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "identity")],
        ];
        for fields in bad {
            assert!(check_framing(&headers(fields)).is_err(), "{fields:?}");
        }
        for fields in [
            &[("content-length", "5")][..],
            &[("transfer-encoding", "Chunked")],
            &[("accept", "*/*")],
        ] {
            assert!(check_framing(&headers(fields)).is_ok(), "{fields:?}");
        }
    }

    #[test]
    fn listed_fields_go_with_connection() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("accept", "*/*"),
        ]);
        drop_hop_by_hop(&mut map).unwrap();
        assert_eq!(map, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn connection_cannot_drop_what_frames_the_message() {
        for value in ["content-length", "Host", "a b", "\u{7f}"] {
            let mut map = HeaderMap::new();
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else {
                continue;
            };
            map.insert(CONNECTION, value);
            assert!(drop_hop_by_hop(&mut map).is_err());
        }
    }

    #[test]
    fn underscores_do_not_hide_a_prefix() {
        assert!(has_prefix_folded("x_choir_role", "x-choir-"));
        assert!(has_prefix_folded("x-forwarded-for", "x-forwarded"));
        assert!(!has_prefix_folded("x-choi", "x-choir-"));
    }
}

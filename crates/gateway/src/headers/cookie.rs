//! Cookies: ours never reach a sandbox, and a sandbox never sets ours (arch §2).

use bytes::Bytes;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};

/// The names of our cookies, without the `__Host-` that they carry over TLS.
const OURS: [&[u8]; 3] = [b"choir_session", b"choir_runtime", b"choir_state"];

/// Prefixes that browsers give a meaning to, in any case.
const NAME_PREFIXES: [&[u8]; 2] = [b"__host-", b"__secure-"];

/// Takes our cookies out of the request and joins what is left into one field, because
/// HTTP/2 may have split it (RFC 9113 §8.2.3).
pub(super) fn strip_request_cookies(headers: &mut HeaderMap) {
    let mut fields = headers.get_all(COOKIE).iter();
    let Some(first) = fields.next() else { return };
    let single = fields.next().is_none();
    if single && !pairs(first.as_bytes()).any(|pair| is_ours(pair_name(pair))) {
        return;
    }
    let mut kept: Vec<u8> = Vec::new();
    for field in headers.get_all(COOKIE) {
        for pair in pairs(field.as_bytes()).filter(|pair| !is_ours(pair_name(pair))) {
            if !kept.is_empty() {
                kept.extend_from_slice(b"; ");
            }
            kept.extend_from_slice(pair);
        }
    }
    headers.remove(COOKIE);
    if !kept.is_empty()
        && let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(kept))
    {
        headers.insert(COOKIE, value);
    }
}

/// Drops the `Set-Cookie` fields that would reach beyond this origin or replace ours, and
/// moves the rest beneath `prefix`.
pub(super) fn clean_set_cookies(headers: &mut HeaderMap, prefix: Option<&str>) {
    if !headers.contains_key(SET_COOKIE) {
        return;
    }
    let needs_work = prefix.is_some()
        || headers
            .get_all(SET_COOKIE)
            .iter()
            .any(|value| !is_acceptable(value.as_bytes()));
    if !needs_work {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter(|value| is_acceptable(value.as_bytes()))
        .filter_map(|value| match prefix {
            Some(prefix) => beneath(value.as_bytes(), prefix),
            None => Some(value.clone()),
        })
        .collect();
    headers.remove(SET_COOKIE);
    for value in kept {
        headers.append(SET_COOKIE, value);
    }
}

/// Whether a `Set-Cookie` may pass: it has a name, not one of ours, and no `Domain`. A
/// cookie without a name is refused because the browser sends its bare value back, and that
/// may read `choir_session=…`.
fn is_acceptable(set_cookie: &[u8]) -> bool {
    let mut parts = set_cookie.split(|byte| *byte == b';');
    let pair = parts.next().unwrap_or_default().trim_ascii();
    let name = pair_name(pair);
    if name.is_empty() || !pair.contains(&b'=') || is_ours(name) {
        return false;
    }
    !parts.any(|attribute| pair_name(attribute).eq_ignore_ascii_case(b"domain"))
}

/// The cookie with its path moved beneath `prefix`.
fn beneath(set_cookie: &[u8], prefix: &str) -> Option<HeaderValue> {
    let mut parts = set_cookie.split(|byte| *byte == b';');
    let mut moved = parts.next()?.to_vec();
    let mut path: Option<&[u8]> = None;
    for attribute in parts {
        if pair_name(attribute).eq_ignore_ascii_case(b"path") {
            // The last one counts (RFC 6265 §5.2).
            path = Some(pair_value(attribute));
        } else {
            moved.push(b';');
            moved.extend_from_slice(attribute);
        }
    }
    moved.extend_from_slice(b"; Path=");
    moved.extend_from_slice(prefix.as_bytes());
    if let Some(path) = path
        && path.starts_with(b"/")
        && path != b"/"
    {
        let inside = path.strip_prefix(prefix.as_bytes());
        match inside {
            // The app knows its prefix and has put it there already.
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
                moved.extend_from_slice(rest);
            }
            _ => moved.extend_from_slice(path),
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(moved)).ok()
}

fn pairs(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    field
        .split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
}

fn pair_name(pair: &[u8]) -> &[u8] {
    pair.split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

fn pair_value(pair: &[u8]) -> &[u8] {
    let at = pair.iter().position(|byte| *byte == b'=');
    at.and_then(|at| pair.get(at + 1..))
        .unwrap_or_default()
        .trim_ascii()
}

fn is_ours(name: &[u8]) -> bool {
    let mut bare = name;
    for prefix in NAME_PREFIXES {
        if let Some((head, rest)) = bare.split_at_checked(prefix.len())
            && head.eq_ignore_ascii_case(prefix)
        {
            bare = rest;
        }
    }
    OURS.iter().any(|ours| bare.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stripped(fields: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(COOKIE, HeaderValue::from_str(field).unwrap());
        }
        strip_request_cookies(&mut headers);
        assert!(headers.get_all(COOKIE).iter().count() <= 1);
        headers
            .get(COOKIE)
            .map(|value| value.to_str().unwrap().to_owned())
    }

    fn cleaned(field: &str, prefix: Option<&str>) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_str(field).unwrap());
        clean_set_cookies(&mut headers, prefix);
        headers
            .get(SET_COOKIE)
            .map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn our_cookies_are_stripped_and_others_pass() {
        assert_eq!(stripped(&["a=1; b=2"]).as_deref(), Some("a=1; b=2"));
        assert_eq!(
            stripped(&["a=1; choir_session=x; b=2; __Host-choir_runtime=y"]).as_deref(),
            Some("a=1; b=2")
        );
        assert_eq!(stripped(&["choir_session=x"]), None);
        assert_eq!(
            stripped(&["__hOsT-choir_session = x;CHOIR_RUNTIME=1"]),
            None
        );
        assert_eq!(
            stripped(&["a=1", "choir_runtime=x", "b=2"]).as_deref(),
            Some("a=1; b=2")
        );
        // A quote opened by another cookie does not hide ours.
        assert_eq!(
            stripped(&["a=\"; choir_session=x; b=\""]).as_deref(),
            Some("a=\"; b=\"")
        );
    }

    #[test]
    fn cookies_that_reach_too_far_are_dropped() {
        for field in [
            "a=1; Domain=localhost",
            "a=1;domain",
            "a=1; DOMAIN =x",
            "choir_session=1",
            "choir_runtime=1; Path=/",
            "__Host-choir_session=1; Path=/; Secure",
            "=choir_session=1",
            "choir_session",
            "",
        ] {
            assert_eq!(cleaned(field, None), None, "{field:?}");
        }
        assert_eq!(
            cleaned("a=domain=x; Path=/; HttpOnly", None).as_deref(),
            Some("a=domain=x; Path=/; HttpOnly")
        );
    }

    #[test]
    fn paths_move_beneath_the_prefix() {
        let moved = |field| cleaned(field, Some("/dev"));
        assert_eq!(moved("a=1").as_deref(), Some("a=1; Path=/dev"));
        assert_eq!(moved("a=1; Path=/").as_deref(), Some("a=1; Path=/dev"));
        assert_eq!(
            moved("a=1; path=/x; HttpOnly").as_deref(),
            Some("a=1; HttpOnly; Path=/dev/x")
        );
        assert_eq!(
            moved("a=1; Path=/dev/x").as_deref(),
            Some("a=1; Path=/dev/x")
        );
        assert_eq!(
            moved("a=1; Path=/device").as_deref(),
            Some("a=1; Path=/dev/device")
        );
        assert_eq!(moved("a=1; Path=x").as_deref(), Some("a=1; Path=/dev"));
        assert_eq!(
            moved("a=1; Path=/dev; Path=/").as_deref(),
            Some("a=1; Path=/dev")
        );
    }

    proptest! {
        #[test]
        fn no_cookie_of_ours_survives(fields in proptest::collection::vec("[ -~]{0,40}", 1..4), at in 0usize..4) {
            let mut headers = HeaderMap::new();
            for (index, field) in fields.iter().enumerate() {
                let field = if index == at { format!("{field};choir_session=s3cret") } else { field.clone() };
                headers.append(COOKIE, HeaderValue::from_str(&field).unwrap());
            }
            strip_request_cookies(&mut headers);
            for value in headers.get_all(COOKIE) {
                prop_assert!(pairs(value.as_bytes()).all(|pair| !is_ours(pair_name(pair))));
            }
        }

        #[test]
        fn no_accepted_cookie_has_a_domain(field in "[ -~]{0,60}") {
            if let Some(kept) = cleaned(&field, Some("/dev")) {
                let lower = kept.to_ascii_lowercase();
                for attribute in lower.split(';').skip(1) {
                    prop_assert!(attribute.split('=').next().unwrap().trim() != "domain");
                }
                prop_assert!(kept.contains("; Path=/dev"));
            }
        }
    }
}

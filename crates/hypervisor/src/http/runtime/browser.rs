//! What a browser says about a request, and what is said to it in cookies.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The session of a runtime origin.
pub(super) const SESSION_COOKIE: &str = "choir_runtime";

/// The state of a hand-over under way.
pub(super) const STATE_COOKIE: &str = "choir_state";

/// Cookie fields that are looked at; a browser sends one over HTTP/1.1.
const MAX_COOKIE_FIELDS: usize = 16;

/// Whether a person is opening a page in a tab. Only such a request is redirected to
/// sign-in, and only such a request wakes a sandbox (arch §4).
pub(super) fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    if method != Method::GET && method != Method::HEAD {
        return false;
    }
    // A page that the browser fetches in case somebody will want it wakes nothing.
    if text(headers, &SEC_PURPOSE).is_some_and(|purpose| purpose.contains("prefetch")) {
        return false;
    }
    match text(headers, &SEC_FETCH_MODE) {
        Some(mode) => {
            mode == "navigate"
                && text(headers, &SEC_FETCH_DEST).is_none_or(|dest| dest == "document")
        }
        // Browsers before 2023 and people with curl: the page's media type tells.
        None => text(headers, &header::ACCEPT).is_some_and(|accept| accept.contains("text/html")),
    }
}

/// Whether the navigation was begun by a page of another site.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    text(headers, &SEC_FETCH_SITE) == Some("cross-site")
}

/// Whether a request may act with the session's cookie at all. Pages of sibling origins
/// (another user's runtime, the same user's `dev`) are same-site, so their requests carry
/// the cookie; what they may do is open a page.
pub(super) fn is_own(method: &Method, headers: &HeaderMap, own_origin: &str) -> bool {
    if is_navigation(method, headers) {
        return true;
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        return origin.as_bytes() == own_origin.as_bytes();
    }
    !matches!(
        text(headers, &SEC_FETCH_SITE),
        Some("same-site" | "cross-site")
    )
}

/// Whether a WebSocket is opened.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("websocket"))
        })
}

/// The value of one of our cookies. `None` also when there are two of the name: one of them
/// was put there by somebody else.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str, secure: bool) -> Option<&'a str> {
    let name = full_name(name, secure);
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .take(MAX_COOKIE_FIELDS)
        .filter_map(|field| field.to_str().ok())
        .flat_map(|field| field.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(have, _)| *have == name)
        .map(|(_, value)| value);
    let value = found.next()?;
    found.next().is_none().then_some(value)
}

/// A `Set-Cookie` for one of our cookies: host-only, HttpOnly, SameSite=Lax, and with the
/// `__Host-` prefix over TLS so that no sibling can replace it.
pub(super) fn set_cookie(
    name: &str,
    value: &str,
    lifetime: Duration,
    secure: bool,
) -> Option<HeaderValue> {
    let name = full_name(name, secure);
    let seconds = lifetime.as_secs();
    let suffix = if secure { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{suffix}");
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn full_name(name: &str, secure: bool) -> String {
    if secure {
        format!("__Host-{name}")
    } else {
        name.to_owned()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::{cookie, is_navigation, is_own, set_cookie};
    use http::{HeaderMap, Method};
    use std::time::Duration;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_page_in_a_tab_is_a_navigation_and_nothing_else_is() {
        let get = |pairs: &[(&'static str, &str)]| is_navigation(&Method::GET, &headers(pairs));
        assert!(get(&[
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document")
        ]));
        assert!(get(&[("accept", "text/html,*/*")]));
        assert!(!get(&[
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "iframe")
        ]));
        assert!(!get(&[("sec-fetch-mode", "cors"), ("accept", "text/html")]));
        assert!(!get(&[("accept", "*/*")]));
        assert!(!get(&[
            ("accept", "text/html"),
            ("sec-purpose", "prefetch;prerender")
        ]));
        assert!(!is_navigation(
            &Method::POST,
            &headers(&[("accept", "text/html")])
        ));
    }

    #[test]
    fn sibling_origins_may_link_and_no_more() {
        let own = "http://alice.localhost:9090";
        let may =
            |method: Method, pairs: &[(&'static str, &str)]| is_own(&method, &headers(pairs), own);
        assert!(may(
            Method::POST,
            &[("origin", own), ("sec-fetch-site", "same-origin")]
        ));
        assert!(may(Method::GET, &[("sec-fetch-site", "same-origin")]));
        assert!(may(Method::GET, &[]));
        assert!(may(
            Method::GET,
            &[
                ("sec-fetch-site", "same-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document")
            ]
        ));
        assert!(!may(
            Method::POST,
            &[("origin", "http://dev--alice.localhost:9090")]
        ));
        assert!(!may(Method::POST, &[("origin", "null")]));
        assert!(!may(
            Method::GET,
            &[
                ("sec-fetch-site", "same-site"),
                ("sec-fetch-mode", "no-cors")
            ]
        ));
        assert!(!may(
            Method::POST,
            &[
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document")
            ]
        ));
    }

    #[test]
    fn a_cookie_that_is_there_twice_is_not_believed() {
        let one = headers(&[("cookie", "a=b; choir_runtime=x")]);
        assert_eq!(cookie(&one, "choir_runtime", false), Some("x"));
        assert_eq!(cookie(&one, "choir_runtime", true), None);
        let two = headers(&[("cookie", "choir_runtime=x"), ("cookie", "choir_runtime=y")]);
        assert_eq!(cookie(&two, "choir_runtime", false), None);
    }

    #[test]
    fn cookies_are_host_only() {
        let plain = set_cookie("choir_runtime", "v", Duration::from_secs(60), false).unwrap();
        assert_eq!(
            plain,
            "choir_runtime=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"
        );
        let secure = set_cookie("choir_runtime", "v", Duration::from_secs(60), true).unwrap();
        assert_eq!(
            secure,
            "__Host-choir_runtime=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
        );
    }
}

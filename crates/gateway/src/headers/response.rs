//! The response on its way from a sandbox's app.

use http::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};

use super::HeaderRules;
use super::cookie::clean_set_cookies;
use super::fields::{FramingError, drop_hop_by_hop, has_prefix_folded, is_hop_by_hop};
use super::location;

/// Cleans an app's response headers in place.
pub(crate) fn clean_response(
    headers: &mut HeaderMap,
    rules: &HeaderRules,
) -> Result<(), FramingError> {
    drop_hop_by_hop(headers)?;
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| reaches_too_far(name.as_str()))
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
    clean_set_cookies(headers, rules.prefix);
    if let Some(prefix) = rules.prefix
        && let Some(value) = headers.get(LOCATION)
        && let Ok(location) = value.to_str()
        && let Ok(host) = rules.host.to_str()
        && let Some(moved) = location::beneath(location, rules.scheme, host, prefix)
        && let Ok(moved) = HeaderValue::try_from(moved)
    {
        headers.insert(LOCATION, moved);
    }
    Ok(())
}

/// Leaves in trailers only what could neither frame, route, nor set anything (RFC 9110
/// §6.5.1): an app must not say in a trailer what it may not say in a header.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let doomed: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            is_hop_by_hop(name)
                || reaches_too_far(name)
                || super::request::is_ours_to_say(name)
                || matches!(
                    name,
                    "cookie"
                        | "set-cookie"
                        | "location"
                        | "host"
                        | "trailer"
                        | "content-length"
                        | "content-type"
                        | "content-encoding"
                        | "content-range"
                        | "cache-control"
                )
        })
        .cloned()
        .collect();
    for name in doomed {
        trailers.remove(name);
    }
}

/// Fields with which an app would speak for more than its own pages: a service worker's
/// wider scope, another port for the origin, the cookies of sibling hosts, what only the
/// hypervisor says.
fn reaches_too_far(name: &str) -> bool {
    matches!(
        name,
        "service-worker-allowed" | "alt-svc" | "clear-site-data" | "strict-transport-security"
    ) || has_prefix_folded(name, "x-choir-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, ServiceWorkers};

    fn clean(prefix: Option<&'static str>, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let rules = HeaderRules {
            scheme: Scheme::Http,
            host: HeaderValue::from_static("alice.localhost:9090"),
            client: "127.0.0.1".parse().unwrap(),
            prefix,
            set: Vec::new(),
            service_workers: ServiceWorkers::Allow,
            counts_as_activity: true,
        };
        clean_response(&mut headers, &rules).unwrap();
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn what_reaches_beyond_the_app_is_dropped() {
        let left = clean(
            None,
            &[
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("transfer-encoding", "chunked"),
                ("service-worker-allowed", "/"),
                ("alt-svc", "h2=\":1\""),
                ("clear-site-data", "\"cookies\""),
                ("x-choir-role", "live"),
                ("set-cookie", "choir_session=x"),
                ("set-cookie", "a=1; Domain=localhost"),
                ("location", "/x"),
                ("content-type", "text/html"),
            ],
        );
        assert_eq!(left, ["location: /x", "content-type: text/html"]);
    }

    #[test]
    fn under_a_prefix_locations_and_cookies_move() {
        assert_eq!(
            clean(
                Some("/dev"),
                &[("location", "/x"), ("set-cookie", "a=1; Path=/")]
            ),
            ["location: /dev/x", "set-cookie: a=1; Path=/dev"]
        );
    }

    #[test]
    fn trailers_carry_neither_cookies_nor_framing() {
        let mut trailers = HeaderMap::new();
        for name in [
            "set-cookie",
            "content-length",
            "x-choir-role",
            "grpc-status",
            "transfer-encoding",
        ] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        clean_trailers(&mut trailers);
        let left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["grpc-status"]);
    }
}

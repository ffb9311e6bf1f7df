//! The request on its way to a sandbox's app.

use std::io::Write as _;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, TE};
use http::uri::{PathAndQuery, Uri};

use super::cookie::strip_request_cookies;
use super::fields::{FramingError, drop_hop_by_hop, has_prefix_folded};
use super::location::is_beneath;
use super::{HeaderRules, Scheme};
use crate::Refusal;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// Longest text of an IP address: an IPv6 address with an embedded IPv4 one.
const MAX_ADDRESS: usize = 45;

/// Cleans the client's headers and sets ours, in place.
pub(crate) fn clean_request(
    headers: &mut HeaderMap,
    rules: &HeaderRules,
) -> Result<(), FramingError> {
    let wants_trailers = headers.get_all(TE).iter().any(accepts_trailers);
    drop_hop_by_hop(headers)?;
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_ours_to_say(name.as_str()))
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
    strip_request_cookies(headers);

    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.insert(HOST, rules.host.clone());
    headers.insert(X_FORWARDED_HOST, rules.host.clone());
    headers.insert(
        X_FORWARDED_PROTO,
        HeaderValue::from_static(match rules.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }),
    );
    if let Some(address) = address_value(rules.client) {
        headers.insert(X_FORWARDED_FOR, address);
    }
    if let Some(prefix) = rules.prefix {
        headers.insert(X_FORWARDED_PREFIX, HeaderValue::from_static(prefix));
    }
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
    Ok(())
}

/// Whether this request asks for a service-worker script.
pub(crate) fn is_service_worker_script(headers: &HeaderMap) -> bool {
    headers.contains_key(SERVICE_WORKER)
}

/// The request target in origin form, without the prefix.
pub(crate) fn forwarded_uri(uri: Uri, prefix: Option<&str>) -> Result<Uri, Refusal> {
    let origin_form = uri.authority().is_none() && uri.scheme().is_none();
    if !uri.path().starts_with('/') {
        return Err(Refusal::Path);
    }
    let Some(prefix) = prefix else {
        if origin_form {
            return Ok(uri);
        }
        let target = uri.into_parts().path_and_query;
        return Ok(Uri::from(
            target.unwrap_or_else(|| PathAndQuery::from_static("/")),
        ));
    };
    if !is_beneath(uri.path(), prefix) {
        return Err(Refusal::Path);
    }
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = target.strip_prefix(prefix).ok_or(Refusal::Path)?;
    let target = if rest.starts_with('/') {
        Bytes::copy_from_slice(rest.as_bytes())
    } else {
        Bytes::from(format!("/{rest}"))
    };
    PathAndQuery::from_maybe_shared(target)
        .map(Uri::from)
        .map_err(|_| Refusal::Path)
}

/// Fields of a client that only we may say, or that are not the app's business.
/// `Expect` goes because the server in front of us answers it when the body is first read.
pub(super) fn is_ours_to_say(name: &str) -> bool {
    matches!(
        name,
        "authorization" | "expect" | "forwarded" | "x-real-ip" | "x-request-id"
    ) || has_prefix_folded(name, "x-forwarded")
        || has_prefix_folded(name, "x-choir-")
}

fn accepts_trailers(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn address_value(address: IpAddr) -> Option<HeaderValue> {
    let mut text = [0_u8; MAX_ADDRESS];
    let mut rest = text.as_mut_slice();
    write!(rest, "{}", address.to_canonical()).ok()?;
    let unused = rest.len();
    let used = text.get(..text.len().checked_sub(unused)?)?;
    HeaderValue::from_bytes(used).ok()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

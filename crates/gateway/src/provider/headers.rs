//! What goes up to a provider and what comes down.

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap,
    HeaderName, HeaderValue, USER_AGENT,
};

use super::{ProviderKey, ProviderKind};
use crate::Refusal;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// What Anthropic's API is asked for when the caller does not say.
const DEFAULT_ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

const OUR_USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("choiros-gateway/", env!("CARGO_PKG_VERSION")));

/// Which headers pass in one direction.
#[derive(Debug, Clone, Default)]
pub enum PassedHeaders {
    /// Those of the provider's kind.
    #[default]
    OfKind,
    /// Those of the kind and these.
    AndThese(Vec<HeaderName>),
    /// Of all that would pass only these, and what a body cannot be read without.
    OnlyThese(Vec<HeaderName>),
}

impl PassedHeaders {
    fn pass(&self, name: &HeaderName, of_kind: impl FnOnce() -> bool) -> bool {
        match self {
            Self::OfKind => of_kind(),
            Self::AndThese(names) => of_kind() || names.contains(name),
            Self::OnlyThese(names) => {
                *name == CONTENT_TYPE || *name == CONTENT_LENGTH || names.contains(name)
            }
        }
    }
}

/// The request headers for a provider: an allowlist of the caller's, and ours.
///
/// `Accept-Encoding` stays behind, so that a reply is readable on its way. A compressed
/// request is refused rather than sent without saying so.
pub(super) fn request(
    caller: &HeaderMap,
    kind: ProviderKind,
    host: &HeaderValue,
    key: Option<&ProviderKey>,
    length: usize,
    passed: &PassedHeaders,
) -> Result<HeaderMap, Refusal> {
    if caller
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| coding != "identity")
    {
        return Err(Refusal::Headers);
    }
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(HOST, host.clone());
    headers.insert(USER_AGENT, OUR_USER_AGENT);
    if length > 0 {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in caller {
        // The length is ours: that of the caller's body may have changed.
        if *name != CONTENT_LENGTH && passed.pass(name, || goes_up(name)) {
            headers.append(name, value.clone());
        }
    }
    match kind {
        ProviderKind::OpenAi | ProviderKind::Bedrock => {
            if let Some(key) = key {
                headers.insert(AUTHORIZATION, key.bearer().clone());
            }
        }
        ProviderKind::Gemini => {
            if let Some(key) = key {
                headers.insert(X_GOOG_API_KEY, key.bare().clone());
            }
        }
        ProviderKind::Anthropic => {
            if let Some(key) = key {
                headers.insert(X_API_KEY, key.bare().clone());
            }
            headers
                .entry(ANTHROPIC_VERSION)
                .or_insert(DEFAULT_ANTHROPIC_VERSION);
        }
    }
    Ok(headers)
}

/// Leaves of a provider's response headers what its SDKs read, and nothing with the key in.
pub(super) fn clean_response(
    headers: &mut HeaderMap,
    key: Option<&ProviderKey>,
    passed: &PassedHeaders,
) {
    let doomed: Vec<HeaderName> = headers
        .iter()
        .filter(|(name, value)| {
            !passed.pass(name, || comes_down(name.as_str()))
                || key.is_some_and(|key| key.occurs_in(value.as_bytes()))
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in doomed {
        headers.remove(name);
    }
}

fn goes_up(name: &HeaderName) -> bool {
    if *name == CONTENT_TYPE || *name == ACCEPT {
        return true;
    }
    match name.as_str() {
        "anthropic-version" | "anthropic-beta" | "idempotency-key" => true,
        // Whose account is charged is not the caller's to say.
        "openai-organization" | "openai-project" => false,
        name => name.starts_with("openai-"),
    }
}

fn comes_down(name: &str) -> bool {
    matches!(
        name,
        "content-type"
            | "content-length"
            | "content-encoding"
            | "cache-control"
            | "date"
            | "retry-after"
            | "retry-after-ms"
            | "request-id"
            | "x-request-id"
            | "x-should-retry"
            | "openai-model"
            | "openai-processing-ms"
            | "openai-version"
            // What AWS's SDKs tell errors apart by.
            | "x-amzn-errortype"
            | "x-amzn-requestid"
    ) || name.starts_with("x-ratelimit-")
        || name.starts_with("anthropic-ratelimit-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn up(kind: ProviderKind, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let key = ProviderKey::new("sk-real").unwrap();
        let host = HeaderValue::from_static("api.example.com");
        let headers = request(
            &map(fields),
            kind,
            &host,
            Some(&key),
            0,
            &PassedHeaders::OfKind,
        )
        .unwrap();
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    const CALLER: [(&str, &str); 13] = [
        ("host", "127.0.0.1:9090"),
        ("authorization", "Bearer choirgw_x"),
        ("x-api-key", "choirgw_x"),
        ("cookie", "a=1"),
        ("x-forwarded-for", "1.1.1.1"),
        ("forwarded", "for=1.1.1.1"),
        ("user-agent", "sdk"),
        ("accept-encoding", "gzip"),
        ("openai-organization", "org"),
        ("openai-beta", "assistants=v2"),
        ("content-type", "application/json"),
        ("anthropic-beta", "a"),
        ("x-choir-role", "live"),
    ];

    #[test]
    fn only_the_allowlist_and_our_own_credentials_go_up() {
        let version = env!("CARGO_PKG_VERSION");
        let agent = format!("user-agent: choiros-gateway/{version}");
        assert_eq!(
            up(ProviderKind::OpenAi, &CALLER),
            [
                "anthropic-beta: a",
                "authorization: Bearer sk-real",
                "content-type: application/json",
                "host: api.example.com",
                "openai-beta: assistants=v2",
                agent.as_str(),
            ]
        );
        assert_eq!(
            up(ProviderKind::Anthropic, &CALLER),
            [
                "anthropic-beta: a",
                "anthropic-version: 2023-06-01",
                "content-type: application/json",
                "host: api.example.com",
                "openai-beta: assistants=v2",
                agent.as_str(),
                "x-api-key: sk-real",
            ]
        );
    }

    #[test]
    fn a_compressed_request_is_refused() {
        let host = HeaderValue::from_static("api.example.com");
        let caller = map(&[("content-encoding", "gzip")]);
        assert_eq!(
            request(
                &caller,
                ProviderKind::OpenAi,
                &host,
                None,
                0,
                &PassedHeaders::OfKind
            ),
            Err(Refusal::Headers)
        );
    }

    #[test]
    fn cookies_internals_and_echoes_of_the_key_do_not_come_down() {
        let key = ProviderKey::new("sk-real").unwrap();
        let mut headers = map(&[
            ("content-type", "text/event-stream"),
            ("set-cookie", "__cf_bm=x"),
            ("cf-ray", "x"),
            ("anthropic-organization-id", "x"),
            ("location", "https://evil.example"),
            ("x-request-id", "used key sk-real"),
            ("openai-model", "used key sk%2Dreal"),
            ("openai-version", "{\"key\":\"sk-re\\u0061l\"}"),
            ("request-id", "req_1"),
            ("x-ratelimit-remaining-tokens", "7"),
        ]);
        clean_response(&mut headers, Some(&key), &PassedHeaders::OfKind);
        assert_eq!(
            headers,
            map(&[
                ("content-type", "text/event-stream"),
                ("request-id", "req_1"),
                ("x-ratelimit-remaining-tokens", "7"),
            ])
        );
    }

    #[test]
    fn a_list_of_ones_own_replaces_that_of_the_kind() {
        let only = |name| PassedHeaders::OnlyThese(vec![HeaderName::from_static(name)]);
        let key = ProviderKey::new("sk-real").unwrap();
        let host = HeaderValue::from_static("api.example.com");
        let mut caller = map(&CALLER);
        caller.insert("content-length", HeaderValue::from_static("99"));
        let sent = request(
            &caller,
            ProviderKind::OpenAi,
            &host,
            Some(&key),
            7,
            &only("accept"),
        )
        .unwrap();
        let mut names: Vec<_> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "content-length",
                "content-type",
                "host",
                "user-agent"
            ]
        );
        assert_eq!(sent[CONTENT_LENGTH], "7");
        assert_eq!(sent[AUTHORIZATION], "Bearer sk-real");
        let mut reply = map(&[
            ("content-type", "application/json"),
            ("content-length", "2"),
            ("x-ratelimit-remaining-tokens", "7"),
            ("request-id", "req_1"),
            ("openai-model", "m"),
        ]);
        clean_response(&mut reply, Some(&key), &only("request-id"));
        assert_eq!(
            reply,
            map(&[
                ("content-type", "application/json"),
                ("content-length", "2"),
                ("request-id", "req_1"),
            ])
        );
    }

    proptest! {
        #[test]
        fn no_value_of_an_unlisted_field_goes_up(name in "[a-z][a-z-]{0,20}") {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return Ok(()) };
            let mut caller = HeaderMap::new();
            caller.insert(name.clone(), HeaderValue::from_static("choirgw_secret"));
            let Ok(sent) = request(&caller, ProviderKind::OpenAi, &HeaderValue::from_static("h"), None, 0, &PassedHeaders::OfKind) else {
                return Ok(());
            };
            if !goes_up(&name) {
                prop_assert!(sent.values().all(|value| value != "choirgw_secret"));
            }
        }
    }
}

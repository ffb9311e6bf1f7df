use proptest::prelude::*;

use super::*;
use crate::ServiceWorkers;

fn rules(prefix: Option<&'static str>) -> HeaderRules {
    HeaderRules {
        scheme: Scheme::Https,
        host: HeaderValue::from_static("alice.run.example.com"),
        client: "::ffff:192.0.2.7".parse().unwrap(),
        prefix,
        set: vec![(
            HeaderName::from_static("x-choir-role"),
            HeaderValue::from_static("dev"),
        )],
        service_workers: ServiceWorkers::Refuse,
        counts_as_activity: true,
    }
}

#[test]
fn what_a_client_claims_is_replaced_by_what_we_know() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "evil.example"),
        ("forwarded", "for=1.1.1.1"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-port", "1"),
        ("x_forwarded_for", "1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-choir-role", "live"),
        ("x-choir-user", "root"),
        ("x_choir_role", "live"),
        ("authorization", "Bearer choirpat_x"),
        ("proxy-authorization", "Basic x"),
        ("expect", "100-continue"),
        ("x-request-id", "mine"),
        ("cookie", "choir_runtime=x; theme=dark"),
        ("te", "gzip, trailers"),
        ("accept", "*/*"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    clean_request(&mut headers, &rules(Some("/dev"))).unwrap();
    let mut seen: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "accept: */*",
            "cookie: theme=dark",
            "host: alice.run.example.com",
            "te: trailers",
            "x-choir-role: dev",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: alice.run.example.com",
            "x-forwarded-prefix: /dev",
            "x-forwarded-proto: https",
        ]
    );
}

#[test]
fn targets_lose_their_prefix_and_become_origin_form() {
    for (target, prefix, expected) in [
        ("/a?b", None, Some("/a?b")),
        ("http://evil.example/a?b", None, Some("/a?b")),
        ("/dev", Some("/dev"), Some("/")),
        ("/dev?x", Some("/dev"), Some("/?x")),
        ("/dev/", Some("/dev"), Some("/")),
        (
            "/dev/a%2fb/../c?d=/dev/",
            Some("/dev"),
            Some("/a%2fb/../c?d=/dev/"),
        ),
        ("/dev//evil.example/", Some("/dev"), Some("//evil.example/")),
        ("/device", Some("/dev"), None),
        ("/", Some("/dev"), None),
        ("*", None, None),
    ] {
        let uri: Uri = target.parse().unwrap();
        let got = forwarded_uri(uri, prefix).ok().map(|uri| uri.to_string());
        assert_eq!(got.as_deref(), expected, "{target}");
    }
}

proptest! {
    #[test]
    fn no_client_can_say_what_is_ours(name in "[Xx][-_](choir|CHOIR|forwarded|Forwarded)[-_][a-zA-Z_-]{1,12}", value in "[ -~]{0,20}") {
        let mut headers = HeaderMap::new();
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return Ok(()) };
        let Ok(value) = HeaderValue::from_str(&format!("client {value}")) else { return Ok(()) };
        headers.append(name, value);
        clean_request(&mut headers, &rules(None)).unwrap();
        for value in headers.values() {
            prop_assert!(!value.as_bytes().starts_with(b"client "));
        }
    }

    #[test]
    fn a_forwarded_target_is_always_origin_form(path in "/dev(/[ -~&&[^ #?<>\"{}|^`\\\\]]{0,20})?(\\?[a-z/]{0,5})?") {
        let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
        if let Ok(target) = forwarded_uri(uri, Some("/dev")) {
            prop_assert!(target.authority().is_none());
            prop_assert!(target.path().starts_with('/'));
        }
    }
}

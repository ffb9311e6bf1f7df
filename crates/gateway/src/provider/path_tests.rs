use proptest::prelude::*;

use super::*;

fn base() -> BasePath {
    parse_base("https://api.example.com/v1/", true)
        .unwrap()
        .path
}

#[test]
fn ordinary_paths_join() {
    for (rest, query, expected) in [
        ("chat/completions", None, "/v1/chat/completions"),
        (
            "/chat/completions",
            Some("a=b/../c"),
            "/v1/chat/completions?a=b/../c",
        ),
        ("", None, "/v1"),
        ("/", None, "/v1"),
        ("models/", None, "/v1/models/"),
        ("models/a%20b:generate", None, "/v1/models/a%20b:generate"),
        ("models/..a", None, "/v1/models/..a"),
    ] {
        let joined = base().join(rest, query).unwrap();
        assert_eq!(joined.to_string(), expected);
        assert!(joined.authority().is_none());
    }
    let root = parse_base("https://api.example.com", true).unwrap().path;
    assert_eq!(root.join("", None).unwrap(), "/");
    assert_eq!(root.join("v1/messages", None).unwrap(), "/v1/messages");
}

#[test]
fn paths_that_could_leave_the_base_are_refused() {
    for rest in [
        "..",
        "../admin",
        "chat/../../admin",
        "chat/./x",
        ".",
        "//evil.example/x",
        "chat//x",
        "http://evil.example/",
        "@evil.example//",
        "%2e%2e/admin",
        "%2E./admin",
        "chat%2f..%2fadmin",
        "chat%5c..%5cadmin",
        "chat\\..\\admin",
        "%252e%252e/admin",
        "..;/admin",
        "..;x=1/admin",
        "%2e%2e;/admin",
        "chat?x",
        "chat#x",
        "chat%00",
        "chat%0d%0aHost:%20evil",
        "chat%zz",
        "chat%2",
        "chat x",
        "chät",
        "chat\r\nx",
    ] {
        assert_eq!(base().join(rest, None), Err(Refusal::Path), "{rest:?}");
    }
    assert_eq!(base().join(&"a".repeat(5000), None), Err(Refusal::Path));
}

#[test]
fn base_urls_are_checked() {
    for bad in [
        "api.example.com",
        "ftp://api.example.com",
        "https://user:pass@api.example.com",
        "https://api.example.com/?x",
        "https://api.example.com/#x",
        "http://api.example.com/v1",
        "unix:/x",
    ] {
        assert!(parse_base(bad, true).is_err(), "{bad}");
    }
    assert!(parse_base("http://10.0.0.1:11434/v1", false).is_ok());
    let local = parse_base("http://127.0.0.1:8080/v1", true).unwrap();
    assert_eq!(local.authority, "127.0.0.1:8080");
    assert_eq!((local.port, local.tls), (8080, false));
}

/// Decodes once, and resolves dot segments as a lenient server might.
fn resolve(path: &str) -> Vec<String> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' && tail.len() >= 2 {
            let text = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(text, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let mut stack: Vec<String> = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap() {
            "" | "." => {}
            ".." => {
                stack.pop();
            }
            name => stack.push(name.to_owned()),
        }
    }
    stack
}

proptest! {
    #[test]
    fn nothing_that_joins_leaves_the_base(rest in "([a-z./;@:\\\\?#]|%2[eEfF5]|%5[cC]|%[0-9a-f]{2}|\\.\\.|//){0,12}") {
        if let Ok(target) = base().join(&rest, None) {
            prop_assert!(target.authority().is_none() && target.scheme().is_none());
            prop_assert!(target.query().is_none());
            let once = resolve(target.path());
            prop_assert_eq!(once.first().map(String::as_str), Some("v1"));
            let twice = resolve(&once.join("/"));
            prop_assert_eq!(twice.first().map(String::as_str), Some("v1"));
        }
    }
}

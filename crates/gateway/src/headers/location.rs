//! `Location` beneath a path prefix.

use super::Scheme;

/// `location` as a browser beneath `prefix` has to see it; `None` when it stays as it is.
///
/// Only what points into this origin's own root is moved: an absolute path, or a URL with
/// this very scheme and authority. A path that already has the prefix was written by an app
/// that read `X-Forwarded-Prefix`.
pub(super) fn beneath(location: &str, scheme: Scheme, host: &str, prefix: &str) -> Option<String> {
    let (origin, path) = match split_origin(location) {
        Some((origin_scheme, authority, path)) => {
            let same_scheme =
                origin_scheme.is_none_or(|other| other.eq_ignore_ascii_case(scheme.as_str()));
            if !same_scheme || !authority.eq_ignore_ascii_case(host) {
                return None;
            }
            (location.strip_suffix(path)?, path)
        }
        None if location.starts_with('/') => ("", location),
        None => return None,
    };
    if is_beneath(path, prefix) {
        return None;
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some(format!("{origin}{prefix}{slash}{path}"))
}

/// Whether `path` is `prefix` itself or something below it.
pub(super) fn is_beneath(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
}

/// Scheme (if any), authority and the rest of a URL that names an authority. Backslashes
/// count as slashes, as browsers have it.
fn split_origin(location: &str) -> Option<(Option<&str>, &str, &str)> {
    let (scheme, rest) = match location.split_once(':') {
        Some((scheme, rest))
            if !scheme.is_empty()
                && scheme
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
        {
            (Some(scheme), rest)
        }
        _ => (None, location),
    };
    let slash = ['/', '\\'];
    let authority_and_path = rest
        .strip_prefix(slash)
        .and_then(|rest| rest.strip_prefix(slash))?;
    let end = authority_and_path
        .find(['/', '\\', '?', '#'])
        .unwrap_or(authority_and_path.len());
    let (authority, path) = authority_and_path.split_at_checked(end)?;
    Some((scheme, authority, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(location: &str) -> Option<String> {
        beneath(location, Scheme::Http, "alice.localhost:9090", "/dev")
    }

    #[test]
    fn own_locations_move() {
        for (location, expected) in [
            ("/", "/dev/"),
            ("/x?y#z", "/dev/x?y#z"),
            ("/device", "/dev/device"),
            (
                "http://alice.localhost:9090/x",
                "http://alice.localhost:9090/dev/x",
            ),
            (
                "http://ALICE.localhost:9090",
                "http://ALICE.localhost:9090/dev/",
            ),
            (
                "HTTP://alice.localhost:9090?q",
                "HTTP://alice.localhost:9090/dev/?q",
            ),
            ("//alice.localhost:9090/x", "//alice.localhost:9090/dev/x"),
        ] {
            assert_eq!(moved(location).as_deref(), Some(expected), "{location}");
        }
    }

    #[test]
    fn other_locations_stay() {
        for location in [
            "x",
            "../x",
            "?q",
            "/dev",
            "/dev/x",
            "/dev?x",
            "https://alice.localhost:9090/x",
            "http://alice.localhost/x",
            "http://bob.localhost:9090/x",
            "//evil.example/x",
            "/\\evil.example/x",
            "mailto:a@b",
        ] {
            assert_eq!(moved(location), None, "{location}");
        }
    }
}

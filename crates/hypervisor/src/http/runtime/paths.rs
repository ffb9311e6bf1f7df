//! Who owns a path of a runtime origin (arch §3, ADR-0004).

use types::Role;

/// The only prefix that the hypervisor keeps for itself on a runtime origin.
pub(crate) const RESERVED: &str = "/.choir";

/// What serves a request on a runtime origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    /// The hypervisor; the path below [`RESERVED`], without its leading slash.
    Choir(&'a str),
    /// Sign-in pages live on the control origin; redirect there.
    Control(&'a str),
    /// `/dev` lacks the slash that makes relative links work; redirect to `/dev/`.
    DevSlash,
    /// The sandbox that has this role.
    Sandbox {
        role: Role,
        /// The path it sees.
        path: &'a str,
        /// Whether `/dev` was stripped.
        prefixed: bool,
    },
}

/// Decides by the path alone. Only the literal `/dev/` is the prefix: `/%64ev/` or `//dev/`
/// are paths of `live` as any other, so that no two parties read one path differently.
pub(crate) fn owner(host_role: Role, path: &str) -> Owner<'_> {
    if let Some(rest) = reserved(path) {
        return Owner::Choir(rest);
    }
    if matches!(path, "/login" | "/register" | "/recovery") {
        return Owner::Control(path);
    }
    if host_role == Role::Live {
        if path == "/dev" {
            return Owner::DevSlash;
        }
        if path.starts_with("/dev/") {
            let path = path.get("/dev".len()..).unwrap_or("/");
            return Owner::Sandbox {
                role: Role::Dev,
                path,
                prefixed: true,
            };
        }
    }
    Owner::Sandbox {
        role: host_role,
        path,
        prefixed: false,
    }
}

/// What of a path lies below [`RESERVED`], without its leading slash.
pub(crate) fn reserved(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(RESERVED)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.strip_prefix('/').unwrap_or_default())
}

/// A path on the same origin to go to after signing in, or `/` when the text is anything
/// else: another origin (`//evil`, `/\evil`), a scheme, or text that a header cannot hold.
pub(crate) fn safe_next(text: &str) -> &str {
    const MAX: usize = 4096;
    let second = text.as_bytes().get(1);
    let local = text.starts_with('/') && !matches!(second, Some(b'/' | b'\\'));
    let plain = text.bytes().all(|b| b.is_ascii_graphic());
    if local && plain && text.len() <= MAX {
        text
    } else {
        "/"
    }
}

#[cfg(test)]
mod tests {
    use super::{Owner, owner, safe_next};
    use types::Role;

    fn sandbox(role: Role, path: &str, prefixed: bool) -> Owner<'_> {
        Owner::Sandbox {
            role,
            path,
            prefixed,
        }
    }

    #[test]
    fn every_path_has_one_owner() {
        let live = |path| owner(Role::Live, path);
        assert_eq!(live("/"), sandbox(Role::Live, "/", false));
        assert_eq!(live("/auth/me"), sandbox(Role::Live, "/auth/me", false));
        assert_eq!(
            live("/me/sandboxes"),
            sandbox(Role::Live, "/me/sandboxes", false)
        );
        assert_eq!(live("/dev"), Owner::DevSlash);
        assert_eq!(live("/dev/"), sandbox(Role::Dev, "/", true));
        assert_eq!(live("/dev/api/x"), sandbox(Role::Dev, "/api/x", true));
        assert_eq!(live("/dev//x"), sandbox(Role::Dev, "//x", true));
        assert_eq!(live("/device"), sandbox(Role::Live, "/device", false));
        assert_eq!(live("//dev/x"), sandbox(Role::Live, "//dev/x", false));
        assert_eq!(live("/%64ev/x"), sandbox(Role::Live, "/%64ev/x", false));
        assert_eq!(live("/.choir/enter"), Owner::Choir("enter"));
        assert_eq!(live("/.choir"), Owner::Choir(""));
        assert_eq!(live("/.choirs"), sandbox(Role::Live, "/.choirs", false));
        assert_eq!(live("/login"), Owner::Control("/login"));
        assert_eq!(live("/login/x"), sandbox(Role::Live, "/login/x", false));
    }

    #[test]
    fn the_dev_origin_has_dev_at_its_root() {
        assert_eq!(
            owner(Role::Dev, "/dev/x"),
            sandbox(Role::Dev, "/dev/x", false)
        );
        assert_eq!(owner(Role::Dev, "/x"), sandbox(Role::Dev, "/x", false));
        assert_eq!(owner(Role::Dev, "/.choir/enter"), Owner::Choir("enter"));
    }

    #[test]
    fn next_never_leaves_the_origin() {
        assert_eq!(safe_next("/a?b=c&d"), "/a?b=c&d");
        for evil in [
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "",
            "a",
            "/a\r\nSet-Cookie: x",
            "/\u{e9}",
            "/\t/evil",
        ] {
            assert_eq!(safe_next(evil), "/", "{evil:?}");
        }
        assert_eq!(safe_next(&format!("/{}", "a".repeat(5000))), "/");
    }
}

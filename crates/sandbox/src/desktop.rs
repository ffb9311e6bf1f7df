//! The desktop: built files embedded in this binary, or a directory of the workspace in
//! their place, so that an agent can change its own UI.

use std::io::Read;

use bytes::Bytes;

use crate::files::{FileError, Workspace};

/// A built file of the desktop.
#[derive(Debug)]
struct File {
    path: &'static str,
    etag: &'static str,
    bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/desktop.rs"));

/// Directory beneath the workspace that replaces the embedded desktop when it has an
/// `index.html`.
pub const OVERRIDE: &str = ".choir/desktop";

/// Largest file served from the override.
const MAX_FILE: u64 = 16 * 1024 * 1024;

const NOT_BUILT: &str = include_str!("desktop/not-built.html");

/// Something to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// MIME type.
    pub content_type: &'static str,
    /// Strong entity tag, quotes included.
    pub etag: String,
    /// The content.
    pub bytes: Bytes,
}

/// The file of the desktop for a request path without its leading slash; `index.html`
/// for the empty one. Blocks: it may read the workspace.
#[must_use]
pub fn find(workspace: &Workspace, path: &str) -> Option<Asset> {
    let path = if path.is_empty() { "index.html" } else { path };
    if workspace.is_file(&format!("{OVERRIDE}/index.html")) {
        return overridden(workspace, path);
    }
    embedded(path)
}

fn overridden(workspace: &Workspace, path: &str) -> Option<Asset> {
    // Confined like everything beneath the workspace, and to the directory itself: a link
    // in it cannot lead out of it.
    let directory = workspace.beneath(OVERRIDE).ok()?;
    match directory.open_file(path, MAX_FILE) {
        Ok(mut file) => {
            let mut bytes = Vec::new();
            file.file
                .by_ref()
                .take(MAX_FILE)
                .read_to_end(&mut bytes)
                .ok()?;
            Some(Asset {
                content_type: content_type(path),
                etag: file.etag,
                bytes: bytes.into(),
            })
        }
        Err(FileError::NotFound) => None,
        Err(error) => {
            tracing::warn!(%error, path, "a file of the desktop override is not served");
            None
        }
    }
}

fn embedded(path: &str) -> Option<Asset> {
    if FILES.is_empty() {
        return (path == "index.html").then(|| Asset {
            content_type: content_type(path),
            etag: "\"not-built\"".to_owned(),
            bytes: Bytes::from_static(NOT_BUILT.as_bytes()),
        });
    }
    let at = FILES.binary_search_by(|file| file.path.cmp(path)).ok()?;
    let file = FILES.get(at)?;
    Some(Asset {
        content_type: content_type(path),
        etag: file.etag.to_owned(),
        bytes: Bytes::from_static(file.bytes),
    })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("webp") => "image/webp",
        Some("woff2") => "font/woff2",
        Some("woff") => "font/woff",
        Some("wasm") => "application/wasm",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::find;
    use crate::files::Workspace;

    #[test]
    fn serves_an_embedded_page_unless_the_workspace_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        assert!(
            find(&workspace, "")
                .unwrap()
                .content_type
                .starts_with("text/html")
        );

        let own = dir.path().join(".choir/desktop");
        fs::create_dir_all(own.join("assets")).unwrap();
        fs::write(own.join("assets/a.js"), "1").unwrap();
        assert!(find(&workspace, "assets/a.js").is_none());
        fs::write(own.join("index.html"), "mine").unwrap();
        assert_eq!(find(&workspace, "").unwrap().bytes, "mine");
        assert_eq!(find(&workspace, "assets/a.js").unwrap().bytes, "1");
    }

    #[test]
    fn no_link_leads_out_of_the_override() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(".choir/desktop");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("index.html"), "mine").unwrap();
        fs::write(dir.path().join("notes"), "private").unwrap();
        symlink("../../notes", own.join("notes.txt")).unwrap();
        symlink("/etc/passwd", own.join("passwd.txt")).unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        for path in [
            "notes.txt",
            "passwd.txt",
            "../../notes",
            "assets/../../../notes",
        ] {
            assert!(find(&workspace, path).is_none(), "{path}");
        }
    }
}

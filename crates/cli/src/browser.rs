//! Opening a browser, where there is a desktop to see it.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use url::Url;

/// Whether a browser would be seen, by the variables that a desktop sets.
pub fn wanted(display: Option<&OsStr>, wayland: Option<&OsStr>) -> bool {
    [display, wayland]
        .into_iter()
        .flatten()
        .any(|value| !value.is_empty())
}

/// Opens an address with the desktop's own choice; whether that could be started.
#[must_use]
pub fn open_with_desktop(url: &Url) -> bool {
    Command::new("xdg-open")
        .arg(url.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::wanted;

    #[test]
    fn a_display_wants_a_browser() {
        assert!(wanted(Some(OsStr::new(":0")), None));
        assert!(wanted(None, Some(OsStr::new("wayland-0"))));
        assert!(!wanted(Some(OsStr::new("")), None));
        assert!(!wanted(None, None));
    }
}

//! What a fresh `HOME` begins with: a prompt that says where one is, and a configuration with
//! which Codex runs under our walls instead of its own (`docs/agents.md`).
//!
//! A file that is there is never touched, and neither is anything when one like it is.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Where `HOME` is inside a sandbox. Anywhere else nothing is written.
pub const INSIDE: &str = "/home/choir";

struct File {
    path: &'static str,
    text: &'static str,
    /// With one of these there the file would be another's, or do nothing.
    unless: &'static [&'static str],
}

const FILES: &[File] = &[
    File {
        path: ".bashrc",
        text: include_str!("home/bashrc"),
        unless: &[],
    },
    File {
        path: ".profile",
        text: include_str!("home/profile"),
        unless: &[".bash_profile", ".bash_login"],
    },
    File {
        path: ".codex/config.toml",
        text: include_str!("home/codex.toml"),
        unless: &[],
    },
];

/// Writes what is missing. One file that cannot be written keeps no other from it.
///
/// # Errors
/// The first one that could not be written, with its name.
pub fn furnish(home: &Path) -> io::Result<()> {
    let mut outcome = Ok(());
    for file in FILES {
        let written = furnish_file(home, file);
        if outcome.is_ok() {
            outcome = written
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.path)));
        }
    }
    outcome
}

fn furnish_file(home: &Path, file: &File) -> io::Result<()> {
    // A dangling link is somebody's too.
    let there = |name: &str| home.join(name).symlink_metadata().is_ok();
    if there(file.path) || file.unless.iter().any(|name| there(name)) {
        return Ok(());
    }
    let path = home.join(file.path);
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    new.write_all(file.text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{FILES, furnish};

    #[test]
    fn a_fresh_home_is_furnished_once() {
        let home = tempfile::tempdir().unwrap();
        furnish(home.path()).unwrap();
        for file in FILES {
            let text = fs::read_to_string(home.path().join(file.path)).unwrap();
            assert_eq!(text, file.text, "{}", file.path);
        }
        // What was changed or emptied stays as it is.
        fs::write(home.path().join(".bashrc"), "mine").unwrap();
        fs::remove_file(home.path().join(".codex/config.toml")).unwrap();
        furnish(home.path()).unwrap();
        assert_eq!(
            fs::read_to_string(home.path().join(".bashrc")).unwrap(),
            "mine"
        );
    }

    #[test]
    fn dotfiles_of_ones_own_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at(".bash_profile"), "mine").unwrap();
        std::os::unix::fs::symlink("/nowhere", at(".bashrc")).unwrap();
        fs::create_dir(at(".codex")).unwrap();
        fs::write(at(".codex/config.toml"), "model = \"x\"").unwrap();
        furnish(home.path()).unwrap();
        assert!(!at(".profile").exists(), "bash reads ~/.bash_profile alone");
        assert!(at(".bashrc").is_symlink());
        assert_eq!(
            fs::read_to_string(at(".codex/config.toml")).unwrap(),
            "model = \"x\""
        );
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_by_name() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".codex"), "a file").unwrap();
        let error = furnish(home.path()).unwrap_err().to_string();
        assert!(error.starts_with(".codex/config.toml: "), "{error}");
        assert!(home.path().join(".bashrc").exists());
    }
}

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
    mode: u32,
}

const FILES: &[File] = &[
    File {
        path: ".bashrc",
        text: include_str!("home/bashrc"),
        unless: &[],
        mode: 0o600,
    },
    File {
        path: ".profile",
        text: include_str!("home/profile"),
        unless: &[".bash_profile", ".bash_login"],
        mode: 0o600,
    },
    File {
        path: ".codex/config.toml",
        text: include_str!("home/codex.toml"),
        unless: &[],
        mode: 0o600,
    },
    // The directory stands first in the PATH of commands.
    File {
        path: ".choir/bin/codex",
        text: include_str!("home/codex.sh"),
        unless: &[],
        mode: 0o700,
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
        .mode(file.mode)
        .open(&path)?;
    new.write_all(file.text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    use super::{FILES, furnish};

    #[test]
    fn a_fresh_home_is_furnished_once() {
        let home = tempfile::tempdir().unwrap();
        furnish(home.path()).unwrap();
        for file in FILES {
            let text = fs::read_to_string(home.path().join(file.path)).unwrap();
            assert_eq!(text, file.text, "{}", file.path);
            let mode = fs::metadata(home.path().join(file.path)).unwrap().mode();
            assert_eq!(mode & 0o777, file.mode, "{}", file.path);
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
    fn the_codex_in_front_gives_the_next_one_its_address() {
        let home = tempfile::tempdir().unwrap();
        furnish(home.path()).unwrap();
        let (own, next) = (home.path().join(".choir/bin"), home.path().join("next"));
        fs::create_dir(&next).unwrap();
        let path = format!("{}:{}:/usr/bin:/bin", own.display(), next.display());
        let run = |variable: &str| {
            let mut codex = Command::new(own.join("codex"));
            codex.env_clear().env("PATH", &path).args(["exec", "a b"]);
            if !variable.is_empty() {
                codex.env(variable, "http://127.0.0.1:1/x");
            }
            let output = codex.output().unwrap();
            (
                output.status.code(),
                String::from_utf8(output.stdout).unwrap(),
            )
        };
        assert_eq!(run("").0, Some(127), "there is no other");
        let script = "#!/bin/sh\nprintf '<%s>' \"$@\"\n";
        fs::write(next.join("codex"), script).unwrap();
        let runs = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(next.join("codex"), runs).unwrap();
        assert_eq!(run("").1, "<exec><a b>");
        for (variable, base) in [
            ("OPENAI_BASE_URL", "http://127.0.0.1:1/x"),
            (
                "CHOIR_PROVIDER_GATEWAY_BASE_URL",
                "http://127.0.0.1:1/x/openai",
            ),
        ] {
            let said = format!("<-c><model_providers.choir.base_url=\"{base}\"><exec><a b>");
            assert_eq!(run(variable), (Some(0), said));
        }
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

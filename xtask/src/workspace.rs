//! Where things are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// A build profile of cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What tests use.
    Dev,
    /// What is tried out, and what is installed and measured once the hypervisor is trained.
    Release,
}

/// The checked-out repository.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the repository that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the manifest of xtask lies in no repository")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The repository's top directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The sources of the desktop.
    pub(crate) fn desktop(&self) -> PathBuf {
        self.root.join("desktop")
    }

    /// Where everything that is built lies.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where stamps of finished steps are kept.
    pub(crate) fn stamps(&self) -> PathBuf {
        self.target.join("xtask")
    }

    /// Where cargo puts the programs of a profile.
    pub(crate) fn binaries(&self, profile: Profile) -> PathBuf {
        self.target.join(match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        })
    }

    /// Cargo, in the repository, as the one that runs us.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// What `cargo metadata` says; without dependencies from registries unless asked.
    pub(crate) fn metadata(&self, with_dependencies: bool) -> Result<Value> {
        let mut command = self.cargo();
        command.args(["metadata", "--format-version=1", "--locked"]);
        if !with_dependencies {
            command.arg("--no-deps");
        }
        let text = process::output(&mut command)?;
        serde_json::from_str(&text).context("cargo metadata gave no JSON")
    }
}

//! Pictures of every page, for people.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::prerequisites::{self, Purpose};
use crate::workspace::{Profile, Workspace};
use crate::{build, desktop, process};

/// Builds everything, signs in with a virtual authenticator and photographs what a person sees.
pub(crate) fn run(workspace: &Workspace, dir: &Path) -> Result<ExitCode> {
    prerequisites::ensure(Purpose::Screens, "cargo xtask screens")?;
    desktop::build(workspace)?;
    desktop::install(
        workspace,
        &workspace.root().join("crates/system-tests/browser"),
    )?;
    build::with_harness(workspace, Profile::Dev)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut harness = Command::new(workspace.binaries(Profile::Dev).join("harness"));
    process::run(harness.arg("screens").arg(dir))?;
    Ok(ExitCode::SUCCESS)
}

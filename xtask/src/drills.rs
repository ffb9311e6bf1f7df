//! The escape drills, run through the real supervisor.

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::{Profile, Workspace};
use crate::{build, process};

/// Builds what is needed, the drills as a static binary, and runs every drill inside a sandbox, a runner and a terminal; as root
/// the whole battery runs a second time as an ordinary user.
///
/// The program closes with one line, `N denied, M open`, and fails when something is open.
pub(crate) fn run(workspace: &Workspace, json: bool) -> Result<ExitCode> {
    build::with_harness(workspace, Profile::Dev)?;
    let drills = build::static_drills(workspace)?;
    let mut harness = std::process::Command::new(workspace.binaries(Profile::Dev).join("harness"));
    harness.arg("drills").env(build::STATIC_DRILL, drills);
    if json {
        harness.arg("--json");
    }
    process::run(&mut harness)?;
    Ok(ExitCode::SUCCESS)
}

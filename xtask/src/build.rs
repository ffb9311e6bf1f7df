//! Building the programs.

use anyhow::Result;

use crate::process;
use crate::workspace::{Profile, Workspace};

/// The packages whose programs make an installation.
pub(crate) const PROGRAMS: &[&str] = &["hypervisor", "isolation", "sandbox", "cli"];

/// Builds all programs of an installation, with cargo's own progress.
pub(crate) fn programs(workspace: &Workspace, profile: Profile) -> Result<()> {
    packages(workspace, profile, PROGRAMS)
}

/// Builds all programs and the one that drives them in tests and benches.
pub(crate) fn with_harness(workspace: &Workspace, profile: Profile) -> Result<()> {
    let mut all = PROGRAMS.to_vec();
    all.push("system-tests");
    packages(workspace, profile, &all)
}

/// Builds the drills once more, without a library that somebody else could have put in their way:
/// what they see is then what the kernel answers.
pub(crate) fn static_drills(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo();
    command.args([
        "rustc",
        "--locked",
        "--package",
        "isolation",
        "--bin",
        "drill",
    ]);
    command.args(["--", "-C", "target-feature=+crt-static"]);
    process::run(&mut command)
}

fn packages(workspace: &Workspace, profile: Profile, names: &[&str]) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["build", "--locked", "--bins"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    for name in names {
        command.args(["--package", name]);
    }
    process::run(&mut command)
}

//! Building the programs.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::workspace::{Profile, Workspace};
use crate::{elf, process};

/// Tells tests and harness which drills are the static ones.
pub(crate) const STATIC_DRILL: &str = "STATIC_DRILL";

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
/// what they see is then what the kernel answers. Returns the program, which is not the one of the
/// other builds: whoever is to run it
/// is told its path in [`STATIC_DRILL`].
pub(crate) fn static_drills(workspace: &Workspace) -> Result<PathBuf> {
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
    process::run(&mut command)?;
    let built = workspace.binaries(Profile::Dev).join("drill");
    let program = std::fs::read(&built)
        .with_context(|| format!("cannot read the drills {}", built.display()))?;
    elf::demand_static(&program)
        .with_context(|| format!("the drills {} are not static", built.display()))?;
    let kept = workspace.binaries(Profile::Dev).join("drill-static");
    std::fs::copy(&built, &kept)
        .with_context(|| format!("cannot copy the drills to {}", kept.display()))?;
    Ok(kept)
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

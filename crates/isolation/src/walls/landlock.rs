//! The Landlock domain: a second wall behind the mounts. Should a mount ever show more
//! than it ought to, or a path lead out of the root, the domain still refuses it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::WallError;
use super::plan::Reach;

/// The file rights that are handled; each that a kernel lacks is left out by the crate.
const FILES: ABI = ABI::V5;

/// Locks this process in: it reaches what `reach` lists, below the present root, and
/// nothing else. `scopes` makes a kernel without them (before Linux 6.12) an error.
pub(crate) fn lock_in(reach: &[(PathBuf, Reach)], scopes: bool) -> Result<(), WallError> {
    let mut ruleset = ruleset(scopes).map_err(|e| failed("create a Landlock ruleset", &e))?;
    for (path, reach) in reach {
        if path.exists() {
            ruleset = add(ruleset, path, *reach)?;
        }
    }
    enter(ruleset)
}

fn enter(ruleset: RulesetCreated) -> Result<(), WallError> {
    let status = ruleset
        .restrict_self()
        .map_err(|e| failed("enter the Landlock domain", &e))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(WallError {
            step: "enter the Landlock domain".into(),
            reason: "this kernel has no Landlock".into(),
            errno: Some(libc::EOPNOTSUPP),
        });
    }
    Ok(())
}

/// What a process may do with the only directories it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confined {
    /// List and read.
    Read,
    /// Anything but making devices.
    Write,
}

/// Locks this process in: it reaches these open directories and what is beneath them.
/// Descriptors that are open already, or are handed over later, keep working.
pub(crate) fn confine(dirs: &[&OwnedFd], may: Confined) -> Result<(), WallError> {
    let rights = rights(match may {
        Confined::Read => Reach::Read,
        Confined::Write => Reach::Write,
    });
    let mut ruleset = ruleset(false).map_err(|e| failed("create a Landlock ruleset", &e))?;
    for dir in dirs {
        ruleset = ruleset
            .add_rule(PathBeneath::new(dir, rights))
            .map_err(|e| failed("add a Landlock rule", &e))?;
    }
    enter(ruleset)
}

fn ruleset(scopes: bool) -> Result<RulesetCreated, landlock::RulesetError> {
    let scope_level = if scopes {
        CompatLevel::HardRequirement
    } else {
        CompatLevel::BestEffort
    };
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES))?
        .set_compatibility(scope_level)
        .scope(Scope::from_all(ABI::V6))?
        .set_compatibility(CompatLevel::BestEffort)
        .create()
}

fn add(ruleset: RulesetCreated, path: &Path, reach: Reach) -> Result<RulesetCreated, WallError> {
    let mut rights = rights(reach);
    if !path.is_dir() {
        rights &= AccessFs::from_file(FILES);
    }
    let fd = PathFd::new(path).map_err(|e| failed("open a path for a Landlock rule", &e))?;
    ruleset
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|e| failed("add a Landlock rule", &e))
}

fn rights(reach: Reach) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match reach {
        Reach::List => AccessFs::ReadDir.into(),
        Reach::Read => read,
        Reach::Execute => read | AccessFs::Execute,
        Reach::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        Reach::Terminals => read | AccessFs::WriteFile | AccessFs::IoctlDev,
        Reach::Write => AccessFs::from_all(FILES) & !(AccessFs::MakeChar | AccessFs::MakeBlock),
    }
}

fn failed(step: &str, error: &dyn std::fmt::Display) -> WallError {
    WallError {
        step: step.into(),
        reason: error.to_string(),
        errno: None,
    }
}

//! The stock clients of model providers that system tests run inside sandboxes: SDKs from
//! PyPI and npm, Codex CLI and Claude Code, pinned in `crates/system-tests/clients`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;
use crate::{desktop, process};

/// The interpreter that sandboxes see; one of a person's own may lie where they do not.
const PYTHON: &str = "/usr/bin/python3";

/// What is installed is about a gigabyte, nearly all of it the two agents.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let directory = workspace.root().join("crates/system-tests/clients");
    desktop::install(workspace, &directory)?;
    python(workspace, &directory)
}

/// `pip install --target`, unless it was done for these pins and this interpreter.
fn python(workspace: &Workspace, directory: &Path) -> Result<()> {
    let requirements = directory.join("requirements.txt");
    let python = if Path::new(PYTHON).exists() {
        PYTHON
    } else {
        "python3"
    };
    let version = process::output(Command::new(python).arg("--version"))?;
    let pins = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let wanted = format!("{version}{pins}");
    let stamp = workspace.stamps().join("clients-python");
    let target = directory.join("python");
    if target.is_dir() && fs::read_to_string(&stamp).is_ok_and(|done| done == wanted) {
        return Ok(());
    }
    if target.exists() {
        fs::remove_dir_all(&target)
            .with_context(|| format!("cannot remove {}", target.display()))?;
    }
    let pip = process::find(&["pip3", "pip"]).context("pip is missing")?;
    let mut install = Command::new(pip);
    install
        .args(["--python", python, "install", "--quiet", "--no-deps"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore"])
        .args(["--no-warn-script-location", "--only-binary=:all:"])
        .arg("--target")
        .arg(&target)
        .arg("--requirement")
        .arg(&requirements);
    process::run(&mut install)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

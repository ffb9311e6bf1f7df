//! The desktop: installed, built, checked and tested with npm, and only when it changed.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process;
use crate::workspace::Workspace;

/// What is made from the inputs, and therefore none.
const OUTPUTS: &[&str] = &["node_modules", "dist", "shots"];

/// Builds `desktop/dist` unless it is up to date.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let directory = workspace.desktop();
    install(workspace, &directory)?;
    let stamp = workspace.stamps().join("desktop-built");
    let state = hash(&inputs(&directory)?)?;
    if directory.join("dist/index.html").is_file() && is_stamped(&stamp, state) {
        eprintln!("    the desktop is up to date");
        return Ok(());
    }
    process::run(npm(&directory).args(["run", "--silent", "build"]))?;
    write_stamp(&stamp, state)
}

/// Type checks and tests; the last ones in Chromium, against the build.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let directory = workspace.desktop();
    install(workspace, &directory)?;
    process::run(npm(&directory).args(["run", "--silent", "check"]))?;
    process::run(npm(&directory).args(["run", "--silent", "test"]))?;
    process::run(npm(&directory).args(["run", "--silent", "test:browser"]))
}

/// The syntax of the control plane's own scripts, which no bundler reads.
pub(crate) fn check_pages(workspace: &Workspace) -> Result<()> {
    let pages = workspace.root().join("crates/hypervisor/src/pages");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&pages)
        .with_context(|| format!("cannot list {}", pages.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "js"))
        .collect();
    scripts.sort();
    for script in scripts {
        let mut node = Command::new("node");
        node.args(["--experimental-default-type=module", "--check"])
            .arg(script);
        process::run(&mut node)?;
    }
    Ok(())
}

/// `npm ci` in a directory with a lock file, unless what it makes is up to date.
pub(crate) fn install(workspace: &Workspace, directory: &Path) -> Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let stamp = workspace.stamps().join(format!("{name}-installed"));
    let state = hash(&BTreeSet::from([
        directory.join("package.json"),
        directory.join("package-lock.json"),
    ]))?;
    if directory.join("node_modules").is_dir() && is_stamped(&stamp, state) {
        return Ok(());
    }
    process::run(npm(directory).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    write_stamp(&stamp, state)
}

fn npm(directory: &Path) -> Command {
    let mut command = Command::new("npm");
    // What a build says is no result: standard output is for those.
    command
        .current_dir(directory)
        .stdout(Stdio::from(std::io::stderr()));
    command
}

fn inputs(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))?
        {
            let entry = entry?;
            let is_output =
                next == directory && OUTPUTS.iter().any(|output| entry.file_name() == *output);
            if is_output {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}

fn hash(files: &BTreeSet<PathBuf>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        fs::read(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn is_stamped(stamp: &Path, state: u64) -> bool {
    fs::read_to_string(stamp).is_ok_and(|text| text == format!("{state:016x}"))
}

fn write_stamp(stamp: &Path, state: u64) -> Result<()> {
    if let Some(parent) = stamp.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(stamp, format!("{state:016x}"))
        .with_context(|| format!("cannot write {}", stamp.display()))
}

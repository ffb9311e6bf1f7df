//! The programs as they are to be installed. The hypervisor is built twice more: so that it
//! counts what it does, and then with what it counted under the loads of `harness train`. The
//! compiler then knows which of its code is busy (profile-guided optimization).
//!
//! Counts are worth nothing to another compiler or to other sources, so they are made anew for
//! each and kept in no repository.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::prerequisites::{self, Purpose};
use crate::process::{self, step};
use crate::workspace::{Profile, Workspace};
use crate::{build, desktop};

/// What an installation consists of.
const INSTALLED: &[&str] = &["hypervisor", "sandbox", "supervisor", "choir"];

/// What measurements run: an installation, and what drives it.
const MEASURED: &[&str] = &[
    "hypervisor",
    "sandbox",
    "supervisor",
    "choir",
    "harness",
    "hostile",
    "provider",
    "drill",
];

/// Builds everything and says where it is.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    step("prerequisites", || {
        prerequisites::ensure(Purpose::Dist, "cargo xtask dist")
    })?;
    step("desktop", || desktop::build(workspace))?;
    let hypervisor = trained(workspace)?;
    let dir = workspace.target().join("dist");
    gather(workspace, &dir, INSTALLED, &hypervisor)?;
    println!("the programs are in {}", dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds what is installed and what drives it in measurements; returns where all of it is.
pub(crate) fn with_harness(workspace: &Workspace) -> Result<PathBuf> {
    let hypervisor = trained(workspace)?;
    let dir = training(workspace).join("measured");
    gather(workspace, &dir, MEASURED, &hypervisor)?;
    Ok(dir)
}

fn training(workspace: &Workspace) -> PathBuf {
    workspace.target().join("training")
}

/// Trains a hypervisor, and builds the one that has learned from it.
fn trained(workspace: &Workspace) -> Result<PathBuf> {
    let compiler = Compiler::find()?;
    let merger = compiler.merger()?;
    step("programs", || {
        build::with_harness(workspace, Profile::Release)
    })?;
    let dir = training(workspace);
    let counts = dir.join("counts");
    let counting = step("hypervisor that counts", || {
        let flag = format!("-Cprofile-generate={}", counts.display());
        compiler.hypervisor(workspace, "counting", &flag)
    })?;
    // Another one's counts would be as good as none.
    let profiles = dir.join("profiles");
    let profile = profiles.join(format!("{:016x}.profdata", hash(&counting)?));
    if !profile.exists() {
        step("training", || {
            train(workspace, &counting, &counts)?;
            clear(&profiles)?;
            merge(&merger, &counts, &profile)
        })?;
    }
    step("trained hypervisor", || {
        let flag = format!("-Cprofile-use={}", profile.display());
        compiler.hypervisor(workspace, "trained", &flag)
    })
}

/// The compiler that builds all this.
struct Compiler {
    host: String,
    sysroot: PathBuf,
    /// Major version of its LLVM.
    llvm: String,
}

impl Compiler {
    fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = process::output(Command::new(&rustc).arg("-vV"))?;
        let said = |key| {
            let line = version.lines().find_map(|line| line.strip_prefix(key));
            line.with_context(|| format!("`rustc -vV` says nothing of `{key}`"))
        };
        let host = said("host: ")?;
        let llvm = said("LLVM version: ")?;
        let llvm = llvm.split_once('.').map_or(llvm, |(major, _)| major);
        let sysroot = process::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            host: host.to_owned(),
            sysroot: sysroot.trim().into(),
            llvm: llvm.to_owned(),
        })
    }

    /// `llvm-profdata` of the same LLVM, which rustup has as a component.
    fn merger(&self) -> Result<PathBuf> {
        const PROGRAM: &str = "llvm-profdata";
        let dir = self
            .sysroot
            .join("lib/rustlib")
            .join(&self.host)
            .join("bin");
        let own = dir.join(PROGRAM);
        if !own.is_file() && process::find(&["rustup"]).is_some() {
            process::run(Command::new("rustup").args(["component", "add", "llvm-tools"]))?;
        }
        if own.is_file() {
            return Ok(own);
        }
        // One of another version would fail on the counts, two builds later.
        let fits = |found: &PathBuf| {
            process::output(Command::new(found).arg("--version"))
                .is_ok_and(|text| text.contains(&format!("LLVM version {}.", self.llvm)))
        };
        match process::find(&[PROGRAM]).filter(fits) {
            Some(found) => Ok(found),
            None => bail!(
                "there is no {PROGRAM} of LLVM {}: `rustup component add llvm-tools` brings it, \
                 or this system's llvm package in that version",
                self.llvm
            ),
        }
    }

    /// Builds a hypervisor with one flag more, in a directory of its own. The target is named,
    /// so that the flag is not for programs of the build itself.
    fn hypervisor(&self, workspace: &Workspace, name: &str, flag: &str) -> Result<PathBuf> {
        let target = training(workspace).join(name);
        let mut flags = env::var("RUSTFLAGS").unwrap_or_default();
        flags.push(' ');
        flags.push_str(flag);
        let mut command = workspace.cargo();
        command.args([
            "build",
            "--locked",
            "--profile",
            "dist",
            "--package",
            "hypervisor",
        ]);
        command.args(["--bin", "hypervisor", "--target", &self.host]);
        command.arg("--target-dir").arg(&target);
        command.env("RUSTFLAGS", flags.trim());
        process::run(&mut command)?;
        Ok(target.join(&self.host).join("dist/hypervisor"))
    }
}

/// Puts the loads on a hypervisor, which leaves its counts when it ends.
fn train(workspace: &Workspace, counting: &Path, counts: &Path) -> Result<()> {
    clear(counts)?;
    let dir = training(workspace).join("trainees");
    gather(workspace, &dir, MEASURED, counting)?;
    process::run(Command::new(dir.join("harness")).arg("train")).context(
        "what it is trained with runs in a sandbox: `hypervisor doctor` says what is missing",
    )
}

/// Functions that were not called stay out of it: they are then built as they always were, and
/// not taken for code that nobody needs.
fn merge(merger: &Path, counts: &Path, profile: &Path) -> Result<()> {
    let unfinished = profile.with_extension("unfinished");
    let mut command = Command::new(merger);
    command.args(["merge", "--sparse", "--output"]);
    process::run(command.arg(&unfinished).arg(counts))?;
    fs::rename(&unfinished, profile).with_context(|| format!("cannot make {}", profile.display()))
}

/// Makes a directory with these programs of the release and this hypervisor.
fn gather(workspace: &Workspace, dir: &Path, names: &[&str], hypervisor: &Path) -> Result<()> {
    clear(dir)?;
    let release = workspace.binaries(Profile::Release);
    for name in names {
        let from = match *name {
            "hypervisor" => hypervisor.to_owned(),
            name => release.join(name),
        };
        let to = dir.join(name);
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn clear(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn hash(file: &Path) -> Result<u64> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Ok(hasher.finish())
}

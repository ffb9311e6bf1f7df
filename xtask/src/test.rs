//! Everything that has to hold before a change is taken.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::prerequisites::{self, Purpose};
use crate::process::{self, step};
use crate::workspace::{Profile, Workspace};
use crate::{build, clients, dependencies, desktop, graph};

/// Runs the checks and tests; stops at the first step that fails.
pub(crate) fn run(workspace: &Workspace, fast: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    if !fast {
        step("prerequisites", || {
            prerequisites::ensure(Purpose::Test, "cargo xtask test")
        })?;
    }
    step("formatting", || {
        process::run(workspace.cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("crate directions", || {
        graph::check(&workspace.metadata(false)?)
    })?;
    step("dependencies", || dependencies::check(workspace))?;
    if !fast {
        step("desktop", || {
            desktop::build(workspace)?;
            desktop::check(workspace)?;
            desktop::check_pages(workspace)
        })?;
        let browser = workspace.root().join("crates/system-tests/browser");
        step("browser driver", || desktop::install(workspace, &browser))?;
        step("stock clients", || clients::install(workspace))?;
    }
    step("lints", || {
        let mut clippy = workspace.cargo();
        clippy.args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        process::run(&mut clippy)
    })?;
    step("programs", || build::programs(workspace, Profile::Dev))?;
    let drills = if fast {
        None
    } else {
        step("static drills", || {
            build::static_drills(workspace).map(Some)
        })?
    };
    // Last, so that the runner's own closing lines are the last thing one sees.
    step("tests", || tests(workspace, fast, drills.as_deref()))?;
    eprintln!("\nall green after {:.0} s", begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn tests(workspace: &Workspace, fast: bool, drills: Option<&Path>) -> Result<()> {
    let mut command = workspace.cargo();
    if process::succeeds(workspace.cargo().args(["nextest", "--version"])) {
        command.args(["nextest", "run", "--locked", "--no-fail-fast"]);
    } else {
        eprintln!("    cargo-nextest is not installed; taking `cargo test`");
        command.args(["test", "--locked", "--no-fail-fast"]);
    }
    command.arg("--workspace");
    if fast {
        command.args(["--exclude", "system-tests"]);
    }
    if let Some(drills) = drills {
        command.env(build::STATIC_DRILL, drills);
    }
    process::run(&mut command)
}

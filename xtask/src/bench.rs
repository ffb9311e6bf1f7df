//! Measurements of whole processes, in release builds.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::Value;

use crate::prerequisites::{self, Purpose};
use crate::workspace::{Profile, Workspace};
use crate::{build, process};

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Requests per second and latency of the proxy, and of nginx on the same upstream.
    Proxy,
    /// Time from the request to start a sandbox to its being healthy.
    Start,
    /// Resident memory of an idle hypervisor and an idle sandbox.
    Memory,
}

impl Name {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Start => "start",
            Self::Memory => "memory",
        }
    }
}

/// Runs one measurement, or all of them.
pub(crate) fn run(workspace: &Workspace, name: Option<Name>, json: bool) -> Result<ExitCode> {
    let names = name.map_or_else(|| Name::value_variants().to_vec(), |one| vec![one]);
    prerequisites::ensure(
        if names.contains(&Name::Proxy) {
            Purpose::Bench
        } else {
            Purpose::Build
        },
        "cargo xtask bench",
    )?;
    build::with_harness(workspace, Profile::Release)?;
    let mut results = BTreeMap::new();
    for name in names {
        let text = measure(workspace, name, json)?;
        if json {
            let value: Value = serde_json::from_str(&text)
                .with_context(|| format!("bench {} gave no JSON", name.as_str()))?;
            results.insert(name.as_str(), value);
        } else {
            println!("{text}");
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(workspace: &Workspace, name: Name, json: bool) -> Result<String> {
    let mut command = match name {
        Name::Proxy => {
            let mut cargo = workspace.cargo();
            cargo.args([
                "bench",
                "--quiet",
                "--locked",
                "--package",
                "gateway",
                "--bench",
                "proxy",
                "--",
            ]);
            cargo
        }
        Name::Start | Name::Memory => {
            let mut harness = Command::new(workspace.binaries(Profile::Release).join("harness"));
            harness.args(["bench", name.as_str()]);
            harness
        }
    };
    if json {
        command.arg("--json");
    }
    process::output(&mut command)
}

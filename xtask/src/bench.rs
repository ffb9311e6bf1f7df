//! Measurements of whole processes, as they are installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::prerequisites::{self, Purpose};
use crate::workspace::Workspace;
use crate::{dist, process};

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Requests per second and latency of the proxy, and of nginx on the same upstream.
    Proxy,
    /// Time from the request to start a sandbox to its being healthy.
    Start,
    /// Resident memory of an idle hypervisor and an idle sandbox.
    Memory,
    /// Starting, waking, cost at 10, 50 and 100 sandboxes, taking over; snapshot, restore and
    /// clone of 1 GB in 20,000 files; swaps under load. Next to bubblewrap, crun, cp, tar and
    /// nginx.
    Lifecycle,
    /// A runner's `true` and the start of a sandbox, next to bubblewrap and crun; a
    /// neighbour's latency under each bomb.
    Isolation,
    /// Model calls through the gateway, next to nginx; next to LiteLLM when `litellm` is on
    /// PATH (`pip install 'litellm[proxy]'`), and next to Portkey when `PORTKEY_GATEWAY` is the
    /// directory of its npm package (`npm install @portkey-ai/gateway`). Neither is installed
    /// for you. `harness gateway --seconds 2 --only gateway,nginx` is quicker.
    Gateway,
}

impl Name {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Start => "start",
            Self::Memory => "memory",
            Self::Lifecycle => "lifecycle",
            Self::Isolation => "isolation",
            Self::Gateway => "gateway",
        }
    }
}

/// Runs one measurement, or all of them.
pub(crate) fn run(workspace: &Workspace, name: Option<Name>, json: bool) -> Result<ExitCode> {
    let names = name.map_or_else(|| Name::value_variants().to_vec(), |one| vec![one]);
    prerequisites::ensure(
        if names
            .iter()
            .any(|name| matches!(name, Name::Proxy | Name::Isolation | Name::Gateway))
        {
            Purpose::Bench
        } else {
            Purpose::Dist
        },
        "cargo xtask bench",
    )?;
    let programs = dist::with_harness(workspace)?;
    let mut results = BTreeMap::new();
    for name in names {
        let text = measure(workspace, &programs, name, json)?;
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

fn measure(workspace: &Workspace, programs: &Path, name: Name, json: bool) -> Result<String> {
    let mut harness = Command::new(programs.join("harness"));
    harness.arg(name.as_str());
    if name == Name::Proxy {
        harness.arg("--engine").arg(engine(workspace)?);
    }
    if json {
        harness.arg("--json");
    }
    let output = harness
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `harness {}`", name.as_str()))?;
    let text =
        String::from_utf8(output.stdout).context("the harness wrote something else than text")?;
    if !output.status.success() {
        // What was measured says what went wrong.
        println!("{text}");
        bail!("bench {} failed: {}", name.as_str(), output.status);
    }
    Ok(text)
}

/// Builds the engine's own bench program and says where it is.
fn engine(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args([
        "bench",
        "--locked",
        "--package",
        "gateway",
        "--bench",
        "proxy",
        "--no-run",
        "--message-format=json",
    ]);
    process::output(&mut cargo)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| {
            message
                .get("executable")
                .and_then(Value::as_str)
                .map(PathBuf::from)
        })
        .context("cargo did not say where the engine's bench program is")
}

//! `choir doctor`: asks the hypervisor's own doctor on this machine.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::Error;
use crate::context::Context;
use crate::output::{self, printable};

/// The program to ask.
const PROGRAM: &str = "hypervisor";
/// How long it may take: it builds every wall once.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
struct Findings {
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    ok: bool,
    /// Whether nothing starts without it.
    #[serde(default)]
    mandatory: bool,
    #[serde(default)]
    detail: String,
    #[serde(default, alias = "hint")]
    remedy: Option<String>,
}

pub(super) async fn run(
    config: Option<&Path>,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let found = ask(config, context.programs.as_deref()).await?;
    let findings = serde_json::from_value::<Findings>(found.clone())
        .map_err(|error| Error::Doctor(format!("it gave an unknown answer: {error}")))?;
    let sound = findings
        .checks
        .iter()
        .all(|check| check.ok || !check.mandatory);
    let text = if json {
        output::json(&found)
    } else {
        describe(&findings.checks, sound)
    };
    context.io.print(&text)?;
    Ok(u8::from(!sound))
}

async fn ask(config: Option<&Path>, programs: Option<&Path>) -> Result<Value, Error> {
    let program = programs
        .map(|dir| dir.join(PROGRAM))
        .filter(|program| program.exists())
        .ok_or_else(|| Error::Doctor(format!("{PROGRAM} is not next to this program")))?;
    let mut command = Command::new(program);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .map_err(|_| Error::Doctor(format!("it did not answer within {PATIENCE:?}")))?
        .map_err(|error| Error::Doctor(error.to_string()))?;
    // A machine with faults may make it exit with 1 and tell them all the same.
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = printable(said.trim().lines().last().unwrap_or("it gave no answer"));
        Error::Doctor(said)
    })
}

fn describe(checks: &[Check], sound: bool) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let mark = match (check.ok, check.mandatory) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "absent ",
        };
        let line = format!(
            "{mark}  {:<width$}  {}",
            printable(&check.name),
            printable(&check.detail)
        );
        text.push_str(line.trim_end());
        text.push('\n');
        if let Some(remedy) = check.remedy.as_ref().filter(|_| !check.ok) {
            text.push_str(&format!(
                "         {:<width$}  hint: {}\n",
                "",
                printable(remedy)
            ));
        }
    }
    text.push_str(if sound {
        "\nThis machine can run sandboxes.\n"
    } else {
        "\nThis machine cannot run sandboxes until what is missing is there.\n"
    });
    text
}

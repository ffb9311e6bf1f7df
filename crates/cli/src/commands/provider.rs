//! `choir provider …`: who answers model calls.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use super::Target;
use crate::Error;
use crate::args::{AddProvider, Provider};
use crate::context::Context;
use crate::output::{self, printable, table};

/// The program that knows what a configuration may be.
const PROGRAM: &str = "hypervisor";

/// How long its check may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest key, in bytes.
const MAX_KEY: usize = 16 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    providers: Vec<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Results {
    results: Vec<Checked>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Checked {
    provider: String,
    host: String,
    model: String,
    ok: bool,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    latency_ms: u64,
}

pub(super) async fn run(
    target: &Target,
    command: Provider,
    context: &mut Context,
) -> Result<u8, Error> {
    match command {
        Provider::List { json } => list(target, json, context).await,
        Provider::Test { name, model, json } => {
            test(target, &name, model.as_deref(), json, context).await
        }
        Provider::Add(add) => add_to_file(add, context).await,
    }
}

async fn list(target: &Target, json: bool, context: &mut Context) -> Result<u8, Error> {
    let listed: Listed = target.client(context)?.get("/admin/providers").await?;
    let text = if json {
        output::json(&listed)
    } else {
        let rows: Vec<_> = listed.providers.iter().map(row).collect();
        table(["NAME", "KIND", "MODELS", "UPSTREAMS", "OPEN"], &rows)
    };
    context.io.print(&text)?;
    Ok(0)
}

fn row(provider: &Value) -> [String; 5] {
    let text = |key: &str| {
        let value = provider.get(key).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let texts = |value: Option<&Value>| -> Vec<String> {
        let list = value.and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|one| one.as_str().map(str::to_owned))
            .collect()
    };
    let upstreams: Vec<String> = provider
        .get("upstreams")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|upstream| {
            let flag = |key: &str| upstream.get(key).and_then(Value::as_bool).unwrap_or(false);
            let url = upstream.get("base_url").and_then(Value::as_str);
            let mut shown = url.unwrap_or_default().to_owned();
            if !flag("key") {
                shown.push_str(" (no key)");
            }
            if !flag("up") {
                shown.push_str(" (resting after failures)");
            }
            shown
        })
        .collect();
    [
        text("name"),
        text("kind"),
        texts(provider.get("models")).join(", "),
        if upstreams.is_empty() {
            "offline demo".to_owned()
        } else {
            upstreams.join(", ")
        },
        provider
            .get("open_calls")
            .map_or_else(String::new, ToString::to_string),
    ]
}

async fn test(
    target: &Target,
    name: &str,
    model: Option<&str>,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let path = format!("/admin/providers/{name}/test");
    let body = model.map_or_else(|| json!({}), |model| json!({ "model": model }));
    let results: Results = target.client(context)?.post(&path, &body).await?;
    let sound = results.results.iter().all(|one| one.ok);
    let text = if json {
        output::json(&results)
    } else {
        results.results.iter().map(describe).collect()
    };
    context.io.print(&text)?;
    Ok(u8::from(!sound))
}

fn describe(one: &Checked) -> String {
    let mark = if one.ok { "ok    " } else { "FAILED" };
    let mut text = format!(
        "{mark}  {} at {} with {}: {} ({} ms)\n",
        printable(&one.provider),
        printable(&one.host),
        printable(&one.model),
        printable(&one.message),
        one.latency_ms
    );
    if let Some(hint) = &one.hint {
        text.push_str(&format!("        hint: {}\n", printable(hint)));
    }
    text
}

/// One `[[providers]]` section.
#[derive(Debug, Serialize)]
struct Section<'a> {
    name: &'a str,
    kind: &'a str,
    base_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<&'a Path>,
    models: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct File<'a> {
    providers: [Section<'a>; 1],
}

/// Adds a section to the configuration file of this machine's hypervisor, once that program
/// has found the result valid.
async fn add_to_file(add: AddProvider, context: &mut Context) -> Result<u8, Error> {
    let failed = |what: String| Error::Provider(what);
    let before = std::fs::read_to_string(&add.config)
        .map_err(|error| failed(format!("{} cannot be read: {error}", add.config.display())))?;
    // It names a file before the program that knows the rules is asked.
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if add.name.is_empty() || !add.name.chars().all(is_plain) {
        return Err(failed(format!(
            "{:?} is no name for a provider; valid is a-z, 0-9 and -",
            add.name
        )));
    }
    let mut written = None;
    let key_file = match &add.key_file {
        Some(path) if path.as_os_str() == "-" => {
            let path = std::path::absolute(&add.config)
                .unwrap_or_else(|_| add.config.clone())
                .with_file_name(format!("{}.key", add.name));
            keep_key(&path, context)?;
            written = Some(path.clone());
            Some(path)
        }
        other => other.clone(),
    };
    let section = File {
        providers: [Section {
            name: &add.name,
            kind: &add.kind,
            base_url: &add.base_url,
            key_file: key_file.as_deref(),
            models: &add.models,
            addresses: add.private_network.then_some("private_network_too"),
            default: add
                .default
                .then(|| add.models.first().map(String::as_str))
                .flatten(),
        }],
    };
    let section = toml::to_string(&section).map_err(|error| failed(error.to_string()))?;
    let after = format!("{}\n\n{section}", before.trim_end());
    if let Err(error) = replace(&add.config, &after, context.programs.as_deref()).await {
        if let Some(path) = written {
            // The key is of no use without its section.
            let _ = std::fs::remove_file(path);
        }
        return Err(error);
    }
    context.io.print(&format!(
        "Added {} to {}. Take it into use with a reload (kill -HUP, systemctl reload choir) or a \
         restart, then: choir provider test {}\n",
        add.name,
        add.config.display(),
        add.name
    ))?;
    Ok(0)
}

/// Writes the key that stands on standard input into a file for its owner only.
fn keep_key(path: &Path, context: &mut Context) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::Provider(format!("{} cannot be written: {error}", path.display()))
    };
    let mut key = String::new();
    let mut limited = std::io::Read::take(context.io.stdin.as_mut(), MAX_KEY as u64);
    std::io::Read::read_to_string(&mut limited, &mut key).map_err(failed)?;
    if key.trim().is_empty() {
        return Err(Error::Provider(
            "no key came on standard input; pipe it in: choir provider add … --key-file - < FILE"
                .to_owned(),
        ));
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(key.trim().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// Replaces the file by a valid one, at once or not at all.
async fn replace(config: &Path, text: &str, programs: Option<&Path>) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::Provider(format!("{} cannot be written: {error}", config.display()))
    };
    let next: PathBuf = config.with_extension("toml.next");
    std::fs::write(&next, text).map_err(failed)?;
    let checked = check(&next, programs).await;
    let done = checked.and_then(|()| {
        let permissions = std::fs::metadata(config).map_err(failed)?.permissions();
        std::fs::set_permissions(&next, permissions).map_err(failed)?;
        std::fs::rename(&next, config).map_err(failed)
    });
    if done.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    done
}

async fn check(config: &Path, programs: Option<&Path>) -> Result<(), Error> {
    let program = programs
        .map(|dir| dir.join(PROGRAM))
        .filter(|program| program.exists())
        .ok_or_else(|| {
            Error::Provider(format!(
                "{PROGRAM} is not next to this program, so the result cannot be checked; run this where it is installed"
            ))
        })?;
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(config)
        .arg("check-config")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .map_err(|_| Error::Provider(format!("{PROGRAM} did not answer within {PATIENCE:?}")))?
        .map_err(|error| Error::Provider(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Provider(printable(said.trim())))
}

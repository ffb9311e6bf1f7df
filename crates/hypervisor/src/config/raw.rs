//! The configuration as it is written: one TOML file, overridden by `CHOIR_*` variables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::spec::OptionalWall;
use serde::Deserialize;

use super::ConfigError;

/// Variables that belong to another part of the contract (arch §5) or to the `choir`
/// command, and are therefore no keys.
const FOREIGN_VARIABLES: &[&str] = &[
    "CHOIR_CONFIG",
    "CHOIR_PROVIDER_GATEWAY_BASE_URL",
    "CHOIR_PROVIDER_GATEWAY_TOKEN",
    "CHOIR_SANDBOX_ID",
    "CHOIR_SANDBOX_ROLE",
    "CHOIR_SANDBOX_USER_ID",
    "CHOIR_SERVER",
    "CHOIR_TOKEN_FILE",
];

/// The whole file. Every key is optional; absent ones fit a single machine on localhost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawConfig {
    /// Where the persistent state lives.
    pub data_dir: Option<PathBuf>,
    /// How long the end of the process may take.
    pub drain: Option<String>,
    /// Listeners.
    pub listen: RawListen,
    /// Public addresses.
    pub origins: RawOrigins,
    /// Sign-in.
    pub auth: RawAuth,
    /// What sandboxes get.
    pub sandbox: RawSandbox,
    /// What commands may reach.
    pub network: RawNetwork,
    /// Model providers.
    pub providers: Vec<RawProvider>,
    /// Model calls.
    pub gateway: RawGateway,
    /// Logs.
    pub log: RawLog,
    /// Telemetry that is sent somewhere.
    pub telemetry: RawTelemetry,
}

/// `[listen]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawListen {
    /// Address and port of the public listener.
    pub address: Option<String>,
    /// Serve TLS.
    pub tls: Option<RawTls>,
    /// Address and port of the Prometheus listener; none when absent.
    pub metrics_address: Option<String>,
    /// Networks whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<String>,
    /// Connections served at the same time.
    pub max_connections: Option<usize>,
}

/// `[listen.tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct RawTls {
    /// PEM file with the certificate chain, leaf first.
    pub cert_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
}

/// `[origins]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawOrigins {
    /// The control plane's origin.
    pub control: Option<String>,
    /// Template of a user's runtime origin, or `single_host`.
    pub runtime: Option<String>,
    /// Template of the origin at which `dev` is the root.
    pub dev: Option<String>,
    /// Template of the origins at which ports of workbenches are served, or `off`.
    pub preview: Option<String>,
    /// The one runtime origin under `runtime = "single_host"`.
    pub single_host: Option<String>,
    /// Redirect `/dev/*` to the dev origin.
    pub redirect_dev_prefix: bool,
}

/// `[auth]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawAuth {
    /// `closed` or `open`.
    pub registration: Option<String>,
    /// How long a session lasts at most.
    pub session_lifetime: Option<String>,
    /// How long a session lasts without being used.
    pub session_idle: Option<String>,
    /// How long an invitation can be used.
    pub invite_lifetime: Option<String>,
    /// The longest lifetime that an API token may ask for.
    pub token_max_lifetime: Option<String>,
    /// Attempts per address and minute on each auth endpoint.
    pub attempts_per_address: Option<u32>,
    /// Attempts per account and minute on each auth endpoint.
    pub attempts_per_account: Option<u32>,
}

/// `[sandbox]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawSandbox {
    /// First host uid given to a sandbox when the hypervisor is root.
    pub host_uid_base: Option<u32>,
    /// Tools of the host that sandboxes may read.
    pub mounts: Vec<RawMount>,
    /// `PATH` inside.
    pub path: Option<String>,
    /// Point stock SDKs at the gateway through their own variables.
    pub sdk_env: bool,
    /// Directory of `supervisor` and `sandbox`; next to this program when absent.
    pub binaries_dir: Option<PathBuf>,
    /// After how long without activity a sandbox is stopped, or `never`.
    pub idle_stop: Option<String>,
    /// Walls that may be missing; each named one is isolation given up.
    pub accept_missing: Vec<OptionalWall>,
    /// Bounds.
    pub limits: RawLimits,
    /// Swaps.
    pub swap: RawSwap,
    /// Snapshots, clone and restore.
    pub snapshots: RawSnapshots,
}

/// `[[sandbox.mounts]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct RawMount {
    /// Directory or file of the host.
    pub source: PathBuf,
    /// Where it appears inside, read-only; the same path when absent.
    pub target: Option<PathBuf>,
}

/// `[sandbox.limits]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawLimits {
    /// Wall time of a command that names none.
    pub command_wall: Option<String>,
    /// The longest wall time that a command may ask for.
    pub command_wall_max: Option<String>,
    /// Bytes of output kept per command.
    pub output_bytes: Option<u64>,
    /// Processes and threads per command.
    pub processes: Option<u32>,
    /// Processes and threads of the guest itself.
    pub guest_processes: Option<u32>,
    /// Open files per process.
    pub open_files: Option<u64>,
    /// Commands that run at the same time in one sandbox.
    pub commands: Option<u32>,
    /// Sandboxes of one user that run at the same time.
    pub running_per_user: Option<u32>,
    /// Sandboxes that run at the same time: a number, or `auto`.
    pub running_per_host: Option<RawPlaces>,
    /// Memory per command.
    pub memory: Option<String>,
    /// Cores per command.
    pub cpu: Option<f64>,
    /// Size of one file.
    pub file_bytes: Option<String>,
    /// Memory of the guest itself.
    pub guest_memory: Option<String>,
    /// inotify instances of the guest, and of a sandbox's commands together.
    pub inotify_instances: Option<u64>,
    /// inotify watches of the guest, and of a sandbox's commands together.
    pub inotify_watches: Option<u64>,
    /// Memory of a sandbox.
    pub sandbox_memory: Option<String>,
    /// Processes and threads of a sandbox.
    pub sandbox_processes: Option<u64>,
    /// Cores of a sandbox.
    pub sandbox_cpu: Option<f64>,
    /// Bytes on disk of a sandbox.
    pub sandbox_disk: Option<String>,
    /// Files on disk of a sandbox.
    pub sandbox_files: Option<u64>,
    /// Memory of a user's sandboxes.
    pub user_memory: Option<String>,
    /// Processes and threads of a user's sandboxes.
    pub user_processes: Option<u64>,
    /// Cores of a user's sandboxes.
    pub user_cpu: Option<f64>,
    /// Bytes on disk of a user's sandboxes.
    pub user_disk: Option<String>,
    /// Files on disk of a user's sandboxes.
    pub user_files: Option<u64>,
}

/// A number, or a word that stands for one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a whole number or \"auto\"")]
pub enum RawPlaces {
    /// As it is.
    Number(u32),
    /// `auto`
    Word(String),
}

/// `[sandbox.snapshots]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawSnapshots {
    /// Snapshots kept per sandbox.
    pub max_count: Option<u32>,
    /// Bytes of data in all snapshots of a sandbox.
    pub max_bytes: Option<u64>,
    /// Files, directories and links in one copy.
    pub max_files: Option<u64>,
    /// Bytes that copying leaves free on the disk.
    pub keep_free: Option<u64>,
}

/// `[sandbox.swap]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawSwap {
    /// How long the new `live` is on trial.
    pub grace: Option<String>,
    /// Pause between two looks at it.
    pub probe_interval: Option<String>,
}

/// `[network]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawNetwork {
    /// `none`, `allowlist` or `open`: the mode of a command that names none.
    pub default: Option<String>,
    /// The widest mode that a command may ask for.
    pub max: Option<String>,
    /// Rules of the allowlist.
    pub allow: Vec<String>,
    /// Connections of one sandbox at the same time.
    pub connections: Option<usize>,
}

/// `[[providers]]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawProvider {
    /// Its name in gateway paths.
    pub name: String,
    /// `openai`, `anthropic`, `gemini`, `bedrock` or `demo`.
    pub kind: String,
    /// Where its API lives.
    pub base_url: Option<String>,
    /// File that holds the platform key.
    pub key_file: Option<PathBuf>,
    /// Several places or keys instead of the one above.
    pub upstreams: Vec<RawUpstream>,
    /// Models that may be named.
    pub models: Vec<String>,
    /// The model taken when a run names none; makes this the default provider.
    pub default: Option<String>,
    /// Names that stand for models.
    pub aliases: BTreeMap<String, String>,
    /// What models cost.
    pub prices: BTreeMap<String, RawPrice>,
    /// Paths that may be called beside those of its kind.
    pub paths: Vec<RawPath>,
    /// Query parameters that may go up beside those of its kind.
    pub query: Vec<String>,
    /// `refused` or `past_the_model_list`.
    pub routing: Option<String>,
    /// Request headers that may go up beside those of its kind.
    pub headers_up: Vec<String>,
    /// Response headers that may come down beside those of its kind.
    pub headers_down: Vec<String>,
    /// Request headers that may go up instead of those of its kind.
    pub only_headers_up: Option<Vec<String>>,
    /// Response headers that may come down instead of those of its kind.
    pub only_headers_down: Option<Vec<String>>,
    /// `public` or `private_network_too`.
    pub addresses: Option<String>,
    /// PEM file with the only certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Option<String>,
    /// Longest wait for the reply to begin.
    pub first_byte_timeout: Option<String>,
    /// Longest silence in a reply.
    pub idle_timeout: Option<String>,
    /// Longest whole reply.
    pub whole_timeout: Option<String>,
    /// How often a call that did not succeed is sent again.
    pub retries: Option<u32>,
    /// Providers that take a call when this one cannot.
    pub fallback: Vec<String>,
    /// Calls that may be open at each of its places.
    pub connections: Option<usize>,
    /// Bounds of all callers together.
    pub limits: RawRates,
}

/// An entry of `providers.paths`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected \"[METHOD] PATH\" or a table")]
pub enum RawPath {
    /// `[METHOD] PATH`
    Plain(String),
    /// The same, and what becomes of its model.
    Table(RawPathTable),
}

/// An entry of `providers.paths` with everything that can be said about it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct RawPathTable {
    /// `[METHOD] PATH`
    pub path: String,
    /// `named` or `unchecked`.
    pub model: Option<String>,
}

/// `[[providers.upstreams]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct RawUpstream {
    /// Where its API lives.
    pub base_url: String,
    /// File that holds its key.
    pub key_file: Option<PathBuf>,
    /// Its share of the calls, against the others'.
    pub weight: Option<u32>,
}

/// `[providers.prices]`: US dollars for a million tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct RawPrice {
    /// Tokens read.
    pub input: f64,
    /// Tokens written.
    pub output: f64,
    /// Tokens read that came from a cache; as `input` when absent.
    pub cached_input: Option<f64>,
    /// Tokens read that were put into a cache; 1.25 times `input` when absent.
    pub cache_write: Option<f64>,
    /// Those that are kept there for an hour; twice `input` when absent.
    pub cache_write_1h: Option<f64>,
    /// A call with files whose reply does not tell its tokens; when absent, what as much text
    /// would cost.
    pub call: Option<f64>,
}

/// `[gateway]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawGateway {
    /// Largest request body.
    pub max_request_bytes: Option<u64>,
    /// Request bodies held at the same time, all together.
    pub max_held_bytes: Option<u64>,
    /// Request bodies of one sandbox held at the same time.
    pub sandbox_held_bytes: Option<u64>,
    /// How long a guest's token lives after its last renewal.
    pub token_lifetime: Option<String>,
    /// How long single calls stay in the usage table.
    pub usage_kept: Option<String>,
    /// Bounds of each sandbox.
    pub sandbox: RawRates,
    /// Bounds of each user.
    pub user: RawRates,
}

/// Bounds of one sandbox, user or provider.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawRates {
    /// Calls in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute, both ways.
    pub tokens_per_minute: Option<u64>,
    /// Calls open at the same time.
    pub concurrent: Option<u32>,
    /// US dollars in a day (UTC).
    pub daily_budget: Option<f64>,
    /// US dollars in a calendar month (UTC).
    pub monthly_budget: Option<f64>,
}

/// `[log]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawLog {
    /// `json` or `text`.
    pub format: Option<String>,
    /// A filter such as `info` or `info,hypervisor=debug`.
    pub level: Option<String>,
}

/// `[telemetry]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawTelemetry {
    /// OpenTelemetry's protocol; nothing is sent without it.
    pub otlp: Option<RawOtlp>,
}

/// `[telemetry.otlp]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct RawOtlp {
    /// The collector's base URL, without `/v1/metrics`.
    pub endpoint: String,
    /// File with header lines, `name: value`.
    pub headers_file: Option<PathBuf>,
    /// PEM file with the only certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// How often it is told.
    pub interval: Option<String>,
    /// Longest wait for its answer.
    pub timeout: Option<String>,
}

impl RawConfig {
    /// Reads a file, if there is one, and lays the variables over it.
    ///
    /// `CHOIR_LISTEN__ADDRESS` overrides `listen.address`: two underscores stand for the
    /// dot. A value is taken as TOML where it is TOML, and as text otherwise.
    ///
    /// # Errors
    /// An unreadable file, a syntax error, an unknown key, a value of the wrong type.
    pub fn read(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::parse(Self::written(path, variables)?)
    }

    /// What a file and the variables say, key by key; not validated.
    ///
    /// # Errors
    /// An unreadable file, a syntax error, a variable that names no key.
    pub fn written(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<toml::Table, ConfigError> {
        let mut table = match path {
            None => toml::Table::new(),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                        path: path.to_owned(),
                        source,
                    })?;
                text.parse::<toml::Table>()
                    .map_err(|error| ConfigError::Syntax {
                        path: path.to_owned(),
                        message: error.to_string(),
                    })?
            }
        };
        for (name, value) in variables {
            let Some(key) = name.strip_prefix("CHOIR_") else {
                continue;
            };
            if FOREIGN_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let steps: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
            insert(&mut table, &steps, parse_value(&value))
                .map_err(|message| ConfigError::Variable { name, message })?;
        }
        Ok(table)
    }

    /// Takes what is written for keys.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type.
    pub fn parse(written: toml::Table) -> Result<Self, ConfigError> {
        Self::deserialize(written).map_err(|error| ConfigError::Shape {
            message: error.to_string().trim().replace('\n', " "),
        })
    }
}

fn parse_value(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| {
            if table.len() == 1 {
                table.remove("v")
            } else {
                None
            }
        })
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn insert(table: &mut toml::Table, steps: &[String], value: toml::Value) -> Result<(), String> {
    let [first, rest @ ..] = steps else {
        return Err("it names no key; valid is for example CHOIR_LISTEN__ADDRESS".to_owned());
    };
    if first.is_empty() {
        return Err(
            "a part of the key is empty; valid is for example CHOIR_LISTEN__ADDRESS".to_owned(),
        );
    }
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return Ok(());
    }
    match table
        .entry(first.clone())
        .or_insert_with(|| toml::Value::Table(toml::Table::new()))
    {
        toml::Value::Table(inner) => insert(inner, rest, value),
        _ => Err(format!("{first} is a single value and has no keys inside")),
    }
}

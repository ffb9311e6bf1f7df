//! The sections of the configuration, validated.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::raw::{RawAuth, RawLimits, RawListen, RawLog, RawProvider, RawSandbox};
use super::{ConfigError, Network};

/// The name and model of the offline demo provider.
const DEMO_NAME: &str = "demo";
const DEMO_MODEL: &str = "choir-demo";

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Listeners.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Address and port of the public listener.
    pub address: SocketAddr,
    /// Certificate and key, when this listener speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Address and port of the Prometheus listener.
    pub metrics_address: Option<SocketAddr>,
    /// Networks whose forwarding headers are believed.
    pub trusted_proxies: Vec<Network>,
    /// Connections served at the same time; further ones wait in the kernel's backlog.
    pub max_connections: usize,
}

/// Files for TLS.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// PEM chain, leaf first.
    pub cert_file: PathBuf,
    /// PEM private key.
    pub key_file: PathBuf,
}

impl Listen {
    pub(super) fn build(raw: &RawListen) -> Result<Self, ConfigError> {
        let address = socket_address(
            "listen.address",
            raw.address.as_deref().unwrap_or("127.0.0.1:9090"),
        )?;
        let metrics_address = raw
            .metrics_address
            .as_deref()
            .map(|text| socket_address("listen.metrics_address", text))
            .transpose()?;
        let tls = match &raw.tls {
            None => None,
            Some(tls) => {
                existing_file("listen.tls.cert_file", &tls.cert_file)?;
                existing_file("listen.tls.key_file", &tls.key_file)?;
                Some(TlsFiles {
                    cert_file: tls.cert_file.clone(),
                    key_file: tls.key_file.clone(),
                })
            }
        };
        let trusted_proxies = raw
            .trusted_proxies
            .iter()
            .map(|text| {
                text.parse().map_err(|problem: &str| {
                    ConfigError::value(
                        "listen.trusted_proxies",
                        text,
                        problem,
                        "a network such as 10.0.0.0/8",
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        let max_connections = within(
            "listen.max_connections",
            raw.max_connections.unwrap_or(10_000),
            16,
            1_000_000,
        )?;
        Ok(Self {
            address,
            tls,
            metrics_address,
            trusted_proxies,
            max_connections,
        })
    }
}

/// Who may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Whoever holds an invitation.
    Closed,
    /// Everybody who reaches the page.
    Open,
}

/// Sign-in.
#[derive(Debug, Clone)]
pub struct Auth {
    /// Who may register.
    pub registration: Registration,
    /// How long a session lasts at most.
    pub session_lifetime: Duration,
    /// How long a session lasts without being used.
    pub session_idle: Duration,
    /// How long an invitation can be used.
    pub invite_lifetime: Duration,
    /// The longest lifetime that an API token may ask for.
    pub token_max_lifetime: Duration,
    /// Attempts per address and minute on each auth endpoint.
    pub attempts_per_address: u32,
    /// Attempts per account and minute on each auth endpoint.
    pub attempts_per_account: u32,
}

impl Auth {
    pub(super) fn build(raw: &RawAuth) -> Result<Self, ConfigError> {
        let registration = match raw.registration.as_deref() {
            None | Some("closed") => Registration::Closed,
            Some("open") => Registration::Open,
            Some(other) => {
                return Err(ConfigError::value(
                    "auth.registration",
                    other,
                    "there is no such mode",
                    "closed or open",
                ));
            }
        };
        let session_lifetime = duration(
            "auth.session_lifetime",
            raw.session_lifetime.as_deref(),
            30 * DAY,
        )?;
        let session_idle = duration("auth.session_idle", raw.session_idle.as_deref(), 7 * DAY)?;
        Ok(Self {
            registration,
            session_lifetime,
            session_idle: session_idle.min(session_lifetime),
            invite_lifetime: duration(
                "auth.invite_lifetime",
                raw.invite_lifetime.as_deref(),
                7 * DAY,
            )?,
            token_max_lifetime: duration(
                "auth.token_max_lifetime",
                raw.token_max_lifetime.as_deref(),
                365 * DAY,
            )?,
            attempts_per_address: within(
                "auth.attempts_per_address",
                raw.attempts_per_address.unwrap_or(60),
                1,
                1_000_000,
            )?,
            attempts_per_account: within(
                "auth.attempts_per_account",
                raw.attempts_per_account.unwrap_or(20),
                1,
                1_000_000,
            )?,
        })
    }
}

/// What sandboxes get.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// First host uid given to a sandbox when the hypervisor is root; slot `n` gets `base + n`.
    pub host_uid_base: u32,
    /// Tools of the host that sandboxes may read, beyond `/usr`.
    pub mounts: Vec<Mount>,
    /// `PATH` inside.
    pub path: String,
    /// Point stock SDKs at the gateway through their own variables.
    pub sdk_env: bool,
    /// Directory of `supervisor` and `sandbox`; next to this program when absent.
    pub binaries_dir: Option<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

/// A read-only mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Of the host; absolute.
    pub source: PathBuf,
    /// Inside; absolute.
    pub target: PathBuf,
}

/// Bounds of what runs in a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall time of a command that names none.
    pub command_wall: Duration,
    /// The longest wall time that a command may ask for.
    pub command_wall_max: Duration,
    /// Bytes of output kept per command.
    pub output_bytes: u64,
    /// Processes and threads per command.
    pub processes: u32,
    /// Processes and threads of the guest itself.
    pub guest_processes: u32,
    /// Open files per process.
    pub open_files: u64,
    /// Commands that run at the same time in one sandbox.
    pub commands: u32,
}

impl Sandbox {
    pub(super) fn build(raw: &RawSandbox) -> Result<Self, ConfigError> {
        let mounts = raw
            .mounts
            .iter()
            .map(|mount| {
                let target = mount.target.clone().unwrap_or_else(|| mount.source.clone());
                for (key, path) in [
                    ("sandbox.mounts.source", &mount.source),
                    ("sandbox.mounts.target", &target),
                ] {
                    if !path.is_absolute()
                        || path
                            .components()
                            .any(|c| c == std::path::Component::ParentDir)
                    {
                        return Err(ConfigError::value(
                            key,
                            path.display(),
                            "it is not absolute, or contains ..",
                            "an absolute path such as /opt/tools",
                        ));
                    }
                }
                if !mount.source.exists() {
                    return Err(ConfigError::value(
                        "sandbox.mounts.source",
                        mount.source.display(),
                        "there is nothing there",
                        "an existing directory or file",
                    ));
                }
                Ok(Mount {
                    source: mount.source.clone(),
                    target,
                })
            })
            .collect::<Result<_, _>>()?;
        if let Some(dir) = &raw.binaries_dir
            && !dir.is_dir()
        {
            return Err(ConfigError::value(
                "sandbox.binaries_dir",
                dir.display(),
                "it is no directory",
                "the directory that holds supervisor and sandbox",
            ));
        }
        Ok(Self {
            // systemd leaves 1879048192 to 2147483647 unused ("Users, Groups, UIDs and
            // GIDs on systemd Systems"), so nothing else on the host has these.
            host_uid_base: within(
                "sandbox.host_uid_base",
                raw.host_uid_base.unwrap_or(2_000_000_000),
                1000,
                2_146_000_000,
            )?,
            mounts,
            path: raw.path.clone().unwrap_or_else(|| {
                "/choir/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin".to_owned()
            }),
            sdk_env: raw.sdk_env,
            binaries_dir: raw.binaries_dir.clone(),
            limits: Limits::build(&raw.limits)?,
        })
    }
}

impl Limits {
    fn build(raw: &RawLimits) -> Result<Self, ConfigError> {
        let command_wall_max = duration(
            "sandbox.limits.command_wall_max",
            raw.command_wall_max.as_deref(),
            DAY,
        )?;
        let command_wall = duration(
            "sandbox.limits.command_wall",
            raw.command_wall.as_deref(),
            HOUR,
        )?;
        Ok(Self {
            command_wall: command_wall.min(command_wall_max),
            command_wall_max,
            output_bytes: within(
                "sandbox.limits.output_bytes",
                raw.output_bytes.unwrap_or(4 << 20),
                1 << 12,
                1 << 30,
            )?,
            processes: within(
                "sandbox.limits.processes",
                raw.processes.unwrap_or(512),
                8,
                65_536,
            )?,
            guest_processes: within(
                "sandbox.limits.guest_processes",
                raw.guest_processes.unwrap_or(256),
                8,
                65_536,
            )?,
            open_files: within(
                "sandbox.limits.open_files",
                raw.open_files.unwrap_or(4096),
                64,
                1 << 20,
            )?,
            commands: within(
                "sandbox.limits.commands",
                raw.commands.unwrap_or(64),
                1,
                4096,
            )?,
        })
    }
}

/// The wire format of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenAI's; many others speak it too.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// The built-in offline demo, in OpenAI's format.
    Demo,
}

/// A model provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name in gateway paths.
    pub name: String,
    /// Its wire format.
    pub kind: ProviderKind,
    /// Where its API lives; absent for the demo.
    pub base_url: Option<Url>,
    /// File that holds the platform key; read by the gateway, never here.
    pub key_file: Option<PathBuf>,
    /// Models that may be named.
    pub models: Vec<String>,
    /// The model taken when a run names none.
    pub default_model: String,
}

/// Validates the providers and puts the default one first.
pub(super) fn build_providers(raw: &[RawProvider]) -> Result<Vec<Provider>, ConfigError> {
    if raw.is_empty() {
        return Ok(vec![Provider {
            name: DEMO_NAME.to_owned(),
            kind: ProviderKind::Demo,
            base_url: None,
            key_file: None,
            models: vec![DEMO_MODEL.to_owned()],
            default_model: DEMO_MODEL.to_owned(),
        }]);
    }
    let mut providers: Vec<Provider> = Vec::with_capacity(raw.len());
    let mut default_at = None;
    for (at, one) in raw.iter().enumerate() {
        let provider = build_provider(one)?;
        if providers.iter().any(|other| other.name == provider.name) {
            return Err(ConfigError::value(
                "providers.name",
                &provider.name,
                "two providers have it",
                "a name of its own for each",
            ));
        }
        if one.default.is_some() && default_at.replace(at).is_some() {
            return Err(ConfigError::value(
                "providers.default",
                &provider.default_model,
                "two providers have a default model",
                "one default in all",
            ));
        }
        providers.push(provider);
    }
    let at = default_at.unwrap_or(0);
    if let Some(chosen) = providers.get_mut(..=at) {
        chosen.rotate_right(1);
    }
    Ok(providers)
}

fn build_provider(raw: &RawProvider) -> Result<Provider, ConfigError> {
    let name_ok = !raw.name.is_empty()
        && raw.name.len() <= 32
        && raw
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !name_ok {
        return Err(ConfigError::value(
            "providers.name",
            &raw.name,
            "it is not usable in a path",
            "1 to 32 of a-z, 0-9 and -",
        ));
    }
    let kind = match raw.kind.as_str() {
        "openai" => ProviderKind::OpenAi,
        "anthropic" => ProviderKind::Anthropic,
        "demo" => ProviderKind::Demo,
        other => {
            return Err(ConfigError::value(
                "providers.kind",
                other,
                "there is no such kind",
                "openai, anthropic or demo",
            ));
        }
    };
    let base_url = raw.base_url.as_deref().map(base_url).transpose()?;
    if kind != ProviderKind::Demo && base_url.is_none() {
        return Err(ConfigError::value(
            "providers.base_url",
            "",
            format!("the provider {} needs it", raw.name),
            "a URL such as https://api.openai.com/v1 or https://api.anthropic.com",
        ));
    }
    if let Some(file) = &raw.key_file {
        existing_file("providers.key_file", file)?;
    }
    let models = if raw.models.is_empty() && kind == ProviderKind::Demo {
        vec![DEMO_MODEL.to_owned()]
    } else {
        raw.models.clone()
    };
    let Some(default_model) = raw.default.clone().or_else(|| models.first().cloned()) else {
        return Err(ConfigError::value(
            "providers.models",
            "[]",
            format!("the provider {} has no model", raw.name),
            "at least one model name",
        ));
    };
    if !models.contains(&default_model) {
        return Err(ConfigError::value(
            "providers.default",
            default_model,
            "it is not among providers.models",
            models.join(", "),
        ));
    }
    Ok(Provider {
        name: raw.name.clone(),
        kind,
        base_url,
        key_file: raw.key_file.clone(),
        models,
        default_model,
    })
}

fn base_url(text: &str) -> Result<Url, ConfigError> {
    let valid = "a URL such as https://api.openai.com/v1";
    let url = Url::parse(text).map_err(|error| {
        ConfigError::value("providers.base_url", text, error.to_string(), valid)
    })?;
    if !matches!(url.scheme(), "https" | "http") || url.host().is_none() {
        return Err(ConfigError::value(
            "providers.base_url",
            text,
            "it is neither http nor https",
            valid,
        ));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(ConfigError::value(
            "providers.base_url",
            text,
            "it holds credentials, a query or a fragment",
            "a bare URL, and the key in key_file",
        ));
    }
    Ok(url)
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct Log {
    /// Form of the lines.
    pub format: LogFormat,
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub level: String,
}

impl Log {
    pub(super) fn build(raw: &RawLog) -> Result<Self, ConfigError> {
        let format = match raw.format.as_deref() {
            None | Some("json") => LogFormat::Json,
            Some("text") => LogFormat::Text,
            Some(other) => {
                return Err(ConfigError::value(
                    "log.format",
                    other,
                    "there is no such format",
                    "json or text",
                ));
            }
        };
        let level = raw.level.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
            return Err(ConfigError::value(
                "log.level",
                &level,
                error.to_string(),
                "error, warn, info, debug, trace, or a filter such as info,hypervisor=debug",
            ));
        }
        Ok(Self { format, level })
    }
}

fn socket_address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        ConfigError::value(
            key,
            text,
            "it is no address with a port",
            "an address such as 127.0.0.1:9090 or [::]:443",
        )
    })
}

fn existing_file(key: &str, path: &std::path::Path) -> Result<(), ConfigError> {
    if path.is_file() {
        Ok(())
    } else {
        Err(ConfigError::value(
            key,
            path.display(),
            "there is no such file",
            "the path of a readable file",
        ))
    }
}

fn within<T: PartialOrd + ToString + Copy>(
    key: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    if value < least || value > most {
        let valid = format!("{} to {}", least.to_string(), most.to_string());
        return Err(ConfigError::value(key, value, "it is out of bounds", valid));
    }
    Ok(value)
}

fn duration(key: &str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    parse_duration(text)
        .filter(|duration| !duration.is_zero() && *duration <= 3650 * DAY)
        .ok_or_else(|| {
            ConfigError::value(
                key,
                text,
                "it is no length of time",
                "a number and a unit, such as 90s, 15m, 12h or 30d",
            )
        })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(seconds)
        .map(Duration::from_secs)
}

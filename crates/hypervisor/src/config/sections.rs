//! Listeners, sign-in and logs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::raw::{RawAuth, RawListen, RawLog};
use super::values::{DAY, duration, existing_file, socket_address, within};
use super::{ConfigError, Network};

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

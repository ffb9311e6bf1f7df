//! Telemetry that is sent somewhere.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::ConfigError;
use super::raw::RawOtlp;
use super::values::{duration, existing_file};

/// How often the collector is told, and how long it may take, unless it is said.
const INTERVAL: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(10);

/// `[telemetry.otlp]`
#[derive(Debug, Clone)]
pub struct Otlp {
    /// The collector's base URL; `/v1/metrics` and `/v1/traces` are below it.
    pub endpoint: Url,
    /// File with header lines, the collector's credential among them; read at each export,
    /// never here.
    pub headers_file: Option<PathBuf>,
    /// PEM file with the only certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// How often it is told.
    pub interval: Duration,
    /// Longest wait for its answer.
    pub timeout: Duration,
}

impl Otlp {
    pub(super) fn build(raw: &RawOtlp) -> Result<Self, ConfigError> {
        let refused = |problem: &str| {
            ConfigError::value(
                "telemetry.otlp.endpoint",
                &raw.endpoint,
                problem,
                "a URL such as https://collector.example:4318, with what it wants as a credential in headers_file",
            )
        };
        let endpoint = Url::parse(&raw.endpoint).map_err(|_| refused("it is no URL"))?;
        if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
            return Err(refused("OTLP goes over http or https"));
        }
        let credential = !endpoint.username().is_empty() || endpoint.password().is_some();
        if credential || endpoint.query().is_some() || endpoint.fragment().is_some() {
            return Err(refused("it is more than a base URL"));
        }
        for (key, file) in [
            ("telemetry.otlp.headers_file", &raw.headers_file),
            ("telemetry.otlp.ca_file", &raw.ca_file),
        ] {
            if let Some(file) = file {
                existing_file(key, file)?;
            }
        }
        Ok(Self {
            endpoint,
            headers_file: raw.headers_file.clone(),
            ca_file: raw.ca_file.clone(),
            interval: duration("telemetry.otlp.interval", raw.interval.as_deref(), INTERVAL)?,
            timeout: duration("telemetry.otlp.timeout", raw.timeout.as_deref(), TIMEOUT)?,
        })
    }
}

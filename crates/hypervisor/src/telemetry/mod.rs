//! Logs, and telemetry that is sent to a collector.
//!
//! Never logged, at any level: values of secrets, tokens and recovery codes, cookies, request
//! and response bodies, query strings, environment values, command output, `Authorization`.
//! What slips through in a formatted field is masked by [`redact`] before it is written.

mod json;
pub mod otlp;
mod redact;
mod writer;

use std::io;

use tracing_subscriber::EnvFilter;

pub use redact::redact;
pub use writer::Guard;

use crate::config::{Log, LogFormat};

/// Begins to log to standard error, until the guard is dropped. Does nothing when logging
/// has begun before.
///
/// # Errors
/// The thread that writes cannot be started.
pub fn begin(log: &Log) -> io::Result<Guard> {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (lines, guard) = writer::begin(io::stderr())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines);
    let begun = match log.format {
        LogFormat::Json => builder.event_format(json::JsonLines).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    if begun.is_err() {
        tracing::debug!("logging had begun already");
    }
    Ok(guard)
}

//! Logs.
//!
//! Never logged, at any level: values of secrets, tokens and recovery codes, cookies, request
//! and response bodies, query strings, environment values, command output, `Authorization`.
//! What slips through in a formatted field is masked by [`redact`] before it is written.

mod redact;

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub use redact::redact;

use crate::config::{Log, LogFormat};

/// Writes log lines to standard error, redacted.
struct Redacting;

impl<'a> MakeWriter<'a> for Redacting {
    type Writer = RedactingWriter;

    fn make_writer(&'a self) -> RedactingWriter {
        RedactingWriter
    }
}

/// Takes one whole line per write, as `tracing_subscriber::fmt` hands it over.
struct RedactingWriter;

impl io::Write for RedactingWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        io::stderr().lock().write_all(redact(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Begins to log. Does nothing when logging has begun before.
pub fn begin(log: &Log) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Redacting);
    let begun = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    if begun.is_err() {
        tracing::debug!("logging had begun already");
    }
}

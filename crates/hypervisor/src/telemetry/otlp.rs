//! Tells an OpenTelemetry collector of model calls: their metrics, and a span for each.
//!
//! OTLP over HTTP in its JSON encoding (OTLP 1.x, "Binary/JSON Protobuf Encoding"). Nothing
//! here makes a call wait: calls go into a queue with a bound, and one that finds it full is
//! lost to the collector and counted. What is told is what the usage record holds.

mod document;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, StatusCode, redirect};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use crate::app::App;
use crate::clock::Clock;
use crate::config::Otlp;
use crate::http::metrics::{Metrics, Span};
use document::Source;

/// Calls that wait to be told of.
const QUEUE: usize = 4096;

/// Most calls in one message.
const BATCH: usize = 512;

/// Largest file of header lines, and of an answer that is looked at, in bytes.
const MAX_HEADERS_FILE: u64 = 16 << 10;
const MAX_ANSWER: usize = 64 << 10;

/// The end of the process waits for the collector no longer than this.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// Why the collector cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// A file.
    #[error("{key} = {path:?} is of no use: {problem}")]
    File {
        /// Its key in the configuration.
        key: &'static str,
        /// As configured.
        path: std::path::PathBuf,
        /// What is wrong. Never what is in it.
        problem: String,
    },
    /// The client cannot be made.
    #[error("the OTLP exporter cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// What the collector is told by, until it is finished.
#[derive(Debug)]
pub struct Exporter {
    ended: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Tells what is left, within a deadline, and ends.
    pub async fn finish(self) {
        self.ended.cancel();
        if tokio::time::timeout(FINISH_WITHIN, self.task)
            .await
            .is_err()
        {
            tracing::warn!("the OTLP collector was not told of the last model calls in time");
        }
    }
}

/// Begins to tell the collector of the configuration, if there is one.
///
/// # Errors
/// A file of the configuration is of no use.
pub fn begin(app: &App) -> Result<Option<Exporter>, OtlpError> {
    let Some(config) = &app.config.otlp else {
        return Ok(None);
    };
    start(config.clone(), Arc::clone(&app.metrics), app.clock.clone()).map(Some)
}

fn start(config: Otlp, metrics: Arc<Metrics>, clock: Clock) -> Result<Exporter, OtlpError> {
    // Read for its errors; it is read again each time, so that a credential can be exchanged.
    headers(config.headers_file.as_deref())?;
    let client = client(&config)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    metrics.models().tell(sender);
    let ended = CancellationToken::new();
    let work = Work {
        source: Source {
            instance: Uuid::new_v4(),
            began_ms: clock.now_ms(),
        },
        config,
        client,
        metrics,
        clock,
        spans: receiver,
        batch: Vec::new(),
        silent: false,
    };
    Ok(Exporter {
        task: tokio::spawn(work.run(ended.clone())),
        ended,
    })
}

fn client(config: &Otlp) -> Result<Client, OtlpError> {
    let mut builder = Client::builder()
        .user_agent(concat!("choir/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .pool_max_idle_per_host(1)
        .timeout(config.timeout);
    if let Some(path) = &config.ca_file {
        let unusable = |problem: String| OtlpError::File {
            key: "telemetry.otlp.ca_file",
            path: path.clone(),
            problem,
        };
        let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let roots =
            Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
        if roots.is_empty() {
            return Err(unusable("there is no certificate in it".to_owned()));
        }
        builder = builder.tls_certs_only(roots);
    }
    builder.build().map_err(OtlpError::Client)
}

/// The header lines of a file, `name: value` each.
fn headers(path: Option<&Path>) -> Result<HeaderMap, OtlpError> {
    let mut headers = HeaderMap::new();
    let Some(path) = path else { return Ok(headers) };
    let unusable = |problem: String| OtlpError::File {
        key: "telemetry.otlp.headers_file",
        path: path.to_owned(),
        problem,
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_HEADERS_FILE + 1).read_to_string(&mut text))
        .map_err(|error| unusable(error.to_string()))?;
    let text = crypto::SecretText::new(text);
    if text.expose().len() as u64 > MAX_HEADERS_FILE {
        let most = MAX_HEADERS_FILE >> 10;
        return Err(unusable(format!("it is longer than {most} KiB")));
    }
    for (number, line) in text.expose().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let Some((name, value)) = parsed else {
            let number = number + 1;
            return Err(unusable(format!("line {number} is not `name: value`")));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

/// What came of telling the collector something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It took it, but for so many spans that it rejected.
    Taken(u64),
    /// It may take it later.
    Later,
    /// It never will.
    Never,
}

struct Work {
    source: Source,
    config: Otlp,
    client: Client,
    metrics: Arc<Metrics>,
    clock: Clock,
    spans: mpsc::Receiver<Span>,
    /// Spans of the message that is told next; at most [`BATCH`].
    batch: Vec<Span>,
    /// Whether the log already says that it does not answer.
    silent: bool,
}

impl Work {
    async fn run(mut self, ended: CancellationToken) {
        let mut tick = tokio::time::interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            let room = BATCH - self.batch.len().min(BATCH);
            tokio::select! {
                () = ended.cancelled() => break,
                _ = tick.tick() => {
                    self.tell_metrics().await;
                    self.tell_spans().await;
                }
                // Without room the queue fills up, and then calls are lost and counted.
                _ = self.spans.recv_many(&mut self.batch, room), if room > 0 => {
                    if self.batch.len() >= BATCH && !self.silent {
                        self.tell_spans().await;
                    }
                }
            }
        }
        self.spans.close();
        while let Some(span) = self.spans.recv().await {
            self.batch.push(span);
            if self.batch.len() >= BATCH && !self.tell_spans().await {
                break;
            }
        }
        self.tell_spans().await;
        self.tell_metrics().await;
    }

    async fn tell_metrics(&mut self) {
        let document = document::metrics(&self.source, self.metrics.models(), self.clock.now_ms());
        // They are sums since the start: what is not taken now is in the next message.
        self.tell("v1/metrics", &document).await;
    }

    /// `false`: the batch is still here.
    async fn tell_spans(&mut self) -> bool {
        if self.batch.is_empty() {
            return true;
        }
        let document = document::spans(&self.source, &self.batch);
        let calls = self.batch.len() as u64;
        match self.tell("v1/traces", &document).await {
            Told::Later => return false,
            Told::Never => self.metrics.models().lose(calls),
            Told::Taken(rejected) => self.metrics.models().lose(rejected.min(calls)),
        }
        self.batch.clear();
        true
    }

    async fn tell(&mut self, path: &str, document: &Value) -> Told {
        let (told, problem) = match self.post(path, document).await {
            Ok((status, answer)) if status.is_success() => (Told::Taken(rejected(&answer)), None),
            // Those that the protocol calls retryable.
            Ok((status, _)) if matches!(status.as_u16(), 429 | 502 | 503 | 504) => {
                (Told::Later, Some(format!("it answers {status}")))
            }
            Ok((status, _)) => (Told::Never, Some(format!("it answers {status}"))),
            Err(problem) => (Told::Later, Some(problem)),
        };
        // Once, and not each time while it is away.
        match &problem {
            Some(problem) if !self.silent => {
                tracing::warn!(
                    path,
                    problem,
                    "the OTLP collector does not take what it is told"
                );
            }
            None if self.silent => tracing::info!("the OTLP collector takes what it is told again"),
            _ => {}
        }
        self.silent = problem.is_some();
        told
    }

    async fn post(&self, path: &str, document: &Value) -> Result<(StatusCode, Vec<u8>), String> {
        let file = self.config.headers_file.clone();
        let headers = tokio::task::spawn_blocking(move || headers(file.as_deref()))
            .await
            .map_err(|_| "the process ends".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut response = self
            .client
            .post(below(&self.config.endpoint, path))
            .headers(headers)
            .header(CONTENT_TYPE, "application/json")
            .body(document.to_string())
            .send()
            .await
            .map_err(|error| match certificate(&error) {
                Some(problem) => format!("{problem} ({})", chain(&error)),
                None => chain(&error),
            })?;
        let status = response.status();
        let mut answer = Vec::new();
        // What a collector answers is small; the rest of a large one is not waited for.
        while let Ok(Some(piece)) = response.chunk().await {
            answer.extend_from_slice(&piece);
            if answer.len() > MAX_ANSWER {
                break;
            }
        }
        Ok((status, answer))
    }
}

fn below(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    let base = endpoint.path().trim_end_matches('/');
    url.set_path(&format!("{base}/{path}"));
    url
}

/// Spans that a collector says it took not, although it took the message.
fn rejected(answer: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = answer.pointer("/partialSuccess/rejectedSpans");
    // Numbers of 64 bits are texts in this encoding; some write them as numbers.
    rejected
        .and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()))
        .unwrap_or_default()
}

/// What is wrong with the collector's certificate, and what to do about it, when that is it.
fn certificate(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::CertificateError as Bad;
    let mut error = error;
    let bad = loop {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            match tls {
                rustls::Error::InvalidCertificate(bad) => break bad,
                _ => return None,
            }
        }
        // The source of an I/O error is that of the error in it, which is left out that way.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        error = match inner {
            Some(inner) => inner,
            None => error.source()?,
        };
    };
    Some(match bad {
        Bad::Expired | Bad::ExpiredContext { .. } => {
            "its certificate has expired; its operator has to renew it, or this machine's clock is wrong"
        }
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "its certificate is not valid yet; check this machine's clock"
        }
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
            "its certificate is for another name; telemetry.otlp.endpoint has to name the host as its certificate does"
        }
        _ => {
            "its certificate is not trusted; name the CA that signed it with telemetry.otlp.ca_file"
        }
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;

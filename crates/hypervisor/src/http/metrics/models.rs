//! Metrics of model calls, named after the OpenTelemetry conventions for generative AI, and
//! for whoever asked for it the calls themselves, as spans.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::mpsc;
use types::{RequestId, SandboxId, UserId};

use super::buckets::{Buckets, Snapshot};
use crate::config::NANO_DOLLARS;

/// Ranges as the conventions advise them: seconds of a call, tokens, seconds to the first one.
const OPERATION_SECONDS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const FIRST_TOKEN_SECONDS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Most models that are told apart, each with each of its operations, and most errors of one.
const MAX_SERIES: usize = 1024;
const MAX_ERRORS: usize = 16;

/// What is beyond those bounds, in the words of the conventions.
const OTHER: &str = "_OTHER";

/// A model call at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) provider: &'a str,
    pub(crate) model: &'a str,
    /// [`operation`] of its path.
    pub(crate) operation: &'static str,
    pub(crate) request: RequestId,
    pub(crate) sandbox: SandboxId,
    pub(crate) user: UserId,
    /// Of the reply; 0 when there was none.
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: u64,
    /// Billionths of a US dollar.
    pub(crate) cost: i64,
    pub(crate) took: Duration,
    pub(crate) first_byte: Option<Duration>,
    /// Unix milliseconds.
    pub(crate) at: i64,
}

/// A model call as it is told to a collector. It holds what the usage record holds, and no
/// more: no prompt, reply, path, header or key.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) series: Arc<Series>,
    pub(crate) request: RequestId,
    pub(crate) sandbox: SandboxId,
    pub(crate) user: UserId,
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    pub(crate) error: Option<ErrorType>,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: u64,
    pub(crate) cost: i64,
    pub(crate) took: Duration,
    pub(crate) ended: i64,
}

/// Why a call did not end whole and well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorType {
    /// The reply's status.
    Status(u16),
    /// How it broke off, or that there are too many others.
    Named(&'static str),
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// One operation of one model of one provider.
#[derive(Debug)]
pub(crate) struct Series {
    /// Names of the configuration, never of a request.
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) operation: &'static str,
    succeeded: Buckets,
    failed: RwLock<Vec<(ErrorType, Arc<Buckets>)>>,
    input: Buckets,
    output: Buckets,
    first_token: Buckets,
    cached: AtomicU64,
    nano_usd: AtomicU64,
}

/// One histogram with the attributes that tell it from the others of its name.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) attributes: Vec<(&'static str, String)>,
    pub(crate) snapshot: Snapshot,
}

/// A histogram of the conventions.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    /// As the conventions write it.
    pub(crate) unit: &'static str,
    pub(crate) points: Vec<Point>,
}

/// A sum of ours, beside the conventions.
#[derive(Debug)]
pub(crate) struct Sum {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) points: Vec<(Vec<(&'static str, String)>, f64)>,
}

/// What model calls took. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    series: RwLock<HashMap<String, HashMap<String, Vec<Arc<Series>>>>>,
    spans: OnceLock<mpsc::Sender<Span>>,
    /// Calls that a collector was not told of.
    lost: AtomicU64,
}

/// The operation's name by the path below a provider's base URL.
pub(crate) fn operation(path: &str) -> &'static str {
    let path = path.split('?').next().unwrap_or_default();
    let last = path.trim_end_matches('/').rsplit(['/', ':']).next();
    match last.unwrap_or_default() {
        "embeddings" | "embedContent" | "batchEmbedContents" => "embeddings",
        "generateContent" | "streamGenerateContent" => "generate_content",
        "messages"
        | "responses"
        | "converse"
        | "converse-stream"
        | "invoke"
        | "invoke-with-response-stream" => "chat",
        "completions" if path.ends_with("chat/completions") => "chat",
        "completions" => "text_completion",
        "count_tokens" | "countTokens" => "count_tokens",
        _ => OTHER,
    }
}

impl ModelMetrics {
    /// Registers those of the conventions at the root, and ours beside the others of ours.
    pub(super) fn register(&self, root: &mut Registry) {
        root.register_collector(Box::new(Conventions(self.clone())));
    }

    pub(super) fn register_ours(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Ours(self.clone())));
    }

    /// Hands every call from now on to a collector's queue; one that is full loses calls and
    /// counts them, and makes nobody wait.
    pub(crate) fn tell(&self, spans: mpsc::Sender<Span>) {
        // A second exporter would be a mistake of ours; the first stays.
        let _ = self.inner.spans.set(spans);
    }

    /// Counts calls that a collector was not told of.
    pub(crate) fn lose(&self, calls: u64) {
        self.inner.lost.fetch_add(calls, Ordering::Relaxed);
    }

    /// How many calls a collector was not told of.
    pub(crate) fn lost(&self) -> u64 {
        self.inner.lost.load(Ordering::Relaxed)
    }

    /// Counts a model call at its end.
    pub(crate) fn call(&self, ended: &Ended<'_>) {
        let series = self.series(ended.provider, ended.model, ended.operation);
        let error = match ended.status {
            400.. => Some(ErrorType::Status(ended.status)),
            _ if ended.outcome != "complete" => Some(ErrorType::Named(ended.outcome)),
            _ => None,
        };
        series.count(ended, error);
        let Some(spans) = self.inner.spans.get() else {
            return;
        };
        let span = Span {
            series,
            request: ended.request,
            sandbox: ended.sandbox,
            user: ended.user,
            status: ended.status,
            outcome: ended.outcome,
            error,
            input: ended.input,
            output: ended.output,
            cached: ended.cached,
            cost: ended.cost,
            took: ended.took,
            ended: ended.at,
        };
        if spans.try_send(span).is_err() {
            self.lose(1);
        }
    }

    /// Found without making a string, but for the first call of each model.
    fn series(&self, provider: &str, model: &str, operation: &'static str) -> Arc<Series> {
        let find = |all: &HashMap<String, HashMap<String, Vec<Arc<Series>>>>| {
            let of_model = all.get(provider)?.get(model)?;
            let found = of_model.iter().find(|one| one.operation == operation)?;
            Some(Arc::clone(found))
        };
        {
            let all = self.inner.series.read();
            if let Some(found) = find(&all.unwrap_or_else(PoisonError::into_inner)) {
                return found;
            }
        }
        let mut all = self
            .inner
            .series
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&all) {
            return found;
        }
        let known: usize = all.values().flat_map(HashMap::values).map(Vec::len).sum();
        let (provider, model, operation) = if known < MAX_SERIES {
            (provider, model, operation)
        } else {
            (OTHER, OTHER, OTHER)
        };
        let of_model = all
            .entry(provider.to_owned())
            .or_default()
            .entry(model.to_owned())
            .or_default();
        if let Some(found) = of_model.iter().find(|one| one.operation == operation) {
            return Arc::clone(found);
        }
        let made = Arc::new(Series::new(provider, model, operation));
        of_model.push(Arc::clone(&made));
        made
    }

    fn all(&self) -> Vec<Arc<Series>> {
        let all = self.inner.series.read();
        let all = all.unwrap_or_else(PoisonError::into_inner);
        let of_models = all.values().flat_map(HashMap::values);
        let mut all: Vec<Arc<Series>> = of_models.flatten().cloned().collect();
        all.sort_by(|one, other| one.key().cmp(&other.key()));
        all
    }

    /// The histograms of the conventions as they stand.
    pub(crate) fn histograms(&self) -> [Named; 3] {
        let mut durations = Vec::new();
        let mut tokens = Vec::new();
        let mut first = Vec::new();
        for series in self.all() {
            let add = |points: &mut Vec<Point>, buckets: &Buckets, more: Option<(_, String)>| {
                let snapshot = buckets.snapshot();
                if snapshot.count() > 0 {
                    let mut attributes = series.attributes();
                    attributes.extend(more);
                    points.push(Point {
                        attributes,
                        snapshot,
                    });
                }
            };
            add(&mut durations, &series.succeeded, None);
            let failed = series.failed.read();
            for (error, buckets) in failed.unwrap_or_else(PoisonError::into_inner).iter() {
                let error = Some(("error.type", error.to_string()));
                add(&mut durations, buckets, error);
            }
            for (kind, buckets) in [("input", &series.input), ("output", &series.output)] {
                let kind = Some(("gen_ai.token.type", kind.to_owned()));
                add(&mut tokens, buckets, kind);
            }
            add(&mut first, &series.first_token, None);
        }
        [
            Named {
                name: "gen_ai.client.operation.duration",
                description: "Time from a model call's request to the end of its reply",
                unit: "s",
                points: durations,
            },
            Named {
                name: "gen_ai.client.token.usage",
                description: "Tokens of a model call",
                unit: "{token}",
                points: tokens,
            },
            Named {
                name: "gen_ai.server.time_to_first_token",
                description: "Time from a model call's request to the first byte of its reply",
                unit: "s",
                points: first,
            },
        ]
    }

    /// What the conventions have no name for.
    pub(crate) fn sums(&self) -> [Sum; 2] {
        let all = self.all();
        let points = |value: fn(&Series) -> f64| {
            all.iter()
                .map(|series| (series.attributes(), value(series)))
                .collect()
        };
        [
            Sum {
                name: "gen_ai_cost_usd",
                description: "What model calls cost by the configured prices, in US dollars",
                unit: "USD",
                points: points(Series::dollars),
            },
            Sum {
                name: "gen_ai_cached_input_tokens",
                description: "Of the tokens that models read, those from a cache",
                unit: "{token}",
                points: points(Series::cached),
            },
        ]
    }
}

impl Series {
    fn new(provider: &str, model: &str, operation: &'static str) -> Self {
        Self {
            // A call that no provider took has none.
            provider: if provider.is_empty() { "-" } else { provider }.to_owned(),
            model: model.to_owned(),
            operation,
            succeeded: Buckets::new(&OPERATION_SECONDS),
            failed: RwLock::default(),
            input: Buckets::new(&TOKENS),
            output: Buckets::new(&TOKENS),
            first_token: Buckets::new(&FIRST_TOKEN_SECONDS),
            cached: AtomicU64::new(0),
            nano_usd: AtomicU64::new(0),
        }
    }

    fn key(&self) -> (&str, &str, &str) {
        (&self.provider, &self.model, self.operation)
    }

    pub(crate) fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![
            ("gen_ai.operation.name", self.operation.to_owned()),
            ("gen_ai.provider.name", self.provider.clone()),
            ("gen_ai.request.model", self.model.clone()),
        ]
    }

    #[expect(clippy::cast_precision_loss, reason = "a metric, not a bill")]
    fn count(&self, ended: &Ended<'_>, error: Option<ErrorType>) {
        let seconds = ended.took.as_secs_f64();
        match error {
            None => self.succeeded.observe(seconds),
            Some(error) => self.failed(error).observe(seconds),
        }
        // A call that read and wrote nothing, because it was refused, is no sample of zero.
        if ended.input > 0 || ended.output > 0 {
            self.input.observe(ended.input as f64);
            self.output.observe(ended.output as f64);
        }
        if let (Some(first), 200..300) = (ended.first_byte, ended.status) {
            self.first_token.observe(first.as_secs_f64());
        }
        self.cached.fetch_add(ended.cached, Ordering::Relaxed);
        let cost = u64::try_from(ended.cost).unwrap_or_default();
        self.nano_usd.fetch_add(cost, Ordering::Relaxed);
    }

    fn failed(&self, error: ErrorType) -> Arc<Buckets> {
        let find = |all: &[(ErrorType, Arc<Buckets>)], error| {
            let found = all.iter().find(|(known, _)| *known == error);
            found.map(|(_, buckets)| Arc::clone(buckets))
        };
        {
            let failed = self.failed.read();
            if let Some(found) = find(&failed.unwrap_or_else(PoisonError::into_inner), error) {
                return found;
            }
        }
        let mut failed = self.failed.write().unwrap_or_else(PoisonError::into_inner);
        // The provider chooses its statuses, and may choose many.
        let error = if failed.len() < MAX_ERRORS {
            error
        } else {
            ErrorType::Named(OTHER)
        };
        find(&failed, error).unwrap_or_else(|| {
            let made = Arc::new(Buckets::new(&OPERATION_SECONDS));
            failed.push((error, Arc::clone(&made)));
            made
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a metric, not a bill")]
    fn dollars(&self) -> f64 {
        self.nano_usd.load(Ordering::Relaxed) as f64 / NANO_DOLLARS
    }

    #[expect(clippy::cast_precision_loss, reason = "a metric, not a bill")]
    fn cached(&self) -> f64 {
        self.cached.load(Ordering::Relaxed) as f64
    }
}

/// Those of the conventions, as Prometheus spells them.
#[derive(Debug)]
struct Conventions(ModelMetrics);

impl Collector for Conventions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for histogram in self.0.histograms() {
            let name = histogram.name.replace('.', "_");
            // A unit in braces says what is counted, and is no unit to Prometheus.
            let unit = (histogram.unit == "s").then_some(&Unit::Seconds);
            let mut metric = encoder.encode_descriptor(
                &name,
                histogram.description,
                unit,
                MetricType::Histogram,
            )?;
            for point in &histogram.points {
                let labels = labels(&point.attributes);
                point.snapshot.encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Ours(ModelMetrics);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for sum in self.0.sums() {
            let mut metric =
                encoder.encode_descriptor(sum.name, sum.description, None, MetricType::Counter)?;
            for (attributes, value) in &sum.points {
                let labels = labels(attributes);
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, f64>(value, None)?;
            }
        }
        let lost = self.0.lost();
        encoder
            .encode_descriptor(
                "otlp_lost_spans",
                "Model calls that the OTLP collector was not told of",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, f64>(&lost, None)
    }
}

fn labels(attributes: &[(&'static str, String)]) -> Vec<(String, String)> {
    attributes
        .iter()
        .map(|(name, value)| (name.replace('.', "_"), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;

//! The messages, in the JSON encoding of OTLP: numbers of 64 bits are texts, ids hexadecimal,
//! enumerations numbers.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::millis;
use crate::config::NANO_DOLLARS;
use crate::http::metrics::{ModelMetrics, Named, Point, Span, Sum};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`, `SPAN_KIND_CLIENT` and `STATUS_CODE_ERROR`.
const CUMULATIVE: u8 = 2;
const CLIENT: u8 = 3;
const ERROR: u8 = 2;

/// Who tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) instance: Uuid,
    /// Since when it counts, Unix milliseconds.
    pub(super) began_ms: i64,
}

impl Source {
    fn resource(&self) -> Value {
        let attributes = [
            text("service.name", "choir-hypervisor"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", &self.instance.to_string()),
        ];
        json!({ "attributes": attributes })
    }
}

fn scope() -> Value {
    json!({ "name": "choir.gateway", "version": env!("CARGO_PKG_VERSION") })
}

pub(super) fn metrics(source: &Source, models: &ModelMetrics, now_ms: i64) -> Value {
    let (start, now) = (nanos(source.began_ms), nanos(now_ms));
    let mut metrics: Vec<Value> = models
        .histograms()
        .iter()
        .filter(|named| !named.points.is_empty())
        .map(|named| histogram(named, &start, &now))
        .collect();
    let sums = models.sums();
    let filled = sums.iter().filter(|sum| !sum.points.is_empty());
    metrics.extend(filled.map(|of| sum(of, &start, &now)));
    json!({ "resourceMetrics": [{
        "resource": source.resource(),
        "scopeMetrics": [{ "scope": scope(), "metrics": metrics }],
    }] })
}

fn histogram(named: &Named, start: &str, now: &str) -> Value {
    let point = |Point {
                     attributes,
                     snapshot,
                 }: &Point| {
        let counts: Vec<String> = snapshot.counts.iter().map(u64::to_string).collect();
        json!({
            "attributes": texts(attributes),
            "startTimeUnixNano": start,
            "timeUnixNano": now,
            "count": snapshot.count().to_string(),
            "sum": snapshot.sum,
            "bucketCounts": counts,
            "explicitBounds": snapshot.bounds,
        })
    };
    let points: Vec<Value> = named.points.iter().map(point).collect();
    json!({
        "name": named.name,
        "description": named.description,
        "unit": named.unit,
        "histogram": { "aggregationTemporality": CUMULATIVE, "dataPoints": points },
    })
}

fn sum(sum: &Sum, start: &str, now: &str) -> Value {
    let point = |(attributes, value): &(Vec<(&'static str, String)>, f64)| {
        json!({
            "attributes": texts(attributes),
            "startTimeUnixNano": start,
            "timeUnixNano": now,
            "asDouble": value,
        })
    };
    let points: Vec<Value> = sum.points.iter().map(point).collect();
    json!({
        "name": format!("choir.{}", sum.name),
        "description": sum.description,
        "unit": sum.unit,
        "sum": { "aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points },
    })
}

pub(super) fn spans(source: &Source, spans: &[Span]) -> Value {
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": source.resource(),
        "scopeSpans": [{ "scope": scope(), "spans": spans }],
    }] })
}

fn span(span: &Span) -> Value {
    // A request is a trace of its own, and its id, which the log and the usage table have as
    // well, is the trace's. The random half of it is the span's.
    let request = *span.request.as_uuid();
    let series = &span.series;
    let mut attributes = texts(&series.attributes());
    attributes.extend([
        whole("gen_ai.usage.input_tokens", span.input),
        whole("gen_ai.usage.output_tokens", span.output),
        whole("gen_ai.usage.cache_read.input_tokens", span.cached),
        text("choir.request.id", &request.to_string()),
        text("choir.sandbox.id", &span.sandbox.to_string()),
        text("choir.user.id", &span.user.to_string()),
        text("choir.outcome", span.outcome),
        #[expect(clippy::cast_precision_loss, reason = "telemetry, not a bill")]
        double("choir.cost_usd", span.cost as f64 / NANO_DOLLARS),
    ]);
    if span.status != 0 {
        attributes.push(whole("http.response.status_code", span.status.into()));
    }
    let mut status = json!({});
    if let Some(error) = span.error {
        attributes.push(text("error.type", &error.to_string()));
        status = json!({ "code": ERROR });
    }
    let began = span.ended.saturating_sub(millis(span.took));
    json!({
        "traceId": request.simple().to_string(),
        "spanId": format!("{:016x}", request.as_u64_pair().1),
        "name": format!("{} {}", series.operation, series.model),
        "kind": CLIENT,
        "startTimeUnixNano": nanos(began),
        "endTimeUnixNano": nanos(span.ended),
        "attributes": attributes,
        "status": status,
    })
}

fn nanos(millis: i64) -> String {
    (i128::from(millis) * 1_000_000).to_string()
}

fn texts(attributes: &[(&'static str, String)]) -> Vec<Value> {
    let all = attributes.iter();
    all.map(|(key, value)| text(key, value)).collect()
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn whole(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn double(key: &str, value: f64) -> Value {
    json!({ "key": key, "value": { "doubleValue": value } })
}

use std::fs;

use axum::Router;
use axum::http::{HeaderMap as Headers, StatusCode as Status};
use axum::routing::post;
use serde::Deserialize;
use tokio::net::TcpListener;
use types::{RequestId, SandboxId, UserId};

use super::*;
use crate::http::metrics::Ended;

/// The messages as the protocol defines them: a key that is not there, or of another type, is
/// an error.
mod strict {
    use super::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct MetricsRequest {
        pub(super) resource_metrics: Vec<ResourceMetrics>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct ResourceMetrics {
        pub(super) resource: Resource,
        pub(super) scope_metrics: Vec<ScopeMetrics>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Resource {
        pub(super) attributes: Vec<Attribute>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Attribute {
        pub(super) key: String,
        pub(super) value: AnyValue,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) enum AnyValue {
        #[serde(rename = "stringValue")]
        Text(String),
        #[serde(rename = "intValue")]
        Whole(String),
        #[serde(rename = "doubleValue")]
        Double(f64),
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Scope {
        pub(super) name: String,
        pub(super) version: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct ScopeMetrics {
        pub(super) scope: Scope,
        pub(super) metrics: Vec<Metric>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Metric {
        pub(super) name: String,
        #[serde(rename = "description")]
        pub(super) _description: String,
        pub(super) unit: String,
        pub(super) histogram: Option<Histogram>,
        pub(super) sum: Option<Sum>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Histogram {
        pub(super) aggregation_temporality: u8,
        pub(super) data_points: Vec<HistogramPoint>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct HistogramPoint {
        pub(super) attributes: Vec<Attribute>,
        pub(super) start_time_unix_nano: String,
        pub(super) time_unix_nano: String,
        pub(super) count: String,
        pub(super) sum: f64,
        pub(super) bucket_counts: Vec<String>,
        pub(super) explicit_bounds: Vec<f64>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Sum {
        pub(super) aggregation_temporality: u8,
        pub(super) is_monotonic: bool,
        pub(super) data_points: Vec<NumberPoint>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct NumberPoint {
        #[serde(rename = "attributes")]
        pub(super) _attributes: Vec<Attribute>,
        #[serde(rename = "startTimeUnixNano")]
        pub(super) _start: String,
        #[serde(rename = "timeUnixNano")]
        pub(super) _time: String,
        pub(super) as_double: f64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct TracesRequest {
        pub(super) resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct ResourceSpans {
        pub(super) resource: Resource,
        pub(super) scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct ScopeSpans {
        pub(super) scope: Scope,
        pub(super) spans: Vec<Span>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Span {
        pub(super) trace_id: String,
        pub(super) span_id: String,
        pub(super) name: String,
        pub(super) kind: u8,
        pub(super) start_time_unix_nano: String,
        pub(super) end_time_unix_nano: String,
        pub(super) attributes: Vec<Attribute>,
        pub(super) status: SpanStatus,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct SpanStatus {
        pub(super) code: Option<u8>,
    }

    pub(super) fn value<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a AnyValue> {
        let found = attributes.iter().find(|attribute| attribute.key == key);
        found.map(|attribute| &attribute.value)
    }
}

use strict::{AnyValue, value};

/// A collector: tells the path, headers and body of what it gets.
async fn collector(
    status: u16,
) -> (
    Url,
    mpsc::UnboundedReceiver<(&'static str, Headers, String)>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/base", listener.local_addr().unwrap());
    let (tell, told) = mpsc::unbounded_channel();
    let route = |path: &'static str| {
        let tell = tell.clone();
        post(move |headers: Headers, body: String| async move {
            tell.send((path, headers, body)).unwrap();
            (Status::from_u16(status).unwrap(), "{}")
        })
    };
    let router = Router::new()
        .route("/base/v1/metrics", route("metrics"))
        .route("/base/v1/traces", route("traces"));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url.parse().unwrap(), told)
}

fn config(endpoint: Url) -> Otlp {
    Otlp {
        endpoint,
        headers_file: None,
        ca_file: None,
        interval: Duration::from_secs(3600),
        timeout: Duration::from_secs(10),
    }
}

fn ended(request: RequestId) -> Ended<'static> {
    Ended {
        provider: "acme",
        model: "large",
        operation: "chat",
        request,
        sandbox: SandboxId::generate(),
        user: UserId::generate(),
        status: 200,
        outcome: "complete",
        input: 12,
        output: 300,
        cached: 5,
        cost: 2_500_000,
        took: Duration::from_millis(1500),
        first_byte: Some(Duration::from_millis(200)),
        at: 1_800_000_000_000,
    }
}

#[tokio::test]
async fn a_collector_gets_metrics_and_a_span_of_each_call_at_the_latest_at_the_end() {
    let (endpoint, mut told) = collector(200).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headers");
    fs::write(
        &file,
        "# the tenant\nauthorization: Bearer of-the-collector\n",
    )
    .unwrap();
    let metrics = Arc::new(Metrics::new());
    let clock = Clock::fixed(1_799_999_000_000);
    let config = Otlp {
        headers_file: Some(file),
        ..config(endpoint)
    };
    let exporter = start(config, Arc::clone(&metrics), clock.clone()).unwrap();
    let (well, badly) = (RequestId::generate(), RequestId::generate());
    metrics.models().call(&ended(well));
    metrics.models().call(&Ended {
        status: 429,
        input: 0,
        output: 0,
        cost: 0,
        ..ended(badly)
    });
    clock.advance(Duration::from_secs(1000));
    exporter.finish().await;

    let (path, headers, body) = told.recv().await.unwrap();
    assert_eq!(path, "traces");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["authorization"], "Bearer of-the-collector");
    let traces: strict::TracesRequest = serde_json::from_str(&body).unwrap();
    let resource = &traces.resource_spans[0].resource.attributes;
    let name = AnyValue::Text("choir-hypervisor".to_owned());
    assert_eq!(value(resource, "service.name"), Some(&name));
    let scope = &traces.resource_spans[0].scope_spans[0];
    assert_eq!(scope.scope.name, "choir.gateway");
    assert_eq!(scope.scope.version, env!("CARGO_PKG_VERSION"));
    let [first, second] = scope.spans.as_slice() else {
        panic!("{body}");
    };
    assert_eq!(first.trace_id, well.as_uuid().simple().to_string());
    assert_eq!((first.trace_id.len(), first.span_id.len()), (32, 16));
    assert!(first.span_id.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_ne!(first.span_id, second.span_id);
    assert_eq!((first.name.as_str(), first.kind), ("chat large", 3));
    assert_eq!(first.start_time_unix_nano, "1799999998500000000");
    assert_eq!(first.end_time_unix_nano, "1800000000000000000");
    assert_eq!((first.status.code, second.status.code), (None, Some(2)));
    let of = |key| value(&first.attributes, key).cloned();
    let text = |text: &str| Some(AnyValue::Text(text.to_owned()));
    let whole = |text: &str| Some(AnyValue::Whole(text.to_owned()));
    assert_eq!(of("gen_ai.operation.name"), text("chat"));
    assert_eq!(of("gen_ai.provider.name"), text("acme"));
    assert_eq!(of("gen_ai.request.model"), text("large"));
    assert_eq!(of("gen_ai.usage.input_tokens"), whole("12"));
    assert_eq!(of("gen_ai.usage.output_tokens"), whole("300"));
    assert_eq!(of("http.response.status_code"), whole("200"));
    assert_eq!(of("choir.cost_usd"), Some(AnyValue::Double(0.0025)));
    assert_eq!(of("error.type"), None);
    assert_eq!(
        value(&second.attributes, "error.type").cloned(),
        text("429")
    );

    let (path, _, body) = told.recv().await.unwrap();
    assert_eq!(path, "metrics");
    let told: strict::MetricsRequest = serde_json::from_str(&body).unwrap();
    let scopes = &told.resource_metrics[0];
    assert!(value(&scopes.resource.attributes, "service.instance.id").is_some());
    let scope = &scopes.scope_metrics[0];
    assert_eq!(scope.scope.name, "choir.gateway");
    let named: Vec<(&str, &str)> = scope
        .metrics
        .iter()
        .map(|metric| (metric.name.as_str(), metric.unit.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("gen_ai.client.operation.duration", "s"),
            ("gen_ai.client.token.usage", "{token}"),
            ("gen_ai.server.time_to_first_token", "s"),
            ("choir.gen_ai_cost_usd", "USD"),
            ("choir.gen_ai_cached_input_tokens", "{token}"),
        ]
    );
    let durations = scope.metrics[0].histogram.as_ref().unwrap();
    assert_eq!(durations.aggregation_temporality, 2, "cumulative");
    let [good, bad] = durations.data_points.as_slice() else {
        panic!("{body}");
    };
    assert_eq!(good.start_time_unix_nano, "1799999000000000000");
    assert_eq!(good.time_unix_nano, "1800000000000000000");
    assert_eq!(good.count, "1");
    assert!((good.sum - 1.5).abs() < 1e-9);
    assert_eq!(good.bucket_counts.len(), good.explicit_bounds.len() + 1);
    let counted: u64 = good
        .bucket_counts
        .iter()
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 1);
    assert_eq!(value(&good.attributes, "error.type"), None);
    assert_eq!(value(&bad.attributes, "error.type").cloned(), text("429"));
    let cost = scope.metrics[3].sum.as_ref().unwrap();
    assert!(cost.is_monotonic && cost.aggregation_temporality == 2);
    assert!((cost.data_points[0].as_double - 0.0025).abs() < 1e-9);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_the_spans_that_do_not_fit_and_nothing_else() {
    // A port at which nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let metrics = Arc::new(Metrics::new());
    let config = config(endpoint.parse().unwrap());
    let exporter = start(config, Arc::clone(&metrics), Clock::fixed(0)).unwrap();
    let calls = (QUEUE + 2 * BATCH) as u64;
    for _ in 0..calls {
        // Not async: it cannot wait for anything.
        metrics.models().call(&ended(RequestId::generate()));
    }
    let lost = metrics.models().lost();
    assert_eq!(lost, calls - QUEUE as u64, "the queue has a bound");
    let text = metrics.text();
    assert!(text.contains(&format!("choir_otlp_lost_spans_total {lost}")));
    let [durations, ..] = metrics.models().histograms();
    assert_eq!(durations.points[0].snapshot.count(), calls);
    exporter.finish().await;
}

#[tokio::test]
async fn a_collector_that_says_nothing_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let config = Otlp {
        timeout: Duration::from_secs(600),
        ..config(endpoint.parse().unwrap())
    };
    let metrics = Arc::new(Metrics::new());
    let exporter = start(config, Arc::clone(&metrics), Clock::fixed(0)).unwrap();
    metrics.models().call(&ended(RequestId::generate()));
    let began = std::time::Instant::now();
    exporter.finish().await;
    assert!(began.elapsed() < FINISH_WITHIN * 3);
    drop(listener);
}

#[tokio::test]
async fn what_a_collector_refuses_is_counted_as_lost() {
    let (endpoint, mut told) = collector(400).await;
    let metrics = Arc::new(Metrics::new());
    let exporter = start(config(endpoint), Arc::clone(&metrics), Clock::fixed(0)).unwrap();
    metrics.models().call(&ended(RequestId::generate()));
    exporter.finish().await;
    assert_eq!(told.recv().await.unwrap().0, "traces");
    assert_eq!(metrics.models().lost(), 1);
    assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"7"}}"#), 7);
    assert_eq!(rejected(b"{}"), 0);
}

#[test]
fn a_file_of_headers_is_refused_by_its_line_and_not_by_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headers");
    fs::write(&file, "api-key: one\nsecret-without-a-name\n").unwrap();
    let text = headers(Some(&file)).unwrap_err().to_string();
    assert!(
        text.contains("headers_file") && text.contains("line 2"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    fs::write(&file, "api-key: one\n".repeat(2000)).unwrap();
    let text = headers(Some(&file)).unwrap_err().to_string();
    assert!(text.contains("longer than 16 KiB"), "{text}");
}

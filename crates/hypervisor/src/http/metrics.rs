//! Prometheus metrics, on a listener of their own. No label holds anything that a caller
//! chose: every label has a handful of values, so the series are bounded.

mod buckets;
mod egress;
mod models;
mod provider_calls;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use types::{NoticeKind, Role, SandboxState};

use super::failures::Failures;
use crate::app::App;
pub(crate) use egress::EgressGuard;
use egress::EgressMetrics;
pub(crate) use models::{Ended, ModelMetrics, Named, Point, Span, Sum, operation};
use provider_calls::ProviderCalls;

/// Scrapers at the same time.
const MAX_CONNECTIONS: usize = 16;

/// How long a scraper may take for its request head.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// From what a proxied request costs to what a model takes to answer, in seconds.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    owner: &'static str,
    role: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OwnerLabels {
    owner: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CopyLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// `who` is `guest` or `command`; `call` is a name from the seccomp profiles, or `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    who: &'static str,
    call: &'static str,
}

#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<OwnerLabels, Histogram, Seconds>,
    sandboxes: Family<StateLabels, Gauge<i64>>,
    websockets: Gauge<i64>,
    starts: Family<OutcomeLabels, Counter>,
    start_seconds: Histogram,
    swaps: Family<OutcomeLabels, Counter>,
    rollbacks: Family<OutcomeLabels, Counter>,
    copies: Family<CopyLabels, Counter>,
    copy_seconds: Histogram,
    commands: Counter,
    provider_calls: ProviderCalls,
    provider_seconds: Histogram,
    models: ModelMetrics,
    refusals: Family<ReasonLabels, Counter>,
    notices: Family<KindLabels, Counter>,
    denied_calls: Family<CallLabels, Counter>,
    egress: EgressMetrics,
    idle_stops: Counter,
    unrecorded: Counter,
    uptime: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All of them at zero.
    #[must_use]
    pub fn new() -> Self {
        // Those of a convention that others share do not bear our name.
        let mut root = Registry::default();
        let models = ModelMetrics::default();
        models.register(&mut root);
        let registry = root.sub_registry_with_prefix("choir");
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<OwnerLabels, Histogram, Seconds>::new_with_constructor(Seconds);
        let sandboxes = Family::<StateLabels, Gauge<i64>>::default();
        let websockets = Gauge::<i64>::default();
        let starts = Family::<OutcomeLabels, Counter>::default();
        let start_seconds = Histogram::new(BUCKETS);
        let swaps = Family::<OutcomeLabels, Counter>::default();
        let rollbacks = Family::<OutcomeLabels, Counter>::default();
        let copies = Family::<CopyLabels, Counter>::default();
        let copy_seconds = Histogram::new(BUCKETS);
        let commands = Counter::default();
        let provider_seconds = Histogram::new(BUCKETS);
        let refusals = Family::<ReasonLabels, Counter>::default();
        let notices = Family::<KindLabels, Counter>::default();
        let denied_calls = Family::<CallLabels, Counter>::default();
        let idle_stops = Counter::default();
        let unrecorded = Counter::default();
        let uptime = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "sandbox_idle_stops",
            "Sandboxes stopped because nobody used them",
            idle_stops.clone(),
        );
        registry.register(
            "provider_calls_unrecorded",
            "Model calls that the database refused to record",
            unrecorded.clone(),
        );
        registry.register(
            "requests",
            "Requests by route owner, role and status class",
            requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time to the response head",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register("sandboxes", "Sandboxes by state", sandboxes.clone());
        registry.register(
            "websockets_open",
            "WebSockets open through the proxy",
            websockets.clone(),
        );
        registry.register(
            "sandbox_starts",
            "Sandbox starts by outcome",
            starts.clone(),
        );
        registry.register_with_unit(
            "sandbox_start",
            "Time from start to health",
            Unit::Seconds,
            start_seconds.clone(),
        );
        registry.register("swaps", "Swaps by outcome", swaps.clone());
        registry.register(
            "swap_rollbacks",
            "Swaps whose new live failed, by whether they could be taken back",
            rollbacks.clone(),
        );
        registry.register(
            "copies",
            "Snapshots, restores and clones by outcome",
            copies.clone(),
        );
        registry.register_with_unit(
            "copy",
            "Time that a snapshot, restore or clone took",
            Unit::Seconds,
            copy_seconds.clone(),
        );
        registry.register("commands", "Commands started", commands.clone());
        let provider_calls = ProviderCalls::register(registry);
        registry.register_with_unit(
            "provider_call",
            "Time to a provider's response head",
            Unit::Seconds,
            provider_seconds.clone(),
        );
        models.register_ours(registry);
        registry.register(
            "channel_refusals",
            "Refused requests on channels by reason",
            refusals.clone(),
        );
        registry.register(
            "sandbox_notices",
            "What users were told about their sandboxes by kind",
            notices.clone(),
        );
        registry.register(
            "syscalls_denied",
            "System calls that the seccomp profiles refused by who made them and name",
            denied_calls.clone(),
        );
        let egress = EgressMetrics::register(registry);
        registry.register_with_unit(
            "uptime",
            "Time since the process started to serve",
            Unit::Seconds,
            uptime.clone(),
        );
        Self {
            registry: root,
            requests,
            durations,
            sandboxes,
            websockets,
            starts,
            start_seconds,
            swaps,
            rollbacks,
            copies,
            copy_seconds,
            commands,
            provider_calls,
            provider_seconds,
            models,
            refusals,
            egress,
            notices,
            denied_calls,
            idle_stops,
            unrecorded,
            uptime,
        }
    }

    /// Counts a request of the public listener.
    pub fn request(
        &self,
        owner: &'static str,
        role: Option<Role>,
        status: StatusCode,
        took: Duration,
    ) {
        let role = role.map_or("none", Role::as_str);
        self.requests
            .get_or_create(&RequestLabels {
                owner,
                role,
                status: class(status),
            })
            .inc();
        self.durations
            .get_or_create(&OwnerLabels { owner })
            .observe(took.as_secs_f64());
    }

    /// Counts a start of a sandbox.
    pub fn start(&self, ok: bool, took: Duration) {
        self.starts
            .get_or_create(&OutcomeLabels {
                outcome: outcome(ok),
            })
            .inc();
        if ok {
            self.start_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a swap.
    pub fn swap(&self, ok: bool) {
        self.swaps
            .get_or_create(&OutcomeLabels {
                outcome: outcome(ok),
            })
            .inc();
    }

    /// Counts a swap whose new `live` failed; `ok`: it was taken back.
    pub fn rollback(&self, ok: bool) {
        self.rollbacks
            .get_or_create(&OutcomeLabels {
                outcome: outcome(ok),
            })
            .inc();
    }

    /// Counts a sandbox that was stopped because nobody used it.
    pub fn idle_stop(&self) {
        self.idle_stops.inc();
    }

    /// Counts a model call that is missing from the usage table.
    pub fn call_unrecorded(&self) {
        self.unrecorded.inc();
    }

    /// Counts a snapshot, restore or clone.
    pub fn copy(&self, kind: types::CopyKind, ok: bool, took: Duration) {
        self.copies
            .get_or_create(&CopyLabels {
                kind: kind.as_str(),
                outcome: outcome(ok),
            })
            .inc();
        if ok {
            self.copy_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a command that was started.
    pub fn command(&self) {
        self.commands.inc();
    }

    /// Counts a call that a provider took, by the one that answered. `first_byte`: until its
    /// reply began.
    pub fn provider_call(&self, provider: &str, status: u16, first_byte: Option<Duration>) {
        self.provider_calls
            .count(provider, StatusCode::from_u16(status).ok());
        if let Some(first_byte) = first_byte {
            self.provider_seconds.observe(first_byte.as_secs_f64());
        }
    }

    /// Counts a call that no provider was asked for.
    pub fn provider_refusal(&self, provider: &str, status: StatusCode) {
        self.provider_calls.count(provider, Some(status));
    }

    /// Those of model calls.
    pub(crate) const fn models(&self) -> &ModelMetrics {
        &self.models
    }

    /// Counts a refused request on a channel.
    pub fn channel_refusal(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts things that users are told about their sandboxes.
    pub fn notices(&self, kind: NoticeKind, times: u64) {
        let kind = kind.as_str();
        self.notices
            .get_or_create(&KindLabels { kind })
            .inc_by(times);
    }

    /// Counts refused system calls. `call` must be a name that the profiles have.
    pub fn denied_calls(&self, who: &'static str, call: &'static str, times: u64) {
        self.denied_calls
            .get_or_create(&CallLabels { who, call })
            .inc_by(times);
    }

    /// Sets what is measured at the moment of a scrape.
    pub fn observe(
        &self,
        websockets: usize,
        count: impl Fn(SandboxState) -> usize,
        uptime: Duration,
    ) {
        self.websockets
            .set(i64::try_from(websockets).unwrap_or(i64::MAX));
        self.uptime.set(uptime.as_secs_f64());
        for state in [
            SandboxState::Stopped,
            SandboxState::Starting,
            SandboxState::Running,
            SandboxState::Stopping,
            SandboxState::Failed,
        ] {
            let labels = StateLabels {
                state: state.as_str(),
            };
            self.sandboxes
                .get_or_create(&labels)
                .set(i64::try_from(count(state)).unwrap_or(i64::MAX));
        }
    }

    /// The text that a scraper reads (OpenMetrics 1.0).
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

/// Begins to serve the metrics listener, if there is one in the configuration.
///
/// # Errors
/// Its address is taken or not ours.
pub async fn begin(app: &Arc<App>) -> std::io::Result<()> {
    let Some(address) = app.config.listen.metrics_address else {
        return Ok(());
    };
    let listener = TcpListener::bind(address).await?;
    let refreshed = Arc::clone(app);
    let refresh = Arc::new(move || refreshed.sandboxes.observe());
    tokio::spawn(serve(
        listener,
        Arc::clone(&app.metrics),
        refresh,
        app.draining.clone(),
    ));
    Ok(())
}

/// Serves `GET /metrics` until `ended`. `refresh` is called before each scrape.
async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    refresh: Arc<dyn Fn() + Send + Sync>,
    ended: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failures = Failures::of("metrics");
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = ended.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                failures.wait_after(&error).await;
                continue;
            }
        };
        let (metrics, refresh, ended) = (Arc::clone(&metrics), Arc::clone(&refresh), ended.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(&request, &metrics, refresh.as_ref());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = ended.cancelled() => {}
                _ = connection => {}
            }
            drop(slot);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    refresh: &dyn Fn(),
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        let mut response = Response::new(Full::from("see /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    refresh();
    let mut response = Response::new(Full::from(metrics.text()));
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::Metrics;
    use http::StatusCode;
    use std::time::Duration;
    use types::{Role, SandboxState};

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new();
        metrics.request(
            "sandbox",
            Some(Role::Dev),
            StatusCode::OK,
            Duration::from_millis(3),
        );
        metrics.channel_refusal("foreign");
        metrics.provider_call("acme", 200, Some(Duration::from_millis(3)));
        metrics.provider_call("acme", 204, None);
        metrics.provider_call("acme", 0, None);
        metrics.provider_refusal("-", StatusCode::NOT_FOUND);
        metrics.observe(
            2,
            |state| usize::from(state == SandboxState::Running),
            Duration::from_secs(5),
        );
        let text = metrics.text();
        for line in [
            "choir_requests_total{owner=\"sandbox\",role=\"dev\",status=\"2xx\"} 1",
            "choir_channel_refusals_total{reason=\"foreign\"} 1",
            "choir_sandboxes{state=\"running\"} 1",
            "choir_websockets_open 2",
            "choir_provider_calls_total{provider=\"acme\",status=\"2xx\"} 2",
            "choir_provider_calls_total{provider=\"acme\",status=\"none\"} 1",
            "choir_provider_calls_total{provider=\"-\",status=\"4xx\"} 1",
            "choir_provider_call_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}

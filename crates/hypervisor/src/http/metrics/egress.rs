//! What goes out through the egress proxy, in numbers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

/// The metrics of the egress proxy.
#[derive(Debug, Clone)]
pub(super) struct EgressMetrics {
    requests: Family<ResultLabels, Counter>,
    ended: Family<EndLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    open: Gauge<i64>,
}

/// A connection in the gauge of open ones, until it is dropped.
#[derive(Debug)]
pub(crate) struct EgressGuard(Gauge<i64>);

impl Drop for EgressGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl EgressMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let made = Self {
            requests: Family::default(),
            ended: Family::default(),
            bytes: Family::default(),
            open: Gauge::default(),
        };
        registry.register(
            "egress_requests",
            "Connections asked for by commands, by what became of them",
            made.requests.clone(),
        );
        registry.register(
            "egress_ended",
            "Egress connections that are over, by how they ended",
            made.ended.clone(),
        );
        registry.register(
            "egress_bytes",
            "Bytes through the egress proxy by direction",
            made.bytes.clone(),
        );
        registry.register(
            "egress_open",
            "Egress connections that are open",
            made.open.clone(),
        );
        made
    }
}

impl Metrics {
    /// Counts a connection that a command asked for; the results are a handful.
    pub(crate) fn egress(&self, result: &'static str) {
        self.egress
            .requests
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    /// Counts a connection that is over, and what went through it.
    pub(crate) fn egress_ended(&self, end: &'static str, sent: u64, received: u64) {
        self.egress.ended.get_or_create(&EndLabels { end }).inc();
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            self.egress
                .bytes
                .get_or_create(&DirectionLabels { direction })
                .inc_by(bytes);
        }
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn egress_open(&self) -> EgressGuard {
        self.egress.open.inc();
        EgressGuard(self.egress.open.clone())
    }
}

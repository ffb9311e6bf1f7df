//! Metrics of model calls, named after the OpenTelemetry conventions for generative AI.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::config::NANO_DOLLARS;

/// Provider and model are names of the configuration, never of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    gen_ai_token_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    outcome: &'static str,
}

/// What model calls took.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    tokens: Family<TokenLabels, Counter>,
    calls: Family<CallLabels, Counter>,
    cost: Counter<f64, AtomicU64>,
}

impl ModelMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let tokens = Family::<TokenLabels, Counter>::default();
        let calls = Family::<CallLabels, Counter>::default();
        let cost = Counter::<f64, AtomicU64>::default();
        registry.register(
            "gen_ai_client_token_usage",
            "Tokens of model calls",
            tokens.clone(),
        );
        registry.register(
            "gen_ai_client_operations",
            "Model calls by how they ended",
            calls.clone(),
        );
        registry.register(
            "gen_ai_cost_usd",
            "What model calls cost by the configured prices, in US dollars",
            cost.clone(),
        );
        Self {
            tokens,
            calls,
            cost,
        }
    }

    /// Counts a model call at its end: tokens read, written and read from a cache, and
    /// billionths of a US dollar.
    pub(crate) fn call(
        &self,
        provider: &str,
        model: &str,
        (input, output, cached): (u64, u64, u64),
        outcome: &'static str,
        cost: i64,
    ) {
        for (kind, tokens) in [
            ("input", input),
            ("output", output),
            ("cached_input", cached),
        ] {
            let labels = TokenLabels {
                gen_ai_provider_name: provider.to_owned(),
                gen_ai_request_model: model.to_owned(),
                gen_ai_token_type: kind,
            };
            self.tokens.get_or_create(&labels).inc_by(tokens);
        }
        let labels = CallLabels {
            gen_ai_provider_name: provider.to_owned(),
            gen_ai_request_model: model.to_owned(),
            outcome,
        };
        self.calls.get_or_create(&labels).inc();
        #[expect(clippy::cast_precision_loss, reason = "a metric, not a bill")]
        let dollars = cost.max(0) as f64 / NANO_DOLLARS;
        self.cost.inc_by(dollars);
    }
}

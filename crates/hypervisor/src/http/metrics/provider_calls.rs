//! Calls by the provider that answered and the class of its status.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Every status has one of these; the last is for calls that had none.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// The provider's name comes from the configuration, never from a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    provider: String,
    status: &'static str,
}

/// Counters that are found without making a string.
#[derive(Debug, Default)]
pub(super) struct ProviderCalls {
    family: Family<Labels, Counter>,
    known: RwLock<HashMap<String, [Counter; CLASSES.len()]>>,
}

impl ProviderCalls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let calls = Self::default();
        registry.register(
            "provider_calls",
            "Model calls by the provider that answered, and status class",
            calls.family.clone(),
        );
        calls
    }

    /// Counts a call; `None` for one that ended before a status was there.
    pub(super) fn count(&self, provider: &str, status: Option<StatusCode>) {
        let class = status.map_or("none", super::class);
        let at = CLASSES.iter().position(|known| *known == class);
        let count = |counters: &[Counter; CLASSES.len()]| {
            if let Some(counter) = at.and_then(|at| counters.get(at)) {
                counter.inc();
            }
        };
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(counters) = known.get(provider) {
                return count(counters);
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let counters = known.entry(provider.to_owned()).or_insert_with(|| {
            CLASSES.map(|status| {
                self.family.get_or_create_owned(&Labels {
                    provider: provider.to_owned(),
                    status,
                })
            })
        });
        count(counters);
    }
}

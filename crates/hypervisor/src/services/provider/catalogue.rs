//! The providers of one configuration: who offers which model, and where.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::answer::CallError;
use super::limits::{Account, Scope};
use super::listing;
use super::place::Place;
use super::register::Register;
use super::retries::RetryBudget;
use super::{Called, ProvidersError};
use crate::config::{Config, Price, Provider, ProviderKind};
use crate::error::Error;

/// The providers.
#[derive(Debug)]
pub(super) struct Catalogue {
    entries: Vec<Entry>,
}

/// One provider.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) config: Provider,
    /// Empty: the demo, which is answered in this process.
    pub(super) places: Vec<Place>,
    pub(super) account: Arc<Account>,
    /// What may be sent again.
    pub(super) retries: RetryBudget,
    /// Counts calls, to share them out by weight.
    turn: AtomicU32,
}

/// A provider that may take a call, and the model it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Choice<'a> {
    pub(super) entry: &'a Entry,
    /// By its configured name; absent where a call names none.
    pub(super) model: Option<&'a str>,
}

impl Choice<'_> {
    pub(super) fn price(&self) -> Option<Price> {
        self.model
            .and_then(|model| self.entry.config.prices.get(model))
            .copied()
    }
}

impl Entry {
    /// The places in the order in which they are to be tried: by weight, those that rest last.
    pub(super) fn places_in_turn(&self, now_ms: i64) -> Vec<&Place> {
        let total: u32 = self.places.iter().map(|place| place.weight).sum();
        let mut turn = self.turn.fetch_add(1, Ordering::Relaxed) % total.max(1);
        let first = self
            .places
            .iter()
            .position(|place| match turn.checked_sub(place.weight) {
                None => true,
                Some(left) => {
                    turn = left;
                    false
                }
            })
            .unwrap_or(0);
        let (before, after) = self.places.split_at(first.min(self.places.len()));
        let mut places: Vec<&Place> = after.iter().chain(before).collect();
        places.sort_by_key(|place| !place.is_up(now_ms));
        places
    }
}

impl Catalogue {
    pub(super) fn new(
        config: &Config,
        register: &Register,
        now_ms: i64,
    ) -> Result<Self, ProvidersError> {
        let entries = config
            .providers
            .iter()
            .map(|provider| {
                let places = provider
                    .upstreams
                    .iter()
                    .map(|upstream| {
                        Place::new(provider, upstream, config.gateway.max_request_bytes)
                    })
                    .collect::<Result<_, _>>()?;
                let name = provider.name.clone();
                let held = register.account(Scope::Provider, name, provider.limits, now_ms);
                Ok(Entry {
                    config: provider.clone(),
                    places,
                    account: held.account(),
                    retries: RetryBudget::default(),
                    turn: AtomicU32::new(0),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn refresh_keys(&self) {
        for place in self.entries.iter().flat_map(|entry| &entry.places) {
            place.refresh_key();
        }
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.config.name == name)
    }

    /// The provider's name for metrics: one of the configured ones, or `-`.
    pub(super) fn shown(&self, called: Called<'_>) -> &str {
        match called {
            Called::Provider { name, .. } => self
                .by_name(name)
                .map_or("-", |entry| entry.config.name.as_str()),
            Called::Model { .. } => "-",
        }
    }

    /// Who may take a call, the first to be tried first.
    pub(super) fn choose<'a>(
        &'a self,
        named: Option<&'a Entry>,
        kind: ProviderKind,
        model: Option<&str>,
    ) -> Result<Vec<Choice<'a>>, CallError> {
        let Some(model) = model else {
            let entry = named.or_else(|| self.of_kind(kind).next());
            let entry = entry.ok_or(CallError::Ours(Error::NotFound("provider")))?;
            return Ok(vec![Choice { entry, model: None }]);
        };
        let offers = |entry: &'a Entry| {
            entry.config.resolve(model).map(|model| Choice {
                entry,
                model: Some(model),
            })
        };
        let first = match named {
            Some(entry) => offers(entry),
            None => self.of_kind(kind).find_map(offers),
        };
        let Some(first) = first else {
            let offered: Vec<&str> = named
                .into_iter()
                .chain(self.of_kind(kind).filter(|_| named.is_none()))
                .flat_map(|entry| entry.config.models.iter().map(String::as_str))
                .collect();
            return Err(CallError::Model {
                model: model.to_owned(),
                offered: offered.join(", "),
            });
        };
        let others = first
            .entry
            .config
            .fallback
            .iter()
            .filter_map(|name| self.by_name(name))
            .filter_map(offers);
        let mut choices = vec![first.clone()];
        choices.extend(others);
        Ok(choices)
    }

    /// Providers that speak an API; the demo speaks OpenAI's.
    pub(super) fn of_kind(&self, kind: ProviderKind) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| {
            entry.config.kind == kind
                || (kind == ProviderKind::OpenAi && entry.config.kind == ProviderKind::Demo)
        })
    }

    pub(super) fn listing(&self) -> Value {
        let providers: Vec<_> = self
            .entries
            .iter()
            .map(|Entry { config, .. }| {
                let format = match config.kind {
                    ProviderKind::Demo => ProviderKind::OpenAi,
                    kind => kind,
                };
                json!({
                    "name": config.name,
                    "kind": format.as_str(),
                    "models": config.models,
                    "aliases": config.aliases.keys().collect::<Vec<_>>(),
                    "demo": config.kind == ProviderKind::Demo,
                })
            })
            .collect();
        let default = self.entries.first().map(
            |Entry { config, .. }| json!({"provider": config.name, "model": config.default_model}),
        );
        json!({"providers": providers, "default": default})
    }

    /// The models and aliases that providers of an API offer, in its format.
    fn offered(&self, kind: ProviderKind) -> impl Iterator<Item = Value> {
        self.of_kind(kind)
            .flat_map(|entry| {
                let Provider {
                    name,
                    models,
                    aliases,
                    ..
                } = &entry.config;
                models
                    .iter()
                    .chain(aliases.keys())
                    .map(move |id| (name, id))
            })
            .map(move |(name, id)| listing::one(kind, name, id))
    }

    pub(super) fn model(&self, kind: ProviderKind, name: &str) -> Option<Value> {
        self.offered(kind)
            .find(|model| model.get("id").and_then(Value::as_str) == Some(name))
    }

    pub(super) fn models(&self, kind: ProviderKind) -> Value {
        listing::list(kind, self.offered(kind).collect())
    }
}

//! The provider gateway: model calls with the platform's keys, on channels only.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use gateway::provider as upstream;
use gateway::{Limits, RequestBody};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::actor::{Actor, Via};
use crate::clock::Clock;
use crate::config::{Config, ProviderKind};
use crate::demo;
use crate::error::Error;
use crate::http::metrics::Metrics;

/// Longest model name that a log line repeats.
const MAX_MODEL: usize = 128;

/// Largest key file, in bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

/// Why the providers cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum ProvidersError {
    /// The key file cannot be read.
    #[error("providers.key_file of {provider}: {} cannot be read", path.display())]
    KeyFile {
        /// Whose.
        provider: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key is none.
    #[error("providers.key_file of {provider}: {} holds no usable key", path.display())]
    Key {
        /// Whose.
        provider: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: upstream::ProviderKeyError,
    },
    /// The rest of its section.
    #[error("the provider {provider} cannot be used")]
    Config {
        /// Whose.
        provider: String,
        /// Why.
        #[source]
        source: upstream::ProviderConfigError,
    },
}

/// The configured providers.
pub struct Providers {
    entries: Vec<Entry>,
    listing: Value,
    clock: Clock,
    metrics: Arc<Metrics>,
}

struct Entry {
    name: String,
    /// `None`: the demo, which is answered in this process.
    upstream: Option<upstream::Provider>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries.iter().map(|entry| &entry.name).collect();
        f.debug_struct("Providers")
            .field("names", &names)
            .finish_non_exhaustive()
    }
}

impl Providers {
    /// Reads the key files and prepares the connections; connects to nothing yet.
    ///
    /// # Errors
    /// A key file or a section that cannot be used, by name.
    pub fn new(
        config: &Config,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ProvidersError> {
        let entries = config
            .providers
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            entries,
            listing: listing(config),
            clock,
            metrics,
        })
    }

    /// What `GET /provider/v1` answers.
    pub(crate) fn listing(&self) -> &Value {
        &self.listing
    }

    /// Forwards one call. `rest` is the path below `/provider/v1/{name}/`, as it arrived.
    /// `cancel` ends with the caller's right to call and cuts the exchange at once.
    pub(crate) async fn call(
        &self,
        actor: &Actor,
        name: &str,
        rest: &str,
        request: Request<Body>,
        cancel: &CancellationToken,
    ) -> Response {
        let Some(entry) = self.entries.iter().find(|entry| entry.name == name) else {
            return Error::NotFound("provider").into_response();
        };
        let began = Instant::now();
        let (response, model) = match &entry.upstream {
            None => self.demo(rest, request, cancel).await,
            Some(provider) => forward(provider, rest, request, cancel).await,
        };
        let took = began.elapsed();
        self.metrics
            .provider_call(&entry.name, response.status(), took);
        let (sandbox, command) = match &actor.via {
            Via::Channel {
                sandbox, command, ..
            } => (sandbox.to_string(), command.map(|id| id.to_string())),
            _ => (String::new(), None),
        };
        tracing::info!(
            request_id = %actor.request_id,
            sandbox_id = sandbox,
            command_id = command.as_deref().unwrap_or("-"),
            user_id = actor.user.as_ref().map(|user| user.id.to_string()).unwrap_or_default(),
            provider = entry.name,
            model = model.as_deref().map_or("-", shown_model),
            status = response.status().as_u16(),
            latency_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "provider call"
        );
        response
    }

    async fn demo(
        &self,
        rest: &str,
        request: Request<Body>,
        cancel: &CancellationToken,
    ) -> (Response, Option<String>) {
        let (parts, body) = request.into_parts();
        let collected = tokio::select! {
            () = cancel.cancelled() => return (Error::SandboxNotRunning.into_response(), None),
            collected = Limited::new(body, demo::MAX_REQUEST).collect() => collected,
        };
        let Ok(collected) = collected else {
            let limit = demo::MAX_REQUEST;
            return (
                Error::TooLarge(format!("the demo provider reads at most {limit} bytes"))
                    .into_response(),
                None,
            );
        };
        let body = collected.to_bytes();
        let model = serde_json::from_slice::<ModelOnly>(&body)
            .ok()
            .and_then(|request| request.model);
        let now = self.clock.now_ms() / 1000;
        (demo::respond(&parts.method, rest, &body, now), model)
    }
}

#[derive(Deserialize)]
struct ModelOnly {
    model: Option<String>,
}

/// A model's name comes from the sandbox: cut, and nothing that could break a log line.
fn shown_model(model: &str) -> &str {
    let plain = model.bytes().all(|b| b.is_ascii_graphic());
    if plain && model.len() <= MAX_MODEL {
        model
    } else {
        "(unprintable)"
    }
}

async fn forward(
    provider: &upstream::Provider,
    rest: &str,
    request: Request<Body>,
    cancel: &CancellationToken,
) -> (Response, Option<String>) {
    match provider
        .send(request.map(RequestBody::new), rest, cancel)
        .await
    {
        Ok(reply) => (reply.response.map(Body::new).into_response(), reply.model),
        Err(error) => (refusal(&error).into_response(), None),
    }
}

fn refusal(error: &gateway::ForwardError) -> Error {
    match error.status() {
        StatusCode::GATEWAY_TIMEOUT => Error::GatewayTimeout(format!("the provider: {error}")),
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge(error.to_string()),
        StatusCode::SERVICE_UNAVAILABLE => Error::Unavailable(error.to_string()),
        status if status.is_client_error() => Error::bad_request(error.to_string()),
        _ => Error::BadGateway(format!("the provider: {error}")),
    }
}

fn entry(provider: &crate::config::Provider) -> Result<Entry, ProvidersError> {
    let name = provider.name.clone();
    let kind = match provider.kind {
        ProviderKind::Demo => {
            return Ok(Entry {
                name,
                upstream: None,
            });
        }
        ProviderKind::OpenAi => upstream::ProviderKind::OpenAi,
        ProviderKind::Anthropic => upstream::ProviderKind::Anthropic,
    };
    let key = provider
        .key_file
        .as_ref()
        .map(|path| read_key(&name, path))
        .transpose()?;
    let config = upstream::ProviderConfig {
        name: name.clone(),
        kind,
        base_url: provider
            .base_url
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        key,
        roots: upstream::TrustRoots::WebPki,
        limits: Limits::provider(),
    };
    let upstream = upstream::Provider::new(config).map_err(|source| ProvidersError::Config {
        provider: name.clone(),
        source,
    })?;
    Ok(Entry {
        name,
        upstream: Some(upstream),
    })
}

fn read_key(
    provider: &str,
    path: &std::path::Path,
) -> Result<upstream::ProviderKey, ProvidersError> {
    let unreadable = |source| ProvidersError::KeyFile {
        provider: provider.to_owned(),
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_KEY_FILE {
        return Err(unreadable(std::io::Error::other(
            "it is too large for a key",
        )));
    }
    let text = crypto::SecretText::new(std::fs::read_to_string(path).map_err(unreadable)?);
    upstream::ProviderKey::new(text.expose()).map_err(|source| ProvidersError::Key {
        provider: provider.to_owned(),
        path: path.to_owned(),
        source,
    })
}

fn listing(config: &Config) -> Value {
    let providers: Vec<_> = config
        .providers
        .iter()
        .map(|provider| {
            json!({
                "name": provider.name,
                "kind": if provider.kind == ProviderKind::Anthropic { "anthropic" } else { "openai" },
                "models": provider.models,
                "demo": provider.kind == ProviderKind::Demo,
            })
        })
        .collect();
    let default = config
        .default_provider()
        .map(|provider| json!({"provider": provider.name, "model": provider.default_model}));
    json!({"providers": providers, "default": default})
}

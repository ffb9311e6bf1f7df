//! The provider gateway: model calls with the platform's keys, on channels only (arch §1).
//!
//! Every call takes one way: path table, whole request, model, limits, provider, reply,
//! record. There is no other, and so none that skips a check.

mod answer;
mod bill;
mod catalogue;
mod check;
mod hold;
pub(crate) mod limits;
mod listing;
mod paths;
mod place;
mod register;
mod retries;
mod send;
mod spending;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use gateway::provider as upstream;
use gateway::provider::{Form, Shape, ShapeError};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{CommandId, RequestId, SandboxId, UserId};

use crate::clock::Clock;
use crate::config::{Config, ProviderKind, Rates};
use crate::error::Error;
use crate::http::metrics::{self, Metrics};
use crate::store::Store;
use answer::CallError;
pub(crate) use answer::error_member;
use bill::{Bill, Who};
use catalogue::{Catalogue, Choice, Entry};
use hold::{Room, Share};
use limits::{Admission, Amount, Limited, Scope};
use paths::{Names, Tables};
use register::Register;
use usage::UsageLog;

/// How often key files are looked at.
const KEYS_EVERY: Duration = Duration::from_secs(1);

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

/// Who calls: the accounts and names that its channel stands for.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) sandbox: SandboxId,
    pub(crate) user: UserId,
    pub(crate) command: Option<CommandId>,
    accounts: Accounts,
    share: Share,
}

/// The accounts of one channel's calls, looked up once for it.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    sandbox: Arc<register::Held>,
    user: Arc<register::Held>,
}

impl Caller {
    /// Admits a call that is expected to take `amount`, to the bounds of sandbox and user.
    pub(crate) fn admit(&self, amount: Amount, now_ms: i64) -> Result<Vec<Admission>, Limited> {
        // And room for the provider's.
        let mut admissions = Vec::with_capacity(3);
        for account in [&self.accounts.sandbox, &self.accounts.user] {
            admissions.push(account.account().admit(amount, now_ms)?);
        }
        Ok(admissions)
    }
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Called<'a> {
    /// `/provider/v1/{name}/{rest}`
    Provider {
        /// As it stands in the path.
        name: &'a str,
        /// Still percent-encoded.
        rest: &'a str,
    },
    /// One of the paths that stock clients use, served by whoever offers the model.
    Model {
        /// Whose API it is.
        kind: ProviderKind,
        /// The path below a base URL of that kind.
        rest: &'a str,
    },
}

/// The bounds of each sandbox and of each user.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    sandbox: Rates,
    user: Rates,
}

/// The configured providers.
pub struct Providers {
    catalogue: Arc<RwLock<Arc<Catalogue>>>,
    register: Register,
    /// Locked for one look-up when a channel makes its first call, and by a reload.
    rates: RwLock<Bounds>,
    room: Room,
    usage: UsageLog,
    clock: Clock,
    metrics: Arc<Metrics>,
    _keys: DropGuard,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Providers").finish_non_exhaustive()
    }
}

impl Providers {
    /// Reads key files and what was spent, and prepares the connections; connects to nothing
    /// yet.
    ///
    /// # Errors
    /// A key file or a section that cannot be used, by name; the database failed.
    pub async fn open(
        config: &Config,
        store: &Store,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let now = clock.now_ms();
        let register = Register::read(store, now).await?;
        let catalogue = Catalogue::new(config, &register, now).map_err(Error::internal)?;
        let ended = CancellationToken::new();
        let gateway = &config.gateway;
        let counted = Arc::clone(&metrics);
        let usage = UsageLog::begin(
            store.clone(),
            clock.clone(),
            gateway.usage_kept,
            move || {
                counted.call_unrecorded();
            },
        );
        let providers = Self {
            catalogue: Arc::new(RwLock::new(Arc::new(catalogue))),
            register,
            rates: RwLock::new(Bounds {
                sandbox: gateway.sandbox,
                user: gateway.user,
            }),
            room: Room::new(
                gateway.max_held_bytes,
                gateway.sandbox_held_bytes,
                gateway.max_request_bytes,
            ),
            usage,
            clock,
            metrics,
            _keys: ended.clone().drop_guard(),
        };
        providers.watch_keys(ended);
        Ok(providers)
    }

    /// Looks at the key files again and again, so that a key is exchanged without a restart.
    fn watch_keys(&self, ended: CancellationToken) {
        let catalogue = Arc::clone(&self.catalogue);
        tokio::spawn(async move {
            let mut again = tokio::time::interval(KEYS_EVERY);
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    _ = again.tick() => {}
                }
                let catalogue = current(&catalogue);
                // An error means that the runtime ends.
                let _ = tokio::task::spawn_blocking(move || catalogue.refresh_keys()).await;
            }
        });
    }

    /// Takes the providers and the bounds of another configuration for the calls to come.
    /// Those under way end with what they began with; what was used so far still counts.
    ///
    /// # Errors
    /// A key file or a section that cannot be used; nothing has changed then.
    pub fn reload(&self, config: &Config) -> Result<(), ProvidersError> {
        let now = self.clock.now_ms();
        let next = Catalogue::new(config, &self.register, now)?;
        let gateway = &config.gateway;
        let mut rates = self.rates.write().unwrap_or_else(PoisonError::into_inner);
        *rates = Bounds {
            sandbox: gateway.sandbox,
            user: gateway.user,
        };
        self.register.bound(Scope::Sandbox, rates.sandbox, now);
        self.register.bound(Scope::User, rates.user, now);
        drop(rates);
        self.room.resize(
            gateway.max_held_bytes,
            gateway.sandbox_held_bytes,
            gateway.max_request_bytes,
        );
        self.usage.keep(gateway.usage_kept);
        *self
            .catalogue
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// What `GET /provider/v1` answers.
    pub(crate) fn listing(&self) -> Value {
        self.catalogue().listing()
    }

    /// What `GET /v1/models` answers, in the format of one API.
    pub(crate) fn models(&self, kind: ProviderKind) -> Value {
        self.catalogue().models(kind)
    }

    /// What `GET /v1/models/{model}` answers; `model` is still percent-encoded.
    ///
    /// # Errors
    /// No provider of this API offers it.
    pub(crate) fn model(&self, kind: ProviderKind, model: &str) -> Result<Value, Error> {
        let name = paths::decoded(model).ok_or(Error::NotFound("model"))?;
        self.catalogue()
            .model(kind, &name)
            .ok_or(Error::NotFound("model"))
    }

    fn catalogue(&self) -> Arc<Catalogue> {
        current(&self.catalogue)
    }

    /// Who calls through a channel.
    pub(crate) fn caller(
        &self,
        sandbox: SandboxId,
        user: UserId,
        command: Option<CommandId>,
    ) -> Caller {
        let now = self.clock.now_ms();
        // Held until the accounts are there, so that no reload comes in between.
        let rates = self.rates.read().unwrap_or_else(PoisonError::into_inner);
        let account = |scope, id: String, rates| self.register.account(scope, id, rates, now);
        Caller {
            sandbox,
            user,
            command,
            share: self.room.share(sandbox),
            accounts: Accounts {
                sandbox: account(Scope::Sandbox, sandbox.to_string(), rates.sandbox),
                user: account(Scope::User, user.to_string(), rates.user),
            },
        }
    }

    /// Calls that a sandbox, its runners included, has open.
    pub(crate) fn open_calls(&self, sandbox: SandboxId) -> u32 {
        self.register
            .open_calls(Scope::Sandbox, sandbox.to_string())
    }

    /// Calls that a sandbox, its runners included, has begun. The number says that there were
    /// some since an earlier look: it may begin anew.
    pub(crate) fn begun_calls(&self, sandbox: SandboxId) -> u64 {
        self.register
            .begun_calls(Scope::Sandbox, sandbox.to_string())
    }

    /// Writes everything to the usage table that has ended so far.
    pub async fn flush(&self) {
        self.usage.flush().await;
    }

    /// Waits until every call that was begun has ended and is in the usage table; none may be
    /// begun any more.
    pub(crate) async fn settle(&self) {
        self.usage.settle().await;
    }

    /// Makes one call. `cancel` ends with the caller's right to call and cuts it at once.
    pub(crate) async fn call(
        &self,
        caller: &Caller,
        called: Called<'_>,
        head: &mut Parts,
        body: Body,
        request_id: RequestId,
        cancel: &CancellationToken,
    ) -> Response {
        let catalogue = self.catalogue();
        let (kind, answered) = match called {
            Called::Provider { name, rest } => match catalogue.by_name(name) {
                Some(entry) => (
                    entry.config.kind,
                    self.serve(
                        &catalogue,
                        caller,
                        Some(entry),
                        entry.config.kind,
                        rest,
                        head,
                        body,
                        request_id,
                        cancel,
                    )
                    .await,
                ),
                None => (
                    ProviderKind::OpenAi,
                    Err(CallError::Ours(Error::NotFound("provider"))),
                ),
            },
            Called::Model { kind, rest } => (
                kind,
                self.serve(
                    &catalogue, caller, None, kind, rest, head, body, request_id, cancel,
                )
                .await,
            ),
        };
        answered.unwrap_or_else(|error| {
            // A call that was made has its line already, and counts by who answered.
            let sent = error.was_sent();
            if !sent {
                tracing::info!(
                    %request_id,
                    sandbox_id = %caller.sandbox,
                    user_id = %caller.user,
                    command_id = caller.command.map(|id| id.to_string()),
                    reason = error.code(),
                    "model call refused"
                );
            }
            let response = error.into_response(kind);
            if !sent {
                self.metrics
                    .provider_refusal(catalogue.shown(called), response.status());
            }
            response
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call and what is known about it"
    )]
    async fn serve(
        &self,
        catalogue: &Catalogue,
        caller: &Caller,
        named: Option<&Entry>,
        kind: ProviderKind,
        rest: &str,
        head: &mut Parts,
        body: Body,
        request_id: RequestId,
        cancel: &CancellationToken,
    ) -> Result<Response, CallError> {
        let began = Instant::now();
        if let (Some(entry), Some(name)) = (named, paths::listing(kind, &head.method, rest)) {
            return listing::answer(&entry.config, name);
        }
        let tables = match named {
            Some(entry) => Tables::Of(&entry.config),
            None => Tables::All(catalogue.of_kind(kind).map(|entry| &entry.config)),
        };
        let names = paths::admit(kind, tables, head, rest)?;
        let announced = head
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let held = self
            .room
            .hold(body, announced, &caller.share, cancel)
            .await?;
        let (call, held) = if names == Names::Nowhere || held.body.len() <= READ_AT_ONCE {
            (read(names, &head.headers, &held.body)?, held)
        } else {
            let body = held.body.clone();
            read_aside(names, &head.headers, body, held).await?
        };
        if call.is_json {
            // As what it was read it goes up: one who took it for a form might read another model.
            let json = HeaderValue::from_static("application/json");
            head.headers.insert(header::CONTENT_TYPE, json);
        }
        let mut choices = catalogue.choose(named, kind, call.model.as_deref())?;
        // Of all that may take it each has a table of its own.
        let admitted = |choice: &Choice<'_>| {
            let provider = &choice.entry.config;
            paths::admit_path(provider, &head.method, rest)?;
            paths::admit_query(provider, head.uri.query().unwrap_or_default())
        };
        choices.first().map_or(Ok(()), admitted)?;
        choices.retain(|choice| admitted(choice).is_ok());
        let slot = tokio::select! {
            biased;
            slot = self.usage.slot() => slot?,
            () = cancel.cancelled() => return Err(Error::SandboxNotRunning.into()),
        };
        let mut bill = Box::new(Bill {
            who: Who {
                sandbox: caller.sandbox,
                user: caller.user,
                request: request_id,
            },
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            began,
            provider: String::new(),
            model: String::new(),
            operation: metrics::operation(rest),
            price: None,
            // Files are not read by the token.
            request_bytes: if call.form.is_some() {
                0
            } else {
                held.body.len() as u64
            },
            by_call: call.form.is_some(),
            max_output: call.max_output,
            admissions: Vec::new(),
            slot: Some(slot),
            free: paths::is_free(kind, &head.method, rest),
            sent: false,
            status: 0,
            right: cancel.clone(),
        });
        let now = self.clock.now_ms();
        // What the dearest of those that may take it asks for.
        let expected = choices
            .iter()
            .map(|choice| bill.expected(choice.price()))
            .max_by_key(|amount| amount.money);
        let amount = expected.filter(|_| !bill.free).unwrap_or_default();
        bill.admissions = caller.admit(amount, now).map_err(CallError::Limited)?;
        send::send(
            &mut choices,
            &call,
            head,
            &held.body,
            rest,
            amount,
            bill,
            &self.clock,
            now,
            cancel,
        )
        .await
    }
}

fn current(catalogue: &RwLock<Arc<Catalogue>>) -> Arc<Catalogue> {
    Arc::clone(&catalogue.read().unwrap_or_else(PoisonError::into_inner))
}

/// What a request says about itself.
#[derive(Debug, Default)]
struct Call {
    model: Option<String>,
    max_output: Option<u64>,
    /// The key by which it lets a router choose the model.
    routing: Option<&'static str>,
    shape: Option<Shape>,
    form: Option<Form>,
    /// Its body was read as JSON.
    is_json: bool,
}

/// Largest body, in bytes, that is read on the thread that others' calls wait for: less than a
/// millisecond's work.
const READ_AT_ONCE: usize = 256 << 10;

/// The same as [`read`] on a thread for long work. What is kept for it is kept until it is over,
/// also when nobody waits for it any more.
async fn read_aside<K: Send + 'static>(
    names: Names<'_>,
    headers: &HeaderMap,
    body: Bytes,
    kept: K,
) -> Result<(Call, K), CallError> {
    let in_path = match names {
        Names::InPath(model) => Some(model.to_owned()),
        _ => None,
    };
    let elsewhere = match names {
        Names::InPath(_) | Names::Nowhere => Names::Nowhere,
        Names::InBody => Names::InBody,
        Names::InBodyOrForm => Names::InBodyOrForm,
        Names::Unchecked => Names::Unchecked,
    };
    let headers = headers.clone();
    tokio::task::spawn_blocking(move || {
        let names = in_path.as_deref().map_or(elsewhere, Names::InPath);
        read(names, &headers, &body).map(|call| (call, kept))
    })
    .await
    .map_err(|error| CallError::Ours(Error::internal(error)))?
}

fn read(names: Names<'_>, headers: &HeaderMap, body: &[u8]) -> Result<Call, CallError> {
    let read = || Shape::read(body).map_err(CallError::Shape);
    let mut shape = match names {
        Names::Nowhere => return Ok(Call::default()),
        Names::InPath(model) => {
            let model = paths::decoded(model).ok_or(CallError::NoModel)?;
            // What is asked for or removed has no body.
            let shape = if body.is_empty() {
                Shape::default()
            } else {
                read()?
            };
            let again = shape.model.as_deref();
            let again = again.map(|name| name.strip_prefix("models/").unwrap_or(name));
            if again.is_some_and(|name| name != model) {
                return Err(CallError::TwoModels);
            }
            return Ok(Call {
                model: Some(model),
                max_output: shape.max_output_tokens,
                routing: shape.routing,
                is_json: !body.is_empty(),
                ..Call::default()
            });
        }
        Names::InBodyOrForm if Form::is_one(headers) => {
            let form = Form::read(headers, body).map_err(CallError::Form)?;
            return Ok(Call {
                model: Some(form.model.clone().ok_or(CallError::NoModel)?),
                routing: form.routing,
                form: Some(form),
                ..Call::default()
            });
        }
        Names::InBody | Names::InBodyOrForm => read()?,
        Names::Unchecked => match Shape::read(body) {
            Err(ShapeError::NotJson(_) | ShapeError::NotAnObject) => return Ok(Call::default()),
            Ok(shape) if shape.model.is_none() => return Ok(Call::default()),
            shape => shape.map_err(CallError::Shape)?,
        },
    };
    Ok(Call {
        model: Some(shape.model.take().ok_or(CallError::NoModel)?),
        max_output: shape.max_output_tokens,
        routing: shape.routing,
        shape: Some(shape),
        form: None,
        is_json: true,
    })
}

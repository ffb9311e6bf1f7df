//! One real call, and what is wrong with it in plain words.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use gateway::provider::{Outcome, ReplyEnd};
use gateway::{ConnectError, ForwardError};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use types::{RequestId, SandboxId, UserId};
use uuid::Uuid;

use super::bill::{self, Bill, Who};
use super::catalogue;
use super::place::Place;
use super::{Providers, paths};
use crate::actor::Actor;
use crate::config::ProviderKind;
use crate::error::Error;
use crate::http::metrics::operation;
use crate::services::audit::{Audit, Entry};

/// How much of a refusal is read, in bytes, and repeated, in characters.
const MAX_ANSWER: usize = 64 << 10;
const MAX_SHOWN: usize = 300;

/// Tokens that the answer may have; those dialects that demand it are told.
const MAX_OUTPUT: Option<u64> = Some(16);

const BASE_URL: &str =
    "check base_url: for openai it ends with /v1, for anthropic, gemini and bedrock it does not";

/// What came of a test call to one place of a provider.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// The provider.
    pub provider: String,
    /// The host that was called.
    pub host: String,
    /// The model that was asked for.
    pub model: String,
    /// Whether it answered as it should.
    pub ok: bool,
    /// What happened.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
    /// The provider's status, when it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Until the end of its answer.
    pub latency_ms: u64,
}

impl Providers {
    /// What admins see of the providers. Never a key.
    ///
    /// # Errors
    /// The actor is no admin.
    pub fn overview(&self, actor: &Actor) -> Result<Value, Error> {
        actor.require_admin()?;
        let now = self.clock.now_ms();
        let catalogue = self.catalogue();
        let providers: Vec<_> = catalogue
            .entries()
            .map(|entry| {
                let upstreams: Vec<_> = entry
                    .config
                    .upstreams
                    .iter()
                    .zip(&entry.places)
                    .map(|(upstream, place)| {
                        json!({
                            "base_url": upstream.base_url,
                            "key": upstream.key_file.is_some(),
                            "weight": upstream.weight,
                            "up": place.is_up(now),
                        })
                    })
                    .collect();
                json!({
                    "name": entry.config.name,
                    "kind": entry.config.kind.as_str(),
                    "models": entry.config.models,
                    "default_model": entry.config.default_model,
                    "aliases": entry.config.aliases,
                    "fallback": entry.config.fallback,
                    "upstreams": upstreams,
                    "open_calls": entry.account.open(),
                })
            })
            .collect();
        Ok(json!({ "providers": providers }))
    }

    /// Makes one small call to each place of a provider. It costs what such a call costs.
    ///
    /// # Errors
    /// The actor is no admin, there is no such provider or model, or the ledger cannot take
    /// the record.
    pub async fn check(
        &self,
        actor: &Actor,
        audit: &Audit,
        name: &str,
        model: Option<&str>,
    ) -> Result<Vec<Checked>, Error> {
        actor.require_admin()?;
        let catalogue = self.catalogue();
        let entry = catalogue.by_name(name).ok_or(Error::NotFound("provider"))?;
        let provider = &entry.config;
        let asked = model.unwrap_or(&provider.default_model);
        let model = provider.resolve(asked).ok_or_else(|| {
            Error::bad_request(format!(
                "{name} does not offer {asked:?}; there are: {}",
                provider.models.join(", ")
            ))
        })?;
        let entry_of_test =
            Entry::allowed("provider.test", name.to_owned()).with("model", model.to_owned());
        audit.record(actor, entry_of_test).await?;
        let user = actor.user()?.id;
        let mut checked = Vec::with_capacity(entry.places.len());
        for (upstream, place) in provider.upstreams.iter().zip(&entry.places) {
            let host = upstream.base_url.host_str().unwrap_or_default();
            checked.push(self.one(entry, host, place, model, user).await?);
        }
        if checked.is_empty() {
            checked.push(Checked {
                provider: name.to_owned(),
                host: "this process".to_owned(),
                model: model.to_owned(),
                ok: true,
                message: "the demo answers offline".to_owned(),
                hint: Some("add a provider to work with a real model: choir provider add --help"),
                status: None,
                latency_ms: 0,
            });
        }
        Ok(checked)
    }
}

impl Providers {
    /// It is bounded, charged and recorded as every call is, to the admin who makes it and to
    /// no sandbox.
    async fn one(
        &self,
        entry: &catalogue::Entry,
        host: &str,
        place: &Place,
        model: &str,
        user: UserId,
    ) -> Result<Checked, Error> {
        let began = Instant::now();
        let provider = &entry.config;
        let (path, body) = question(provider.kind, model);
        let body = body.to_string();
        let mut checked = Checked {
            provider: provider.name.clone(),
            host: host.to_owned(),
            model: model.to_owned(),
            ok: false,
            message: String::new(),
            hint: None,
            status: None,
            latency_ms: 0,
        };
        let caller = self.caller(SandboxId::from_uuid(Uuid::nil()), user, None);
        let price = provider.prices.get(model).copied();
        let bytes = body.len() as u64;
        let amount = bill::expected(bytes, MAX_OUTPUT, price);
        let now = self.clock.now_ms();
        let admitted = caller.admit(amount, now).and_then(|mut admissions| {
            admissions.push(entry.account.admit(amount, now)?);
            Ok(admissions)
        });
        let admissions = match admitted {
            Ok(admissions) => admissions,
            Err(limited) => {
                checked.message = limited.to_string();
                checked.hint =
                    Some("the bounds of gateway.user and providers.limits hold for tests too");
                return Ok(checked);
            }
        };
        let right = CancellationToken::new();
        let mut bill = Box::new(Bill {
            who: Who {
                sandbox: caller.sandbox,
                user,
                request: RequestId::generate(),
            },
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            began,
            provider: provider.name.clone(),
            model: model.to_owned(),
            operation: operation(&path),
            price,
            request_bytes: bytes,
            by_call: false,
            max_output: MAX_OUTPUT,
            admissions,
            slot: Some(self.usage.slot().await?),
            free: false,
            sent: true,
            status: 0,
            right: right.clone(),
        });
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = Method::POST;
        head.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        match place
            .upstream
            .send(&head, &body.into(), &path, None, &right)
            .await
        {
            Ok(reply) => {
                let status = reply.status();
                bill.status = status.as_u16();
                checked.status = Some(bill.status);
                let body = reply.into_body().on_end(move |end| bill.settle(end));
                let read = Limited::new(body, MAX_ANSWER).collect().await;
                (checked.ok, checked.message, checked.hint) = match read {
                    Ok(text) => verdict(provider.kind, status, &text.to_bytes()),
                    Err(_) => (
                        false,
                        "it begins to answer and breaks off, or says far more than was asked for"
                            .to_owned(),
                        Some("check that base_url is an API, and the network in between"),
                    ),
                };
            }
            Err(error) => {
                bill.status = error.status().as_u16();
                bill.settle(ReplyEnd::without_a_byte(Outcome::Broken));
                let (message, hint) = failure(&error);
                (checked.message, checked.hint) = (message, Some(hint));
            }
        }
        checked.latency_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(checked)
    }
}

/// The smallest question of each dialect.
fn question(kind: ProviderKind, model: &str) -> (String, Value) {
    let ask = "Answer with one word.";
    match kind {
        ProviderKind::OpenAi | ProviderKind::Demo => (
            "chat/completions".to_owned(),
            json!({"model": model, "messages": [{"role": "user", "content": ask}]}),
        ),
        ProviderKind::Anthropic => (
            "v1/messages".to_owned(),
            json!({"model": model, "max_tokens": MAX_OUTPUT, "messages": [{"role": "user", "content": ask}]}),
        ),
        ProviderKind::Gemini => (
            format!("v1beta/models/{}:generateContent", paths::encoded(model)),
            json!({"contents": [{"role": "user", "parts": [{"text": ask}]}]}),
        ),
        ProviderKind::Bedrock => (
            format!("model/{}/converse", paths::encoded(model)),
            json!({"messages": [{"role": "user", "content": [{"text": ask}]}]}),
        ),
    }
}

fn verdict(
    kind: ProviderKind,
    status: StatusCode,
    answer: &[u8],
) -> (bool, String, Option<&'static str>) {
    let document: Option<Value> = serde_json::from_slice(answer).ok();
    if status.is_success() {
        let answered = match kind {
            ProviderKind::OpenAi | ProviderKind::Demo => "choices",
            ProviderKind::Anthropic => "content",
            ProviderKind::Gemini => "candidates",
            ProviderKind::Bedrock => "output",
        };
        // A web page, or the API of somebody else, is no model that answers.
        return if document.is_some_and(|document| document.get(answered).is_some()) {
            (true, "it answers".to_owned(), None)
        } else {
            let message = format!(
                "something answers there (status {}), but not as the API of {} does",
                status.as_u16(),
                kind.as_str()
            );
            (false, message, Some(BASE_URL))
        };
    }
    let text = String::from_utf8_lossy(answer);
    let (what, hint) = refusal(status.as_u16(), document.is_some(), &text.to_lowercase());
    let said: String = message_in(&text).chars().take(MAX_SHOWN).collect();
    // A web page says nothing to somebody at a terminal.
    let said = if document.is_some() { said.trim() } else { "" };
    let mut message = format!("{what} (status {})", status.as_u16());
    if !said.is_empty() {
        message = format!("{message}: {said}");
    }
    (false, message, Some(hint))
}

/// What a refusal means, by its status and, where providers use one status for many things, by
/// what they say. `text` is in lower case.
fn refusal(status: u16, is_api: bool, text: &str) -> (&'static str, &'static str) {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let key = (
        "it refuses the key",
        "put a valid key into the provider's key_file; it is taken within a second",
    );
    let model = (
        "it does not know the model",
        "check providers.models: the names have to be those of the provider",
    );
    match status {
        401 => key,
        // Gemini refuses a key with 400, Bedrock with 403.
        400 | 403
            if says(&[
                "api_key_invalid",
                "api key not valid",
                "api key is valid",
                "invalid api key",
                "security token",
            ]) =>
        {
            key
        }
        400..=404 | 451
            if says(&[
                "unsupported_country",
                "country not supported",
                "location is not supported",
                "this region",
                "your region",
                "on-demand throughput",
            ]) =>
        {
            (
                "it does not serve this region, or not this model in it",
                "choose a base_url of a region that has the model",
            )
        }
        400 if says(&[
            "model identifier is invalid",
            "model_not_found",
            "unknown model",
        ]) =>
        {
            model
        }
        402 => ("it wants to be paid", "check the account's credit"),
        403 => (
            "the key may not do this",
            "check what the key is allowed, and that base_url is the right one for it",
        ),
        404 if is_api => model,
        404 => ("nothing of an API is at this base URL", BASE_URL),
        429 => (
            "it limits this account at the moment",
            "wait, or check the account's quota",
        ),
        400 | 422 => (
            "it does not understand the request",
            "check that kind fits what is at base_url, and that the model is one for chat",
        ),
        500..=599 => ("it has troubles of its own", "try again later"),
        _ => ("it answers something unexpected", BASE_URL),
    }
}

/// The sentence in an error document, or the text itself.
fn message_in(text: &str) -> String {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    ["/error/message", "/message", "/error", "/detail"]
        .iter()
        .find_map(|pointer| document.pointer(pointer)?.as_str().map(str::to_owned))
        .unwrap_or_else(|| text.to_owned())
}

/// Why there was no answer, in plain words, with what the system said behind them.
fn failure(error: &ForwardError) -> (String, &'static str) {
    let network = "check the network and firewall between here and the provider";
    let (what, hint) = match error {
        ForwardError::Unreachable(ConnectError::Tcp { source, .. }) => match source.kind() {
            ErrorKind::PermissionDenied => (
                "its address is not allowed",
                "providers.addresses decides which addresses are connected to",
            ),
            ErrorKind::ConnectionRefused => (
                "nothing listens there",
                "check the host and port of base_url, and that the server runs",
            ),
            // The standard library has no kind for it.
            _ if source.to_string().contains("failed to lookup address") => (
                "its name cannot be resolved (DNS)",
                "check the spelling of base_url's host, and this machine's DNS",
            ),
            _ => ("it cannot be reached", network),
        },
        ForwardError::Unreachable(ConnectError::Tls { source, .. }) => tls(source),
        ForwardError::Unreachable(ConnectError::Timeout(_)) => {
            ("it does not take the connection in time", network)
        }
        ForwardError::FirstByteTimeout(_) => (
            "it takes the request and does not answer in time",
            "try again later, or raise providers.first_byte_timeout",
        ),
        ForwardError::Closed(_) => (
            "it hangs up instead of answering",
            "check that base_url begins with https:// where the provider wants TLS",
        ),
        ForwardError::BadResponse { .. } => ("what answers there is no API", BASE_URL),
        _ => (
            "the call could not be made",
            "try again, and look at the hypervisor's log",
        ),
    };
    let mut message = format!("{what}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    (message, hint)
}

fn tls(source: &std::io::Error) -> (&'static str, &'static str) {
    use rustls::CertificateError as Bad;
    let inner = source.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(bad)) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => (
                "its certificate has expired",
                "its operator has to renew it; check this machine's clock too",
            ),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => (
                "its certificate is not valid yet",
                "check this machine's clock",
            ),
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => (
                "its certificate is for another name",
                "base_url has to name the host as its certificate does",
            ),
            _ => (
                "its certificate is not trusted",
                "check base_url, or name the CA that signed it with providers.ca_file",
            ),
        },
        Some(rustls::Error::InvalidMessage(_)) => (
            "it does not speak TLS there",
            "check the port of base_url, or whether it is http://",
        ),
        _ => (
            "the TLS handshake fails",
            "check the port of base_url, and whether something in between takes TLS apart",
        ),
    }
}

#[cfg(test)]
mod tests;

//! One real call, and what is wrong with it in plain words.

use std::time::Instant;

use gateway::{ConnectError, ForwardError};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::{Providers, paths};
use crate::actor::Actor;
use crate::config::{Provider, ProviderKind};
use crate::error::Error;
use crate::services::audit::{Audit, Entry};

/// How much of a refusal is read, in bytes, and repeated, in characters.
const MAX_ANSWER: usize = 64 << 10;
const MAX_SHOWN: usize = 300;

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
        let mut checked = Vec::with_capacity(entry.places.len());
        for (upstream, place) in provider.upstreams.iter().zip(&entry.places) {
            let host = upstream.base_url.host_str().unwrap_or_default();
            checked.push(one(provider, host, place, model).await);
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

async fn one(provider: &Provider, host: &str, place: &Place, model: &str) -> Checked {
    let began = Instant::now();
    let (path, body) = question(provider.kind, model);
    let mut request = Request::new(body.to_string().into());
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    let sent = place
        .upstream
        .send(&request, &path, &CancellationToken::new())
        .await;
    let (status, message, hint) = match sent {
        Ok(reply) => {
            let status = reply.status();
            let text = Limited::new(reply.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
                .unwrap_or_default();
            let (message, hint) = verdict(status, &text);
            (Some(status), message, hint)
        }
        Err(error) => {
            let (message, hint) = failure(&error);
            (None, message, hint)
        }
    };
    Checked {
        provider: provider.name.clone(),
        host: host.to_owned(),
        model: model.to_owned(),
        ok: status.is_some_and(|status| status.is_success()),
        message,
        hint,
        status: status.map(|status| status.as_u16()),
        latency_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
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
            json!({"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": ask}]}),
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

fn verdict(status: StatusCode, text: &str) -> (String, Option<&'static str>) {
    if status.is_success() {
        return ("it answers".to_owned(), None);
    }
    let lower = text.to_lowercase();
    let (what, hint) = if lower.contains("country") || lower.contains("region") {
        (
            "it does not serve this region, or not this model in it",
            "choose a base_url of a region that has the model",
        )
    } else {
        match status.as_u16() {
            401 => (
                "it refuses the key",
                "put a valid key into the provider's key_file; it is taken within a second",
            ),
            402 => ("it wants to be paid", "check the account's credit"),
            403 => (
                "the key may not do this",
                "check what the key is allowed, and that base_url is the right one for it",
            ),
            404 => (
                "it does not know the model, or nothing is at this base URL",
                "check models and base_url; for openai base_url ends with /v1, for anthropic it does not",
            ),
            429 => (
                "it limits this account at the moment",
                "wait, or check the account's quota",
            ),
            400 | 422 => (
                "it does not understand the request",
                "check that kind fits what is at base_url, and that the model is one for chat",
            ),
            500..=599 => ("it has troubles of its own", "try again later"),
            _ => ("it answers something unexpected", "check base_url"),
        }
    };
    let said: String = message_in(text).chars().take(MAX_SHOWN).collect();
    let said = said.trim();
    let message = if said.is_empty() {
        format!("{what} (status {})", status.as_u16())
    } else {
        format!("{what} (status {}): {said}", status.as_u16())
    };
    (message, Some(hint))
}

/// The sentence in an error document, or the text itself.
fn message_in(text: &str) -> String {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    ["/error/message", "/message", "/error", "/detail"]
        .iter()
        .find_map(|pointer| document.pointer(pointer)?.as_str().map(str::to_owned))
        .unwrap_or_else(|| text.to_owned())
}

fn failure(error: &ForwardError) -> (String, Option<&'static str>) {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    let hint = match error {
        ForwardError::Unreachable(ConnectError::Tcp { source, .. }) => match source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "providers.addresses decides which addresses are connected to"
            }
            std::io::ErrorKind::ConnectionRefused => {
                "nothing listens there: check the host and port of base_url"
            }
            _ => {
                "check that this machine resolves and reaches the host of base_url (DNS, firewall)"
            }
        },
        ForwardError::Unreachable(ConnectError::Tls { .. }) => {
            "its certificate is not trusted: check base_url, or name its CA with providers.ca_file"
        }
        ForwardError::Unreachable(ConnectError::Timeout(_)) | ForwardError::FirstByteTimeout(_) => {
            "check the network between here and the provider, or raise its timeouts"
        }
        ForwardError::BadResponse { .. } => "check that base_url is an API and not a web page",
        _ => "try again, and look at the hypervisor's log",
    };
    (message, Some(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_in_plain_words() {
        for (status, text, expected) in [
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided"}}"#,
                "refuses the key (status 401): Incorrect",
            ),
            (
                404,
                r#"{"error":{"message":"no such model"}}"#,
                "does not know the model",
            ),
            (
                403,
                r#"{"error":{"code":"unsupported_country_region_territory","message":"Country not supported"}}"#,
                "region",
            ),
            (503, "<html>", "troubles of its own"),
        ] {
            let (message, hint) = verdict(StatusCode::from_u16(status).unwrap(), text);
            assert!(message.contains(expected), "{message}");
            assert!(hint.is_some());
        }
        assert_eq!(
            verdict(StatusCode::OK, "{}"),
            ("it answers".to_owned(), None)
        );
    }
}

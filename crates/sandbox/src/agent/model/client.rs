//! Asks the model over the channel: streams the reply, says when another try is worth it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    Message, Progress, Reply, StreamFault, ToolSpecification, Usage, anthropic, openai, sse,
};
use crate::agent::outage::Outage;
use crate::agent::providers::{Choice, ProviderKind};
use crate::channel::{Channel, ChannelError};

/// Tries of one model call, the first one included.
pub const MAX_ATTEMPTS: u32 = 5;
/// How long a provider may take until its answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a stream may be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest reply in all.
const MAX_REPLY: usize = 32 * 1024 * 1024;
/// Bytes of an error's body that are read.
const MAX_ERROR: usize = 64 * 1024;
/// Bytes that a token has on average, where the provider does not count.
const BYTES_PER_TOKEN: u64 = 4;

/// Times between tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Before the second try; doubled for each one after.
    pub first: Duration,
    /// At most this long. A provider that asks for more is not asked again.
    pub longest: Duration,
    /// How long the hypervisor may be away before a run gives up. Its death is no fault of
    /// the run's: the sandbox lives on, and so does what it waits for.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            patience: Duration::from_mins(10),
        }
    }
}

/// Why the model gave no reply, in words for people with what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error(
        "the gateway cannot be reached ({0}); check that the hypervisor runs, then start the run again"
    )]
    Channel(#[source] ChannelError),
    #[error("the model's stream broke off; start the run again")]
    Broken,
    #[error("the model was silent for {} seconds; start the run again or choose another model", SILENCE_TIMEOUT.as_secs())]
    Silent,
    #[error("{provider} answered {status}: {message}{advice}")]
    Refused {
        provider: String,
        status: StatusCode,
        message: String,
        advice: &'static str,
        retry_after: Option<Duration>,
    },
    #[error("{provider} reported an error in its answer: {message}")]
    Reported {
        provider: String,
        message: String,
        transient: bool,
    },
    #[error(
        "{provider} does not speak its wire format: {what}; check the provider's kind and base URL"
    )]
    Malformed {
        provider: String,
        what: &'static str,
    },
}

/// A request, encoded once for all tries.
pub(crate) struct Request {
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
}

/// Asks one model.
#[derive(Debug)]
pub(crate) struct ModelClient {
    channel: Channel,
    choice: Choice,
    retries: RetryPolicy,
}

enum Decoder {
    OpenAi(openai::Decoder),
    Anthropic(anthropic::Decoder),
}

impl Decoder {
    fn push(&mut self, data: &str) -> Result<Progress, StreamFault> {
        match self {
            Self::OpenAi(decoder) => decoder.push(data),
            Self::Anthropic(decoder) => decoder.push(data),
        }
    }

    fn finish(self) -> Option<(Reply, Option<Usage>)> {
        match self {
            Self::OpenAi(decoder) => decoder.finish(),
            Self::Anthropic(decoder) => decoder.finish(),
        }
    }
}

impl ModelClient {
    pub(crate) const fn new(channel: Channel, choice: Choice, retries: RetryPolicy) -> Self {
        Self {
            channel,
            choice,
            retries,
        }
    }

    pub(crate) fn request(
        &self,
        system: &str,
        messages: &[Message],
        tools: &[ToolSpecification],
    ) -> Request {
        let model = &self.choice.model;
        let mut headers = HeaderMap::new();
        let (path, body) = match self.choice.kind {
            ProviderKind::OpenAi => (openai::PATH, openai::encode(model, system, messages, tools)),
            ProviderKind::Anthropic => {
                let (name, value) = anthropic::VERSION;
                headers.insert(
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
                (
                    anthropic::PATH,
                    anthropic::encode(model, system, messages, tools),
                )
            }
        };
        Request {
            path,
            headers,
            body: body.to_string().into(),
        }
    }

    /// One try. `relay` gets the text as it comes.
    pub(crate) async fn attempt(
        &self,
        request: &Request,
        mut relay: impl FnMut(&str),
    ) -> Result<Reply, ModelError> {
        let response = self
            .channel
            .provider(
                &self.choice.provider,
                request.path,
                request.headers.clone(),
                request.body.clone(),
                ANSWER_TIMEOUT,
            )
            .await
            .map_err(ModelError::Channel)?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let streams = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        if !streams {
            return Err(self.fault(StreamFault::Malformed("an answer that does not stream")));
        }
        let mut decoder = match self.choice.kind {
            ProviderKind::OpenAi => Decoder::OpenAi(openai::Decoder::default()),
            ProviderKind::Anthropic => Decoder::Anthropic(anthropic::Decoder::default()),
        };
        let mut parser = sse::Parser::default();
        let mut body = Limited::new(response.into_body(), MAX_REPLY);
        loop {
            let frame = tokio::time::timeout(SILENCE_TIMEOUT, body.frame())
                .await
                .map_err(|_| ModelError::Silent)?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|_| ModelError::Broken)?.into_data() else {
                continue;
            };
            for event in parser.push(&data).map_err(|fault| self.fault(fault))? {
                match decoder.push(&event).map_err(|fault| self.fault(fault))? {
                    Progress::Text(text) => relay(&text),
                    Progress::Nothing => {}
                }
            }
        }
        let (mut reply, usage) = decoder.finish().ok_or(ModelError::Broken)?;
        reply.usage = usage.unwrap_or_else(|| estimate(request, &reply));
        Ok(reply)
    }

    /// Whether the way to the hypervisor broke, which says nothing about the provider.
    pub(crate) const fn is_outage(error: &ModelError) -> bool {
        matches!(error, ModelError::Channel(error) if error.is_outage())
    }

    /// How the channel's absence is waited for.
    pub(crate) const fn outage(&self) -> Outage {
        Outage::new(self.retries)
    }

    /// How long to wait before another try, if one is worth it. `attempt` counts from 1.
    pub(crate) fn wait(&self, error: &ModelError, attempt: u32) -> Option<Duration> {
        if attempt >= MAX_ATTEMPTS {
            return None;
        }
        let own = self
            .retries
            .first
            .saturating_mul(1 << attempt.saturating_sub(1).min(16))
            .min(self.retries.longest);
        match error {
            ModelError::Refused {
                status,
                retry_after,
                ..
            } => {
                let transient = status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    );
                match retry_after {
                    _ if !transient => None,
                    Some(asked) if *asked > self.retries.longest => None,
                    Some(asked) => Some((*asked).max(own)),
                    None => Some(own),
                }
            }
            ModelError::Reported { transient, .. } => transient.then_some(own),
            ModelError::Channel(_) | ModelError::Broken | ModelError::Silent => Some(own),
            ModelError::Malformed { .. } => None,
        }
    }

    fn fault(&self, fault: StreamFault) -> ModelError {
        let provider = self.choice.provider.clone();
        match fault {
            StreamFault::Reported { message, transient } => ModelError::Reported {
                provider,
                message,
                transient,
            },
            StreamFault::Malformed(what) => ModelError::Malformed { provider, what },
        }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ModelError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = Limited::new(response.into_body(), MAX_ERROR).collect();
        let bytes = match tokio::time::timeout(Duration::from_secs(10), body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let advice = match status.as_u16() {
            400 | 404 | 422 => "; check the model's name",
            401 | 403 => "; the operator has to check the provider's key in the hypervisor",
            402 => "; the provider wants to be paid",
            413 => "; the conversation became too long, start a new run",
            429 => "; wait a while, or choose another model",
            500.. => "; try again later, or choose another model",
            _ => "",
        };
        ModelError::Refused {
            provider: self.choice.provider.clone(),
            status,
            message: reason(&bytes),
            advice,
            retry_after,
        }
    }
}

/// The reason in an error's body: of OpenAI, of Anthropic, or a problem document.
fn reason(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    ["/error/message", "/detail", "/error", "/message"]
        .iter()
        .find_map(|pointer| value.pointer(pointer).and_then(Value::as_str))
        .unwrap_or("no reason given")
        .chars()
        .take(500)
        .collect()
}

fn estimate(request: &Request, reply: &Reply) -> Usage {
    let written = reply.text.len()
        + reply
            .calls
            .iter()
            .map(|call| call.arguments.len())
            .sum::<usize>();
    Usage {
        input: (request.body.len() as u64).div_ceil(BYTES_PER_TOKEN),
        output: (written as u64).div_ceil(BYTES_PER_TOKEN),
        estimated: true,
    }
}

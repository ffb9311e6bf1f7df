//! The offline demo provider: speaks the OpenAI wire format and follows a small grammar
//! (`docs/demo-provider.md`), so that a fresh installation does real agent work without a
//! key. It calls no network and keeps no state. Off once any provider is configured.

mod arithmetic;
mod code;
mod failure;
mod fix;
mod grammar;
mod planner;
#[cfg(test)]
mod tests;
mod wire;

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use wire::{ChatRequest, Envelope};

/// The only model it offers.
pub(crate) const MODEL: &str = "choir-demo";

/// Largest request body that it reads, in bytes.
pub(crate) const MAX_REQUEST: usize = 8 << 20;

/// Answers one request. `rest` is the path below `/provider/v1/demo/`; `now` is in seconds
/// since the epoch.
pub(crate) fn respond(method: &Method, rest: &str, body: &[u8], now: i64) -> Response {
    match (method, rest) {
        (&Method::POST, "chat/completions") => match serde_json::from_slice(body) {
            Ok(request) => complete(&request, body, now),
            Err(error) => refusal(
                StatusCode::BAD_REQUEST,
                &format!("not a chat completion request: {error}"),
            ),
        },
        (&Method::GET, "models") => document(
            StatusCode::OK,
            &json!({"object": "list", "data": [
                {"id": MODEL, "object": "model", "created": 0, "owned_by": "choir"},
            ]}),
        ),
        _ => refusal(
            StatusCode::NOT_FOUND,
            "the demo provider has only POST chat/completions and GET models",
        ),
    }
}

fn complete(request: &ChatRequest, body: &[u8], now: i64) -> Response {
    let offered = request
        .tools
        .iter()
        .map(|tool| tool.function.name.clone())
        .collect();
    let answer = planner::answer(&request.messages, offered);
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let envelope = Envelope {
        id: format!("chatcmpl-demo-{:016x}", hasher.finish()),
        created: now,
        model: if request.model.is_empty() {
            MODEL.to_owned()
        } else {
            request.model.clone()
        },
        prompt_tokens: request
            .messages
            .iter()
            .map(|message| wire::estimate_tokens(&message.text()))
            .sum(),
    };
    if !request.stream {
        return document(StatusCode::OK, &envelope.document(&answer));
    }
    let events = envelope.events(&answer, request.stream_options.include_usage);
    let stream = futures_util::stream::iter(events.into_iter().map(Ok::<Bytes, Infallible>));
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn document(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error in the shape that OpenAI clients understand.
fn refusal(status: StatusCode, message: &str) -> Response {
    document(
        status,
        &json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}}),
    )
}

//! Sending a call: in turn to each place of each provider that may take it, again when that
//! may help, and never once a byte of a reply has gone to the client.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use gateway::provider::{Outcome, ReplyBody, ReplyEnd, UsageMeter};
use gateway::{ForwardError, Refusal};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

use super::answer::CallError;
use super::bill::Bill;
use super::catalogue::Choice;
use super::limits::Amount;
use super::{Call, paths};
use crate::clock::Clock;
use crate::demo;
use crate::error::Error;

/// The first pause before a call is sent again; doubles with each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// A provider that asks for a longer pause is not asked again by us: the client decides.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What came of one attempt.
enum Attempt {
    Reply(Box<http::Response<ReplyBody>>),
    Failed(ForwardError),
}

impl Attempt {
    /// Whether another attempt may fare better.
    fn may_be_repeated(&self) -> bool {
        match self {
            Self::Reply(reply) => matches!(
                reply.status().as_u16(),
                // 529: Anthropic's "overloaded".
                408 | 429 | 500 | 502 | 503 | 504 | 529
            ),
            Self::Failed(error) => matches!(
                error,
                ForwardError::Unreachable(_)
                    | ForwardError::Busy
                    | ForwardError::Closed(_)
                    | ForwardError::FirstByteTimeout(_)
            ),
        }
    }

    /// Whether the place itself is to blame.
    fn is_failure(&self) -> bool {
        match self {
            Self::Reply(reply) => reply.status().is_server_error(),
            Self::Failed(error) => !matches!(
                error,
                ForwardError::Ended | ForwardError::Refused(_) | ForwardError::Busy
            ),
        }
    }

    fn asks_to_wait(&self) -> Option<Duration> {
        match self {
            Self::Reply(reply) => retry_after(reply.headers()),
            Self::Failed(_) => None,
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call and what is known about it"
)]
pub(super) async fn send(
    choices: &[Choice<'_>],
    call: &Call,
    parts: &Parts,
    body: &Bytes,
    rest: &str,
    amount: Amount,
    mut bill: Bill,
    clock: &Clock,
    cancel: &CancellationToken,
) -> Result<Response, CallError> {
    let mut last: Option<(Attempt, String)> = None;
    let ours = bill.admissions.len();
    for choice in choices {
        let config = &choice.entry.config;
        // A fallback that is at its own bounds is passed over; the first says so.
        bill.admissions.truncate(ours);
        match choice.entry.account.admit(amount, clock.now_ms()) {
            Ok(admission) => bill.admissions.push(admission),
            Err(limited) if last.is_none() && choices.len() == 1 => {
                return Err(CallError::Limited(limited));
            }
            Err(_) => continue,
        }
        bill.provider.clone_from(&config.name);
        bill.model = choice.model.unwrap_or("-").to_owned();
        bill.price = choice.price();
        bill.sent = true;
        if choice.entry.places.is_empty() {
            return Ok(answer_demo(parts, rest, body, bill, clock).await);
        }
        let (target, body) = rename(choice, call, rest, body);
        choice.entry.retries.earn();
        let places = choice.entry.places_in_turn(clock.now_ms());
        let attempts = places.len().max(1) + usize::try_from(config.retries).unwrap_or(0);
        let mut pause = PAUSE;
        for (attempt, place) in places.iter().cycle().take(attempts).enumerate() {
            let asked = last
                .as_ref()
                .and_then(|(attempt, _)| attempt.asks_to_wait());
            if attempt > 0
                && !(choice.entry.retries.take() && wait(&mut pause, asked, cancel).await)
            {
                break;
            }
            let request = request(parts, body.clone());
            let outcome = match place.upstream.send(request, &target, cancel).await {
                Ok(reply) => Attempt::Reply(Box::new(reply)),
                Err(error) => Attempt::Failed(error),
            };
            if outcome.is_failure() {
                place.failed(clock.now_ms());
            } else {
                place.succeeded();
            }
            let again = outcome.may_be_repeated();
            last = Some((outcome, config.name.clone()));
            if !again {
                return finish(last, bill);
            }
        }
    }
    finish(last, bill)
}

/// Waits before the next attempt. `false`: it is not worth it, or the caller is gone.
async fn wait(pause: &mut Duration, asked: Option<Duration>, cancel: &CancellationToken) -> bool {
    let wait = asked.map_or(*pause, |asked| asked.max(*pause));
    *pause = (*pause * 2).min(MAX_PAUSE);
    if wait > MAX_PAUSE {
        return false;
    }
    tokio::select! {
        () = cancel.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

fn finish(last: Option<(Attempt, String)>, mut bill: Bill) -> Result<Response, CallError> {
    match last {
        Some((Attempt::Reply(reply), _)) => {
            bill.status = reply.status().as_u16();
            let reply = (*reply).map(|body| Body::new(body.on_end(move |end| bill.settle(end))));
            Ok(reply.into_response())
        }
        Some((Attempt::Failed(source), provider)) => {
            bill.status = source.status().as_u16();
            let refused = matches!(source, ForwardError::Refused(_));
            bill.sent = !refused;
            let outcome = match source {
                ForwardError::Ended => Outcome::Cut,
                _ => Outcome::Broken,
            };
            bill.settle(ReplyEnd {
                outcome,
                usage: None,
                events: 0,
                bytes: 0,
                first_byte: None,
            });
            Err(match source {
                ForwardError::Refused(Refusal::Path | Refusal::Headers | Refusal::Method) => {
                    CallError::Ours(Error::bad_request(format!("{source}: {}", cause(&source))))
                }
                source => CallError::Upstream { provider, source },
            })
        }
        None => Err(CallError::Ours(Error::Unavailable(
            "every provider that offers this model is at its own limits".to_owned(),
        ))),
    }
}

fn cause(error: &ForwardError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}

/// The path and the body with the model's configured name in them, where an alias was used.
fn rename(choice: &Choice<'_>, call: &Call, rest: &str, body: &Bytes) -> (String, Bytes) {
    let (Some(wanted), Some(asked)) = (choice.model, call.model.as_deref()) else {
        return (rest.to_owned(), body.clone());
    };
    if wanted == asked {
        return (rest.to_owned(), body.clone());
    }
    if let Some(shape) = &call.shape {
        return (rest.to_owned(), shape.with_model(body, wanted));
    }
    let target = match paths::model_in(choice.entry.config.kind, rest) {
        Some((before, _, after)) => format!("{before}{}{after}", paths::encoded(wanted)),
        None => rest.to_owned(),
    };
    (target, body.clone())
}

fn request(parts: &Parts, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = query_of(&parts.uri);
    *request.headers_mut() = parts.headers.clone();
    request
}

/// Only the query of a target counts; the path is joined from the table's.
fn query_of(uri: &Uri) -> Uri {
    uri.query()
        .and_then(|query| format!("/?{query}").parse().ok())
        .unwrap_or_default()
}

/// `Retry-After` in seconds, or the finer one that OpenAI sends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| -> Option<u64> { headers.get(name)?.to_str().ok()?.parse().ok() };
    number("retry-after-ms")
        .map(Duration::from_millis)
        .or_else(|| number(RETRY_AFTER.as_str()).map(Duration::from_secs))
}

/// The demo answers at once and in whole.
async fn answer_demo(
    parts: &Parts,
    rest: &str,
    body: &Bytes,
    mut bill: Bill,
    clock: &Clock,
) -> Response {
    let first_byte = Some(std::time::Instant::now());
    if body.len() > demo::MAX_REQUEST {
        let limit = demo::MAX_REQUEST;
        bill.sent = false;
        return Error::TooLarge(format!("the demo provider reads at most {limit} bytes"))
            .into_response();
    }
    let response = demo::respond(&parts.method, rest, body, clock.now_ms() / 1000);
    let (head, reply) = response.into_parts();
    let Ok(reply) = reply.collect().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let reply = reply.to_bytes();
    let event_stream = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let mut meter = UsageMeter::new(event_stream);
    meter.feed(&reply);
    bill.status = head.status.as_u16();
    bill.settle(ReplyEnd {
        outcome: Outcome::Complete,
        usage: meter.reported(),
        events: meter.events(),
        bytes: reply.len() as u64,
        first_byte,
    });
    Response::from_parts(head, Body::from(reply))
}

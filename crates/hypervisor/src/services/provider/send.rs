//! Sending a call: in turn to each place of each provider that may take it, again when that
//! may help, and never once a byte of a reply has gone to the client.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use gateway::provider::{Outcome, ReplyBody, ReplyEnd, UsageMeter};
use gateway::{ConnectError, ForwardError, Refusal};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use super::answer::CallError;
use super::bill::Bill;
use super::catalogue::Choice;
use super::limits::{Admission, Amount, Limited, Scope};
use super::place::Place;
use super::{Call, paths};
use crate::clock::Clock;
use crate::config::Routing;
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

/// What may fare better than an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Nothing,
    /// Another place; this one would say the same again, or let the client wait too long.
    Elsewhere,
    /// Another place at once, or this one after a pause.
    Again,
}

impl Attempt {
    fn next(&self, asked: Option<Duration>) -> Next {
        match self {
            Self::Reply(reply) => match reply.status().as_u16() {
                401..=403 => Next::Elsewhere,
                // 529: Anthropic's "overloaded".
                408 | 429 | 500 | 502 | 503 | 504 | 529 => {
                    if asked.is_some_and(|asked| asked > MAX_PAUSE) {
                        Next::Elsewhere
                    } else {
                        Next::Again
                    }
                }
                _ => Next::Nothing,
            },
            Self::Failed(
                ForwardError::FirstByteTimeout(_)
                | ForwardError::Unreachable(ConnectError::Timeout(_)),
            ) => Next::Elsewhere,
            Self::Failed(
                ForwardError::Unreachable(_) | ForwardError::Busy | ForwardError::Closed(_),
            ) => Next::Again,
            Self::Failed(_) => Next::Nothing,
        }
    }

    /// Tells the place what it did, for the calls to come. Returns the pause that it asks for.
    fn tell(&self, place: &Place, clock: &Clock) -> Option<Duration> {
        match self {
            Self::Reply(reply) if reply.status().is_success() => place.succeeded(),
            Self::Reply(reply) => {
                let now_ms = clock.now_ms();
                let asked = retry_after(reply.headers(), now_ms);
                match reply.status().as_u16() {
                    // Of 403 the key may be the reason, or what was asked for: only when it is
                    // said again and again is the place of no use.
                    status @ (401 | 402) => place.refuses_key(status, now_ms),
                    403 => place.failed(now_ms),
                    429 => place.is_limited(asked, now_ms),
                    500.. => place.failed(now_ms),
                    _ => place.succeeded(),
                }
                return asked;
            }
            Self::Failed(ForwardError::Ended | ForwardError::Refused(_) | ForwardError::Busy) => {}
            Self::Failed(_) => place.failed(clock.now_ms()),
        }
        None
    }

    /// Whether it was work for the provider, which in trouble is not to get a multiple of it.
    fn was_work(&self) -> bool {
        match self {
            Self::Reply(reply) => !matches!(reply.status().as_u16(), 401..=403 | 429),
            Self::Failed(error) => {
                !matches!(error, ForwardError::Unreachable(_) | ForwardError::Busy)
            }
        }
    }

    fn refuses_key(&self) -> bool {
        matches!(self, Self::Reply(reply) if matches!(reply.status().as_u16(), 401..=403))
    }
}

/// What goes up to one provider.
struct Up<'a> {
    caller: SandboxId,
    head: &'a Parts,
    body: Bytes,
    target: Cow<'a, str>,
}

/// The attempt that is answered with if none does better, and who made it.
struct Last<'a> {
    attempt: Attempt,
    choice: &'a Choice<'a>,
    /// What was reserved of that provider's account, while another one is asked.
    admission: Option<Admission>,
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call and what is known about it"
)]
pub(super) async fn send(
    choices: &mut [Choice<'_>],
    call: &Call,
    head: &Parts,
    body: &Bytes,
    rest: &str,
    amount: Amount,
    mut bill: Box<Bill>,
    clock: &Clock,
    mut now_ms: i64,
    cancel: &CancellationToken,
) -> Result<Response, CallError> {
    refuse_routing(choices, call)?;
    let mut last: Option<Last<'_>> = None;
    let mut limited: Option<Limited> = None;
    let ours = bill.admissions.len();
    put_in_order(choices, now_ms);
    for choice in &*choices {
        // A provider that is at its own bounds is passed over.
        bill.admissions.truncate(ours);
        match choice.entry.account.admit(amount, now_ms) {
            Ok(admission) => bill.admissions.push(admission),
            Err(reached) => {
                let sooner = |other: &Limited| other.retry_after <= reached.retry_after;
                limited = limited.filter(sooner).or(Some(reached));
                continue;
            }
        }
        charge(&mut bill, choice);
        bill.sent = true;
        if choice.entry.places.is_empty() {
            return Ok(answer_demo(&head.method, body, rest, bill, clock).await);
        }
        let (target, body) = rename(choice, call, rest, body);
        let going = Up {
            caller: bill.who.sandbox,
            head,
            body,
            target,
        };
        let answered = attempts(choice, &going, &mut last, clock, now_ms, cancel).await;
        if let Some(last) = &mut last
            && std::ptr::eq(last.choice, choice)
        {
            last.admission = bill.admissions.pop();
        }
        if answered {
            break;
        }
        now_ms = clock.now_ms();
    }
    bill.admissions.truncate(ours);
    match (last, limited) {
        (Some(last), _) => finish(last, bill),
        (None, Some(limited)) => Err(CallError::Limited(limited)),
        (None, None) => Err(CallError::Ours(Error::NotFound("provider"))),
    }
}

/// A call whose body lets a router choose the model goes to nobody who does not want that.
fn refuse_routing(choices: &[Choice<'_>], call: &Call) -> Result<(), CallError> {
    let refused = choices
        .iter()
        .any(|choice| choice.entry.config.routing == Routing::Refused);
    match call.routing {
        Some(key) if refused => Err(CallError::Routing { key }),
        _ => Ok(()),
    }
}

/// Those that have a place which is up first: a call does not wait for one that is known to
/// be silent while another could answer.
fn put_in_order(choices: &mut [Choice<'_>], now_ms: i64) {
    choices.sort_by_key(|choice| {
        let places = &choice.entry.places;
        !(places.is_empty() || places.iter().any(|place| place.is_up(now_ms)))
    });
}

fn charge(bill: &mut Bill, choice: &Choice<'_>) {
    bill.provider.clone_from(&choice.entry.config.name);
    choice.model.unwrap_or("-").clone_into(&mut bill.model);
    bill.price = choice.price();
}

/// Tries the places of one provider. `true`: what is in `last` is the answer.
async fn attempts<'a>(
    choice: &'a Choice<'a>,
    going: &Up<'_>,
    last: &mut Option<Last<'a>>,
    clock: &Clock,
    now_ms: i64,
    cancel: &CancellationToken,
) -> bool {
    let entry = choice.entry;
    entry.retries.earn();
    let mut places = entry.places_in_turn(now_ms);
    let up = places
        .iter()
        .take_while(|place| place.is_up(now_ms))
        .count();
    // One that rests is left alone while another one is there.
    if up > 0 {
        places.truncate(up);
    }
    let mut untried = places.into_iter();
    let mut again: VecDeque<(&Place, Option<Duration>)> = VecDeque::new();
    let mut retries = entry.config.retries;
    let mut pause = PAUSE;
    let mut free = true;
    loop {
        let place = match untried.next() {
            Some(place) => {
                if !free && !entry.retries.take() {
                    return false;
                }
                place
            }
            None => {
                let Some((place, asked)) = again.pop_front() else {
                    return false;
                };
                let Some(fewer) = retries.checked_sub(1) else {
                    return false;
                };
                retries = fewer;
                if !(entry.retries.take() && wait(&mut pause, asked, cancel).await) {
                    return false;
                }
                place
            }
        };
        let attempt = match place
            .upstream
            .send(
                going.head,
                &going.body,
                &going.target,
                Some(going.caller),
                cancel,
            )
            .await
        {
            Ok(reply) => Attempt::Reply(Box::new(reply)),
            Err(error) => Attempt::Failed(error),
        };
        let asked = attempt.tell(place, clock);
        let next = attempt.next(asked);
        free = !attempt.was_work();
        // That one of several keys is dead is no answer while there is any other.
        if last.is_none() || !attempt.refuses_key() {
            *last = Some(Last {
                attempt,
                choice,
                admission: None,
            });
        }
        match next {
            Next::Nothing => return true,
            Next::Elsewhere => {}
            Next::Again => again.push_back((place, asked)),
        }
    }
}

/// Waits before a place is asked again. `false`: it is not worth it, or the caller is gone.
async fn wait(pause: &mut Duration, asked: Option<Duration>, cancel: &CancellationToken) -> bool {
    let wait = asked.map_or(*pause, |asked| asked.max(*pause));
    *pause = (*pause * 2).min(MAX_PAUSE);
    tokio::select! {
        biased;
        () = cancel.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

fn finish(last: Last<'_>, mut bill: Box<Bill>) -> Result<Response, CallError> {
    charge(&mut bill, last.choice);
    bill.admissions.extend(last.admission);
    let source = match last.attempt {
        Attempt::Reply(reply) => {
            bill.status = reply.status().as_u16();
            let reply = (*reply).map(|body| Body::new(body.on_end(move |end| bill.settle(end))));
            return Ok(reply.into_response());
        }
        Attempt::Failed(source) => source,
    };
    bill.status = source.status().as_u16();
    bill.sent = !matches!(source, ForwardError::Refused(_) | ForwardError::Busy);
    let outcome = match source {
        ForwardError::Ended => Outcome::Cut,
        _ => Outcome::Broken,
    };
    let provider = bill.provider.clone();
    bill.settle(ReplyEnd::without_a_byte(outcome));
    Err(match source {
        ForwardError::Refused(Refusal::Path | Refusal::Headers | Refusal::Method) => {
            CallError::Ours(Error::bad_request(format!("{source}: {}", cause(&source))))
        }
        ForwardError::Busy => CallError::Limited(Limited {
            scope: Scope::Provider,
            bound: "connections",
            retry_after: Duration::from_secs(1),
        }),
        source => CallError::Upstream { provider, source },
    })
}

fn cause(error: &ForwardError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}

/// The path and the body with the model's configured name in them, where an alias was used.
fn rename<'a>(
    choice: &Choice<'_>,
    call: &Call,
    rest: &'a str,
    body: &Bytes,
) -> (Cow<'a, str>, Bytes) {
    let (Some(wanted), Some(asked)) = (choice.model, call.model.as_deref()) else {
        return (rest.into(), body.clone());
    };
    if wanted == asked {
        return (rest.into(), body.clone());
    }
    if let Some(shape) = &call.shape {
        return (rest.into(), shape.with_model(body, wanted));
    }
    if let Some(form) = &call.form {
        return (rest.into(), form.with_model(body, wanted));
    }
    let target = match paths::model_in(choice.entry.config.kind, rest) {
        Some((before, _, after)) => format!("{before}{}{after}", paths::encoded(wanted)).into(),
        None => rest.into(),
    };
    (target, body.clone())
}

/// `Retry-After` in seconds or as a date (RFC 9110 §10.2.3), or the finer one that OpenAI
/// sends.
fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let millis = text("retry-after-ms").and_then(|text| text.parse().ok());
    if let Some(millis) = millis {
        return Some(Duration::from_millis(millis));
    }
    let text = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    let millis = date.as_millisecond().saturating_sub(now_ms);
    Some(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
}

/// The demo answers at once and in whole.
async fn answer_demo(
    method: &Method,
    body: &Bytes,
    rest: &str,
    mut bill: Box<Bill>,
    clock: &Clock,
) -> Response {
    let began = Instant::now();
    if body.len() > demo::MAX_REQUEST {
        let limit = demo::MAX_REQUEST;
        bill.sent = false;
        return Error::TooLarge(format!("the demo provider reads at most {limit} bytes"))
            .into_response();
    }
    let response = demo::respond(method, rest, body, clock.now_ms() / 1000);
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
        first_byte: Some(began),
        ended: Instant::now(),
    });
    Response::from_parts(head, Body::from(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_asked_for_in_seconds_milliseconds_or_as_a_date() {
        let now_ms = 784_111_770_000;
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers, now_ms)
        };
        let millis = |millis| Some(Duration::from_millis(millis));
        assert_eq!(asked("retry-after", "3"), millis(3000));
        assert_eq!(asked("retry-after-ms", "250"), millis(250));
        // The three forms of a date would be too much: the one in use is enough.
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(asked("retry-after", date), millis(7000));
        let past = "Sun, 06 Nov 1994 08:49:00 GMT";
        assert_eq!(asked("retry-after", past), millis(0));
        assert_eq!(asked("retry-after", "soon"), None);
        assert_eq!(asked("retry-after", "-1"), None);
        assert_eq!(asked("date", date), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_pause_is_made_as_it_is_asked_for_and_grows_by_itself() {
        let right = CancellationToken::new();
        let mut pause = PAUSE;
        let mut waited = async |asked| {
            let began = tokio::time::Instant::now();
            let go_on = wait(&mut pause, asked, &right).await;
            (go_on, began.elapsed())
        };
        assert_eq!(
            waited(Some(Duration::from_secs(1))).await,
            (true, Duration::from_secs(1))
        );
        assert_eq!(waited(None).await, (true, PAUSE * 2));
        // Sooner than we would ask again by ourselves is no reason to hurry.
        assert_eq!(waited(Some(PAUSE)).await, (true, PAUSE * 4));
        right.cancel();
        assert_eq!(waited(None).await, (false, Duration::ZERO));
    }
}

//! Commands over HTTP: the same for a channel and for the owner's `/me/sandboxes/…/commands`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use runtime::protocol::Signal;
use runtime::{Attachment, ControlError, Output};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes as WsBytes, Message};
use tokio_util::sync::CancellationToken;
use types::{CommandEvent, CommandExit, CommandId, CommandRequest, TerminalControl};

use super::websocket::{self, Handshake, Socket};
use crate::actor::Actor;
use crate::error::Error;
use crate::services::commands::{Commands, Leash};

/// Largest request: a megabyte of standard input with every byte escaped, and the rest.
pub(crate) const MAX_REQUEST: usize = 8 << 20;

/// Largest request of a signal.
const MAX_SIGNAL: usize = 1024;

/// Largest message that a terminal's client may send.
const MAX_MESSAGE: usize = 64 << 10;

/// A silent terminal is asked for a sign of life this often; a proxy in between would close
/// the connection otherwise.
const PING_EVERY: Duration = Duration::from_secs(30);

/// How long a request's body may take.
const BODY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignalRequest {
    signal: Signal,
}

/// `POST …/commands`.
pub(crate) async fn start(
    commands: &Commands<'_>,
    actor: &Actor,
    request: Request<Body>,
) -> Result<Response, Error> {
    let asked: CommandRequest = read_json(request, MAX_REQUEST).await?;
    let begun = commands.start(actor, asked).await?;
    // From here on the command lives exactly as long as this response.
    let Some(leash) = begun.leash else {
        return Ok((StatusCode::CREATED, Json(begun.view)).into_response());
    };
    let attachment = commands.attach(actor, leash.id(), 0).await?;
    let mut response = Response::new(Body::from_stream(events(leash, attachment)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `GET …/commands`.
pub(crate) async fn list(commands: &Commands<'_>, actor: &Actor) -> Result<Response, Error> {
    let listed = commands.list(actor).await?;
    Ok(Json(json!({"commands": listed})).into_response())
}

/// `GET …/commands/{id}`.
pub(crate) async fn show(
    commands: &Commands<'_>,
    actor: &Actor,
    id: CommandId,
) -> Result<Response, Error> {
    Ok(Json(commands.show(actor, id).await?).into_response())
}

/// `DELETE …/commands/{id}`: an ended command and its output are not wanted any more.
pub(crate) async fn forget(
    commands: &Commands<'_>,
    actor: &Actor,
    id: CommandId,
) -> Result<Response, Error> {
    commands.forget(actor, id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST …/commands/{id}/signal`.
pub(crate) async fn signal(
    commands: &Commands<'_>,
    actor: &Actor,
    id: CommandId,
    request: Request<Body>,
) -> Result<Response, Error> {
    let asked: SignalRequest = read_json(request, MAX_SIGNAL).await?;
    commands.signal(actor, id, asked.signal).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET …/commands/{id}/stream?from=OFFSET`, a WebSocket. `ended` cuts it, and is cancelled
/// when it is over.
pub(crate) async fn stream(
    commands: &Commands<'_>,
    actor: &Actor,
    id: CommandId,
    request: Request<Body>,
    ended: CancellationToken,
) -> Result<Response, Error> {
    let over = ended.clone().drop_guard();
    let handshake = Handshake::of(request.headers())?;
    let from = offset(request.uri().query())?;
    let attachment = commands.attach(actor, id, from).await?;
    Ok(handshake.answer(request, MAX_MESSAGE, |socket| async move {
        carry(socket, attachment, &ended).await;
        drop(over);
    }))
}

/// `GET …/commands/{id}/output?follow=`: what a command wrote as far as it is kept, and with
/// `follow` what it will write, as plain text; both streams in the order of their arrival.
pub(crate) async fn output(
    commands: &Commands<'_>,
    actor: &Actor,
    id: CommandId,
    follow: bool,
) -> Result<Response, Error> {
    let attachment = commands.attach(actor, id, 0).await?;
    Ok(log(attachment, follow))
}

/// A log as a response: all that there is, and with `follow` what is added.
pub(crate) fn log(attachment: Attachment, follow: bool) -> Response {
    let pieces = futures_util::stream::unfold(attachment, move |log| piece(log, follow));
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    // Proxies in front would otherwise wait for more.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

async fn piece(
    mut log: Attachment,
    follow: bool,
) -> Option<(Result<Bytes, ControlError>, Attachment)> {
    let next = if follow {
        log.next().await
    } else {
        log.next_written().await
    };
    match next {
        Ok(Some(Output::Data { data, .. })) => Some((Ok(Bytes::from(data)), log)),
        // The end of what is followed, which a reader sees as the end.
        Ok(Some(Output::Exited(_)) | None) | Err(_) => None,
    }
}

/// Reads a bounded JSON body.
///
/// # Errors
/// It is too large, or not what is wanted; says where.
pub(crate) async fn read_json<T: DeserializeOwned>(
    request: Request<Body>,
    most: usize,
) -> Result<T, Error> {
    let body = Limited::new(request.into_body(), most).collect();
    let collected = tokio::time::timeout(BODY_WITHIN, body)
        .await
        .map_err(|_| Error::bad_request("the body did not come in time"))?
        .map_err(|_| Error::TooLarge(format!("the request has at most {most} bytes")))?;
    serde_json::from_slice(&collected.to_bytes())
        .map_err(|error| Error::bad_request(format!("the request is not well formed: {error}")))
}

fn offset(query: Option<&str>) -> Result<u64, Error> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.into_iter().find(|(name, _)| name == "from") {
        None => Ok(0),
        Some((_, value)) => value
            .parse()
            .map_err(|_| Error::bad_request("from is a number of bytes")),
    }
}

/// The lines of an `application/x-ndjson` answer: first `Started`, last `Exited`, which counts
/// what this answer lacks, be it dropped for the bound or because its reader was slow.
fn events(
    leash: Leash,
    attachment: Attachment,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let started = CommandEvent::Started { id: leash.id() };
    let rest = futures_util::stream::unfold(
        (leash, Some(attachment), Gaps::default()),
        |(mut leash, attachment, mut gaps)| async move {
            let mut attachment = attachment?;
            let (event, next) = match attachment.next().await {
                Ok(Some(Output::Data {
                    stream,
                    offset,
                    data,
                })) => {
                    gaps.before(offset, data.len());
                    let data = BASE64.encode(data);
                    (CommandEvent::Output { stream, data }, Some(attachment))
                }
                Ok(Some(Output::Exited(mut exit))) => {
                    leash.exited();
                    exit.dropped_bytes = gaps.bytes;
                    (CommandEvent::Exited(exit), None)
                }
                Ok(None) | Err(_) => {
                    if leash.sandbox_ended() {
                        leash.exited();
                    }
                    (CommandEvent::Exited(lost()), None)
                }
            };
            Some((event, (leash, next, gaps)))
        },
    );
    futures_util::stream::once(std::future::ready(started))
        .chain(rest)
        .map(|event| Ok(line(&event)))
}

/// What an answer lacks of a command's output.
#[derive(Debug, Default)]
struct Gaps {
    /// Offset of the next byte, when none is missing.
    next: u64,
    /// Bytes that are missing.
    bytes: u64,
}

impl Gaps {
    /// Counts what lies before a piece; returns it.
    fn before(&mut self, offset: u64, length: usize) -> u64 {
        let gap = offset.saturating_sub(self.next);
        self.bytes = self.bytes.saturating_add(gap);
        self.next = offset.saturating_add(length as u64);
        gap
    }
}

fn lost() -> CommandExit {
    let error = Some("the sandbox ended before the command did".to_owned());
    CommandExit {
        error,
        ..CommandExit::default()
    }
}

fn line(event: &CommandEvent) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

/// Carries a terminal's bytes both ways until either end is done. Where bytes are missing, a
/// reader that was too slow is told again where the next one stands.
async fn carry(socket: Socket, attachment: Attachment, ended: &CancellationToken) {
    let offset = attachment.offset();
    let (mut sink, mut source) = socket.split();
    let (mut output, mut input) = attachment.into_split();
    if sink
        .send(text(&TerminalControl::Attached { offset }))
        .await
        .is_err()
    {
        return;
    }
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.reset();
    let upward = async {
        while let Some(Ok(message)) = source.next().await {
            let sent = match message {
                Message::Binary(bytes) => input.write(&bytes).await,
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(TerminalControl::Resize(size)) => input.resize(size).await,
                    _ => return CloseCode::Unsupported,
                },
                Message::Close(_) => return CloseCode::Normal,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
            };
            if sent.is_err() {
                // The command is gone; the other direction says how it ended.
                return std::future::pending().await;
            }
        }
        CloseCode::Normal
    };
    let downward = async {
        let mut gaps = Gaps {
            next: offset,
            bytes: 0,
        };
        loop {
            let message = tokio::select! {
                next = output.next() => match next {
                    Ok(Some(Output::Data { offset, data, .. })) => {
                        if gaps.before(offset, data.len()) > 0
                            && sink.feed(text(&TerminalControl::Attached { offset })).await.is_err()
                        {
                            return CloseCode::Normal;
                        }
                        Message::Binary(WsBytes::from(data))
                    }
                    Ok(Some(Output::Exited(exit))) => {
                        let _ = sink.send(text(&TerminalControl::Exited(exit))).await;
                        return CloseCode::Normal;
                    }
                    Ok(None) | Err(_) => return CloseCode::Away,
                },
                _ = pings.tick() => Message::Ping(WsBytes::new()),
            };
            if sink.send(message).await.is_err() {
                return CloseCode::Normal;
            }
        }
    };
    let code = tokio::select! {
        code = upward => code,
        code = downward => code,
        () = ended.cancelled() => CloseCode::Away,
    };
    websocket::say_goodbye(sink, source, code).await;
}

fn text(control: &TerminalControl) -> Message {
    Message::Text(serde_json::to_string(control).unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::offset;

    #[test]
    fn an_offset_is_a_number_or_nothing() {
        assert_eq!(offset(None).unwrap(), 0);
        assert_eq!(offset(Some("from=17")).unwrap(), 17);
        assert!(offset(Some("from=-1")).is_err());
    }
}

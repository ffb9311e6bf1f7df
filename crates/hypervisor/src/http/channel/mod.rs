//! Channels: what guests and runners reach over their Unix sockets (arch §1).
//!
//! The channel is the identity; the token is a second factor that every single request has
//! to show. Nothing of `/auth`, `/me` or `/admin` is reachable here, because nothing of the
//! public listener's router is: a request is one of [`paths::Route`] or it is 404.

mod egress;
mod handlers;
pub(crate) mod lanes;
mod linger;
mod paths;
mod presence;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::response::Response;
use gateway::LocalSocket;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use runtime::Instance;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use types::{CommandId, ID_LENGTH, RequestId};

use linger::Rest;

use crate::actor::{Actor, Grant, Via};
use crate::error::Error;
use crate::http::failures::Failures;
use crate::http::problem;
use crate::services::audit::Entry;
use crate::services::egress::{CONNECTIONS_PER_RUNNER, RunnerNetwork};
use crate::services::provider::{self, Caller};
use crate::services::sandboxes::Plane;
use crate::services::sandboxes::tokens::{Misuse, Slot};

/// Connections of one channel; further ones wait in the socket's backlog.
const MAX_GUEST_CONNECTIONS: usize = 128;
const MAX_RUNNER_CONNECTIONS: usize = CONNECTIONS_PER_RUNNER;

/// Bound of a request head, in bytes. hyper's own bound of 100 fields is left as it is: said
/// aloud, it costs two allocations for each request.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Misuses of one channel that are written to the ledger; a program in a loop must not
/// fill it. All of them are counted in the metrics.
const MAX_AUDITED_MISUSES: u32 = 32;

/// Where the SDKs of Anthropic and Google send their key.
const VENDOR_KEYS: [&str; 2] = ["x-api-key", "x-goog-api-key"];

/// Our id of a request; it stands in the usage table and in the log.
const REQUEST_ID: header::HeaderName = header::HeaderName::from_static("x-choir-request-id");

/// Where the SDKs of OpenAI and of Anthropic look for one. A provider's own is left as it is:
/// it is what the provider's support asks for.
const VENDOR_REQUEST_IDS: [header::HeaderName; 2] = [
    header::HeaderName::from_static("x-request-id"),
    header::HeaderName::from_static("request-id"),
];

/// Who is at the other end of a channel.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The start it belongs to.
    pub(crate) instance: Arc<Instance>,
    /// The runner, when it is a runner's own channel.
    pub(crate) command: Option<CommandId>,
    /// What a runner's own channel carries.
    pub(crate) grant: Grant,
    /// A runner's way out, when it was granted one.
    pub(crate) network: Option<Arc<RunnerNetwork>>,
    /// The token it has to show.
    pub(crate) slot: Arc<Slot>,
    /// Ends the channel and everything that goes on through it.
    pub(crate) ended: CancellationToken,
}

/// One channel being served.
struct Channel {
    plane: Arc<Plane>,
    peer: Peer,
    misuses: AtomicU32,
    /// The right to call models: ends with the channel, or when its token lapses.
    right: CancellationToken,
    /// Known from the first model call on.
    caller: OnceLock<Caller>,
}

/// Serves a channel in the background until its start (or its runner) ends.
pub(crate) fn serve(plane: Arc<Plane>, peer: Peer, listener: StdUnixListener) {
    let channel = Arc::new(Channel {
        right: plane.right(&peer.ended),
        plane,
        peer,
        misuses: AtomicU32::new(0),
        caller: OnceLock::new(),
    });
    tokio::spawn(async move {
        let listening = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        match listening {
            Ok(listener) => accept(&channel, &listener).await,
            Err(error) => {
                let start = channel.peer.instance.start_id;
                tracing::error!(%start, %error, "a channel cannot be served");
            }
        }
        channel.plane.tokens.revoke(&channel.peer.slot);
    });
}

async fn accept(channel: &Arc<Channel>, listener: &UnixListener) {
    let most = if channel.peer.command.is_some() {
        MAX_RUNNER_CONNECTIONS
    } else {
        MAX_GUEST_CONNECTIONS
    };
    let slots = Arc::new(Semaphore::new(most));
    // Dropped at the end of the channel, which ends every connection at once.
    let sandbox = channel.peer.instance.sandbox_id;
    let mut connections = channel.plane.lanes.connections(sandbox);
    let lapse = channel.peer.slot.lapsed(&channel.plane.clock);
    tokio::pin!(lapse);
    let mut failures = Failures::of("channel");
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let accepted = tokio::select! {
            biased;
            () = channel.peer.ended.cancelled() => return,
            () = &mut lapse, if !channel.right.is_cancelled() => {
                // What was begun with the token goes with it. The channel itself stays, to
                // say so to whoever still shows it.
                tracing::warn!(
                    sandbox = %channel.peer.instance.sandbox_id,
                    start = %channel.peer.instance.start_id,
                    "the gateway token of a sandbox lapsed unrenewed; everything on its channel is cut"
                );
                channel.right.cancel();
                connections.cut();
                continue;
            }
            accepted = next => accepted,
        };
        match accepted {
            Some((slot, Ok((stream, _)))) => {
                let channel = Arc::clone(channel);
                // Its events are to reach the thread that works on it.
                let stream = stream.into_std();
                connections.add(async move {
                    match stream.and_then(LocalSocket::new) {
                        Ok(stream) => serve_connection(channel, stream).await,
                        Err(error) => tracing::warn!(%error, "cannot serve a connection"),
                    }
                    drop(slot);
                });
            }
            Some((_, Err(error))) => failures.wait_after(&error).await,
            None => return,
        }
    }
}

async fn serve_connection(channel: Arc<Channel>, stream: LocalSocket) {
    let (stream, presence) = presence::watch(stream);
    let exchange = presence.exchange();
    let service = service_fn(move |request: Request<Incoming>| {
        let (channel, exchange) = (Arc::clone(&channel), Arc::clone(&exchange));
        async move {
            let (mut head, body) = request.into_parts();
            let (body, rest) = linger::lend(exchange.request(body));
            // Lent from here on: it is large, and few have to have it as their own.
            let response = answer(&channel, &mut head, body, rest).await;
            Ok::<_, Infallible>(response.map(|body| exchange.reply(body)))
        }
    });
    // HTTP/1.1 alone: h2c would be a second reading of the same bytes.
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        // Whether somebody has left is asked of the socket, once what is there was answered.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Some(Err(error)) = presence.during(connection).await {
        tracing::debug!(%error, "a channel connection ended with an error");
    }
}

async fn answer(
    channel: &Channel,
    head: &mut Parts,
    body: Body,
    rest: Rest<presence::Request>,
) -> Response {
    let request_id = RequestId::generate();
    // A client that asks before it sends is not to be told to go on.
    let asks_first = head.headers.contains_key(header::EXPECT);
    // Neither path nor query: the provider part of a path is the sandbox's own text.
    let mut pattern = "-";
    let mut response = match admit(channel, head, request_id).await {
        Ok((route, actor)) => {
            pattern = route.pattern();
            handlers::handle(channel, &route, &actor, head, body).await
        }
        Err(refusal) => {
            drop(body);
            refusal
        }
    };
    if response.status().as_u16() >= 400 && !asks_first {
        rest.throw_away().await;
    }
    tracing::debug!(
        %request_id,
        sandbox = %channel.peer.instance.sandbox_id,
        start = %channel.peer.instance.start_id,
        route = pattern,
        status = response.status().as_u16(),
        "channel request"
    );
    if let Ok(value) = HeaderValue::from_str(request_id.encode(&mut [0; ID_LENGTH])) {
        let headers = response.headers_mut();
        if !VENDOR_REQUEST_IDS
            .iter()
            .any(|name| headers.contains_key(name))
        {
            for name in VENDOR_REQUEST_IDS {
                headers.insert(name, value.clone());
            }
        }
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// Route, token, and who it is: in this order nothing is told to a caller without a token
/// but that a path is not served here at all.
async fn admit(
    channel: &Channel,
    head: &Parts,
    request_id: RequestId,
) -> Result<(paths::Route, Actor), Response> {
    let refuse = |error: &Error| refusal(error, request_id, paths::is_for_models(head.uri.path()));
    let route = paths::route(&head.method, &head.uri).ok_or_else(|| {
        channel.plane.metrics.channel_refusal("path");
        refuse(&Error::NotFound("path on this channel"))
    })?;
    let no_way_out = route.is_egress() && channel.peer.network.is_none();
    if no_way_out && route == paths::Route::Connect {
        channel.plane.metrics.channel_refusal("connect");
        return Err(refuse(&Error::forbidden(
            "there is no network here: CONNECT is refused for every destination; run the command with a network mode, as in: choir run --network allowlist -- …",
        )));
    }
    if no_way_out {
        channel.plane.metrics.channel_refusal("path");
        return Err(refuse(&Error::NotFound("path on this channel")));
    }
    let (owner, role) = channel
        .plane
        .owner(channel.peer.instance.sandbox_id)
        .await
        .map_err(|error| refuse(&error))?;
    let actor = Actor {
        user: Some(owner),
        via: Via::Channel {
            sandbox: channel.peer.instance.sandbox_id,
            start: channel.peer.instance.start_id,
            role,
            command: channel.peer.command,
            grant: channel.peer.grant,
        },
        request_id,
        address: None,
    };
    // The channel alone is the authority for the way out: a proxy's URL has no token in it.
    if route.is_egress() {
        return Ok((route, actor));
    }
    let checked = channel.plane.tokens.check(
        &channel.peer.slot,
        shown_token(&head.headers),
        channel.plane.clock.awake_ms(),
    );
    if let Err(misuse) = checked {
        report(channel, &actor, &route, misuse).await;
        return Err(refuse(&Error::Refused(misuse.advice())));
    }
    if channel.peer.command.is_some() && !(route.for_runner() && channel.peer.grant.provider) {
        channel.plane.metrics.channel_refusal("ungranted");
        return Err(refuse(&Error::NotFound("path on this channel")));
    }
    Ok((route, actor))
}

/// The token as a client of any vendor shows it: stock SDKs send what they take for their
/// vendor's key, each in the header of that vendor.
fn shown_token(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = text(header::AUTHORIZATION.as_str()) {
        return bearer(value);
    }
    VENDOR_KEYS
        .iter()
        .find_map(|name| text(name))
        .filter(|token| !token.is_empty())
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Counts a misuse, and writes it to the ledger as long as there are not too many.
async fn report(channel: &Channel, actor: &Actor, route: &paths::Route, misuse: Misuse) {
    channel.plane.metrics.channel_refusal(misuse.as_str());
    let sandbox = channel.peer.instance.sandbox_id;
    let before = channel.misuses.fetch_add(1, Ordering::Relaxed);
    if before >= MAX_AUDITED_MISUSES {
        return;
    }
    let mut entry = Entry::denied("token.misuse", sandbox.to_string(), misuse.as_str())
        .with("route", route.pattern())
        .with("start", channel.peer.instance.start_id.to_string());
    if let Some(command) = channel.peer.command {
        entry = entry.with("command", command.to_string());
    }
    if let Misuse::Foreign(owner) = misuse {
        entry = entry.with("token_of", owner.to_string());
    }
    // Refused either way; a ledger that is full must not turn a refusal into anything else.
    if let Err(error) = channel.plane.audit.record(actor, entry).await {
        tracing::error!(%sandbox, %error, "a token misuse could not be recorded");
    }
}

/// A problem as a response on this channel. Where stock SDKs call it has the member that they
/// show their users, too.
fn refusal(error: &Error, request_id: RequestId, for_models: bool) -> Response {
    if !for_models {
        return problem::response(error, Some(request_id));
    }
    problem::extended(error, request_id, "error", |problem| {
        provider::error_member(
            problem::status(problem.code),
            problem.code.as_str(),
            &problem.detail,
        )
    })
}

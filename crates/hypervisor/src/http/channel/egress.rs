//! `CONNECT` and plain HTTP of a runner with a network mode.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;

use super::Channel;
use crate::actor::Actor;
use crate::error::Error;
use crate::http::problem;
use crate::services::egress::{Opened, RunnerNetwork, over};
use gateway::egress::{PlainError, Target};

/// The port of `http://`.
const HTTP: u16 = 80;

/// Longest reason phrase; clients such as `pip` show it and nothing else.
const MAX_REASON: usize = 300;

/// Opens a tunnel. Errors are told before it is opened, in the status line too, because most
/// clients show nothing else of a refused `CONNECT`.
pub(super) async fn connect(
    channel: &Channel,
    network: &Arc<RunnerNetwork>,
    actor: &Actor,
    mut request: Request<Body>,
) -> Response {
    let uri = request.uri();
    let target = match uri.authority() {
        Some(authority) if uri.scheme().is_none() => Target::parse(authority.as_str(), None),
        _ => Target::parse("", None),
    };
    let opened = match open(channel, network, actor, target).await {
        Ok(opened) => opened,
        Err(error) => return refusal(&error, actor),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (plane, network, actor) = (
        Arc::clone(&channel.plane),
        Arc::clone(network),
        actor.clone(),
    );
    tokio::spawn(async move {
        // The runner may have gone between request and answer.
        if let Ok(client) = upgrade.await {
            network
                .carry_tunnel(&plane, &actor, TokioIo::new(client), opened)
                .await;
        }
    });
    let mut response = StatusCode::OK.into_response();
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b"Connection established"));
    response
}

/// Passes on one request that names an `http://` URL.
pub(super) async fn forward(
    channel: &Channel,
    network: &Arc<RunnerNetwork>,
    actor: &Actor,
    request: Request<Body>,
) -> Response {
    let authority = request.uri().authority().map(ToString::to_string);
    let target = Target::parse(authority.as_deref().unwrap_or_default(), Some(HTTP));
    let opened = match open(channel, network, actor, target).await {
        Ok(opened) => opened,
        Err(error) => return refusal(&error, actor),
    };
    let Opened {
        stream,
        permit,
        carried,
    } = opened;
    let target = permit.target().to_string();
    let (plane, about) = (Arc::clone(&channel.plane), actor.clone());
    let on_end = move |ended| {
        drop(carried);
        over(&plane, &about, &target, &ended);
    };
    let egress = channel.plane.networks.egress();
    match egress.exchange(request, stream, permit, on_end).await {
        Ok(response) => response.map(Body::new),
        Err(error @ PlainError::Request(_)) => {
            refusal(&Error::bad_request(error.to_string()), actor)
        }
        Err(error) => refusal(&Error::BadGateway(error.to_string()), actor),
    }
}

async fn open(
    channel: &Channel,
    network: &RunnerNetwork,
    actor: &Actor,
    target: Result<Target, gateway::egress::NameError>,
) -> Result<Opened, Error> {
    let owner = actor.user()?.id;
    let ended = &channel.peer.ended;
    network
        .open(&channel.plane, actor, owner, target, ended)
        .await
}

/// A problem whose reason phrase says what is wrong and what to do.
fn refusal(error: &Error, actor: &Actor) -> Response {
    let mut response = problem::response(error, Some(actor.request_id)).into_response();
    let mut reason = error.to_string();
    if let Some(hint) = error.hint() {
        reason.push_str("; ");
        reason.push_str(&hint);
    }
    let reason: String = reason
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(MAX_REASON)
        .collect();
    if let Ok(reason) = ReasonPhrase::try_from(reason.into_bytes()) {
        response.extensions_mut().insert(reason);
    }
    response
}

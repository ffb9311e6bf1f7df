//! What the routes of a channel do.

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, Request};
use serde_json::json;

use super::paths::{Route, is_for_models};
use super::{Channel, egress, refusal};
use crate::actor::Actor;
use crate::config::ProviderKind;
use crate::error::Error;
use crate::http::commands as http_commands;
use crate::services::commands::Commands;
use crate::services::ports::Ports;
use crate::services::provider::Called;

pub(super) async fn handle(
    channel: &Channel,
    route: &Route,
    actor: &Actor,
    head: &mut Parts,
    body: Body,
) -> Response {
    if let Some(network) = &channel.peer.network
        && route.is_egress()
    {
        return match route {
            Route::Connect => egress::connect(channel, network, actor, whole(head, body)).await,
            _ => egress::forward(channel, network, actor, whole(head, body)).await,
        };
    }
    let for_models = is_for_models(head.uri.path());
    match serve(channel, route, actor, head, body).await {
        Ok(response) => response,
        Err(error) => refusal(&error, actor.request_id, for_models),
    }
}

async fn serve(
    channel: &Channel,
    route: &Route,
    actor: &Actor,
    head: &mut Parts,
    body: Body,
) -> Result<Response, Error> {
    let plane = &channel.plane;
    let instance = &channel.peer.instance;
    let commands = Commands::new(plane, instance);
    let method = head.method.clone();
    match (route, &method) {
        (Route::Providers, &Method::GET) => Ok(Json(plane.providers.listing()).into_response()),
        (Route::Models, &Method::GET) => {
            Ok(Json(plane.providers.models(spoken(head))).into_response())
        }
        (Route::Model(model), &Method::GET) => {
            let model = plane.providers.model(spoken(head), model)?;
            Ok(Json(model).into_response())
        }
        (Route::Provider { name, rest }, _) => {
            call(channel, actor, Called::Provider { name, rest }, head, body).await
        }
        (Route::Stock { kind, rest }, &Method::POST) => {
            let called = Called::Model { kind: *kind, rest };
            call(channel, actor, called, head, body).await
        }
        (Route::Renew, &Method::POST) => {
            let slot = &channel.peer.slot;
            slot.renew(plane.clock.awake_ms());
            Ok(Json(json!({"expires_in_seconds": slot.lifetime().as_secs()})).into_response())
        }
        (Route::Commands, &Method::POST) => {
            http_commands::start(&commands, actor, whole(head, body)).await
        }
        (Route::Commands, &Method::GET) => http_commands::list(&commands, actor).await,
        (Route::Command(id), &Method::GET) => http_commands::show(&commands, actor, *id).await,
        (Route::Command(id), &Method::DELETE) => http_commands::forget(&commands, actor, *id).await,
        (Route::Signal(id), &Method::POST) => {
            http_commands::signal(&commands, actor, *id, whole(head, body)).await
        }
        (Route::Stream(id), &Method::GET) => {
            http_commands::stream(
                &commands,
                actor,
                *id,
                whole(head, body),
                instance.ended().child_token(),
            )
            .await
        }
        (Route::Ports, &Method::GET) => {
            let ports = Ports::new(plane, instance).list(actor).await?;
            Ok(Json(ports).into_response())
        }
        _ => Err(Error::MethodNotAllowed),
    }
}

/// The request, for who has to have it as its own; its head is nobody else's from then on.
fn whole(head: &mut Parts, body: Body) -> Request<Body> {
    let (none, ()) = Request::new(()).into_parts();
    Request::from_parts(std::mem::replace(head, none), body)
}

/// Whose format the client of a path that several APIs have reads.
fn spoken(head: &Parts) -> ProviderKind {
    if head.headers.contains_key("anthropic-version") {
        ProviderKind::Anthropic
    } else {
        ProviderKind::OpenAi
    }
}

async fn call(
    channel: &Channel,
    actor: &Actor,
    called: Called<'_>,
    head: &mut Parts,
    body: Body,
) -> Result<Response, Error> {
    let providers = &channel.plane.providers;
    let user = actor.user()?.id;
    let caller = channel.caller.get_or_init(|| {
        let sandbox = channel.peer.instance.sandbox_id;
        providers.caller(sandbox, user, channel.peer.command)
    });
    Ok(providers
        .call(caller, called, head, body, actor.request_id, &channel.right)
        .await)
}

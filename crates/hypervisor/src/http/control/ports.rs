//! `/me/sandboxes/{role}/ports*`: what listens in a workbench, and the way there.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use http::Request;
use policy::Action;
use types::{PortAddress, PortsView};

use super::extract::id;
use super::route::{Access, Route};
use super::sandboxes::role;
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::http::lasting::lasting;
use crate::http::ports;
use crate::http::websocket::Handshake;
use crate::services::ports::Ports;

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    let own = Access::User(Scope::Commands);
    vec![
        Route::get("/me/sandboxes/{role}/ports", own, list),
        Route::get("/me/sandboxes/{role}/ports/{port}", own, address),
        Route::get("/me/sandboxes/{role}/ports/{port}/connect", own, connect),
    ]
}

async fn list(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<PortsView>, Error> {
    let instance = app
        .sandboxes
        .running_own(&actor, Action::UsePort, role(&of)?)
        .await?;
    let plane = app.sandboxes.plane();
    Ports::new(plane, &instance).list(&actor).await.map(Json)
}

async fn address(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, port)): Path<(String, String)>,
) -> Result<Json<PortAddress>, Error> {
    let (role, port) = (role(&of)?, port_number(&port)?);
    let user = actor.user()?;
    let origins = &app.config.origins;
    Ok(Json(PortAddress {
        port,
        url: origins
            .preview_origin(&user.name, role, port)
            .map(|origin| format!("{origin}/")),
        no_preview: origins.why_no_preview().map(str::to_owned),
    }))
}

/// Reads a port from the path: 1 to 65535.
fn port_number(text: &str) -> Result<u16, Error> {
    id::<std::num::NonZeroU16>("port", text).map(std::num::NonZeroU16::get)
}

async fn connect(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, port)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Error> {
    let (role, port) = (role(&of)?, port_number(&port)?);
    let instance = app
        .sandboxes
        .running_own(&actor, Action::UsePort, role)
        .await?;
    let handshake = Handshake::of(request.headers())?;
    let plane = app.sandboxes.plane();
    let tunnel = Ports::new(plane, &instance).tunnel(&actor, port).await?;
    let ended = lasting(&app, &actor, instance.ended());
    Ok(ports::tunnel(request, handshake, tunnel, ended))
}

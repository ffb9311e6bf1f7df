//! `/me/sandboxes/{role}/commands*`: the owner's own commands, from outside.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::Request;
use policy::Action;
use runtime::Instance;
use tokio_util::sync::CancellationToken;
use types::CommandId;

use super::extract::id;
use super::route::{Access, Route};
use super::sandboxes::{Follow, role};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::http::commands;
use crate::http::lasting::{bound, lasting};
use crate::services::commands::Commands;

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    let own = Access::User(Scope::Commands);
    vec![
        Route::post("/me/sandboxes/{role}/commands", own, start).max_body(commands::MAX_REQUEST),
        Route::get("/me/sandboxes/{role}/commands", own, list),
        Route::get("/me/sandboxes/{role}/commands/{id}", own, show),
        Route::post("/me/sandboxes/{role}/commands/{id}/signal", own, signal),
        Route::get("/me/sandboxes/{role}/commands/{id}/stream", own, stream),
        Route::get("/me/sandboxes/{role}/commands/{id}/output", own, output),
    ]
}

async fn running(app: &App, actor: &Actor, of: &str) -> Result<Arc<Instance>, Error> {
    app.sandboxes
        .running_own(actor, Action::ControlCommand, role(of)?)
        .await
}

/// What carries a command's output ends with what its owner came through. Otherwise it ends as
/// the command does, which outlives a guest that crashed, and whose end says why it came: also
/// that everything was stopped for a limit.
fn carried(app: &Arc<App>, actor: &Actor) -> CancellationToken {
    lasting(app, actor, &CancellationToken::new())
}

fn command(text: &str) -> Result<CommandId, Error> {
    id("command", text)
}

async fn start(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
    request: Request<Body>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    let response = commands::start(
        &Commands::new(app.sandboxes.plane(), &instance),
        &actor,
        request,
    )
    .await?;
    Ok(bound(response, carried(&app, &actor)))
}

async fn list(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    commands::list(&Commands::new(app.sandboxes.plane(), &instance), &actor).await
}

async fn show(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, which)): Path<(String, String)>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    commands::show(
        &Commands::new(app.sandboxes.plane(), &instance),
        &actor,
        command(&which)?,
    )
    .await
}

async fn signal(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, which)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    commands::signal(
        &Commands::new(app.sandboxes.plane(), &instance),
        &actor,
        command(&which)?,
        request,
    )
    .await
}

async fn stream(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, which)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    let ended = carried(&app, &actor);
    commands::stream(
        &Commands::new(app.sandboxes.plane(), &instance),
        &actor,
        command(&which)?,
        request,
        ended,
    )
    .await
}

async fn output(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, which)): Path<(String, String)>,
    Query(query): Query<Follow>,
) -> Result<Response, Error> {
    let instance = running(&app, &actor, &of).await?;
    let response = commands::output(
        &Commands::new(app.sandboxes.plane(), &instance),
        &actor,
        command(&which)?,
        query.is_on(),
    )
    .await?;
    Ok(bound(response, carried(&app, &actor)))
}

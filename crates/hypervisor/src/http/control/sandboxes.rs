//! `/me/sandboxes*` and `/admin/sandboxes*`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use policy::Action;
use serde::Deserialize;
use serde_json::{Value, json};
use types::{Role, SandboxExplanation, SandboxView, SwapRequest, SwapView, UserName};

use super::extract::id;
use super::route::{Access, Route};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::http::commands;
use crate::http::lasting::{bound, lasting};
use crate::services::commands::refused;
use crate::services::sandboxes::Whose;

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    let own = Access::User(Scope::Sandboxes);
    vec![
        Route::get("/me/sandboxes", own, list),
        Route::post("/me/sandboxes/swap", own, swap),
        Route::get("/me/sandboxes/swap", own, last_swap),
        Route::post("/me/sandboxes/{role}/start", own, start),
        Route::post("/me/sandboxes/{role}/stop", own, stop),
        Route::post("/me/sandboxes/{role}/restart", own, restart),
        Route::get("/me/sandboxes/{role}/logs", own, logs),
        Route::get("/me/sandboxes/{role}/notices", own, notices),
        Route::get("/me/sandboxes/{role}/explain", own, explain),
        Route::get("/admin/sandboxes", Access::Admin, list_all),
        Route::post("/admin/sandboxes/{user}/swap", Access::Admin, swap_of),
        Route::get("/admin/sandboxes/{user}/swap", Access::Admin, last_swap_of),
        Route::post(
            "/admin/sandboxes/{user}/{role}/start",
            Access::Admin,
            start_of,
        ),
        Route::post(
            "/admin/sandboxes/{user}/{role}/stop",
            Access::Admin,
            stop_of,
        ),
        Route::post(
            "/admin/sandboxes/{user}/{role}/restart",
            Access::Admin,
            restart_of,
        ),
    ]
}

/// Reads a role from the path. What is no role names nothing.
pub(super) fn role(text: &str) -> Result<Role, Error> {
    id("sandbox", text)
}

pub(super) fn user(text: &str) -> Result<UserName, Error> {
    id("user", text)
}

async fn list(State(app): State<Arc<App>>, actor: Actor) -> Result<Json<Value>, Error> {
    Ok(Json(
        json!({ "sandboxes": app.sandboxes.list(&actor).await? }),
    ))
}

async fn explain(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<SandboxExplanation>, Error> {
    app.sandboxes.explain(&actor, role(&of)?).await.map(Json)
}

async fn notices(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<Value>, Error> {
    let notices = app
        .sandboxes
        .notices(&actor, Whose::Own, role(&of)?)
        .await?;
    Ok(Json(json!({ "notices": notices })))
}

async fn list_all(State(app): State<Arc<App>>, actor: Actor) -> Result<Json<Value>, Error> {
    Ok(Json(
        json!({ "sandboxes": app.sandboxes.list_all(&actor).await? }),
    ))
}

async fn start(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .start(&actor, Whose::Own, role(&of)?)
        .await
        .map(Json)
}

async fn stop(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .stop(&actor, Whose::Own, role(&of)?)
        .await
        .map(Json)
}

async fn restart(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .restart(&actor, Whose::Own, role(&of)?)
        .await
        .map(Json)
}

async fn swap(
    State(app): State<Arc<App>>,
    actor: Actor,
    body: Bytes,
) -> Result<Json<SwapView>, Error> {
    let request = swap_request(&body)?;
    app.sandboxes
        .swap(&actor, Whose::Own, request)
        .await
        .map(Json)
}

/// What the last swap was and what became of it; `null` before the first one.
async fn last_swap(State(app): State<Arc<App>>, actor: Actor) -> Result<Json<Value>, Error> {
    let last = app.sandboxes.last_swap(&actor, Whose::Own).await?;
    Ok(Json(json!({ "swap": last })))
}

async fn last_swap_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(owner): Path<String>,
) -> Result<Json<Value>, Error> {
    let owner = user(&owner)?;
    let last = app.sandboxes.last_swap(&actor, Whose::Of(&owner)).await?;
    Ok(Json(json!({ "swap": last })))
}

/// A body that is not there asks for nothing special.
fn swap_request(body: &[u8]) -> Result<SwapRequest, Error> {
    if body.trim_ascii().is_empty() {
        return Ok(SwapRequest::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Error::bad_request(format!(
            "expected a body such as {{\"rollback\":false}}: {error}"
        ))
    })
}

async fn start_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .start(&actor, Whose::Of(&user(&owner)?), role(&of)?)
        .await
        .map(Json)
}

async fn stop_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .stop(&actor, Whose::Of(&user(&owner)?), role(&of)?)
        .await
        .map(Json)
}

async fn restart_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
) -> Result<Json<SandboxView>, Error> {
    app.sandboxes
        .restart(&actor, Whose::Of(&user(&owner)?), role(&of)?)
        .await
        .map(Json)
}

async fn swap_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(owner): Path<String>,
    body: Bytes,
) -> Result<Json<SwapView>, Error> {
    let request = swap_request(&body)?;
    app.sandboxes
        .swap(&actor, Whose::Of(&user(&owner)?), request)
        .await
        .map(Json)
}

/// Whether a log is followed: `?follow`, `?follow=1`.
#[derive(Debug, Deserialize)]
pub(super) struct Follow {
    #[serde(default)]
    follow: Option<String>,
}

impl Follow {
    pub(super) fn is_on(&self) -> bool {
        self.follow
            .as_ref()
            .is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no"))
    }
}

async fn logs(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
    Query(query): Query<Follow>,
) -> Result<Response, Error> {
    let instance = app
        .sandboxes
        .running_own(&actor, Action::ReadLogs, role(&of)?)
        .await?;
    let log = instance.guest_log(0).await.map_err(refused)?;
    let response = commands::log(log, query.is_on());
    Ok(bound(response, lasting(&app, &actor, instance.ended())))
}

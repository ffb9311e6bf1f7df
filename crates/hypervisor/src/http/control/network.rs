//! `/me/network` and `/admin/network/*`: what commands may reach.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};
use types::NetworkView;

use super::extract::{Json, id};
use super::route::{Access, Route};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::services::egress::rules::{self, RuleRequest};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/me/network", Access::User(Scope::Sandboxes), overview),
        Route::get("/admin/network/rules", Access::Admin, list),
        Route::post("/admin/network/rules", Access::Admin, add),
        Route::delete("/admin/network/rules/{id}", Access::Admin, remove),
    ]
}

async fn overview(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<NetworkView>, Error> {
    rules::overview(&app, &actor).await.map(axum::Json)
}

async fn list(State(app): State<Arc<App>>, actor: Actor) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "rules": rules::list(&app, &actor).await? }),
    ))
}

async fn add(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<RuleRequest>,
) -> Result<Response, Error> {
    let view = rules::add(&app, &actor, &request).await?;
    Ok((StatusCode::CREATED, axum::Json(view)).into_response())
}

async fn remove(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(rule): Path<String>,
) -> Result<StatusCode, Error> {
    rules::remove(&app, &actor, id("network rule", &rule)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! `/me/usage`, `/admin/usage` and `/admin/providers*`: what model calls took, and who
//! answers them.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::extract::Json;
use super::route::{Access, Route};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::services::usage::{self, Asked};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/me/usage", Access::User(Scope::Sandboxes), own),
        Route::get("/admin/usage", Access::Admin, everybodys),
        Route::get("/admin/providers", Access::Admin, providers),
        Route::post("/admin/providers/{name}/test", Access::Admin, test),
    ]
}

async fn own(
    State(app): State<Arc<App>>,
    actor: Actor,
    Query(asked): Query<Asked>,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "usage": usage::own(&app, &actor, &asked).await? }),
    ))
}

async fn everybodys(
    State(app): State<Arc<App>>,
    actor: Actor,
    Query(asked): Query<Asked>,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "usage": usage::everybodys(&app, &actor, &asked).await? }),
    ))
}

async fn providers(State(app): State<Arc<App>>, actor: Actor) -> Result<axum::Json<Value>, Error> {
    app.sandboxes.providers().overview(&actor).map(axum::Json)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Test {
    model: Option<String>,
}

async fn test(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(name): Path<String>,
    Json(Test { model }): Json<Test>,
) -> Result<axum::Json<Value>, Error> {
    let results = app
        .sandboxes
        .providers()
        .check(&actor, &app.audit, &name, model.as_deref())
        .await?;
    Ok(axum::Json(json!({ "results": results })))
}

//! `/me/*`: passkeys, sessions, tokens and recovery codes of the caller.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::show_codes;
use super::extract::{Json, id};
use super::route::{Access, Route};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::services::passkeys::{self, Challenge, Created};
use crate::services::tokens::{self, TokenRequest};
use crate::services::{recovery, sessions};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    let account = Access::User(Scope::Account);
    vec![
        Route::get("/me/passkeys", account, list_passkeys),
        Route::post("/me/passkeys/start", Access::Session, add_passkey_start),
        Route::post("/me/passkeys/finish", Access::Session, add_passkey_finish),
        Route::patch("/me/passkeys/{id}", Access::Session, rename_passkey),
        Route::delete("/me/passkeys/{id}", Access::Session, revoke_passkey),
        Route::get("/me/sessions", account, list_sessions),
        Route::delete("/me/sessions", Access::Session, revoke_other_sessions),
        Route::delete("/me/sessions/{id}", Access::Session, revoke_session),
        Route::get("/me/tokens", account, list_tokens),
        Route::post("/me/tokens", Access::Session, create_token),
        Route::delete("/me/tokens/{id}", Access::Anyone, revoke_token),
        Route::get("/me/recovery-codes", Access::Session, count_codes),
        Route::post("/me/recovery-codes", Access::Session, replace_codes),
    ]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

async fn list_passkeys(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "passkeys": passkeys::list(&app, &actor).await? }),
    ))
}

async fn add_passkey_start(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Challenge>, Error> {
    passkeys::add_start(&app, &actor).await.map(axum::Json)
}

async fn add_passkey_finish(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(created): Json<Created>,
) -> Result<Response, Error> {
    let view = passkeys::add_finish(&app, &actor, &created).await?;
    Ok((StatusCode::CREATED, axum::Json(view)).into_response())
}

async fn rename_passkey(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(passkey): Path<String>,
    Json(Name { name }): Json<Name>,
) -> Result<StatusCode, Error> {
    passkeys::rename(&app, &actor, id("passkey", &passkey)?, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn revoke_passkey(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(passkey): Path<String>,
) -> Result<StatusCode, Error> {
    passkeys::revoke(&app, &actor, id("passkey", &passkey)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_sessions(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "sessions": sessions::list(&app, &actor).await? }),
    ))
}

async fn revoke_other_sessions(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "ended": sessions::revoke_others(&app, &actor).await? }),
    ))
}

async fn revoke_session(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(session): Path<String>,
) -> Result<StatusCode, Error> {
    sessions::revoke(&app, &actor, id("session", &session)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_tokens(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "tokens": tokens::list(&app, &actor).await? }),
    ))
}

async fn create_token(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<TokenRequest>,
) -> Result<Response, Error> {
    let (token, view) = tokens::create(&app, &actor, &request).await?;
    let body = json!({ "token": token.expose(), "info": view });
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

async fn revoke_token(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(token): Path<String>,
) -> Result<StatusCode, Error> {
    tokens::revoke(&app, &actor, id("token", &token)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn count_codes(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "remaining": recovery::count(&app, &actor).await? }),
    ))
}

async fn replace_codes(State(app): State<Arc<App>>, actor: Actor) -> Result<Response, Error> {
    let codes = recovery::replace(&app, &actor).await?;
    Ok((
        StatusCode::CREATED,
        axum::Json(json!({ "recovery_codes": show_codes(&codes) })),
    )
        .into_response())
}

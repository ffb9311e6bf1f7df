//! `/auth/*`: registering, signing in and out, recovering.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use crypto::RecoveryCode;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use types::{Role, TokenId, UserId, UserName};

use super::cookie;
use super::extract::{Json, user_agent};
use super::route::{Access, Route};
use crate::actor::{Actor, User, Via};
use crate::app::App;
use crate::error::Error;
use crate::services::auth::{self, Entitled, LoginFinish, LoginStart, RegisterStart};
use crate::services::passkeys::{Challenge, Created};
use crate::services::rate::Attempt;
use crate::services::recovery::{self, RecoveryFinish, RecoveryStart, RecoveryView};
use crate::services::sessions::{self, Made};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/auth/register/check", Access::Public, register_check)
            .limited(Attempt::Register),
        Route::post("/auth/register/start", Access::Public, register_start)
            .limited(Attempt::Register),
        Route::post("/auth/register/finish", Access::Public, register_finish)
            .limited(Attempt::Register),
        Route::post("/auth/login/start", Access::Public, login_start).limited(Attempt::Login),
        Route::post("/auth/login/finish", Access::Public, login_finish).limited(Attempt::Login),
        Route::post("/auth/logout", Access::Public, logout),
        Route::post("/auth/recovery", Access::Public, recover).limited(Attempt::Recovery),
        Route::get("/auth/recovery/pending", Access::Recovery, recovery_pending),
        Route::post("/auth/recovery/start", Access::Recovery, recovery_start)
            .limited(Attempt::Recovery),
        Route::post("/auth/recovery/finish", Access::Recovery, recovery_finish)
            .limited(Attempt::Recovery),
        Route::get("/auth/me", Access::Anyone, me),
    ]
}

/// Who is signed in, and where their sandboxes are.
#[derive(Debug, Serialize)]
struct Me {
    id: UserId,
    name: UserName,
    is_admin: bool,
    /// `session`, `recovery` or `token`.
    via: &'static str,
    /// Which token, when it is one: so that it can revoke itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<TokenId>,
    live_url: String,
    dev_url: String,
}

/// The answer to whatever made a session.
#[derive(Debug, Serialize)]
struct SignedIn {
    user: Me,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_codes: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    #[serde(default)]
    invite: Option<String>,
    #[serde(default)]
    setup: Option<String>,
}

fn describe(app: &App, user: &User, via: &'static str) -> Me {
    Me {
        id: user.id,
        name: user.name.clone(),
        is_admin: user.is_admin,
        via,
        token_id: None,
        live_url: app.config.origins.runtime_url(&user.name, Role::Live),
        dev_url: app.config.origins.runtime_url(&user.name, Role::Dev),
    }
}

/// A response that sets the cookie of a new session.
fn signed_in(
    app: &App,
    status: StatusCode,
    made: &Made,
    body: impl Serialize,
) -> Result<Response, Error> {
    let secure = app.config.origins.control.is_secure();
    let mut response = (status, axum::Json(body)).into_response();
    response.headers_mut().insert(
        header::SET_COOKIE,
        cookie::set(&made.token, made.lifetime, secure)?,
    );
    Ok(response)
}

async fn register_check(
    State(app): State<Arc<App>>,
    Json(check): Json<Check>,
) -> Result<axum::Json<Entitled>, Error> {
    auth::check_entitlement(&app, check.invite.as_deref(), check.setup.as_deref())
        .await
        .map(axum::Json)
}

async fn register_start(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<RegisterStart>,
) -> Result<axum::Json<Challenge>, Error> {
    auth::register_start(&app, &actor, &request)
        .await
        .map(axum::Json)
}

async fn register_finish(
    State(app): State<Arc<App>>,
    actor: Actor,
    headers: HeaderMap,
    Json(created): Json<Created>,
) -> Result<Response, Error> {
    let registered = auth::register_finish(&app, &actor, &created, user_agent(&headers)).await?;
    let user = describe(&app, &registered.user, "session");
    let codes = show_codes(&registered.codes);
    signed_in(
        &app,
        StatusCode::CREATED,
        &registered.made,
        SignedIn {
            user,
            recovery_codes: Some(codes),
        },
    )
}

async fn login_start(
    State(app): State<Arc<App>>,
    Json(request): Json<LoginStart>,
) -> Result<axum::Json<Challenge>, Error> {
    auth::login_start(&app, &request).await.map(axum::Json)
}

async fn login_finish(
    State(app): State<Arc<App>>,
    actor: Actor,
    headers: HeaderMap,
    Json(finish): Json<LoginFinish>,
) -> Result<Response, Error> {
    let (user, made) = auth::login_finish(&app, &actor, &finish, user_agent(&headers)).await?;
    let user = describe(&app, &user, "session");
    signed_in(
        &app,
        StatusCode::OK,
        &made,
        SignedIn {
            user,
            recovery_codes: None,
        },
    )
}

async fn logout(State(app): State<Arc<App>>, actor: Actor) -> Result<Response, Error> {
    sessions::logout(&app, &actor).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    let secure = app.config.origins.control.is_secure();
    response
        .headers_mut()
        .insert(header::SET_COOKIE, cookie::clear(secure)?);
    Ok(response)
}

async fn recover(
    State(app): State<Arc<App>>,
    actor: Actor,
    headers: HeaderMap,
    Json(request): Json<RecoveryStart>,
) -> Result<Response, Error> {
    let (view, made) = recovery::recover(&app, &actor, &request, user_agent(&headers)).await?;
    signed_in(&app, StatusCode::OK, &made, view)
}

async fn recovery_pending(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<RecoveryView>, Error> {
    recovery::pending(&app, &actor).await.map(axum::Json)
}

async fn recovery_start(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Challenge>, Error> {
    recovery::passkey_start(&app, &actor).await.map(axum::Json)
}

async fn recovery_finish(
    State(app): State<Arc<App>>,
    actor: Actor,
    headers: HeaderMap,
    Json(finish): Json<RecoveryFinish>,
) -> Result<Response, Error> {
    let (user, made) = recovery::finish(&app, &actor, &finish, user_agent(&headers)).await?;
    let user = describe(&app, &user, "session");
    signed_in(
        &app,
        StatusCode::OK,
        &made,
        SignedIn {
            user,
            recovery_codes: None,
        },
    )
}

async fn me(State(app): State<Arc<App>>, actor: Actor) -> Result<axum::Json<Me>, Error> {
    let (via, token_id) = match &actor.via {
        Via::RecoverySession(_) => ("recovery", None),
        Via::ApiToken { id, .. } => ("token", Some(*id)),
        _ => ("session", None),
    };
    Ok(axum::Json(Me {
        token_id,
        ..describe(&app, actor.user()?, via)
    }))
}

/// Codes as they are shown, once.
pub(super) fn show_codes(codes: &[RecoveryCode]) -> Vec<String> {
    codes.iter().map(|code| code.expose().to_owned()).collect()
}

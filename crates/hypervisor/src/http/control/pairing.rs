//! `/auth/cli/*`: how `choir login` gets its token.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::extract::Json;
use super::route::{Access, Route};
use crate::actor::Actor;
use crate::app::App;
use crate::error::Error;
use crate::services::pairing::{
    self, Decision, LookupRequest, PairingRequest, PairingView, PollAnswer, PollRequest,
};
use crate::services::rate::Attempt;

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/auth/cli/start", Access::Program, start).limited(Attempt::PairingStart),
        Route::post("/auth/cli/poll", Access::Program, poll).limited(Attempt::PairingPoll),
        Route::post("/auth/cli/lookup", Access::Session, look_up).limited(Attempt::PairingDecision),
        Route::post("/auth/cli/approve", Access::Session, approve)
            .limited(Attempt::PairingDecision),
    ]
}

async fn start(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<PairingRequest>,
) -> Result<Response, Error> {
    let started = pairing::start(&app, &actor, &request).await?;
    Ok((StatusCode::CREATED, axum::Json(started)).into_response())
}

async fn poll(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<PollRequest>,
) -> Result<axum::Json<PollAnswer>, Error> {
    pairing::poll(&app, &actor, &request).await.map(axum::Json)
}

async fn look_up(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<LookupRequest>,
) -> Result<axum::Json<PairingView>, Error> {
    pairing::look_up(&app, &actor, &request)
        .await
        .map(axum::Json)
}

async fn approve(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(decision): Json<Decision>,
) -> Result<StatusCode, Error> {
    pairing::decide(&app, &actor, &decision).await?;
    Ok(StatusCode::NO_CONTENT)
}

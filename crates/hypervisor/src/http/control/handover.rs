//! `/auth/handover`: the control origin's side of the hand-over (arch §2).

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::gate::redirect;
use super::route::{Access, Route};
use crate::actor::Actor;
use crate::app::App;
use crate::error::Error;
use crate::http::runtime::paths::safe_next;
use crate::services::handover::{self, Asked};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::get("/auth/handover", Access::Page, issue)]
}

#[derive(Debug, Deserialize)]
struct Parameters {
    host: String,
    state: String,
    #[serde(default)]
    next: String,
}

async fn issue(
    State(app): State<Arc<App>>,
    actor: Actor,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Error> {
    let asked = Asked {
        host: &parameters.host,
        binding: &parameters.state,
        next: safe_next(&parameters.next),
    };
    let target = handover::issue(&app, &actor, asked).await?;
    Ok(redirect(&target))
}

//! The control origin: pages, `/auth/*`, `/me/*`, `/admin/*` (arch §3).

pub mod commands;
pub mod sandboxes;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Request;
use tower::ServiceExt;

use crate::app::App;
use crate::error::Error;

/// The router of the control origin.
pub fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(sandboxes::routes())
        .merge(commands::routes())
        .with_state(Arc::clone(app))
}

/// Answers a request on the control origin.
pub async fn handle(router: Router, request: Request<Body>) -> Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The process answers.
async fn healthz() -> &'static str {
    "ok\n"
}

/// The process can do its work: the database answers.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.store.ping().await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            Error::Unavailable("the database does not answer".to_owned()).into_response()
        }
    }
}

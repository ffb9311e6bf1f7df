//! The control origin: pages, `/auth/*`, `/me/*`, `/admin/*` (arch §3).

mod account;
mod admin;
mod auth;
mod commands;
pub mod cookie;
mod events;
pub mod extract;
mod gate;
mod handover;
mod network;
mod pages;
mod pairing;
mod ports;
pub mod route;
mod sandboxes;
mod snapshots;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Request, header};
use tower::ServiceExt;

pub use route::{Access, Route, RouteView, listing};

use crate::app::App;
use crate::error::Error;

/// No inline script, no other origin, no frame around us (arch §2).
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; \
     frame-ancestors 'none'";

/// Headers of every answer.
static HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Not `no-referrer`: that would turn the Origin of our own requests into `null`.
    (header::REFERRER_POLICY, "same-origin"),
];

/// The router of the control origin.
pub fn router(app: &Arc<App>) -> Router {
    route::build(app)
        .fallback(|| async { Error::NotFound("page") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(from_fn_with_state(
            app.config.origins.control.is_secure(),
            add_headers,
        ))
        .with_state(Arc::clone(app))
}

/// Answers a request on the control origin.
pub async fn handle(router: Router, request: Request<Body>) -> Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn add_headers(State(secure): State<bool>, request: Request<Body>, next: Next) -> Response {
    let mut response = next.run(request).await.into_response();
    let headers = response.headers_mut();
    for (name, value) in &HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if secure {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    response
}

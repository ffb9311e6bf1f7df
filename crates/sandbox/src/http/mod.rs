//! The HTTP API of the guest runtime: routes, bounds and headers. One file per resource.

#![expect(unused_qualifications, reason = "what utoipa's `params(…)` expands to")]

pub mod conductor;
pub mod events;
pub mod files;
pub mod info;
pub mod live;
pub mod memory;
pub mod openapi;
mod problem;
pub mod services;
pub mod terminals;
mod upgrade;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tracing::Instrument;
use types::ErrorCode;

use crate::app::{App, blocking};
use crate::desktop;
use crate::files::FileError;
pub use problem::{ApiError, JsonBody, Params, ProblemSchema};

/// Largest body where nothing else is said: prompts and memories are the largest.
const BODY_LIMIT: usize = 128 * 1024;

/// Characters of a request id that are kept; the proxy's are UUIDs.
const MAX_REQUEST_ID: usize = 64;

/// Only what the sandbox itself serves runs in its pages. Inline styles are for the
/// terminal, which makes style elements of its own.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; \
     worker-src 'self' blob:; manifest-src 'self'; form-action 'self'; base-uri 'none'; \
     frame-ancestors 'none'";

/// Everything that the guest runtime serves.
pub fn router(app: App) -> Router {
    let content = get(files::read)
        .put(files::write)
        .layer(DefaultBodyLimit::max(crate::files::MAX_CONTENT as usize));
    Router::new()
        .route("/health", get(info::health))
        .route("/api/info", get(info::info))
        .route("/openapi.json", get(openapi::document))
        .route("/ws", get(live::connect))
        .route("/ws/terminal/{id}", get(terminals::connect))
        .route("/logs/events", get(events::list))
        .route("/logs/events.jsonl", get(events::stream))
        .route("/conductor/execute", post(conductor::execute))
        .route("/conductor/runs", get(conductor::list))
        .route("/conductor/runs/{id}", get(conductor::show))
        .route("/conductor/runs/{id}/cancel", post(conductor::cancel))
        .route("/api/files", get(files::list).delete(files::remove))
        .route("/api/files/content", content)
        .route("/api/files/dir", post(files::create_directory))
        .route("/api/files/move", post(files::rename))
        .route("/api/terminals", post(terminals::open).get(terminals::list))
        .route("/api/terminals/{id}", delete(terminals::close))
        .route("/api/services", post(services::start).get(services::list))
        .route("/api/services/{id}", delete(services::kill))
        .route("/api/services/{id}/stop", post(services::stop))
        .route("/api/memory", post(memory::remember).get(memory::recall))
        .route("/api/memory/{id}", delete(memory::forget))
        .fallback(asset)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(with_security_headers))
        .layer(middleware::from_fn(with_request_id))
        .with_state(app)
}

/// Says which request an error and a log line belong to; query strings are not logged.
async fn with_request_id(request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .map(|id| id.chars().take(MAX_REQUEST_ID).collect::<String>());
    let span = tracing::info_span!(
        "request",
        request_id = id,
        method = %request.method(),
        path = request.uri().path(),
    );
    problem::REQUEST_ID
        .scope(id, next.run(request))
        .instrument(span)
        .await
}

async fn with_security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let defaults: [(HeaderName, &'static str); 5] = [
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "same-origin"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        // What is served belongs to a role that can change with a swap.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in defaults {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::MethodNotAllowed,
        "this method is not allowed here",
    )
}

/// A file of the desktop.
async fn asset(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let nothing = || ApiError::not_found("there is nothing here");
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(nothing());
    }
    // Names of assets need no percent-encoding; what has it is none.
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let workspace = app.workspace.clone();
    let found = blocking(&app.file_operations, move || {
        Ok::<_, FileError>(desktop::find(&workspace, &path))
    });
    let asset = found.await?.ok_or_else(nothing)?;
    let etag = HeaderValue::try_from(&asset.etag).map_err(|_| nothing())?;
    if matches(request.headers(), &asset.etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    let kind = HeaderValue::from_static(asset.content_type);
    Ok(([(CONTENT_TYPE, kind), (ETAG, etag)], asset.bytes).into_response())
}

/// Whether `If-None-Match` names this version (RFC 9110 §13.1.2, weak comparison).
fn matches(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == etag)
}

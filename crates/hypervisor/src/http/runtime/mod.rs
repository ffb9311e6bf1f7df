//! Runtime origins (arch §2, §3).

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;

use crate::app::App;
use crate::config::HostMatch;
use crate::error::Error;

/// Answers a request on a runtime origin.
pub async fn handle(_app: Arc<App>, _host: HostMatch, _request: Request<Body>) -> Response {
    Error::Unavailable("runtimes are not served yet".to_owned()).into_response()
}

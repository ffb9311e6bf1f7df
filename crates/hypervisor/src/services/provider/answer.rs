//! Refusals in the error format of the API that was called, so that stock SDKs show them.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use gateway::ForwardError;
use gateway::provider::{FormError, ShapeError};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::limits::Limited;
use crate::config::ProviderKind;
use crate::error::Error;

/// Names the bound that was reached, for programs.
const LIMIT: HeaderName = HeaderName::from_static("x-choir-limit");

/// Why a call was not made, or not answered by its provider.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The path is none of the provider's.
    #[error(
        "{method} {path} is not served for this provider; the operator may add it to providers.paths"
    )]
    Path { method: String, path: String },
    /// The query has a parameter that is none of the provider's.
    #[error(
        "the query parameter {name:?} does not go up; the operator may add it to providers.query, unless it carries credentials"
    )]
    Query { name: String },
    /// The body is compressed, and so cannot be read.
    #[error("a compressed request body cannot be read; send it without Content-Encoding")]
    Compressed,
    /// The body cannot be read.
    #[error(transparent)]
    Shape(ShapeError),
    /// The form cannot be read.
    #[error("{0}; the operator may let it up unread with model = \"unchecked\" in providers.paths")]
    Form(FormError),
    /// The body lets a router choose another model.
    #[error(
        "the key {key:?} would let the call reach models that are not offered here; the operator may allow it with providers.routing"
    )]
    Routing { key: &'static str },
    /// No model is named.
    #[error("the request names no model")]
    NoModel,
    /// The path and the body name different ones.
    #[error("the path names another model than the body")]
    TwoModels,
    /// The model is not offered.
    #[error("the model {model:?} is not offered here; there are: {offered}")]
    Model { model: String, offered: String },
    /// A bound is reached.
    #[error("{0}")]
    Limited(Limited),
    /// Something of ours refused it.
    #[error("{0}")]
    Ours(Error),
    /// The provider could not be reached or did not answer as it should.
    #[error("the provider {provider}: {source}")]
    Upstream {
        provider: String,
        source: ForwardError,
    },
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl CallError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Path { .. } | Self::Model { .. } => StatusCode::NOT_FOUND,
            Self::Query { .. }
            | Self::Shape(_)
            | Self::Form(_)
            | Self::Routing { .. }
            | Self::NoModel
            | Self::TwoModels => StatusCode::BAD_REQUEST,
            Self::Compressed => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Ours(error) => crate::http::problem::status(error.code()),
            Self::Upstream { source, .. } => source.status(),
        }
    }

    /// Whether the call was made, and so stands in the usage log.
    pub(super) fn was_sent(&self) -> bool {
        matches!(self, Self::Upstream { source, .. } if !matches!(source, ForwardError::Refused(_)))
    }

    /// Stable, for programs and logs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Path { .. } => "path_not_served",
            Self::Query { .. } => "query_not_served",
            Self::Compressed => "unsupported_media_type",
            Self::Shape(_)
            | Self::Form(_)
            | Self::Routing { .. }
            | Self::NoModel
            | Self::TwoModels => "invalid_request",
            Self::Model { .. } => "model_not_found",
            Self::Limited(limited) => limited.bound,
            Self::Ours(error) => error.code().as_str(),
            Self::Upstream { source, .. } => source.code().as_str(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited(limited) => Some(limited.retry_after),
            Self::Ours(Error::Unavailable(_) | Error::SandboxNotRunning) => {
                Some(Duration::from_secs(2))
            }
            _ => None,
        }
    }

    /// The refusal as the API of `kind` says it.
    pub(super) fn into_response(self, kind: ProviderKind) -> Response {
        let status = self.status();
        let message = match &self {
            Self::Upstream { source, .. } => {
                let mut text = self.to_string();
                let mut cause = std::error::Error::source(source);
                while let Some(error) = cause {
                    text.push_str(": ");
                    text.push_str(&error.to_string());
                    cause = error.source();
                }
                text
            }
            _ => self.to_string(),
        };
        let document = document(kind, status, self.code(), &message);
        let mut response = Response::new(Body::from(document.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after() {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                headers.insert(RETRY_AFTER, value);
            }
        }
        if let Self::Limited(limited) = &self {
            headers.insert(LIMIT, HeaderValue::from_static(limited.bound));
        }
        response
    }
}

/// The `error` member that the SDKs of OpenAI and of Anthropic both read.
pub(crate) fn error_member(status: StatusCode, code: &str, message: &str) -> Value {
    json!({"message": message, "type": class(status), "param": null, "code": code})
}

fn class(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

fn document(kind: ProviderKind, status: StatusCode, code: &str, message: &str) -> Value {
    match kind {
        ProviderKind::Anthropic => {
            json!({"type": "error", "error": {"type": class(status), "message": message}})
        }
        ProviderKind::Gemini => {
            let name = match status {
                StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
                StatusCode::NOT_FOUND => "NOT_FOUND",
                StatusCode::GATEWAY_TIMEOUT => "DEADLINE_EXCEEDED",
                status if status.is_client_error() => "INVALID_ARGUMENT",
                _ => "UNAVAILABLE",
            };
            json!({"error": {"code": status.as_u16(), "message": message, "status": name}})
        }
        ProviderKind::Bedrock => json!({"__type": code, "message": message}),
        ProviderKind::OpenAi | ProviderKind::Demo => {
            json!({"error": error_member(status, code, message)})
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::limits::Scope;
    use super::*;

    #[tokio::test]
    async fn a_limit_is_told_in_the_format_of_the_api() {
        for (kind, pointer, expected) in [
            (ProviderKind::OpenAi, "/error/code", json!("daily_budget")),
            (
                ProviderKind::Anthropic,
                "/error/type",
                json!("rate_limit_error"),
            ),
            (
                ProviderKind::Gemini,
                "/error/status",
                json!("RESOURCE_EXHAUSTED"),
            ),
            (ProviderKind::Bedrock, "/__type", json!("daily_budget")),
        ] {
            let error = CallError::Limited(Limited {
                scope: Scope::User,
                bound: "daily_budget",
                retry_after: Duration::from_millis(1500),
            });
            let response = error.into_response(kind);
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()["retry-after"], "2");
            assert_eq!(response.headers()["x-choir-limit"], "daily_budget");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.pointer(pointer), Some(&expected), "{body}");
            assert!(body.to_string().contains("user.daily_budget"), "{body}");
        }
    }
}

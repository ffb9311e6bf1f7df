//! The one place that turns errors into answers (RFC 9457).

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use types::{ErrorCode, Problem};
use utoipa::ToSchema;

use crate::channel::ChannelError;
use crate::files::FileError;
use crate::memory::MemoryError;
use crate::store::StoreError;

tokio::task_local! {
    /// The id that the proxy gave to the request that this task answers.
    pub(super) static REQUEST_ID: Option<String>;
}

/// An error as the client sees it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: ErrorCode,
    detail: String,
    hint: Option<String>,
}

/// A problem document (RFC 9457), as `types::Problem` serializes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemSchema {
    /// Always `about:blank`; `code` is what to match on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable code in lower case, such as `not_found`.
    pub code: String,
    /// What happened and why, for people.
    pub detail: String,
    /// What to do next, for people.
    pub hint: Option<String>,
    /// The id under which the log speaks of this request.
    pub request_id: Option<String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            hint: None,
        }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, detail)
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, source = ?error.source(), "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Internal,
            error.to_string(),
        )
        .with_hint("the sandbox's log has the details")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            hint: self.hint,
            request_id: REQUEST_ID.try_with(Option::clone).ok().flatten(),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::SERVICE_UNAVAILABLE
        {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                error.to_string(),
            ),
            StoreError::TooLarge(_) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::TooLarge,
                error.to_string(),
            ),
            error => Self::internal(&error),
        }
    }
}

impl From<MemoryError> for ApiError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::NotFound => Self::not_found(error.to_string()),
            MemoryError::Empty | MemoryError::Tags => Self::bad_request(error.to_string()),
            MemoryError::TooLong(_) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::TooLarge,
                error.to_string(),
            ),
            MemoryError::Store(error) => error.into(),
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        let (status, code) = match &error {
            // Who leads out of the workspace learns nothing about what is there.
            FileError::NotFound | FileError::Outside => {
                return Self::not_found(FileError::NotFound.to_string());
            }
            FileError::Path(_) => (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
            FileError::Kind(_) | FileError::Exists | FileError::TooDeep => {
                (StatusCode::CONFLICT, ErrorCode::Conflict)
            }
            FileError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge),
            FileError::Changed => (StatusCode::PRECONDITION_FAILED, ErrorCode::Conflict),
            FileError::Permission => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
            FileError::Full => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable),
            FileError::Io(_) => return Self::internal(&error),
        };
        let hint = match &error {
            FileError::Changed => Some("read the file again, then repeat the change"),
            FileError::Full => Some("remove something from the workspace"),
            _ => None,
        };
        let api = Self::new(status, code, error.to_string());
        match hint {
            Some(hint) => api.with_hint(hint),
            None => api,
        }
    }
}

impl From<ChannelError> for ApiError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Refused(problem) => Self {
                // A refusal of the sandbox itself is not one of the user.
                status: match problem.status {
                    401 | 403 => StatusCode::BAD_GATEWAY,
                    status => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
                },
                code: problem.code,
                detail: problem.detail,
                hint: problem.hint,
            },
            ChannelError::Timeout(_) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorCode::GatewayTimeout,
                error.to_string(),
            )
            .with_hint("try again; the hypervisor may be restarting"),
            error => {
                tracing::warn!(%error, source = ?std::error::Error::source(&error), "the channel failed");
                Self::new(
                    StatusCode::BAD_GATEWAY,
                    ErrorCode::BadGateway,
                    error.to_string(),
                )
                .with_hint("try again; the hypervisor may be restarting")
            }
        }
    }
}

/// A JSON body. Its bound is the route's body limit.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = body(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            ApiError::bad_request(format!("the body is not what is expected: {error}"))
        })
    }
}

/// A body as it is. Its bound is the route's body limit.
///
/// # Errors
/// When it is too large or breaks off.
pub(crate) async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    ErrorCode::TooLarge,
                    "the body is larger than what is accepted here",
                )
            } else {
                ApiError::bad_request("the body broke off")
            }
        })
}

/// The query string.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// An id in the path. What cannot be one belongs to nothing.
pub(crate) fn id<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|_| ApiError::not_found(format!("there is no such {what}")))
}

#[cfg(test)]
mod tests {
    use super::ProblemSchema;

    #[test]
    fn the_documented_problem_is_the_one_that_is_sent() {
        let documented = ProblemSchema {
            kind: "about:blank".to_owned(),
            title: "Not Found".to_owned(),
            status: 404,
            code: "not_found".to_owned(),
            detail: "gone".to_owned(),
            hint: Some("look elsewhere".to_owned()),
            request_id: Some("1".to_owned()),
        };
        let value = serde_json::to_value(&documented).unwrap();
        let sent: types::Problem = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(sent).unwrap(), value);
    }
}

//! The one place that maps errors to HTTP (style 5, RFC 9457).

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use types::{ErrorCode, Problem, RequestId};

use crate::error::Error;

tokio::task_local! {
    /// The request that this task answers.
    static REQUEST_ID: RequestId;
}

/// Answers a request under its id, which then stands in its problems.
pub async fn with_request_id<F: Future>(id: RequestId, answer: F) -> F::Output {
    REQUEST_ID.scope(id, answer).await
}

/// The status of a code.
#[must_use]
pub const fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden | ErrorCode::CrossOrigin => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Conflict | ErrorCode::UnhealthyTarget | ErrorCode::StaleGeneration => {
            StatusCode::CONFLICT
        }
        ErrorCode::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RateLimited | ErrorCode::TooManyRunning => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::SandboxNotRunning
        | ErrorCode::SandboxFailed
        | ErrorCode::HostFull
        | ErrorCode::AuditUnavailable
        | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::BadGateway => StatusCode::BAD_GATEWAY,
        ErrorCode::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error as a document. A fault of ours is logged here, with its whole chain, once.
#[must_use]
pub fn describe(error: &Error, request_id: Option<RequestId>) -> Problem {
    let request_id = request_id.or_else(|| REQUEST_ID.try_with(|id| *id).ok());
    let code = error.code();
    let status = status(code);
    if let Error::Internal(source) | Error::AuditUnavailable(source) = error {
        let mut chain = source.to_string();
        let mut next = source.source();
        while let Some(cause) = next {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            next = cause.source();
        }
        let request_id = request_id.map(|id| id.to_string()).unwrap_or_default();
        tracing::error!(request_id, error = chain, "request failed");
    }
    Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        status: status.as_u16(),
        code,
        detail: error.to_string(),
        hint: error.hint(),
        request_id: request_id.map(|id| id.to_string()),
    }
}

/// The response for an error.
#[must_use]
pub fn response(error: &Error, request_id: Option<RequestId>) -> Response {
    let problem = describe(error, request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    document(error, &problem, body)
}

/// The response for an error with one more member, as RFC 9457 §3.2 allows it.
pub(crate) fn extended(
    error: &Error,
    request_id: RequestId,
    name: &str,
    member: impl FnOnce(&Problem) -> serde_json::Value,
) -> Response {
    let problem = describe(error, Some(request_id));
    let mut body = serde_json::to_value(&problem).unwrap_or_default();
    if let Some(members) = body.as_object_mut() {
        members.insert(name.to_owned(), member(&problem));
    }
    document(error, &problem, body.to_string().into_bytes())
}

fn document(error: &Error, problem: &Problem, body: Vec<u8>) -> Response {
    let status = status(problem.code);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let retry_after = match error {
        Error::RateLimited { retry_after } => Some(retry_after.as_secs().max(1)),
        Error::SandboxNotRunning | Error::Unavailable(_) => Some(2),
        // Somebody has to stop one first, or leave it idle.
        Error::HostFull { .. } | Error::TooManyRunning { .. } => Some(60),
        _ => None,
    };
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.code == ErrorCode::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        response(&self, None)
    }
}

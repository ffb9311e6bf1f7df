//! Problem details (RFC 9457) with a stable code.

use serde::{Deserialize, Serialize};

/// Stable error codes. A client may match on them; the texts may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not well formed; `detail` says where.
    BadRequest,
    /// Nobody is signed in, or the token is not valid.
    Unauthenticated,
    /// Signed in, and not allowed.
    Forbidden,
    /// The request came from another origin than the page it claims to come from.
    CrossOrigin,
    /// There is no such thing, or not for this caller.
    NotFound,
    /// The method is not allowed here.
    MethodNotAllowed,
    /// It conflicts with the present state.
    Conflict,
    /// The page was loaded before the roles were swapped, and has to load again.
    StaleGeneration,
    /// The host is nobody's.
    MisdirectedRequest,
    /// Something is larger than its bound.
    TooLarge,
    /// Too many requests; `Retry-After` says when to come back.
    RateLimited,
    /// The sandbox does not run.
    SandboxNotRunning,
    /// The sandbox could not be started.
    SandboxFailed,
    /// As many sandboxes run on this host as may; `Retry-After` says when to ask again.
    HostFull,
    /// As many sandboxes of this user run as may; `hint` says which could be stopped.
    TooManyRunning,
    /// A swap was refused because the target is not healthy.
    UnhealthyTarget,
    /// The sandbox or the provider did not answer as it should.
    BadGateway,
    /// The sandbox or the provider did not answer in time.
    GatewayTimeout,
    /// The audit log cannot take the record, so the act did not happen.
    AuditUnavailable,
    /// Something is missing for now; try again later.
    Unavailable,
    /// A fault of ours; the log has the details under the request id.
    Internal,
}

impl ErrorCode {
    /// The code as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::CrossOrigin => "cross_origin",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::MisdirectedRequest => "misdirected_request",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::HostFull => "host_full",
            Self::StaleGeneration => "stale_generation",
            Self::TooManyRunning => "too_many_running",
            Self::SandboxNotRunning => "sandbox_not_running",
            Self::SandboxFailed => "sandbox_failed",
            Self::UnhealthyTarget => "unhealthy_target",
            Self::BadGateway => "bad_gateway",
            Self::GatewayTimeout => "gateway_timeout",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// A problem document, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`; `code` is what to match on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: ErrorCode,
    /// What happened and why, for people.
    pub detail: String,
    /// What to do next, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The id under which the log speaks of this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

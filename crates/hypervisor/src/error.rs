//! The one error of all services. `http::problem` maps it to HTTP, and nothing else does.

use std::time::Duration;

use types::ErrorCode;

use crate::store::StoreError;

/// Why an operation did not happen. The texts are shown to people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is not well formed.
    #[error("{0}")]
    BadRequest(String),
    /// Nobody is signed in, or what was presented is not valid.
    #[error("you are not signed in, or your session or token has ended")]
    Unauthenticated,
    /// A sign-in, recovery or pairing attempt failed; deliberately the same for every reason.
    #[error("{0}")]
    Refused(&'static str),
    /// Signed in, and not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// A connection to the outside that the network rules do not allow.
    #[error("{message}")]
    NetworkDenied {
        /// What was refused.
        message: String,
        /// What would allow it, if anything.
        hint: String,
    },
    /// The request came from another origin.
    #[error("{0}")]
    CrossOrigin(&'static str),
    /// There is no such thing, or not for this caller.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The method is not allowed here.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// It conflicts with the present state.
    #[error("{0}")]
    Conflict(String),
    /// A page that was loaded before a swap wants to change what it was not loaded from.
    #[error("live and dev were swapped since this page was loaded, so nothing was done")]
    StaleGeneration,
    /// The host is nobody's.
    #[error("nothing is served under this host name")]
    MisdirectedRequest,
    /// Something is larger than its bound.
    #[error("{0}")]
    TooLarge(String),
    /// Too many attempts.
    #[error("too many attempts")]
    RateLimited {
        /// When the next one may be made.
        retry_after: Duration,
    },
    /// The sandbox does not run, and this request does not wake it.
    #[error("the sandbox does not run")]
    SandboxNotRunning,
    /// The sandbox could not be started.
    #[error("{message}")]
    SandboxFailed {
        /// What happened and why.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// As many sandboxes run on this host as may.
    #[error("{message}")]
    HostFull {
        /// How many there are and may be.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// As many sandboxes of one user run as may.
    #[error("{message}")]
    TooManyRunning {
        /// Which there are and how many there may be.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A swap was refused.
    #[error("the other sandbox is not healthy: {0}")]
    UnhealthyTarget(String),
    /// The sandbox or the provider did not answer as it should.
    #[error("{0}")]
    BadGateway(String),
    /// The sandbox or the provider did not answer in time.
    #[error("{0}")]
    GatewayTimeout(String),
    /// The ledger cannot take the record, so the act did not happen.
    #[error("the audit log cannot take the record, so nothing was done")]
    AuditUnavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something is missing for now.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of ours.
    #[error("something went wrong on our side")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A request that is not well formed.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::BadRequest(detail.into())
    }

    /// Signed in, and not allowed.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::Forbidden(detail.into())
    }

    /// A conflict with the present state.
    #[must_use]
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::Conflict(detail.into())
    }

    /// A fault of ours.
    #[must_use]
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }

    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BadRequest(_) => ErrorCode::BadRequest,
            Self::Unauthenticated | Self::Refused(_) => ErrorCode::Unauthenticated,
            Self::Forbidden(_) | Self::NetworkDenied { .. } => ErrorCode::Forbidden,
            Self::CrossOrigin(_) => ErrorCode::CrossOrigin,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::MethodNotAllowed => ErrorCode::MethodNotAllowed,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::StaleGeneration => ErrorCode::StaleGeneration,
            Self::MisdirectedRequest => ErrorCode::MisdirectedRequest,
            Self::TooLarge(_) => ErrorCode::TooLarge,
            Self::RateLimited { .. } => ErrorCode::RateLimited,
            Self::SandboxNotRunning => ErrorCode::SandboxNotRunning,
            Self::SandboxFailed { .. } => ErrorCode::SandboxFailed,
            Self::HostFull { .. } => ErrorCode::HostFull,
            Self::TooManyRunning { .. } => ErrorCode::TooManyRunning,
            Self::UnhealthyTarget(_) => ErrorCode::UnhealthyTarget,
            Self::BadGateway(_) => ErrorCode::BadGateway,
            Self::GatewayTimeout(_) => ErrorCode::GatewayTimeout,
            Self::AuditUnavailable(_) => ErrorCode::AuditUnavailable,
            Self::Unavailable(_) => ErrorCode::Unavailable,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// What to do next, for people.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unauthenticated => "sign in at /login, or run: choir login",
            Self::CrossOrigin(_) => "open the control plane's own page and do it there",
            Self::RateLimited { .. } => "wait as long as Retry-After says",
            Self::StaleGeneration => "reload the page",
            Self::SandboxNotRunning => "open it in a browser, or run: choir sandbox start",
            Self::NetworkDenied { hint, .. } => return Some(hint.clone()),
            Self::SandboxFailed { hint, .. }
            | Self::HostFull { hint, .. }
            | Self::TooManyRunning { hint, .. } => return hint.clone(),
            Self::UnhealthyTarget(_) => {
                "start it with `choir sandbox start dev`, or see why it fails: choir sandbox logs --role dev"
            }
            Self::AuditUnavailable(_) => {
                "an administrator has to look at the disk of the data directory"
            }
            Self::Internal(_) => {
                "an administrator finds the details in the log under the request id"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Duplicate { what } => {
                Self::Conflict(format!("there is already such a {what}"))
            }
            StoreError::Newer => Self::Conflict(error.to_string()),
            StoreError::Database(sqlx::Error::PoolTimedOut) => {
                Self::Unavailable("the database is busy; try again in a moment".to_owned())
            }
            other => Self::Internal(Box::new(other)),
        }
    }
}

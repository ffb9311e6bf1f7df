//! Why a request was not answered by its upstream.

use std::time::Duration;

use http::StatusCode;
use types::ErrorCode;

use crate::AppSocketError;

/// No connection to the upstream.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The sandbox's `app.sock` is missing, is not a socket, or refuses.
    #[error("the app socket cannot be used")]
    AppSocket(#[from] AppSocketError),
    /// The provider's address could not be looked up or connected to.
    #[error("{host} cannot be reached")]
    Tcp {
        /// Host and port.
        host: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with {host} failed")]
    Tls {
        /// Host and port.
        host: String,
        /// What TLS said.
        #[source]
        source: std::io::Error,
    },
    /// A port of the sandbox's workbench cannot be used.
    #[error(transparent)]
    Port(#[from] PortError),
    /// It took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The HTTP state machine could not be set up on the connection.
    #[error("the connection cannot speak HTTP")]
    Http(#[source] hyper::Error),
}

/// Why a port of a workbench cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Nobody listens.
    #[error("nothing listens on the port")]
    NothingListens,
    /// Somebody listens and does not accept.
    #[error("what listens on the port does not accept connections")]
    NotAccepted,
    /// Too many connections are under way.
    #[error("too many connections to ports are under way")]
    Busy,
    /// The port is one of our own.
    #[error("the port is a command's own way to the model gateway")]
    Reserved,
    /// Whoever connects for us did not do it.
    #[error("the port cannot be reached: {0}")]
    Failed(String),
}

/// A request that is not forwarded because of what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// CONNECT, TRACE, or `OPTIONS *`.
    #[error("this method is not forwarded")]
    Method,
    /// The path is not beneath the prefix or the base it has to be beneath.
    #[error("the path leaves its base")]
    Path,
    /// A WebSocket upgrade without a key, with another version, or over HTTP/2.
    #[error("the WebSocket upgrade is not well formed")]
    Upgrade,
    /// A service-worker script where none is allowed (arch §2).
    #[error("service-worker scripts are not served here")]
    ServiceWorker,
    /// Headers that cannot be forwarded unambiguously.
    #[error("the request's headers contradict each other")]
    Headers,
}

/// Why a request was not answered by its upstream.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No connection could be made.
    #[error("the upstream cannot be reached")]
    Unreachable(#[source] ConnectError),
    /// Too many exchanges or WebSockets are open or waiting.
    #[error("too many requests are open to this upstream")]
    Busy,
    /// No response head in time.
    #[error("the upstream did not answer within {0:?}")]
    FirstByteTimeout(Duration),
    /// The upstream closed the connection instead of answering.
    #[error("the upstream closed the connection before it answered")]
    Closed(#[source] Option<hyper::Error>),
    /// What came back is not a response that may be passed on.
    #[error("the upstream's answer is not acceptable: {reason}")]
    BadResponse {
        /// What is wrong with it.
        reason: &'static str,
        /// What the parser said.
        #[source]
        source: Option<hyper::Error>,
    },
    /// The request body is larger than its bound.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The bound in bytes.
        limit: u64,
    },
    /// The client stopped sending its request body.
    #[error("the request body stalled for {0:?}")]
    UploadStalled(Duration),
    /// The client went away in the middle of its request body.
    #[error("the client left in the middle of its request")]
    ClientGone,
    /// The request is of a kind that is not forwarded.
    #[error("the request is refused")]
    Refused(#[source] Refusal),
    /// The sandbox start (or the caller's right) ended.
    #[error("the sandbox start ended")]
    Ended,
}

impl ForwardError {
    /// The stable code for the problem document.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Unreachable(
                ConnectError::Timeout(_) | ConnectError::Port(PortError::NotAccepted),
            )
            | Self::FirstByteTimeout(_) => ErrorCode::GatewayTimeout,
            Self::Unreachable(ConnectError::Port(PortError::Busy)) => ErrorCode::Unavailable,
            Self::Unreachable(_) | Self::Closed(_) | Self::BadResponse { .. } => {
                ErrorCode::BadGateway
            }
            Self::Busy => ErrorCode::Unavailable,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::UploadStalled(_) | Self::ClientGone => ErrorCode::BadRequest,
            Self::Refused(Refusal::Method) => ErrorCode::MethodNotAllowed,
            Self::Refused(Refusal::ServiceWorker) => ErrorCode::Forbidden,
            Self::Refused(_) => ErrorCode::BadRequest,
            Self::Ended => ErrorCode::SandboxNotRunning,
        }
    }

    /// The HTTP status that goes with [`Self::code`].
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self.code() {
            ErrorCode::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::BadGateway => StatusCode::BAD_GATEWAY,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

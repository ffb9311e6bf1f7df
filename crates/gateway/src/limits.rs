//! Every bound of one upstream, in one place (style rule 15).

use std::time::Duration;

/// The bounds of one upstream. There is no total timeout: a long stream is legitimate as
/// long as bytes arrive.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest wait for a connection to be made, TLS handshake included.
    pub connect: Duration,
    /// Longest wait for the response head, counted from the last byte of the request.
    pub first_byte: Duration,
    /// Longest silence in a request body that is being sent.
    pub upload_idle: Duration,
    /// Longest silence in a response body.
    pub response_idle: Duration,
    /// Exchanges that may be open at once.
    pub max_exchanges: usize,
    /// Requests that may wait for one of `max_exchanges`.
    pub max_waiting: usize,
    /// Longest wait of a request for one of `max_exchanges`.
    pub wait: Duration,
    /// Connections kept open without a request.
    pub max_idle: usize,
    /// How long a connection is kept without a request.
    pub keep_idle: Duration,
    /// WebSockets that may be open at once.
    pub max_websockets: usize,
    /// Longest silence on a WebSocket, pings included, before it is closed.
    pub websocket_idle: Duration,
    /// What moves on a WebSocket this soon after its handshake is no activity but a greeting:
    /// a page that nobody looks at connects and catches up again and again.
    pub websocket_greeting: Duration,
    /// Largest request body in bytes.
    pub max_request_body: u64,
    /// Largest response head in bytes; all 1xx heads before it count too.
    pub max_response_head: usize,
    /// Most header fields in a response head.
    pub max_response_headers: usize,
}

impl Limits {
    /// Bounds for a sandbox's own app.
    #[must_use]
    pub const fn app() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(60),
            upload_idle: Duration::from_secs(30),
            response_idle: Duration::from_secs(15 * 60),
            max_exchanges: 256,
            max_waiting: 256,
            wait: Duration::from_secs(5),
            max_idle: 128,
            keep_idle: Duration::from_secs(15),
            max_websockets: 256,
            websocket_idle: Duration::from_secs(60 * 60),
            websocket_greeting: Duration::from_secs(5),
            max_request_body: 1 << 30,
            max_response_head: 64 << 10,
            max_response_headers: 100,
        }
    }

    /// Bounds for a port of a workbench, on which a command serves whatever it likes.
    #[must_use]
    pub const fn port() -> Self {
        Self {
            connect: Duration::from_secs(4),
            max_exchanges: 64,
            max_waiting: 64,
            max_idle: 16,
            max_websockets: 64,
            ..Self::app()
        }
    }

    /// Bounds for a model provider.
    #[must_use]
    pub const fn provider() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(300),
            response_idle: Duration::from_secs(300),
            keep_idle: Duration::from_secs(50),
            max_websockets: 0,
            max_request_body: 32 << 20,
            ..Self::app()
        }
    }
}

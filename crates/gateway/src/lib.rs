//! One forwarding engine for HTTP, server-sent events and WebSockets (arch §1, §2, §8).
//!
//! [`egress`] is the other direction: what runners reach on the internet.
//!
//! Two users share it: the runtime-origin proxy, whose upstream is the `app.sock` of one
//! start of a sandbox ([`Upstream::app`], [`Forwarder::forward`] with [`HeaderRules`]), and
//! the provider gateway, whose upstream is a model provider ([`provider`]).
//!
//! Requests may arrive over HTTP/1.1 or HTTP/2; they leave over HTTP/1.1. WebSockets are
//! upgraded over HTTP/1.1 only: extended CONNECT (RFC 8441) is not offered, so a browser
//! that speaks HTTP/2 opens an HTTP/1.1 connection for a WebSocket by itself.
//!
//! An upstream connection is driven by the task that serves the request, not by a task of
//! its own: no hop between threads on the way, and dropping a request or a response body
//! closes the connection, so a client that leaves stops the work it asked for.
//!
//! What is never trusted: the name `app.sock` (it may be a link to another socket), every
//! byte that an upstream sends, and every forwarding header that a client sends.

mod activity;
mod app_socket;
mod body;
mod connection;
pub mod egress;
mod error;
mod forward;
mod headers;
mod last_words;
mod limits;
mod local_socket;
pub mod provider;
mod relay;
#[cfg(test)]
mod testing;
mod transport;
mod upstream;
pub mod websocket;

pub use activity::Activity;
pub use app_socket::{APP_SOCKET_NAME, AppSocket, AppSocketError};
pub use body::{BodyError, BoxError, RequestBody, ResponseBody};
pub use error::{ConnectError, ForwardError, PortError, Refusal};
pub use forward::Forwarder;
pub use headers::{HeaderRules, Scheme, ServiceWorkers};
pub use limits::Limits;
pub use local_socket::{LocalSocket, OtherEnd};
pub use upstream::{PortConnector, Upstream, Upstreams};

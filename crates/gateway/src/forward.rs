//! The forwarding engine.

use http::{Request, Response};

use crate::{ForwardError, HeaderRules, RequestBody, ResponseBody, Upstream};

/// Forwards requests to upstreams.
#[derive(Debug, Default, Clone)]
pub struct Forwarder {}

impl Forwarder {
    /// A forwarder; cheap, one per process is enough.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forwards one request and returns the response as soon as its head is there.
    ///
    /// A WebSocket upgrade is carried out too: the response is the `101`, and the bytes are
    /// then copied by a task of its own until either end closes or the start ends. The
    /// caller has authenticated the request and checked `Origin` before (arch §2).
    ///
    /// Dropping the future or the response body closes the upstream connection.
    ///
    /// # Errors
    /// [`ForwardError`]; its `code` and `status` are for the problem document.
    pub async fn forward(
        &self,
        request: Request<RequestBody>,
        upstream: &Upstream,
        rules: &HeaderRules,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        let _ = (request, upstream, rules);
        Err(ForwardError::Ended)
    }

    /// Waits until no WebSocket is open any more; for a graceful end of the process.
    pub async fn drained(&self) {}
}

//! One exchange: a connection that is in use, and what is owed when it is not.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use super::Upstream;
use crate::body::UpstreamBody;
use crate::connection::{Connection, Failure};
use crate::headers::check_framing;
use crate::transport::Metered;
use crate::{ForwardError, RequestBody, ResponseBody};

/// How often a request is tried on connections that had idled, before a new one is made.
const MAX_RESTED_ATTEMPTS: usize = 3;

/// A response head and the connection that its body comes from.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
}

/// What an exchange is for.
#[derive(Default)]
pub(crate) struct Terms {
    /// Cuts it; without one it is the end of the upstream that does.
    pub(crate) cancel: Option<CancellationToken>,
    /// Whose it is, where several sandboxes share connections.
    pub(crate) caller: Option<SandboxId>,
    /// Whether it is activity of the upstream.
    pub(crate) counts: bool,
    /// Whether the other end may switch protocols.
    pub(crate) upgrade: bool,
}

/// The right to one exchange, and its connection once there is one. Dropping it closes the
/// connection; [`Self::give_back`] returns it to the pool.
pub(crate) struct Lease {
    connection: Connection,
    admission: Admission,
}

/// The right to one exchange.
struct Admission {
    upstream: Upstream,
    terms: Terms,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.upstream.inner.activity.exchange_closed();
        self.upstream.inner.pool.discharge();
    }
}

impl Admission {
    fn cancellation(&self) -> &CancellationToken {
        self.terms.cancel.as_ref().unwrap_or(self.upstream.ended())
    }
}

/// What it takes to send a request without a body a second time.
struct Repeat {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Lease {
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    pub(crate) fn cancellation(&self) -> &CancellationToken {
        self.admission.cancellation()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancellation().is_cancelled()
    }

    pub(crate) fn response_idle(&self) -> Duration {
        self.admission.upstream.limits().response_idle
    }

    /// Whether what goes on is activity of the upstream.
    pub(crate) fn counts(&self) -> bool {
        self.admission.terms.counts
    }

    pub(crate) fn touch(&self, now: std::time::Instant) {
        self.admission.upstream.activity().touch(now);
    }

    /// The body, with the connection that it comes from. Without a body the connection is
    /// free at once.
    pub(crate) async fn into_body(self, headers: &HeaderMap, incoming: Incoming) -> ResponseBody {
        if !incoming.is_end_stream() {
            let event_stream = headers
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
            return ResponseBody::new(incoming, self, event_stream);
        }
        let mut lease = Some(self);
        std::future::poll_fn(|cx| {
            if let Some(lease) = lease.take() {
                lease.give_back(cx);
            }
            Poll::Ready(())
        })
        .await;
        ResponseBody::empty()
    }

    /// The stream beneath, after a `101`. This ends the exchange: a WebSocket has its own
    /// bound.
    pub(crate) async fn into_upgraded(self) -> (Metered, Bytes) {
        self.connection.into_upgraded().await
    }

    /// Returns the connection to the pool if it is in order, and closes it otherwise.
    pub(crate) fn give_back(mut self, cx: &mut Context<'_>) {
        if self.connection.poll_reusable(cx) {
            let now = Instant::now();
            self.connection.rest(self.admission.terms.caller, now);
            self.admission.upstream.inner.pool.put(self.connection);
        }
    }
}

impl Upstream {
    /// Sends a request and waits for a response head that may be passed on.
    pub(crate) async fn exchange(
        &self,
        mut request: Box<Request<UpstreamBody>>,
        terms: Terms,
    ) -> Result<Answer, ForwardError> {
        let admission = self.admit(terms).await?;
        let limits = self.limits();
        let upload = request.body().upload();
        if request.body().size_hint().lower() > limits.max_request_body {
            return Err(ForwardError::TooLarge {
                limit: limits.max_request_body,
            });
        }
        for attempt in 0..=MAX_RESTED_ATTEMPTS {
            let mut now = Instant::now();
            let rested = (attempt < MAX_RESTED_ATTEMPTS)
                .then(|| self.rested_connection(admission.terms.caller, now))
                .flatten();
            let fresh = rested.is_none();
            let mut connection = match rested {
                Some(connection) => connection,
                None => {
                    let connection = self.connect(admission.cancellation()).await?;
                    now = Instant::now();
                    connection
                }
            };
            let repeat = (!fresh && upload.is_none())
                .then(|| Repeat::of(&request))
                .flatten();
            let cancel = admission.cancellation();
            let sent = connection
                .round_trip(request, upload.as_deref(), limits, cancel, now)
                .await;
            match sent {
                Ok(response) => {
                    check_response(&response, admission.terms.upgrade)?;
                    return Ok(Answer {
                        response,
                        lease: Lease {
                            connection,
                            admission,
                        },
                    });
                }
                // A connection that had idled was closed by the other end meanwhile. What
                // was never sent, or can safely be said twice, is sent on the next one.
                Err(Failure::Unsent(unsent)) if !fresh => request = unsent,
                Err(Failure::ClosedUnanswered(error)) => match repeat {
                    Some(repeat) => request = Box::new(repeat.request()),
                    None => return Err(ForwardError::Closed(Some(error))),
                },
                Err(Failure::Unsent(_)) => return Err(ForwardError::Closed(None)),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
        Err(ForwardError::Closed(None))
    }

    async fn admit(&self, terms: Terms) -> Result<Admission, ForwardError> {
        let cancelled = terms.cancel.as_ref().unwrap_or(self.ended());
        if cancelled.is_cancelled() || self.ended().is_cancelled() {
            return Err(ForwardError::Ended);
        }
        self.inner.pool.admit(cancelled).await?;
        self.inner.activity.exchange_opened();
        let admission = Admission {
            upstream: self.clone(),
            terms,
        };
        if admission.terms.counts {
            self.inner.activity.touch(std::time::Instant::now());
        }
        Ok(admission)
    }

    /// A connection from the pool that is still in order. The pool is bounded, so this ends.
    fn rested_connection(&self, caller: Option<SandboxId>, now: Instant) -> Option<Connection> {
        std::iter::from_fn(|| self.inner.pool.take(now))
            .find(|connection| connection.may_be_used(caller))
    }

    async fn connect(&self, cancel: &CancellationToken) -> Result<Connection, ForwardError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ForwardError::Ended),
            connection = self.inner.target.connect(self.limits()) => {
                connection.map_err(ForwardError::Unreachable)
            }
        }
    }
}

impl Repeat {
    /// A copy of a request without a body, if its method may be repeated (RFC 9110 §9.2.2).
    fn of(request: &Request<UpstreamBody>) -> Option<Self> {
        let method = request.method();
        [Method::GET, Method::HEAD, Method::OPTIONS]
            .contains(method)
            .then(|| Self {
                method: method.clone(),
                uri: request.uri().clone(),
                headers: request.headers().clone(),
            })
    }

    fn request(self) -> Request<UpstreamBody> {
        let mut request = Request::new(UpstreamBody::new(RequestBody::empty(), 0));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

fn check_response(response: &Response<Incoming>, upgrade: bool) -> Result<(), ForwardError> {
    let bad = |reason| ForwardError::BadResponse {
        reason,
        source: None,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return Err(bad("it switches protocols and nobody asked"));
    }
    check_framing(response.headers()).map_err(|error| bad(error.0))
}

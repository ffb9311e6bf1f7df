//! Bodies on their way through.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

/// Any error of a body that somebody else made.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a response body ended before it was complete. The server must break the client's
/// connection off, so that a truncated stream never looks whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The upstream broke off or sent something that is not HTTP.
    #[error("the upstream broke off")]
    Upstream(#[source] hyper::Error),
    /// The upstream sent nothing for too long.
    #[error("the upstream sent nothing for {0:?}")]
    Idle(Duration),
    /// The sandbox start (or the caller's right) ended.
    #[error("the sandbox start ended")]
    Ended,
}

/// The body of a request that is to be forwarded.
pub struct RequestBody(Source);

enum Source {
    Empty,
    Incoming(Incoming),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl RequestBody {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Source::Empty)
    }

    /// Wraps any body, such as axum's.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self(Source::Boxed(body.map_err(Into::into).boxed_unsync()))
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self(Source::Incoming(body))
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Source::Empty => Poll::Ready(None),
            Source::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Source::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Incoming(body) => body.is_end_stream(),
            Source::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Empty => SizeHint::with_exact(0),
            Source::Incoming(body) => body.size_hint(),
            Source::Boxed(body) => body.size_hint(),
        }
    }
}

/// The body of a forwarded response. Dropping it before its end closes the upstream
/// connection.
pub struct ResponseBody(());

impl ResponseBody {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self(())
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(None)
    }
}

//! The response body: it owns the upstream connection until its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::headers::clean_trailers;
use crate::upstream::Lease;

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
    /// It went on for longer than any reply may.
    #[error("the reply was not complete after {0:?}")]
    TooLong(Duration),
    /// The client took nothing of what is there for too long.
    #[error("the client took nothing for {0:?}")]
    NotTaken(Duration),
    /// The sandbox start (or the caller's right) ended.
    #[error("the sandbox start ended")]
    Ended,
}

/// The body of a forwarded response. Dropping it before its end closes the upstream
/// connection.
pub struct ResponseBody(Option<Box<Live>>);

struct Live {
    incoming: Incoming,
    /// Taken at the end, when the connection goes back to its pool.
    lease: Option<Lease>,
    /// Made at the first wait: a response that is there at once needs neither.
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    silence: Option<Pin<Box<Sleep>>>,
    /// Whether something arrived since `silence` was set.
    moved: bool,
    event_stream: bool,
    /// Whether the server may still hold some of what it was given, the head to begin with.
    unwritten: bool,
    /// What it is told once it has written that.
    failure: Option<BodyError>,
}

impl ResponseBody {
    /// No body.
    #[must_use]
    pub const fn empty() -> Self {
        Self(None)
    }

    /// `event_stream` tells that comment lines in it are keepalives.
    pub(crate) fn new(incoming: Incoming, lease: Lease, event_stream: bool) -> Self {
        Self(Some(Box::new(Live {
            incoming,
            lease: Some(lease),
            cancelled: None,
            silence: None,
            moved: false,
            event_stream,
            unwritten: true,
            failure: None,
        })))
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(live) = self.0.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = live.poll_after_writing(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|live| live.failure.is_none() && live.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(live) => live.incoming.size_hint(),
        }
    }
}

impl Live {
    /// A server drops what it has not written yet when a body fails, and of a response that
    /// breaks off right after its head its client would get nothing, not even a status. While it
    /// waits for more it writes; so it waits once before it is told.
    fn poll_after_writing(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match self.poll(cx) {
            Poll::Ready(Some(Err(error))) if self.unwritten => {
                self.failure = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            polled => {
                self.unwritten = polled.is_ready();
                polled
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let incoming = &mut self.incoming;
        let mut poll = |cx: &mut Context<'_>| Pin::new(&mut *incoming).poll_frame(cx);
        let polled = match &mut self.lease {
            Some(lease) => lease.connection().poll_with(cx, poll),
            None => poll(cx),
        };
        match polled {
            Poll::Pending => self.poll_wait(cx).map(|error| Some(Err(error))),
            Poll::Ready(Some(Ok(frame))) => {
                self.moved = true;
                if let Some(lease) = &self.lease
                    && lease.counts()
                    && !(self.event_stream && is_keepalive(&frame))
                {
                    lease.touch(Instant::now());
                }
                // The server asks for no end after the last byte of a known length.
                if self.incoming.is_end_stream()
                    && let Some(lease) = self.lease.take()
                {
                    lease.give_back(cx);
                }
                Poll::Ready(Some(Ok(clean(frame))))
            }
            Poll::Ready(Some(Err(error))) => {
                let ended = self.lease.as_ref().is_some_and(Lease::is_cancelled);
                Poll::Ready(Some(Err(if ended {
                    BodyError::Ended
                } else {
                    BodyError::Upstream(error)
                })))
            }
            Poll::Ready(None) => {
                if let Some(lease) = self.lease.take() {
                    // What ends with its connection looks complete when the start is cut.
                    if lease.is_cancelled() {
                        return Poll::Ready(Some(Err(BodyError::Ended)));
                    }
                    lease.give_back(cx);
                }
                Poll::Ready(None)
            }
        }
    }

    /// While nothing arrives: the start may end, and silence has a bound.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(lease) = &self.lease else {
            return Poll::Pending;
        };
        let cancelled = self
            .cancelled
            .get_or_insert_with(|| Box::pin(lease.cancellation().clone().cancelled_owned()));
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(BodyError::Ended);
        }
        let bound = lease.response_idle();
        let silence = match &mut self.silence {
            Some(silence) => {
                if self.moved {
                    silence.as_mut().reset(tokio::time::Instant::now() + bound);
                }
                silence
            }
            none => none.insert(Box::pin(sleep(bound))),
        };
        self.moved = false;
        silence.as_mut().poll(cx).map(|()| BodyError::Idle(bound))
    }
}

/// Whether a piece of an event stream is made of comments only (WHATWG HTML §9.2.6). Looks no
/// further than the first line that is none.
fn is_keepalive(frame: &Frame<Bytes>) -> bool {
    let Some(mut rest) = frame.data_ref().map(Bytes::as_ref) else {
        return false;
    };
    loop {
        rest = match rest {
            [] => return true,
            [b'\n' | b'\r', after @ ..] => after,
            [b':', after @ ..] => match memchr::memchr2(b'\n', b'\r', after) {
                Some(end) => after.get(end..).unwrap_or_default(),
                None => return true,
            },
            _ => return false,
        };
    }
}

fn clean(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

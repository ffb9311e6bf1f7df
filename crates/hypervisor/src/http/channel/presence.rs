//! Whether the client of a connection is still there while its request is answered, and whether
//! it has what came before an answer broke off.
//!
//! hyper looks for the end of a connection only while it has nothing left to read. A client
//! that has sent more after its request, or only a line break, could go away and the call that
//! is made for it would go on; so the socket itself is asked. The end of what a client sends
//! counts as its leaving, as it does for hyper: through the guest's relay nothing else of it is
//! to be seen.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use rustix::net::Shutdown;
use tokio::io::{AsyncWrite, Interest, Join};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Sleep, sleep};

/// Longest wait for a client to take what came before an answer broke off.
const FLUSHED_WITHIN: Duration = Duration::from_secs(10);

/// A connection's socket, and an eye on its other end.
pub(super) fn watch(stream: UnixStream) -> (Join<OwnedReadHalf, Writer>, Presence) {
    let (reader, writer) = stream.into_split();
    let presence = Presence {
        socket: Arc::new(writer),
        exchange: Arc::default(),
    };
    let writer = Writer {
        socket: Arc::clone(&presence.socket),
        exchange: Arc::clone(&presence.exchange),
    };
    (tokio::io::join(reader, writer), presence)
}

/// What is known about the client of one connection.
#[derive(Debug)]
pub(super) struct Presence {
    socket: Arc<OwnedWriteHalf>,
    exchange: Arc<Exchange>,
}

/// The request that a connection is at. There is one at a time.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// All of the request is there.
    received: AtomicBool,
    /// It is not answered in full.
    unanswered: AtomicBool,
    /// All of the answer so far went to the client.
    flushed: AtomicBool,
    /// Waits for that.
    waiting: AtomicWaker,
}

impl Presence {
    pub(super) fn exchange(&self) -> Arc<Exchange> {
        Arc::clone(&self.exchange)
    }

    /// Drives a connection until it ends. `None`: its client went away while it waited for an
    /// answer.
    pub(super) async fn during<F: Future>(self, connection: F) -> Option<F::Output> {
        let mut connection = pin!(connection);
        let mut left = pin!(left(&self.socket));
        let mut has_left = false;
        poll_fn(|cx| {
            // First: what was sent before the end is still read.
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            has_left = has_left || left.as_mut().poll(cx).is_ready();
            if has_left && self.exchange.is_waited_for() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }
}

/// Resolves once the other end sends nothing any more.
async fn left(socket: &OwnedWriteHalf) {
    // Of a Unix socket this is its end, or a byte out of band, which nobody has a use for.
    while let Ok(ready) = socket.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() {
            return;
        }
        let ignore = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = socket.as_ref().try_io(Interest::PRIORITY, ignore);
    }
}

impl Exchange {
    /// A request begins.
    pub(super) fn request(self: &Arc<Self>, body: Incoming) -> Body {
        let received = body.is_end_stream();
        self.received.store(received, Ordering::Relaxed);
        self.unanswered.store(true, Ordering::Relaxed);
        if received {
            return Body::new(body);
        }
        Body::new(Request {
            body,
            exchange: Arc::clone(self),
        })
    }

    /// Its answer begins.
    pub(super) fn reply(self: Arc<Self>, body: Body) -> Reply {
        self.flushed.store(false, Ordering::Relaxed);
        Reply {
            body,
            failure: None,
            exchange: self,
        }
    }

    fn is_waited_for(&self) -> bool {
        self.received.load(Ordering::Relaxed) && self.unanswered.load(Ordering::Relaxed)
    }
}

/// A request body that tells of its end.
struct Request {
    body: Incoming,
    exchange: Arc<Exchange>,
}

impl HttpBody for Request {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.exchange.received.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body; it is dropped once all of it was taken.
///
/// When it breaks off, hyper drops what it has not written yet: a reply that breaks off right
/// after its beginning would leave its client with nothing, not even a status. So the failure is
/// told to hyper only when what came before has gone to the client.
pub(super) struct Reply {
    body: Body,
    failure: Option<Failure>,
    exchange: Arc<Exchange>,
}

struct Failure {
    error: axum::Error,
    bound: Pin<Box<Sleep>>,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.failure.is_none() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Err(error)) => {
                    this.failure = Some(Failure {
                        error,
                        bound: Box::pin(sleep(FLUSHED_WITHIN)),
                    });
                }
                frame => {
                    this.exchange.flushed.store(false, Ordering::Relaxed);
                    return Poll::Ready(frame);
                }
            }
        }
        if let Some(failure) = &mut this.failure {
            this.exchange.waiting.register(cx.waker());
            let waits = !this.exchange.flushed.load(Ordering::Relaxed);
            if waits && failure.bound.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(this.failure.take().map(|failure| Err(failure.error)))
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.exchange.unanswered.store(false, Ordering::Relaxed);
    }
}

/// The writing half, with which the whole socket stays in sight.
#[derive(Debug)]
pub(super) struct Writer {
    socket: Arc<OwnedWriteHalf>,
    exchange: Arc<Exchange>,
}

impl Writer {
    /// Writes as soon as that is possible.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&OwnedWriteHalf) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.as_ref().as_ref().poll_write_ready(cx))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |socket| socket.try_write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper asks for it once it has written everything that it has.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.exchange.flushed.swap(true, Ordering::Relaxed) {
            self.exchange.waiting.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket: &UnixStream = self.socket.as_ref().as_ref();
        Poll::Ready(rustix::net::shutdown(socket, Shutdown::Write).map_err(io::Error::from))
    }
}

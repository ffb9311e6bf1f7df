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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use gateway::{LocalSocket, OtherEnd};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::lanes::without_waking;

/// Longest wait for a client to take what came before an answer broke off.
const FLUSHED_WITHIN: Duration = Duration::from_secs(10);

/// Longest time without a request whose head is complete.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// A connection's socket, and an eye on its other end.
pub(super) fn watch(socket: LocalSocket) -> (Watched, Presence) {
    let exchange = Arc::new(Exchange::new());
    let presence = Presence {
        other_end: socket.other_end(),
        exchange: Arc::clone(&exchange),
    };
    (Watched { socket, exchange }, presence)
}

/// What is known about the client of one connection.
#[derive(Debug)]
pub(super) struct Presence {
    other_end: OtherEnd,
    exchange: Arc<Exchange>,
}

/// The request that a connection is at. There is one at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    /// When the connection began.
    began: Instant,
    /// When the last answer ended, in milliseconds since then.
    answered_at: AtomicU64,
    /// All of the request is there.
    received: AtomicBool,
    /// It is not answered in full.
    unanswered: AtomicBool,
    /// All of the answer so far went to the client.
    flushed: AtomicBool,
    /// Waits for that.
    waiting: AtomicWaker,
    /// The connection itself.
    connection: AtomicWaker,
}

impl Presence {
    pub(super) fn exchange(&self) -> Arc<Exchange> {
        Arc::clone(&self.exchange)
    }

    /// Drives a connection until it ends. `None`: its client went away while it waited for an
    /// answer, or asked for nothing for too long.
    ///
    /// hyper's own timer for this is a new one for each request; here it is one that is moved on
    /// when it has run out.
    pub(super) async fn during<F: Future>(self, connection: F) -> Option<F::Output> {
        let mut connection = pin!(connection);
        let mut left = pin!(self.other_end.left());
        let mut silent = pin!(sleep_until(self.exchange.silent_until()));
        poll_fn(|cx| {
            self.exchange.connection.register(cx.waker());
            // First: what was sent before the end is still read.
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            if self.exchange.unanswered.load(Ordering::Relaxed) {
                let is_waited_for = self.exchange.received.load(Ordering::Relaxed);
                return if is_waited_for && left.as_mut().poll(cx).is_ready() {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                };
            }
            while silent.as_mut().poll(cx).is_ready() {
                let until = self.exchange.silent_until();
                if until <= Instant::now() {
                    return Poll::Ready(None);
                }
                silent.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

impl Exchange {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            answered_at: AtomicU64::new(0),
            received: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            flushed: AtomicBool::new(false),
            waiting: AtomicWaker::new(),
            connection: AtomicWaker::new(),
        }
    }

    /// Until when the next request has to be there, when none is being answered.
    fn silent_until(&self) -> Instant {
        let answered_at = Duration::from_millis(self.answered_at.load(Ordering::Relaxed));
        self.began + answered_at + REQUEST_WITHIN
    }

    /// A request begins.
    pub(super) fn request(self: &Arc<Self>, body: Incoming) -> Request {
        self.received.store(body.is_end_stream(), Ordering::Relaxed);
        self.unanswered.store(true, Ordering::Relaxed);
        Request {
            body,
            exchange: Arc::clone(self),
        }
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
}

/// A request body that tells of its end.
///
/// hyper wakes the connection for each piece that is taken, to have it read the next one. Of most
/// requests the first piece is the last, and the connection would be gone over once more for
/// nothing.
pub(super) struct Request {
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
        let (polled, woken) = without_waking(|| Pin::new(&mut self.body).poll_frame(cx));
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.exchange.received.store(true, Ordering::Relaxed);
        } else if woken {
            self.exchange.connection.wake();
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
        let at = u64::try_from(self.exchange.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.exchange.answered_at.store(at, Ordering::Relaxed);
        self.exchange.unanswered.store(false, Ordering::Relaxed);
    }
}

/// A connection's socket, which tells when all that hyper had was written.
#[derive(Debug)]
pub(super) struct Watched {
    socket: LocalSocket,
    exchange: Arc<Exchange>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// hyper asks for it once it has written everything that it has.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.exchange.flushed.swap(true, Ordering::Relaxed) {
            self.exchange.waiting.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::AtomicUsize;

    use axum::response::Response;
    use http_body_util::BodyExt as _;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::sync::{Notify, mpsc, oneshot};
    use types::SandboxId;

    use super::super::lanes::Lanes;
    use super::*;

    /// Answers each request with what `answer` makes of its body; resolves when the connection
    /// is let go.
    async fn served<A>(stream: std::os::unix::net::UnixStream, answer: impl Fn(Request) -> A)
    where
        A: Future<Output = String>,
    {
        let socket = LocalSocket::new(stream).unwrap();
        let (stream, presence) = watch(socket);
        let exchange = presence.exchange();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let exchange = Arc::clone(&exchange);
            let answer = answer(exchange.request(request.into_body()));
            async move {
                let answer = Response::new(Body::from(answer.await));
                Ok::<_, Infallible>(answer.map(|body| exchange.reply(body)))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        // How it ended is the client's business.
        let _ = presence.during(connection).await;
    }

    /// The two ends of a connection, one of them to be served.
    fn ends() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (client, stream) = UnixStream::pair().unwrap();
        (client, stream.into_std().unwrap())
    }

    /// Reads until what was read ends like this.
    async fn reads(client: &mut UnixStream, end: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            let read = client.read_buf(&mut seen).await.unwrap();
            assert!(read > 0, "it ended after {}", seen.escape_ascii());
        }
    }

    const POST: &str = "POST / HTTP/1.1\r\nhost: here\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_client_is_waited_for_between_its_requests_and_not_for_ever() {
        let answer = REQUEST_WITHIN * 3;
        let (mut client, stream) = ends();
        let began = Instant::now();
        let served = tokio::spawn(served(stream, move |_| async move {
            sleep(answer).await;
            "well".to_owned()
        }));
        for _ in 0..2 {
            sleep(REQUEST_WITHIN / 2).await;
            let request = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";
            client.write_all(request).await.unwrap();
            reads(&mut client, "well").await;
        }
        // A head that does not become whole is no request.
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        served.await.unwrap();
        let expected = REQUEST_WITHIN / 2 * 2 + answer * 2 + REQUEST_WITHIN;
        let late = began.elapsed() - expected;
        assert!(late < Duration::from_millis(100), "{late:?}");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_is_looked_at_once_for_a_request_that_is_there_as_a_whole() {
        let lanes = Lanes::on(1).unwrap();
        let connections = lanes.connections(SandboxId::generate());
        let (mut client, stream) = ends();
        let looks = Arc::new(AtomicUsize::new(0));
        let (begun, mut begins) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let (counted, goes_on) = (Arc::clone(&looks), Arc::clone(&go_on));
        connections.add(served(stream, move |body| {
            let (counted, begun) = (Arc::clone(&counted), begun.clone());
            let goes_on = Arc::clone(&goes_on);
            async move {
                let body = body.collect().await.unwrap().to_bytes();
                begun.send(()).unwrap();
                let mut goes_on = pin!(goes_on.notified());
                poll_fn(|cx| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    goes_on.as_mut().poll(cx)
                })
                .await;
                format!("read {}", body.len())
            }
        }));
        for request in 1..4 {
            let text = format!("{POST}content-length: 8\r\n\r\nquestion");
            client.write_all(text.as_bytes()).await.unwrap();
            begins.recv().await.unwrap();
            // What is added now has its turn after everything that wakes a connection by then.
            let (tell, told) = oneshot::channel();
            connections.add(async move { tell.send(()).unwrap() });
            told.await.unwrap();
            // And one look more for each that was let go on.
            assert_eq!(looks.load(Ordering::SeqCst), 2 * request - 1);
            go_on.notify_one();
            reads(&mut client, "read 8").await;
        }
    }

    #[tokio::test]
    async fn a_request_of_many_pieces_is_read_to_its_end() {
        let lanes = Lanes::on(1).unwrap();
        let connections = lanes.connections(SandboxId::generate());
        let (mut client, stream) = ends();
        connections.add(served(stream, |body| async move {
            format!("read {}", body.collect().await.unwrap().to_bytes().len())
        }));
        let piece = "x".repeat(300_000);
        for _ in 0..2 {
            let head = format!("{POST}content-length: 900000\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..3 {
                client.write_all(piece.as_bytes()).await.unwrap();
            }
            reads(&mut client, "read 900000").await;
            let head = format!("{POST}transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            reads(&mut client, "100 Continue\r\n\r\n").await;
            for _ in 0..2 {
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                client.write_all(chunk.as_bytes()).await.unwrap();
            }
            client.write_all(b"0\r\n\r\n").await.unwrap();
            reads(&mut client, "read 600000").await;
        }
    }
}

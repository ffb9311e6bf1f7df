//! One HTTP/1.1 connection to an upstream, driven by whoever uses it.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::RecvFlags;
use tokio::runtime::{self, Handle};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use crate::body::{Upload, UploadState, UpstreamBody};
use crate::relay::Relay;
use crate::transport::{HeadBudget, Metered, Transport};
use crate::{ConnectError, ForwardError, Limits};

/// What the parser may have read ahead of the head that it is still working on.
const READ_AHEAD: usize = 64 << 10;

/// The header fields that hyper's parser takes by itself.
const PARSER_MAX_HEADERS: usize = 100;

/// A connection. No task of its own drives it: between exchanges it rests in a pool, where
/// it is looked at again before it is used.
pub(crate) struct Connection {
    /// Boxed, because it is large and moves in and out of the pool.
    parts: Box<Parts>,
    /// Since when it rests.
    pub(crate) idle_since: Instant,
    /// The runtime that hears of its events; on another one each of them would wake two threads.
    pub(crate) home: runtime::Id,
}

struct Parts {
    sender: SendRequest<UpstreamBody>,
    driver: http1::Connection<TokioIo<Metered>, UpstreamBody>,
    finished: bool,
    relay: Relay,
    budget: Arc<HeadBudget>,
    timer: Option<Timer>,
    /// A second descriptor of a TCP connection, to look for bytes that nobody asked for.
    probe: Option<OwnedFd>,
    /// Whose exchange the last one was, where different sandboxes use the connection.
    served: Option<SandboxId>,
}

/// A timer that is kept from one exchange to the next, and moved on only once it has run out:
/// most exchanges are over long before.
struct Timer(Pin<Box<Sleep>>);

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        if self.0.deadline() > until {
            self.0.as_mut().reset(until);
        }
        loop {
            ready!(self.0.as_mut().poll(cx));
            if self.0.deadline() >= until {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(until);
        }
    }
}

/// Why an exchange brought no response.
pub(crate) enum Failure {
    /// Nothing was sent; here is the request again.
    Unsent(Box<Request<UpstreamBody>>),
    /// The connection was closed before a byte of a response.
    ClosedUnanswered(hyper::Error),
    /// The request failed for good.
    Final(ForwardError),
}

impl Connection {
    pub(crate) async fn new(
        transport: Transport,
        probe: Option<OwnedFd>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Self, ConnectError> {
        let budget = Arc::new(HeadBudget::new());
        let io = TokioIo::new(Metered::new(transport, Arc::clone(&budget)));
        let mut builder = http1::Builder::new();
        builder
            .max_header_size(limits.max_response_head)
            .max_buf_size(READ_AHEAD.max(limits.max_response_head));
        // Said aloud, the parser's own bound costs it an allocation per message.
        if limits.max_response_headers != PARSER_MAX_HEADERS {
            builder.max_headers(limits.max_response_headers);
        }
        let (sender, driver) = builder.handshake(io).await.map_err(ConnectError::Http)?;
        Ok(Self {
            parts: Box::new(Parts {
                sender,
                driver,
                finished: false,
                relay: Relay::new(),
                budget,
                timer: None,
                probe,
                served: None,
            }),
            idle_since: now,
            home: Handle::current().id(),
        })
    }

    /// Moves the connection's work on, in both directions, and asks `poll` before and after:
    /// for a response head, or for a piece of a body.
    pub(crate) fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Parts {
            driver,
            finished,
            relay,
            ..
        } = &mut *self.parts;
        relay.poll(cx, |cx| {
            let polled = poll(cx);
            if polled.is_ready() || *finished {
                return polled;
            }
            // An error has reached whoever waits for a response or a body already.
            *finished = Pin::new(&mut *driver).poll(cx).is_ready();
            poll(cx)
        })
    }

    /// Moves the connection's work on.
    fn poll_drive(&mut self, cx: &mut Context<'_>) {
        let _: Poll<()> = self.poll_with(cx, |_| Poll::Pending);
    }

    /// Whether the last exchange is complete and the connection open.
    pub(crate) fn poll_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.parts.sender.is_ready() {
            self.poll_drive(cx);
        }
        self.is_free()
    }

    /// Whether a connection that has rested may be used by `caller`. One that has received bytes
    /// that nobody asked for is not open any more: a reply sent before its request must never
    /// answer the next one (threats, "a reply before the request").
    ///
    /// What the runtime knows of such bytes, or of the connection's end, [`Self::round_trip`] is
    /// told before it writes anything. What has arrived since the runtime last looked, some dozen
    /// microseconds ago, the kernel alone knows: it is asked before a connection goes from one
    /// sandbox to another. Bytes that are still on their way nobody can see.
    pub(crate) fn may_be_used(&self, caller: Option<SandboxId>) -> bool {
        let same = caller.is_some() && self.parts.served == caller;
        self.is_free() && (same || self.is_quiet())
    }

    fn is_free(&self) -> bool {
        !self.parts.finished && self.parts.sender.is_ready()
    }

    /// Lets go of the task that has used the connection for `caller`.
    pub(crate) fn rest(&mut self, caller: Option<SandboxId>, now: Instant) {
        self.parts.served = caller;
        self.idle_since = now;
        self.parts.relay.rest();
    }

    fn is_quiet(&self) -> bool {
        let Some(probe) = &self.parts.probe else {
            return true;
        };
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(
            rustix::net::recv(probe.as_fd(), &mut byte, flags),
            Err(rustix::io::Errno::AGAIN)
        )
    }

    /// Sends a request, which is at `now`, and waits for its response head.
    pub(crate) async fn round_trip(
        &mut self,
        request: Box<Request<UpstreamBody>>,
        upload: Option<&Upload>,
        limits: &Limits,
        cancel: &CancellationToken,
        now: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let allowance = limits.max_response_head.saturating_mul(2) + READ_AHEAD;
        let parts = &mut *self.parts;
        parts.budget.arm(allowance);
        let sent = || parts.sender.try_send_request(*request);
        let mut answer = pin!(parts.relay.before_poll(sent));
        let mut cancelled = pin!(cancel.cancelled());
        let mut wait = limits.first_byte;
        let mut until = now + wait;
        let mut timer = parts.timer.take();
        let mut seen = None;

        // Put aside where it is, as it is large.
        let mut outcome = None;
        std::future::poll_fn(|cx| {
            let mut poll =
                |cx: &mut Context<'_>| answer.as_mut().poll(cx).map(|sent| outcome = Some(sent));
            if self.poll_with(cx, &mut poll).is_ready() || cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // Looked at after the first piece of work: most requests are up by then.
            let progress = Some(upload.map(Upload::progress));
            if seen != progress {
                let since = if seen.is_none() { now } else { Instant::now() };
                seen = progress;
                wait = match upload.map(Upload::state) {
                    None | Some(UploadState::Done) => limits.first_byte,
                    Some(_) => limits.upload_idle,
                };
                until = since + wait;
            }
            let timer = timer.get_or_insert_with(|| Timer(Box::pin(sleep_until(until))));
            timer.poll(cx, until)
        })
        .await;
        self.parts.timer = timer;

        let untouched = self.parts.budget.lift() == allowance;
        match outcome {
            Some(Ok(response)) => Ok(response),
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Err(Failure::Unsent(Box::new(request))),
                None => Err(classify(error.into_error(), upload, untouched, limits)),
            },
            None if cancel.is_cancelled() => Err(Failure::Final(ForwardError::Ended)),
            None => Err(Failure::Final(match upload.map(Upload::state) {
                None | Some(UploadState::Done) => ForwardError::FirstByteTimeout(wait),
                Some(_) => ForwardError::UploadStalled(wait),
            })),
        }
    }

    /// Waits until HTTP is done with the connection after a `101`, and takes it apart: the
    /// stream, and what was read of the new protocol already.
    pub(crate) async fn into_upgraded(mut self) -> (Metered, Bytes) {
        std::future::poll_fn(|cx| {
            self.poll_drive(cx);
            if self.parts.finished {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let ended = self.parts.driver.into_parts();
        (ended.io.into_inner(), ended.read_buf)
    }
}

fn classify(
    error: hyper::Error,
    upload: Option<&Upload>,
    untouched: bool,
    limits: &Limits,
) -> Failure {
    match upload.map(Upload::state) {
        Some(UploadState::TooLarge) => {
            return Failure::Final(ForwardError::TooLarge {
                limit: limits.max_request_body,
            });
        }
        Some(UploadState::ClientGone) => return Failure::Final(ForwardError::ClientGone),
        _ => {}
    }
    if untouched {
        return Failure::ClosedUnanswered(error);
    }
    let reason = if error.is_parse_too_large() {
        "its head is too large"
    } else if error.is_parse() {
        "its head is not HTTP"
    } else if error.is_incomplete_message() {
        "it ends in the middle of its head"
    } else {
        "the connection failed in the middle of its head"
    };
    Failure::Final(ForwardError::BadResponse {
        reason,
        source: Some(error),
    })
}

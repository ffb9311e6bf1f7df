//! A provider's reply on its way down: the key is kept out of it, its usage is read from it,
//! and its end is told, whichever it is.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::ProviderKey;
use super::scrub::Scrubber;
use super::usage::{Usage, UsageMeter};
use crate::{BodyError, ResponseBody};

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Whole.
    Complete,
    /// The client left before its end.
    ClientGone,
    /// The provider broke off.
    Broken,
    /// The provider fell silent.
    Idle,
    /// It went on for longer than any reply may.
    TooLong,
    /// The caller's right to call ended.
    Cut,
}

impl Outcome {
    /// The outcome as it stands in log lines and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::TooLong => "too_long",
            Self::Cut => "cut",
        }
    }
}

/// What there is to know about a reply at its end.
#[derive(Debug, Clone, Copy)]
pub struct ReplyEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// What it said it cost.
    pub usage: Option<Usage>,
    /// Events with data, when it was an event stream; about a token of output each.
    pub events: u64,
    /// Bytes of it that were passed on.
    pub bytes: u64,
    /// When its first byte arrived.
    pub first_byte: Option<Instant>,
}

type Told = Box<dyn FnOnce(ReplyEnd) + Send>;

/// The body of a provider's reply. Dropping it before its end cuts the upstream call.
pub struct ReplyBody {
    inner: ResponseBody,
    scrubber: Scrubber,
    meter: UsageMeter,
    bytes: u64,
    first_byte: Option<Instant>,
    whole: Option<Pin<Box<Sleep>>>,
    bound: Duration,
    told: Option<Told>,
}

impl ReplyBody {
    pub(super) fn new(
        inner: ResponseBody,
        event_stream: bool,
        key: Option<ProviderKey>,
        whole: Option<Duration>,
    ) -> Self {
        Self {
            inner,
            scrubber: Scrubber::new(key),
            meter: UsageMeter::new(event_stream),
            bytes: 0,
            first_byte: None,
            whole: whole.map(|bound| Box::pin(sleep(bound))),
            bound: whole.unwrap_or_default(),
            told: None,
        }
    }

    /// Tells `told` how the reply ended, once: also when it is dropped before its end.
    #[must_use]
    pub fn on_end(mut self, told: impl FnOnce(ReplyEnd) + Send + 'static) -> Self {
        self.told = Some(Box::new(told));
        self
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(told) = self.told.take() {
            told(ReplyEnd {
                outcome,
                usage: self.meter.reported(),
                events: self.meter.events(),
                bytes: self.bytes,
                first_byte: self.first_byte,
            });
        }
    }

    /// Takes a piece that arrived; gives what of it may be passed on by now.
    fn piece(&mut self, data: Bytes) -> Bytes {
        self.first_byte.get_or_insert_with(Instant::now);
        self.meter.feed(&data);
        let ready = self.scrubber.feed(data);
        self.bytes += ready.len() as u64;
        // Of a known length nothing is asked for after the last byte.
        if !self.inner.is_end_stream() {
            return ready;
        }
        let rest = self.scrubber.finish();
        self.bytes += rest.len() as u64;
        self.end(Outcome::Complete);
        if rest.is_empty() {
            return ready;
        }
        let mut both = BytesMut::from(ready);
        both.extend_from_slice(&rest);
        both.freeze()
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(whole) = &mut this.whole
                && whole.as_mut().poll(cx).is_ready()
            {
                this.inner = ResponseBody::empty();
                this.end(Outcome::TooLong);
                return Poll::Ready(Some(Err(BodyError::TooLong(this.bound))));
            }
            let polled = match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(polled) => polled,
            };
            match polled {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let ready = this.piece(data);
                        if ready.is_empty() {
                            continue;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(ready))));
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => {
                    this.end(match &error {
                        BodyError::Upstream(_) => Outcome::Broken,
                        BodyError::Idle(_) => Outcome::Idle,
                        BodyError::TooLong(_) => Outcome::TooLong,
                        BodyError::Ended => Outcome::Cut,
                    });
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let rest = this.scrubber.finish();
                    this.bytes += rest.len() as u64;
                    this.end(Outcome::Complete);
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.scrubber.held() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.scrubber.held() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(inner.lower().saturating_add(held));
        hint
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        self.end(Outcome::ClientGone);
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyBody").finish_non_exhaustive()
    }
}

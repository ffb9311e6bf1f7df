//! A provider's reply on its way down: the key is kept out of it, its usage is read from it,
//! and its end is told, whichever it is.
//!
//! A body is asked for its next piece only while its client takes them. What has to end a reply
//! that nobody takes therefore stands outside it: a watch, once a reply turns out to be of more
//! than one piece.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep, sleep_until};

use super::scrub::Scrubber;
use super::usage::{Usage, UsageMeter};
use crate::{BodyError, ResponseBody};

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Whole.
    Complete,
    /// The client left before its end, or took nothing more of it.
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
    /// When it ended.
    pub ended: Instant,
}

impl ReplyEnd {
    /// The end of a reply of which nothing came, at this moment.
    #[must_use]
    pub fn without_a_byte(outcome: Outcome) -> Self {
        Self {
            outcome,
            usage: None,
            events: 0,
            bytes: 0,
            first_byte: None,
            ended: Instant::now(),
        }
    }
}

type Told = Box<dyn FnOnce(ReplyEnd) + Send>;

/// The body of a provider's reply. Dropping it before its end cuts the upstream call.
pub struct ReplyBody {
    reply: Arc<Mutex<Reply>>,
    bounds: Bounds,
    whole: Option<Pin<Box<Sleep>>>,
    watch: Option<AbortHandle>,
}

/// What a reply may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Longest time in which a client takes nothing.
    idle: Duration,
    /// Longest whole reply, and when that is over.
    whole: Option<(Duration, Instant)>,
}

/// The reply itself. Locked by whoever takes a piece, and once in a while by the watch.
struct Reply {
    inner: ResponseBody,
    scrubber: Scrubber,
    meter: UsageMeter,
    bytes: u64,
    first_byte: Option<Instant>,
    told: Option<Told>,
    over: bool,
    /// What the watch has ended it with.
    given_up: Option<Outcome>,
    /// Whether the client waits for a piece, rather than the other way round.
    awaited: bool,
    /// When the last piece arrived, which was taken at once.
    taken_at: Option<Instant>,
}

impl ReplyBody {
    pub(super) fn new(
        inner: ResponseBody,
        event_stream: bool,
        scrubber: Scrubber,
        idle: Duration,
        whole: Option<Duration>,
    ) -> Self {
        Self {
            reply: Arc::new(Mutex::new(Reply {
                inner,
                scrubber,
                meter: UsageMeter::new(event_stream),
                bytes: 0,
                first_byte: None,
                told: None,
                over: false,
                given_up: None,
                awaited: true,
                taken_at: None,
            })),
            bounds: Bounds {
                idle,
                whole: whole.map(|bound| (bound, Instant::now() + bound)),
            },
            whole: whole.map(|bound| Box::pin(sleep(bound))),
            watch: None,
        }
    }

    /// Tells `told` how the reply ended, once: also when it is dropped before its end.
    #[must_use]
    pub fn on_end(self, told: impl FnOnce(ReplyEnd) + Send + 'static) -> Self {
        lock(&self.reply).told = Some(Box::new(told));
        self
    }
}

fn lock(reply: &Mutex<Reply>) -> MutexGuard<'_, Reply> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bounds {
    fn error(&self, outcome: Outcome) -> BodyError {
        match (outcome, self.whole) {
            (Outcome::TooLong, Some((bound, _))) => BodyError::TooLong(bound),
            _ => BodyError::NotTaken(self.idle),
        }
    }
}

impl Reply {
    fn end(&mut self, outcome: Outcome) {
        self.end_at(outcome, Instant::now);
    }

    /// Asks for the time only when there is somebody to tell.
    fn end_at(&mut self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        self.over = true;
        if let Some(told) = self.told.take() {
            told(ReplyEnd {
                outcome,
                usage: self.meter.reported(),
                events: self.meter.events(),
                bytes: self.bytes,
                first_byte: self.first_byte,
                ended: now(),
            });
        }
    }

    /// Cuts the upstream call, whoever waits for what.
    fn give_up(&mut self, outcome: Outcome) {
        self.inner = ResponseBody::empty();
        self.given_up = Some(outcome);
        self.end(outcome);
    }

    /// Takes a piece that arrived; gives what of it may be passed on by now.
    fn piece(&mut self, data: Bytes) -> Bytes {
        let now = Instant::now();
        self.first_byte.get_or_insert(now);
        self.taken_at = Some(now);
        self.meter.feed(&data);
        let ready = self.scrubber.feed(data);
        self.bytes += ready.len() as u64;
        // Of a known length nothing is asked for after the last byte.
        if !self.inner.is_end_stream() {
            return ready;
        }
        let rest = self.scrubber.finish();
        self.bytes += rest.len() as u64;
        self.end_at(Outcome::Complete, || now);
        if rest.is_empty() {
            return ready;
        }
        let mut both = BytesMut::from(ready);
        both.extend_from_slice(&rest);
        both.freeze()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let polled = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(polled) => polled,
            };
            match polled {
                Some(Ok(frame)) => {
                    // No API has trailers, and nobody has looked at what is in them: the end
                    // that follows is the reply's.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    let ready = self.piece(data);
                    if ready.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(ready))));
                }
                Some(Err(error)) => {
                    self.end(match &error {
                        BodyError::Upstream(_) => Outcome::Broken,
                        BodyError::Idle(_) => Outcome::Idle,
                        BodyError::TooLong(_) => Outcome::TooLong,
                        BodyError::NotTaken(_) => Outcome::ClientGone,
                        BodyError::Ended => Outcome::Cut,
                    });
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let rest = self.scrubber.finish();
                    self.bytes += rest.len() as u64;
                    self.end(Outcome::Complete);
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            }
        }
    }

    /// When the watch has to look again; `None` when there is nothing left to watch.
    fn look(&mut self, bounds: &Bounds, now: Instant) -> Option<Instant> {
        if self.over {
            return None;
        }
        let whole = bounds.whole.map(|(_, end)| end);
        if whole.is_some_and(|end| end <= now) {
            self.give_up(Outcome::TooLong);
            return None;
        }
        // Silence of the upstream has its own bound, which is looked at by whoever waits.
        let since = self.taken_at.filter(|_| !self.awaited).unwrap_or(now);
        let idle = since + bounds.idle;
        if idle <= now {
            self.give_up(Outcome::ClientGone);
            return None;
        }
        Some(whole.map_or(idle, |end| end.min(idle)))
    }
}

/// Ends a reply that its client does not take, or not in time. Keeps nothing alive.
async fn watch(reply: Weak<Mutex<Reply>>, bounds: Bounds) {
    while let Some(until) = reply
        .upgrade()
        .and_then(|reply| lock(&reply).look(&bounds, Instant::now()))
    {
        sleep_until(until.into()).await;
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
        let mut reply = lock(&this.reply);
        if let Some(whole) = &mut this.whole
            && !reply.over
            && whole.as_mut().poll(cx).is_ready()
        {
            reply.give_up(Outcome::TooLong);
        }
        if let Some(outcome) = reply.given_up {
            return Poll::Ready(Some(Err(this.bounds.error(outcome))));
        }
        let polled = reply.poll(cx);
        reply.awaited = polled.is_pending();
        if polled.is_ready() && !reply.over && this.watch.is_none() {
            let watch = watch(Arc::downgrade(&this.reply), this.bounds);
            this.watch = Some(tokio::spawn(watch).abort_handle());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let reply = lock(&self.reply);
        reply.given_up.is_none() && reply.inner.is_end_stream() && reply.scrubber.held() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let reply = lock(&self.reply);
        let held = reply.scrubber.held() as u64;
        let inner = reply.inner.size_hint();
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
        if let Some(watch) = &self.watch {
            watch.abort();
        }
        lock(&self.reply).end(Outcome::ClientGone);
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyBody").finish_non_exhaustive()
    }
}

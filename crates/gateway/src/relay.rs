//! A waker between a connection and the task that drives it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// The connection is being polled at this moment.
const POLLING: u8 = 1;
/// It was woken since it was last polled.
const WOKEN: u8 = 2;

/// How often a poll is repeated because it woke itself, before the task yields.
const MAX_ROUNDS: usize = 16;

/// Passes wake-ups on to the task, except those that happen while the task polls.
///
/// Sender, connection and body of one exchange talk to each other through channels, and all
/// of them are polled by one task: each message would schedule that task once more, and the
/// scheduler another thread to steal it. Here such a wake-up is another round of the poll
/// that is running already, which halves what a small request costs.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    waker: Waker,
}

struct Shared {
    state: AtomicU8,
    task: Mutex<Waker>,
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) == 0 {
            self.task().wake_by_ref();
        }
    }
}

impl Shared {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU8::new(0),
            task: Mutex::new(Waker::noop().clone()),
        });
        Self {
            waker: Waker::from(Arc::clone(&shared)),
            shared,
        }
    }

    /// Polls until there is something or nothing moves any more.
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.wakes(cx.waker());
        let mut inner = Context::from_waker(&self.waker);
        for _ in 0..MAX_ROUNDS {
            self.shared.state.store(POLLING, Ordering::Release);
            let polled = poll(&mut inner);
            let state = self.shared.state.swap(0, Ordering::AcqRel);
            if polled.is_ready() || state & WOKEN == 0 {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what wakes the connection, by whoever polls it next: it needs no waking for that.
    pub(crate) fn before_poll<T>(&self, work: impl FnOnce() -> T) -> T {
        self.shared.state.store(POLLING, Ordering::Release);
        let done = work();
        self.shared.state.store(0, Ordering::Release);
        done
    }

    /// Nobody waits for the connection any more: a wake-up reaches no task.
    pub(crate) fn rest(&self) {
        self.wakes(Waker::noop());
    }

    fn wakes(&self, waker: &Waker) {
        let mut task = self.shared.task();
        if !task.will_wake(waker) {
            task.clone_from(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waking_oneself_is_another_round_and_waking_from_outside_reaches_the_task() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let relay = Relay::new();
        let mut rounds = 0;
        let mut kept = None;
        let polled = relay.poll(&mut cx, |cx| {
            rounds += 1;
            if rounds < 3 {
                cx.waker().wake_by_ref();
            }
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((rounds, count.0.load(Ordering::SeqCst)), (3, 0));

        let kept = kept.unwrap();
        kept.wake_by_ref();
        kept.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "once until it is polled");
        let _ = relay.poll(&mut cx, |_| Poll::<()>::Pending);
        kept.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);

        let _ = relay.poll(&mut cx, |_| Poll::<()>::Pending);
        relay.rest();
        kept.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_is_done_before_a_poll_wakes_nobody() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let relay = Relay::new();
        let mut kept = None;
        let _ = relay.poll(&mut cx, |cx| {
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let kept = kept.unwrap();
        relay.before_poll(|| kept.wake_by_ref());
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        // What comes between the work and the poll is no part of it.
        kept.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn one_that_wakes_itself_for_ever_lets_others_run() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let polled = Relay::new().poll(&mut cx, |cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}

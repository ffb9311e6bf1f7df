//! When an upstream last did something for somebody.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counts what keeps a sandbox awake (arch §4): requests, and streams that carry data.
/// WebSocket pings, pongs and open but silent connections do not count.
#[derive(Debug)]
pub struct Activity {
    base: Instant,
    /// Milliseconds after `base`.
    last: AtomicU64,
    exchanges: AtomicUsize,
    websockets: AtomicUsize,
}

impl Activity {
    /// Starts counting; `now` is the first activity.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            last: AtomicU64::new(0),
            exchanges: AtomicUsize::new(0),
            websockets: AtomicUsize::new(0),
        }
    }

    /// Notes that something happened at `now`.
    pub fn touch(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.base).as_millis();
        self.last
            .fetch_max(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When something last happened, to the millisecond.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.base + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// How long nothing has happened, at `now`.
    #[must_use]
    pub fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last())
    }

    /// HTTP exchanges whose request or response is not complete.
    #[must_use]
    pub fn open_exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// WebSockets that are open.
    #[must_use]
    pub fn open_websockets(&self) -> usize {
        self.websockets.load(Ordering::Relaxed)
    }

    pub(crate) fn exchange_opened(&self) {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn exchange_closed(&self) {
        self.exchanges.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn websocket_opened(&self) {
        self.websockets.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn websocket_closed(&self) {
        self.websockets.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_touch_counts_even_when_touches_arrive_out_of_order() {
        let start = Instant::now();
        let activity = Activity::new(start);
        activity.touch(start + Duration::from_secs(5));
        activity.touch(start + Duration::from_secs(3));
        assert_eq!(
            activity.idle_for(start + Duration::from_secs(9)),
            Duration::from_secs(4)
        );
    }
}

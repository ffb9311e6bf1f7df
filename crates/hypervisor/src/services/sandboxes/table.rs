//! The route table that requests are routed by: a copy of the database's routes in memory.
//! The database is written first, the copy after (arch §4).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use types::{SandboxId, UserId};

use crate::store::RouteRow;

/// Routes by user. Locks are held for a look-up, never across an await.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_user: HashMap<UserId, RouteRow>,
    /// When the user's present generation was published.
    published: HashMap<UserId, Instant>,
    /// A sandbox never changes its owner.
    owners: HashMap<SandboxId, UserId>,
}

impl RouteTable {
    /// The user's route, if it was published before.
    pub(crate) fn of_user(&self, user: UserId) -> Option<RouteRow> {
        self.inner
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_user
            .get(&user)
            .copied()
    }

    /// The route that a sandbox stands in.
    pub(crate) fn of_sandbox(&self, sandbox: SandboxId) -> Option<RouteRow> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.by_user.get(inner.owners.get(&sandbox)?).copied()
    }

    /// All sandboxes of published routes.
    pub(crate) fn sandboxes(&self) -> Vec<SandboxId> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.owners.keys().copied().collect()
    }

    /// How long ago the user's present generation was published; at `now`.
    pub(crate) fn since_swap(&self, user: UserId, now: Instant) -> Duration {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let published = inner.published.get(&user);
        published.map_or(Duration::ZERO, |at| now.saturating_duration_since(*at))
    }

    /// Makes a route from the database visible, unless a newer one is visible already:
    /// a slow reader must not undo a swap.
    pub(crate) fn publish(&self, route: RouteRow) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let newer = inner
            .by_user
            .get(&route.user_id)
            .is_some_and(|have| have.generation > route.generation);
        if !newer {
            let same = inner
                .by_user
                .get(&route.user_id)
                .is_some_and(|have| have.generation == route.generation);
            if !same {
                inner.published.insert(route.user_id, Instant::now());
            }
            inner.owners.insert(route.live, route.user_id);
            inner.owners.insert(route.dev, route.user_id);
            inner.by_user.insert(route.user_id, route);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RouteTable;
    use crate::store::RouteRow;
    use types::{Role, SandboxId, UserId};

    #[test]
    fn an_older_route_never_replaces_a_newer_one() {
        let table = RouteTable::default();
        let (live, dev) = (SandboxId::generate(), SandboxId::generate());
        let before = RouteRow {
            user_id: UserId::generate(),
            live,
            dev,
            generation: 0,
        };
        let after = RouteRow {
            live: dev,
            dev: live,
            generation: 1,
            ..before
        };
        table.publish(before);
        table.publish(after);
        table.publish(before);
        assert_eq!(table.of_user(before.user_id), Some(after));
        assert_eq!(
            table.of_sandbox(live).and_then(|route| route.role_of(live)),
            Some(Role::Dev)
        );
    }
}

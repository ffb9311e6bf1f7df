//! Following a user's sandboxes: states, swaps and notices, as they change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policy::Action;
use runtime::State;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use types::{Role, SandboxId, SandboxNotice, SandboxView, SwapStatus, UserId};

use super::{Sandboxes, Whose};
use crate::actor::Actor;
use crate::error::Error;

/// Followers of one user at the same time; a browser that shows more pages asks now and then.
const MAX_OF_USER: usize = 16;

/// Followers of all users at the same time.
const MAX_FOLLOWERS: usize = 1024;

/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Notices of a sandbox that a snapshot has, the latest first.
const NOTICES: usize = 5;

/// How many follow, by user. Held for a look-up.
#[derive(Debug, Default)]
pub(super) struct Followers(Mutex<HashMap<UserId, usize>>);

/// All that a page shows about a user's sandboxes.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshot {
    sandboxes: Vec<SandboxView>,
    swap: Option<SwapStatus>,
    notices: Vec<SandboxNotice>,
}

/// Somebody who follows. Dropping it makes room for somebody else.
pub(crate) struct Follower {
    sandboxes: Arc<Sandboxes>,
    actor: Actor,
    user: UserId,
    ids: [SandboxId; 2],
    states: [watch::Receiver<State>; 2],
    changes: broadcast::Receiver<UserId>,
    noticed: broadcast::Receiver<SandboxId>,
    first: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut all = self.sandboxes.followers.lock();
        if let Some(count) = all.get_mut(&self.user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.user);
            }
        }
    }
}

impl Followers {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UserId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, user: UserId) -> Result<(), Error> {
        let mut all = self.lock();
        let everybody: usize = all.values().sum();
        let own = all.get(&user).copied().unwrap_or_default();
        if own >= MAX_OF_USER || everybody >= MAX_FOLLOWERS {
            return Err(Error::Unavailable(
                "too many pages follow already; ask for /me/sandboxes now and then".to_owned(),
            ));
        }
        all.insert(user, own + 1);
        Ok(())
    }
}

impl Sandboxes {
    /// Begins to follow the actor's own sandboxes.
    ///
    /// # Errors
    /// The actor may not, the database failed, or too many follow already.
    pub(crate) async fn follow(self: &Arc<Self>, actor: &Actor) -> Result<Follower, Error> {
        let (owner, route) = self
            .authorize(actor, Whose::Own, Role::Live, Action::ViewSandbox)
            .await?;
        self.followers.join(owner.id)?;
        let ids = [route.live, route.dev];
        Ok(Follower {
            states: ids.map(|id| self.fleet.subscribe(id)),
            changes: self.plane.changes.subscribe(),
            noticed: self.plane.notices.subscribe(),
            sandboxes: Arc::clone(self),
            actor: actor.clone(),
            user: owner.id,
            ids,
            first: true,
        })
    }
}

impl Follower {
    /// What there is to show: at once the first time, then whenever it has changed.
    ///
    /// # Errors
    /// The actor may no longer, or the database failed.
    pub(crate) async fn next(&mut self) -> Result<Snapshot, Error> {
        if !std::mem::take(&mut self.first) {
            self.changed().await;
            tokio::time::sleep(TOGETHER).await;
        }
        for state in &mut self.states {
            state.borrow_and_update();
        }
        let sandboxes = self.sandboxes.list(&self.actor).await?;
        let swap = self.sandboxes.last_swap(&self.actor, Whose::Own).await?;
        let notices = sandboxes
            .iter()
            .flat_map(|view| {
                let of = self.sandboxes.plane.notices.of(view.id, view.role);
                of.into_iter().take(NOTICES)
            })
            .collect();
        Ok(Snapshot {
            sandboxes,
            swap,
            notices,
        })
    }

    async fn changed(&mut self) {
        let [live, dev] = &mut self.states;
        loop {
            let concerned = tokio::select! {
                _ = live.changed() => true,
                _ = dev.changed() => true,
                user = self.changes.recv() => about(user, |user| user == self.user),
                sandbox = self.noticed.recv() => about(sandbox, |id| self.ids.contains(&id)),
            };
            if concerned {
                return;
            }
        }
    }
}

/// Whoever lagged behind looks at everything again.
fn about<T>(received: Result<T, RecvError>, concerns: impl FnOnce(T) -> bool) -> bool {
    match received {
        Ok(what) => concerns(what),
        Err(RecvError::Lagged(_) | RecvError::Closed) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::MAX_OF_USER;
    use crate::error::Error;
    use crate::services::sandboxes::Whose;
    use crate::services::sandboxes::testing::Installation;
    use types::{NoticeKind, Role, SandboxState, SwapOutcome, SwapRequest};

    #[tokio::test]
    async fn starts_swaps_and_notices_show_without_being_asked_for() {
        let installation = Installation::new("").await;
        let actor = installation.actor();
        let sandboxes = &installation.app.sandboxes;
        let mut follower = sandboxes.follow(&actor).await.unwrap();
        let first = follower.next().await.unwrap();
        assert_eq!(first.sandboxes[0].state, SandboxState::Stopped);
        assert!(first.swap.is_none());
        for role in Role::ALL {
            sandboxes.start(&actor, Whose::Own, role).await.unwrap();
        }
        let next = follower.next().await.unwrap();
        assert_eq!(next.sandboxes[0].state, SandboxState::Running);
        sandboxes
            .swap(&actor, Whose::Own, SwapRequest::default())
            .await
            .unwrap();
        let next = follower.next().await.unwrap();
        assert_eq!(next.sandboxes[0].generation, 1);
        assert_eq!(next.swap.unwrap().outcome, SwapOutcome::OnTrial);
        let live = installation.sandbox(Role::Live).await;
        sandboxes
            .plane()
            .notices
            .note(live, NoticeKind::Quota, "x", "a limit", None);
        let next = follower.next().await.unwrap();
        assert_eq!(next.notices[0].message, "a limit");
        // What concerns others wakes nobody.
        let other = types::SandboxId::generate();
        sandboxes
            .plane()
            .notices
            .note(other, NoticeKind::Quota, "x", "y", None);
        let quiet = tokio::time::timeout(Duration::from_millis(300), follower.next()).await;
        assert!(quiet.is_err());
    }

    #[tokio::test]
    async fn followers_are_bounded_and_make_room() {
        let installation = Installation::new("").await;
        let actor = installation.actor();
        let mut all = Vec::new();
        for _ in 0..MAX_OF_USER {
            all.push(installation.app.sandboxes.follow(&actor).await.unwrap());
        }
        let refused = installation.app.sandboxes.follow(&actor).await.err();
        assert!(
            matches!(refused, Some(Error::Unavailable(_))),
            "{refused:?}"
        );
        all.pop();
        assert!(installation.app.sandboxes.follow(&actor).await.is_ok());
    }
}

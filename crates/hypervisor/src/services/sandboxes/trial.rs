//! The trial of a new `live` after a swap: when it crashes or stops answering within its
//! grace period and the old one is healthy, the swap is taken back, once (arch §4).
//!
//! That a swap is on trial stands in the database, so a restart of the hypervisor goes on
//! where the last one was.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use runtime::{Instance, State};
use tokio_util::sync::CancellationToken;
use types::{NoticeKind, Role, SwapOutcome, UserId};

use super::Sandboxes;
use super::snapshots::copies::Swapping;
use crate::actor::Actor;
use crate::clock::millis;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::store::RouteRow;

/// Looks in a row that have to fail: one alone may be a moment of load.
const FAILURES: u32 = 2;

/// Pause before a failed look is repeated.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the lifecycle may take to say how a start ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// What is on trial.
pub(super) enum Trial {
    /// The start that was examined before the swap.
    Proved(Arc<Instance>),
    /// Whatever a restart of the hypervisor found; since when it is `live`, in Unix
    /// milliseconds.
    TakenOver { swapped_at: i64 },
}

/// How a trial ended.
enum Verdict {
    /// The new `live` stays; why, when that is worth a word.
    Kept(Option<&'static str>),
    /// It failed, and how.
    Failed(String),
    /// Somebody else has settled it.
    Over,
}

impl Sandboxes {
    /// Watches the `live` of a route that a swap has made, until `until` (Unix milliseconds).
    pub(super) fn begin_trial(self: &Arc<Self>, route: RouteRow, of: Trial, until: i64) {
        let over = CancellationToken::new();
        let before = self
            .trials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(route.user_id, (route.generation, over.clone()));
        if let Some((_, before)) = before {
            before.cancel();
        }
        let sandboxes = Arc::clone(self);
        tokio::spawn(async move {
            let began = Instant::now();
            let verdict = sandboxes.watch(&route, of, until, &over).await;
            sandboxes.carry_out(&route, verdict, began).await;
        });
    }

    /// Goes on with the trials that an earlier hypervisor had begun.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn resume_trials(self: &Arc<Self>) -> Result<(), Error> {
        for row in self.plane.store.swaps_on_trial().await? {
            let route = self.plane.route(row.user_id).await?;
            if route.generation != row.generation {
                continue;
            }
            // Time enough for a look, also when the grace period ran out meanwhile.
            let least = self.plane.clock.now_ms().saturating_add(millis(LOOK_AGAIN));
            let until = row.grace_until.unwrap_or(least).max(least);
            let swapped_at = row.swapped_at;
            self.begin_trial(route, Trial::TakenOver { swapped_at }, until);
        }
        Ok(())
    }

    /// Ends the trial of a `live` that somebody stops on purpose: that is no failure.
    pub(super) async fn end_trial(&self, route: &RouteRow, role: Role, why: &'static str) {
        if role == Role::Live && self.forget_trial(route) {
            self.settle(route, SwapOutcome::Kept, Some(why)).await;
        }
    }

    /// The same for everybody.
    pub(super) async fn end_trials(&self, why: &'static str) {
        let users: Vec<UserId> = self
            .trials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect();
        for user in users {
            if let Some(route) = self.plane.routes.of_user(user) {
                self.end_trial(&route, Role::Live, why).await;
            }
        }
    }

    /// Stops watching the swap that made this route, or one before it; whether there was
    /// something to watch.
    pub(super) fn forget_trial(&self, route: &RouteRow) -> bool {
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        let known = trials
            .get(&route.user_id)
            .is_some_and(|(generation, _)| *generation <= route.generation);
        if known && let Some((_, over)) = trials.remove(&route.user_id) {
            over.cancel();
        }
        known
    }

    async fn watch(
        &self,
        route: &RouteRow,
        of: Trial,
        until: i64,
        over: &CancellationToken,
    ) -> Verdict {
        let instance = match of {
            Trial::Proved(instance) => instance,
            Trial::TakenOver { swapped_at } => {
                match self.taken_over(route, swapped_at, over).await {
                    Ok(instance) => instance,
                    Err(verdict) => return verdict,
                }
            }
        };
        let interval = self.plane.config.sandbox.swap.probe_interval;
        let mut failures = 0;
        loop {
            let left = until.saturating_sub(self.plane.clock.now_ms()).max(0);
            let left = Duration::from_millis(left.unsigned_abs());
            let pause = if failures > 0 {
                LOOK_AGAIN
            } else {
                interval.min(left)
            };
            tokio::select! {
                biased;
                () = over.cancelled() => return Verdict::Over,
                () = instance.ended().cancelled() => return self.how_it_ended(&instance).await,
                () = tokio::time::sleep(pause) => {}
            }
            match self.prove(route.live).await {
                Ok(_) if left <= pause => return Verdict::Kept(None),
                Ok(_) => failures = 0,
                // The next turn finds out how.
                Err(_) if instance.ended().is_cancelled() => {}
                Err(unhealthy) => {
                    failures += 1;
                    if failures >= FAILURES {
                        return Verdict::Failed(format!("live is not healthy: {unhealthy}"));
                    }
                }
            }
        }
    }

    /// The start of `live` that a restart of the hypervisor found. One that was cut before its
    /// first health has time for it; one that crashed has failed, also if it is up again.
    async fn taken_over(
        &self,
        route: &RouteRow,
        swapped_at: i64,
        over: &CancellationToken,
    ) -> Result<Arc<Instance>, Verdict> {
        let mut state = self.fleet.subscribe(route.live);
        let settled = state.wait_for(|state| !matches!(state, State::Starting));
        let settled = tokio::select! {
            biased;
            () = over.cancelled() => return Err(Verdict::Over),
            settled = settled => settled.map(|state| state.clone()),
        };
        let crashed = self.plane.store.crashed_since(route.live, swapped_at);
        match settled {
            Ok(State::Running(instance)) => match crashed.await {
                Ok(false) => Ok(instance),
                Ok(true) => Err(Verdict::Failed(
                    "live crashed while the hypervisor was down".to_owned(),
                )),
                Err(error) => Err(Verdict::Failed(format!(
                    "nobody can say whether live crashed: {error}"
                ))),
            },
            Ok(State::Failed(error)) => {
                Err(Verdict::Failed(format!("live did not come up: {error}")))
            }
            _ => Err(Verdict::Failed(
                "live ended while the hypervisor was down".to_owned(),
            )),
        }
    }

    /// A start that was stopped on purpose is no failure; one that ended by itself is.
    async fn how_it_ended(&self, instance: &Arc<Instance>) -> Verdict {
        let log = instance.last_log_line().await;
        let mut state = self.fleet.subscribe(instance.sandbox_id);
        // A crashed guest may be started again in the same start.
        let moved_on = |state: &State| match state {
            State::Running(now) => !Arc::ptr_eq(now, instance),
            _ => true,
        };
        let settled = tokio::time::timeout(SETTLED_WITHIN, state.wait_for(moved_on)).await;
        if let Ok(Ok(state)) = &settled
            && matches!(**state, State::Stopping | State::Stopped)
        {
            return Verdict::Kept(Some("live was stopped on purpose"));
        }
        let mut why = "live crashed".to_owned();
        if let Some(line) = log {
            why.push_str("; its last log line: ");
            why.push_str(&line);
        }
        Verdict::Failed(why)
    }

    async fn carry_out(&self, route: &RouteRow, verdict: Verdict, began: Instant) {
        match verdict {
            Verdict::Over => return,
            Verdict::Kept(why) => self.settle(route, SwapOutcome::Kept, why).await,
            Verdict::Failed(why) => {
                let why = format!("{} s after the swap {why}", began.elapsed().as_secs());
                if let Err(error) = self.take_back(route, &why).await {
                    tracing::error!(%error, user = %route.user_id, "a swap could not be taken back");
                    let why = format!("{why}; it could not be taken back: {error}");
                    self.settle(route, SwapOutcome::Stayed, Some(&why)).await;
                }
            }
        }
        self.forget_trial(route);
    }

    /// Takes the swap back that made this route, if the old `live` is healthy. There is no
    /// trial after it, so no swap is taken back twice.
    async fn take_back(&self, route: &RouteRow, why: &str) -> Result<(), Error> {
        let (owner, _) = self.plane.owner(route.live).await?;
        let about = |entry: Entry| {
            entry
                .about_user(owner.id, &owner.name)
                .in_sandbox(route.dev, Some(Role::Dev))
                .with("generation", (route.generation + 1).to_string())
        };
        let target = route.dev.to_string();
        let _swapping = self.swap_before_copies(route).await;
        let healthy = self.prove(route.dev).await;
        self.plane.metrics.rollback(healthy.is_ok());
        if let Err(unhealthy) = healthy {
            let why = format!("{why}; the old live cannot take over: {unhealthy}");
            let entry = about(Entry::denied("sandbox.rollback", target, why.as_str()));
            self.plane.audit.record(&Actor::internal(), entry).await?;
            self.settle(route, SwapOutcome::Stayed, Some(&why)).await;
            self.plane.notices.note(
                route.live,
                NoticeKind::Other,
                "swap",
                &format!("The swap was not taken back: {why}"),
                Some("look at both logs, and start or restart the one that you need"),
            );
            return Ok(());
        }
        let entry = about(Entry::allowed("sandbox.rollback", target)).with("reason", why);
        self.plane.audit.record(&Actor::internal(), entry).await?;
        let now = self.plane.clock.now_ms();
        let Some(back) = self.plane.store.take_back_swap(route, now, why).await? else {
            // Somebody swapped meanwhile; that settles it.
            return Ok(());
        };
        self.switch(&back, true);
        self.plane.notices.note(
            route.live,
            NoticeKind::RolledBack,
            "swap",
            &format!("The swap was taken back: {why}"),
            Some("it is dev again: see its log, mend it, and swap once more"),
        );
        self.plane.changed(route.user_id);
        Ok(())
    }

    /// Leave to take a swap back. A restore or a clone of one of the two is cancelled for
    /// that, or, when it is past that, seen through.
    async fn swap_before_copies(&self, route: &RouteRow) -> Swapping {
        loop {
            let copying = match self.plane.copies.swap([route.live, route.dev]) {
                Ok(swapping) => return swapping,
                Err(copying) => copying,
            };
            copying.cancel();
            let mut under_way = copying.follow();
            drop(copying);
            // It ends with an error once the copy is over.
            while under_way.changed().await.is_ok() {}
        }
    }

    async fn settle(&self, route: &RouteRow, outcome: SwapOutcome, why: Option<&str>) {
        if let Err(error) = self.plane.store.settle_swap(route, outcome, why).await {
            tracing::error!(%error, user = %route.user_id, "the end of a swap's trial cannot be noted");
        }
        self.plane.changed(route.user_id);
    }
}

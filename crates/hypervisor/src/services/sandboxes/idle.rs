//! Stopping what nobody uses (arch §4).
//!
//! Activity is a request, a stream or WebSocket that carries data, a model call, a command
//! or a service that runs, a copy of its files, and a terminal in which something happens. An
//! open connection, a ping, a frame that repeats, a reconnect are none, so an abandoned page
//! keeps nothing awake: see `gateway::Activity` for what the proxy counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use runtime::{ControlError, Instance};
use types::{CommandId, CommandState, SandboxId};

use super::Sandboxes;
use crate::actor::Actor;
use crate::app::App;
use crate::config::IdleStop;
use crate::services::audit::Entry;

/// A sandbox is looked at this often within the time after which it is stopped, so it is
/// stopped at most an eighth late.
const LOOKS: u32 = 8;

/// Least and most time between two looks.
const LOOK_LEAST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_secs(60);

/// Sandboxes that are looked at, or stopped, at the same time.
const AT_ONCE: usize = 16;

/// What idling needs to remember.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Why a sandbox was stopped by nobody's order; until its next start.
    reasons: Mutex<HashMap<SandboxId, String>>,
    /// What the last look saw.
    seen: Mutex<Seen>,
}

/// What tells one look from the next.
#[derive(Debug, Default)]
struct Seen {
    /// How much each terminal had written.
    terminals: HashMap<CommandId, u64>,
    /// How many model calls each sandbox had begun: most are over before anybody looks.
    calls: HashMap<SandboxId, u64>,
}

impl Idle {
    /// Why a sandbox was stopped by nobody's order.
    pub(super) fn reason(&self, sandbox: SandboxId) -> Option<String> {
        lock(&self.reasons).get(&sandbox).cloned()
    }

    /// Somebody starts or stops it.
    pub(super) fn forget(&self, sandbox: SandboxId) {
        lock(&self.reasons).remove(&sandbox);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each map is valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after idle sandboxes until the process drains.
pub(super) fn watch(app: &Arc<App>) {
    let IdleStop::After(limit) = app.config.sandbox.idle_stop else {
        return;
    };
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let mut looks = tokio::time::interval((limit / LOOKS).clamp(LOOK_LEAST, LOOK_MOST));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = app.draining.cancelled() => return,
                _ = looks.tick() => app.sandboxes.stop_idle(limit, Instant::now()).await,
            }
        }
    });
}

impl Sandboxes {
    /// Stops the sandboxes in which nothing has happened for `limit`, at `now`.
    pub(super) async fn stop_idle(&self, limit: Duration, now: Instant) {
        let seen = Mutex::default();
        // One that is slow to answer, or to stop, keeps no other awake.
        futures_util::stream::iter(self.plane.routes.sandboxes())
            .for_each_concurrent(AT_ONCE, |sandbox| self.look_at(sandbox, limit, now, &seen))
            .await;
        *lock(&self.idle.seen) = std::mem::take(&mut lock(&seen));
    }

    async fn look_at(&self, sandbox: SandboxId, limit: Duration, now: Instant, seen: &Mutex<Seen>) {
        let Some(instance) = self.fleet.running(sandbox) else {
            return;
        };
        // Without one nobody ever reached it; the next look finds the one made here.
        let Ok(upstream) = self.plane.upstream(&instance) else {
            return;
        };
        let activity = upstream.activity();
        if self.is_busy(&instance, seen).await {
            activity.touch(now);
        }
        let idle = || activity.idle_for(now) >= limit && !self.is_at_work(sandbox);
        if idle() {
            self.stop_one_idle(&instance, limit, idle).await;
        }
    }

    /// Whether something goes on for it outside. A copy of what stands still for it fails when
    /// the sandbox is stopped.
    fn is_at_work(&self, sandbox: SandboxId) -> bool {
        self.plane.providers.open_calls(sandbox) > 0 || self.plane.copies.of(sandbox).is_some()
    }

    /// Whether something runs in it, or for it, that does not show as requests.
    async fn is_busy(&self, instance: &Instance, seen: &Mutex<Seen>) -> bool {
        let sandbox = instance.sandbox_id;
        let calls = self.plane.providers.begun_calls(sandbox);
        lock(seen).calls.insert(sandbox, calls);
        let before = lock(&self.idle.seen).calls.get(&sandbox).copied();
        if self.is_at_work(sandbox) || calls != before.unwrap_or_default() {
            return true;
        }
        let runners = match instance.runners().await {
            Ok(runners) => runners,
            // It does not answer in time: better too long awake than a command cut off.
            Err(ControlError::Timeout) => return true,
            Err(_) => return false,
        };
        let mut busy = false;
        for runner in runners {
            if runner.view.state != CommandState::Running {
                continue;
            }
            if runner.view.terminal {
                // A shell that waits for somebody is not at work; what it runs is.
                let before = lock(&self.idle.seen)
                    .terminals
                    .get(&runner.view.id)
                    .copied();
                lock(seen)
                    .terminals
                    .insert(runner.view.id, runner.output_end);
                busy |= runner.foreground_job || before != Some(runner.output_end);
            } else {
                busy = true;
            }
        }
        busy
    }

    pub(super) async fn stop_one_idle(
        &self,
        instance: &Instance,
        limit: Duration,
        idle: impl Fn() -> bool,
    ) {
        let sandbox = instance.sandbox_id;
        let entry = Entry::allowed("sandbox.idle_stop", sandbox.to_string())
            .in_sandbox(sandbox, self.plane.role_of(sandbox))
            .with("start", instance.start_id.to_string())
            .with("idle_seconds", limit.as_secs().to_string());
        // Without a record it goes on.
        if let Err(error) = self.plane.audit.record(&Actor::internal(), entry).await {
            tracing::warn!(%sandbox, %error, "an idle sandbox is not stopped");
            return;
        }
        // Somebody may have come while that was written.
        if !idle() {
            return;
        }
        // Before the stop: a hypervisor that dies in between must not take the swap back.
        if let Some(route) = self.plane.routes.of_sandbox(sandbox)
            && let Some(role) = route.role_of(sandbox)
        {
            self.end_trial(&route, role, "live was stopped because nobody used it")
                .await;
        }
        // Nor since, and nobody stopped it or started it anew.
        if !self.fleet.stop_if(instance, idle).await {
            return;
        }
        tracing::info!(%sandbox, idle = ?limit, "stopped a sandbox that nobody used");
        self.plane.metrics.idle_stop();
        lock(&self.idle.reasons).insert(
            sandbox,
            format!("it was stopped after {} without activity", in_words(limit)),
        );
    }
}

fn in_words(limit: Duration) -> String {
    match limit.as_secs() {
        seconds @ 1.. if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds @ 1.. if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

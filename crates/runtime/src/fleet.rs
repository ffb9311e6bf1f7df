//! The lifecycle state machine (arch §4): `stopped → starting → running → stopping`,
//! and `failed` with a reason.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use types::{CommandExit, SandboxId, SandboxState, StartId};

use crate::driver::{Adopted, BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
use crate::instance::Instance;

/// What the fleet asks of the control plane.
pub trait Host: Send + Sync {
    /// Makes the request for a new start: directories, environment, a fresh token.
    fn prepare(
        &self,
        sandbox: SandboxId,
        start: StartId,
    ) -> BoxFuture<'_, Result<StartRequest, StartError>>;

    /// Begins to serve a start's channel; called before the guest is asked for its health,
    /// and again when a start is adopted. Ends with [`Instance::ended`].
    fn serve_channel(&self, instance: Arc<Instance>, listener: std::os::unix::net::UnixListener);

    /// Asks the guest once whether it is healthy; `Err` is a sentence for people.
    fn healthy(&self, instance: Arc<Instance>) -> BoxFuture<'_, Result<(), String>>;
}

/// Bounds of the lifecycle.
#[derive(Debug, Clone, Copy)]
pub struct FleetOptions {
    /// How long a guest may take from its process to health.
    pub healthy_within: Duration,
    /// Pause between two questions for health.
    pub health_interval: Duration,
    /// Between TERM and KILL of a guest.
    pub stop_grace: Duration,
    /// A guest that lived this long before it crashed starts a new count of crashes.
    pub stable_after: Duration,
    /// Pause before the first restart; doubles with each further crash.
    pub restart_backoff: Duration,
    /// This many crashes in a row make the sandbox `failed`.
    pub max_crashes: u32,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            healthy_within: Duration::from_secs(30),
            health_interval: Duration::from_millis(10),
            stop_grace: Duration::from_secs(5),
            stable_after: Duration::from_secs(60),
            restart_backoff: Duration::from_millis(500),
            max_crashes: 5,
        }
    }
}

/// Where a sandbox stands, with what belongs to it there.
#[derive(Debug, Clone, Default)]
pub enum State {
    /// No process.
    #[default]
    Stopped,
    /// Being built, or waiting for its first health; also the pause before a restart.
    Starting,
    /// Healthy.
    Running(Arc<Instance>),
    /// Being taken down.
    Stopping,
    /// Gave up.
    Failed(StartError),
}

/// A sandbox's state as a plain fact, for listings.
#[derive(Debug, Clone)]
pub struct Status {
    /// The state.
    pub state: SandboxState,
    /// The present start, while it runs.
    pub instance: Option<Arc<Instance>>,
    /// Why it failed.
    pub error: Option<StartError>,
}

impl State {
    fn status(&self) -> Status {
        let (state, instance, error) = match self {
            Self::Stopped => (SandboxState::Stopped, None, None),
            Self::Starting => (SandboxState::Starting, None, None),
            Self::Running(instance) => (SandboxState::Running, Some(Arc::clone(instance)), None),
            Self::Stopping => (SandboxState::Stopping, None, None),
            Self::Failed(error) => (SandboxState::Failed, None, Some(error.clone())),
        };
        Status {
            state,
            instance,
            error,
        }
    }
}

/// What a caller of `start` has to do next.
enum Next {
    Done(Arc<Instance>),
    Begin,
    Join,
    AfterStop,
}

/// One sandbox: its state and the wish to stop, each watched.
struct Entry {
    state: watch::Sender<State>,
    /// Counts calls of `stop`; a start that was begun under a smaller count gives up.
    stops: watch::Sender<u64>,
}

/// All sandboxes of this hypervisor. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Arc<dyn SandboxRuntime>,
    host: Arc<dyn Host>,
    options: FleetOptions,
    /// Held only to look up or insert; never across an await. Grows with the sandboxes
    /// that exist, not with requests.
    entries: Mutex<HashMap<SandboxId, Arc<Entry>>>,
}

impl Fleet {
    /// An empty fleet.
    #[must_use]
    pub fn new(
        driver: Arc<dyn SandboxRuntime>,
        host: Arc<dyn Host>,
        options: FleetOptions,
    ) -> Self {
        let entries = Mutex::new(HashMap::new());
        Self {
            inner: Arc::new(Inner {
                driver,
                host,
                options,
                entries,
            }),
        }
    }

    /// Starts a sandbox, or joins the start that is under way, or returns the running one.
    ///
    /// The start goes on when the caller goes away.
    ///
    /// # Errors
    /// Why it could not be started or did not become healthy; everyone who joined gets the same.
    pub async fn start(&self, sandbox: SandboxId) -> Result<Arc<Instance>, StartError> {
        let entry = self.entry(sandbox);
        let mut state = entry.state.subscribe();
        loop {
            // Read before the state changes: a stop that comes in between is then seen.
            let stops = *entry.stops.borrow();
            let next = next_for_start(&entry);
            match &next {
                Next::Done(instance) => return Ok(Arc::clone(instance)),
                Next::Begin => {
                    let fleet = self.clone();
                    let entry = Arc::clone(&entry);
                    tokio::spawn(async move {
                        fleet.keep_running(sandbox, entry, stops, None).await;
                    });
                }
                Next::Join | Next::AfterStop => {}
            }
            let settled = state
                .wait_for(|state| !matches!(state, State::Starting | State::Stopping))
                .await
                .map(|state| state.clone());
            match settled {
                Ok(State::Running(instance)) => return Ok(instance),
                Ok(State::Failed(error)) => return Err(error),
                Ok(State::Stopped) if matches!(next, Next::AfterStop) => {}
                Ok(_) | Err(_) => return Err(stopped_meanwhile()),
            }
        }
    }

    /// Stops a sandbox and returns once nothing of it is left. A start under way is given up.
    pub async fn stop(&self, sandbox: SandboxId) {
        let entry = self.entry(sandbox);
        let mut state = entry.state.subscribe();
        entry.stops.send_modify(|count| *count += 1);
        entry.state.send_if_modified(|state| {
            let failed = matches!(state, State::Failed(_));
            if failed {
                *state = State::Stopped;
            }
            failed
        });
        // An error means that the entry is gone, and with it the sandbox.
        let _ = state
            .wait_for(|state| matches!(state, State::Stopped | State::Failed(_)))
            .await;
    }

    /// Stops every sandbox, all at once.
    pub async fn stop_all(&self) {
        let ids: Vec<_> = self.lock_entries().keys().copied().collect();
        let mut stops = tokio::task::JoinSet::new();
        for id in ids {
            let fleet = self.clone();
            stops.spawn(async move { fleet.stop(id).await });
        }
        stops.join_all().await;
    }

    /// Finds the sandboxes that outlived an earlier hypervisor and takes them over.
    /// Returns how many there were.
    pub async fn adopt(&self) -> usize {
        let found = self.inner.driver.adopt().await;
        let count = found.len();
        for adopted in found {
            let Adopted {
                sandbox_id,
                start_id,
                started_at,
                started,
            } = adopted;
            let entry = self.entry(sandbox_id);
            let stops = *entry.stops.borrow();
            let (instance, exited) = self.publish(sandbox_id, start_id, started_at, started);
            entry
                .state
                .send_replace(State::Running(Arc::clone(&instance)));
            let fleet = self.clone();
            tokio::spawn(async move {
                if let Some(crashed) = fleet.watch(&entry, &instance, exited, stops).await {
                    fleet
                        .keep_running(sandbox_id, entry, stops, Some(crashed))
                        .await;
                }
            });
        }
        count
    }

    /// The state of a sandbox.
    #[must_use]
    pub fn status(&self, sandbox: SandboxId) -> Status {
        self.entry(sandbox).state.borrow().status()
    }

    /// The running start of a sandbox.
    #[must_use]
    pub fn running(&self, sandbox: SandboxId) -> Option<Arc<Instance>> {
        match &*self.entry(sandbox).state.borrow() {
            State::Running(instance) => Some(Arc::clone(instance)),
            _ => None,
        }
    }

    /// Follows the state of a sandbox.
    #[must_use]
    pub fn subscribe(&self, sandbox: SandboxId) -> watch::Receiver<State> {
        self.entry(sandbox).state.subscribe()
    }

    /// How many sandboxes are in each state, of those that were ever asked about.
    #[must_use]
    pub fn count(&self, wanted: SandboxState) -> usize {
        self.lock_entries()
            .values()
            .filter(|entry| entry.state.borrow().status().state == wanted)
            .count()
    }

    fn lock_entries(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<Entry>>> {
        // The map is valid after every statement, so a poisoned lock still guards a sound map.
        self.inner
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, sandbox: SandboxId) -> Arc<Entry> {
        Arc::clone(self.lock_entries().entry(sandbox).or_insert_with(|| {
            Arc::new(Entry {
                state: watch::Sender::new(State::Stopped),
                stops: watch::Sender::new(0),
            })
        }))
    }

    /// Runs a sandbox until it is stopped or has failed. `crashed` is the crash of a
    /// start that came before, if one did.
    async fn keep_running(
        &self,
        sandbox: SandboxId,
        entry: Arc<Entry>,
        stops: u64,
        mut crashed: Option<Crash>,
    ) {
        let mut crashes = 0;
        loop {
            if let Some(crash) = crashed.take() {
                crashes = if crash.lived >= self.inner.options.stable_after {
                    1
                } else {
                    crashes + 1
                };
                if crashes >= self.inner.options.max_crashes {
                    settle(&entry, State::Failed(crash.into_error(crashes)));
                    return;
                }
                let pause = self.inner.options.restart_backoff * 2_u32.saturating_pow(crashes - 1);
                tracing::warn!(%sandbox, crashes, ?pause, "sandbox crashed; restarting");
                if unless_stopped(&entry, stops, tokio::time::sleep(pause))
                    .await
                    .is_none()
                {
                    settle(&entry, State::Stopped);
                    return;
                }
            }
            match self.start_once(sandbox, &entry, stops).await {
                Ok(None) => {
                    settle(&entry, State::Stopped);
                    return;
                }
                Ok(Some((instance, exited))) => {
                    entry
                        .state
                        .send_replace(State::Running(Arc::clone(&instance)));
                    crashed = self.watch(&entry, &instance, exited, stops).await;
                    if crashed.is_none() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%sandbox, code = %error.code, %error, "sandbox did not start");
                    settle(&entry, State::Failed(error));
                    return;
                }
            }
        }
    }

    /// One start, up to health. `None` when a stop came first. A failed start leaves nothing.
    async fn start_once(
        &self,
        sandbox: SandboxId,
        entry: &Entry,
        stops: u64,
    ) -> Result<Option<(Arc<Instance>, BoxFuture<'static, CommandExit>)>, StartError> {
        let start = StartId::generate();
        let started_at = jiff::Timestamp::now().to_string();
        let request = self.inner.host.prepare(sandbox, start).await?;
        let started = self.inner.driver.start(request).await?;
        let (instance, mut exited) = self.publish(sandbox, start, started_at, started);
        let healthy = tokio::select! {
            healthy = unless_stopped(entry, stops, self.wait_healthy(&instance)) => healthy,
            exit = &mut exited => Some(Err(exited_early(&exit))),
        };
        match healthy {
            Some(Ok(())) => Ok(Some((instance, exited))),
            Some(Err(mut error)) => {
                if let Some(line) = last_log_lines(&instance).await {
                    error.message = format!("{}; its last words: {line}", error.message);
                }
                self.take_down(&instance).await;
                Err(error)
            }
            None => {
                self.take_down(&instance).await;
                Ok(None)
            }
        }
    }

    fn publish(
        &self,
        sandbox: SandboxId,
        start: StartId,
        started_at: String,
        started: Started,
    ) -> (Arc<Instance>, BoxFuture<'static, CommandExit>) {
        let Started {
            control,
            app_dir,
            channel,
            exited,
            events,
            host_record,
        } = started;
        let instance = Arc::new(Instance::new(
            sandbox,
            start,
            started_at,
            app_dir,
            control,
            events,
            host_record,
        ));
        self.inner
            .host
            .serve_channel(Arc::clone(&instance), channel);
        (instance, exited)
    }

    async fn wait_healthy(&self, instance: &Arc<Instance>) -> Result<(), StartError> {
        let deadline = Instant::now() + self.inner.options.healthy_within;
        loop {
            let last = match self.inner.host.healthy(Arc::clone(instance)).await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            if Instant::now() >= deadline {
                let within = self.inner.options.healthy_within.as_secs();
                return Err(StartError::new(
                    "unhealthy",
                    format!("the sandbox did not become healthy within {within} s: {last}"),
                )
                .with_hint("see its log: choir sandbox logs"));
            }
            tokio::time::sleep(self.inner.options.health_interval).await;
        }
    }

    /// Waits until a running start ends. `None` when it was stopped on purpose.
    async fn watch(
        &self,
        entry: &Entry,
        instance: &Arc<Instance>,
        exited: BoxFuture<'static, CommandExit>,
        stops: u64,
    ) -> Option<Crash> {
        let began = Instant::now();
        let exit = unless_stopped(entry, stops, exited).await;
        let log = if exit.is_some() {
            last_log_lines(instance).await
        } else {
            None
        };
        let after = if exit.is_some() {
            State::Starting
        } else {
            State::Stopping
        };
        instance.ended().cancel();
        entry.state.send_replace(after);
        self.take_down(instance).await;
        match exit {
            Some(exit) => Some(Crash {
                lived: began.elapsed(),
                exit,
                log,
            }),
            None => {
                settle(entry, State::Stopped);
                None
            }
        }
    }

    async fn take_down(&self, instance: &Instance) {
        instance.ended().cancel();
        let grace = u64::try_from(self.inner.options.stop_grace.as_millis()).unwrap_or(u64::MAX);
        self.inner
            .driver
            .stop(instance.start_id, instance.control().clone(), grace)
            .await;
    }
}

/// A start that ended on its own.
struct Crash {
    lived: Duration,
    exit: CommandExit,
    log: Option<String>,
}

impl Crash {
    fn into_error(self, crashes: u32) -> StartError {
        let mut error = exited_early(&self.exit);
        error.code = "crash_loop".to_owned();
        error.message = format!("{} ({crashes} times in a row)", error.message);
        if let Some(log) = self.log {
            error.message = format!("{}; its last words: {log}", error.message);
        }
        error
    }
}

/// Decides, in one step with the change of state, what a caller of `start` does.
fn next_for_start(entry: &Entry) -> Next {
    let mut next = Next::Join;
    entry.state.send_if_modified(|state| match state {
        State::Running(instance) => {
            next = Next::Done(Arc::clone(instance));
            false
        }
        State::Stopped | State::Failed(_) => {
            next = Next::Begin;
            *state = State::Starting;
            true
        }
        State::Starting => false,
        State::Stopping => {
            next = Next::AfterStop;
            false
        }
    });
    next
}

fn settle(entry: &Entry, state: State) {
    entry.state.send_replace(state);
}

/// The output of `future`, or `None` once somebody called `stop` after `stops` was read.
async fn unless_stopped<T>(
    entry: &Entry,
    stops: u64,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut count = entry.stops.subscribe();
    tokio::select! {
        biased;
        _ = count.wait_for(|count| *count != stops) => None,
        output = future => Some(output),
    }
}

fn stopped_meanwhile() -> StartError {
    StartError::new("stopped", "the sandbox was stopped while it was starting")
        .with_hint("start it again: choir sandbox start")
}

fn exited_early(exit: &CommandExit) -> StartError {
    let how = match (exit.code, exit.signal, &exit.error) {
        (_, _, Some(error)) => format!("could not be run: {error}"),
        (Some(code), _, _) => format!("exited with code {code}"),
        (_, Some(signal), _) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    };
    StartError::new("guest_exited", format!("the guest runtime {how}"))
        .with_hint("see its log: choir sandbox logs")
}

/// The end of the guest's log, on one line, for an error text.
async fn last_log_lines(instance: &Instance) -> Option<String> {
    const LINES: usize = 3;
    let text = instance.control().log_tail().await.ok()?;
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let from = lines.len().saturating_sub(LINES);
    let tail = lines.get(from..)?.join(" | ");
    (!tail.is_empty()).then_some(tail)
}

#[cfg(test)]
mod tests;

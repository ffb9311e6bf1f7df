//! The lifecycle state machine (arch §4): `stopped → starting → running → stopping`,
//! and `failed` with a reason.

mod adopt;
mod crash;
mod remains;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isolation::spec::OptionalWall;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{CommandExit, SandboxId, SandboxState, StartId};

use crate::driver::{BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
use crate::instance::Instance;
use crash::{Crash, Fault, last_log_lines, with_log};
use remains::Remains;

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

    /// Takes over what goes on in an adopted start besides its guest, whether that lives or
    /// not. Ends with [`Instance::start_ended`].
    fn adopted(&self, instance: Arc<Instance>) -> BoxFuture<'_, ()>;

    /// Whether the guest of a start may be started again in it after a crash; a new start
    /// takes its place otherwise.
    fn restartable(&self, instance: &Instance) -> bool;

    /// Asks the guest once whether it is healthy; `Err` is a sentence for people.
    fn healthy(&self, instance: Arc<Instance>) -> BoxFuture<'_, Result<(), String>>;

    /// Whether one more sandbox may run beside those that are `occupied`: they start, run
    /// or stop. Asked with a lock held, so that two starts never take the same place; it
    /// neither waits nor calls the fleet.
    ///
    /// # Errors
    /// The host is full, in words for people.
    fn room(&self, sandbox: SandboxId, occupied: &[SandboxId]) -> Result<(), StartError>;

    /// Keeps a crash where a later hypervisor finds it, and tells whom it concerns.
    fn crashed(&self, sandbox: SandboxId, crash: Crashed) -> BoxFuture<'_, ()>;

    /// Forgets the crashes of a sandbox: it was started or stopped on purpose, or has
    /// lived for long enough.
    fn settled(&self, sandbox: SandboxId) -> BoxFuture<'_, ()>;

    /// The crashes in a row that an earlier hypervisor kept.
    fn crashes(&self, sandbox: SandboxId) -> BoxFuture<'_, u32>;
}

/// A start that ended on its own.
#[derive(Debug, Clone)]
pub struct Crashed {
    /// Crashes in a row, this one included.
    pub crashes: u32,
    /// What happened, with the last log lines.
    pub error: StartError,
    /// Pause before the restart; `None` when the sandbox is given up.
    pub restarts_in: Option<Duration>,
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
    /// Pause before the first restart; doubles with each further crash. A guest that dies
    /// before its first health has crashed too.
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
    Join,
    AfterStop,
}

/// One sandbox: its state and the wish to stop, each watched.
struct Entry {
    state: watch::Sender<State>,
    /// Counts calls of `stop`; a start that was begun under a smaller count gives up.
    stops: watch::Sender<u64>,
    /// Counts how often it came to rest. Whoever waits for that must not miss it because
    /// somebody else started it again at once.
    rests: watch::Sender<u64>,
    /// A start of it that could not be taken down, or not be taken over. Nothing is started
    /// in its place before it is gone. Held for a look.
    remains: Mutex<Option<Remains>>,
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
    /// Held while a place is looked for and taken; never across an await.
    places: Mutex<()>,
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
                places: Mutex::new(()),
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
            let next = self.next_for_start(sandbox, &entry)?;
            if let Next::Done(instance) = next {
                return Ok(instance);
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

    /// Begins to start a sandbox and does not wait for it. Nothing happens when it runs,
    /// starts, or is being stopped.
    ///
    /// # Errors
    /// There is no room for it; its state is what it was.
    pub fn begin(&self, sandbox: SandboxId) -> Result<(), StartError> {
        let entry = self.entry(sandbox);
        self.next_for_start(sandbox, &entry).map(drop)
    }

    /// Takes a sandbox that an earlier hypervisor gave up for what it is; nothing happens
    /// to one that is not stopped.
    pub fn give_up(&self, sandbox: SandboxId, error: StartError) {
        self.entry(sandbox).state.send_if_modified(|state| {
            let stopped = matches!(state, State::Stopped);
            if stopped {
                *state = State::Failed(error);
            }
            stopped
        });
    }

    /// Decides, in one step with the change of state, what a caller of `start` does.
    fn next_for_start(&self, sandbox: SandboxId, entry: &Arc<Entry>) -> Result<Next, StartError> {
        // Whoever changes a state to `Starting` holds this, so no two take one place.
        let _places = self
            .inner
            .places
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Read before the state changes: a stop that comes in between is then seen.
        let stops = *entry.stops.borrow();
        match &*entry.state.borrow() {
            State::Running(instance) => return Ok(Next::Done(Arc::clone(instance))),
            State::Starting => return Ok(Next::Join),
            State::Stopping => return Ok(Next::AfterStop),
            State::Stopped | State::Failed(_) => {}
        }
        self.inner.host.room(sandbox, &self.occupied(sandbox))?;
        entry.state.send_replace(State::Starting);
        let fleet = self.clone();
        let entry = Arc::clone(entry);
        tokio::spawn(async move {
            fleet.inner.host.settled(sandbox).await;
            fleet.keep_running(sandbox, entry, stops, 0, None).await;
        });
        Ok(Next::Join)
    }

    /// The other sandboxes that take a place: they hold memory, or will in a moment.
    fn occupied(&self, but: SandboxId) -> Vec<SandboxId> {
        let takes_place = |entry: &Entry| {
            let state = entry.state.borrow();
            entry.remains().is_some()
                || matches!(
                    &*state,
                    State::Starting | State::Running(_) | State::Stopping
                )
        };
        self.lock_entries()
            .iter()
            .filter(|(id, entry)| **id != but && takes_place(entry))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Stops a sandbox and returns once nothing of it is left. A start under way is given up.
    /// One that cannot be taken down is `failed` afterwards, and says why.
    pub async fn stop(&self, sandbox: SandboxId) {
        let entry = self.entry(sandbox);
        // Before the state is looked at: a rest that comes in between is then seen.
        let mut rests = entry.rests.subscribe();
        let before = *rests.borrow_and_update();
        entry.stops.send_modify(|count| *count += 1);
        entry.state.send_if_modified(|state| {
            let failed = matches!(state, State::Failed(_));
            if failed && entry.remains().is_some() {
                *state = State::Stopping;
                let (fleet, entry) = (self.clone(), Arc::clone(&entry));
                // In a task of its own: whoever ordered it may go away.
                tokio::spawn(async move {
                    let _ = fleet.clear_remains(&entry).await;
                    settle(&entry, State::Stopped);
                });
            } else if failed {
                *state = State::Stopped;
            } else if let State::Running(instance) = state {
                instance.order_stop(|| true);
                // At once: a start that is ordered from here on is not answered by this one.
                *state = State::Stopping;
                return true;
            }
            failed
        });
        let stopped = matches!(&*entry.state.borrow(), State::Stopped);
        if !stopped {
            // An error means that the entry is gone, and with it the sandbox.
            let _ = rests.wait_for(|count| *count != before).await;
        }
        self.inner.host.settled(sandbox).await;
    }

    /// The same, if this start is still the one that runs and `still` holds at that moment;
    /// whether it was stopped. What somebody stopped or started meanwhile is left alone.
    ///
    /// `still` is asked with the state locked; it neither waits nor calls the fleet.
    pub async fn stop_if(&self, instance: &Instance, still: impl FnOnce() -> bool) -> bool {
        let entry = self.entry(instance.sandbox_id);
        let mut rests = entry.rests.subscribe();
        let before = *rests.borrow_and_update();
        let ordered = entry.state.send_if_modified(|state| {
            let runs = matches!(state, State::Running(now) if now.start_id == instance.start_id);
            let stops = runs && instance.order_stop(still);
            if stops {
                entry.stops.send_modify(|count| *count += 1);
                *state = State::Stopping;
            }
            stops
        });
        if ordered {
            // As in `stop`.
            let _ = rests.wait_for(|count| *count != before).await;
            self.inner.host.settled(instance.sandbox_id).await;
        }
        ordered
    }

    /// Stops every sandbox, all at once. Returns those that did not stop `within` the time.
    pub async fn stop_all(&self, within: Duration) -> Vec<SandboxId> {
        let ids: Vec<_> = self.lock_entries().keys().copied().collect();
        let mut stops = tokio::task::JoinSet::new();
        for id in ids {
            let fleet = self.clone();
            stops.spawn(async move {
                let stopped = tokio::time::timeout(within, fleet.stop(id)).await;
                let remains = fleet.entry(id).remains().is_some();
                (stopped.is_err() || remains).then_some(id)
            });
        }
        stops.join_all().await.into_iter().flatten().collect()
    }

    /// The walls that a configuration may accept as missing, and that this host does not give.
    #[must_use]
    pub fn missing_walls(&self) -> Vec<OptionalWall> {
        self.inner.driver.missing()
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
                rests: watch::Sender::new(0),
                remains: Mutex::new(None),
            })
        }))
    }

    /// Runs a sandbox until it is stopped or has failed. `crashed` is the crash of a
    /// start that came before, if one did, and `crashes` how many came before that one.
    async fn keep_running(
        &self,
        sandbox: SandboxId,
        entry: Arc<Entry>,
        stops: u64,
        mut crashes: u32,
        mut crashed: Option<Crash>,
    ) {
        loop {
            let mut left = None;
            if let Some(mut crash) = crashed.take() {
                left = crash.left.take();
                crashes = if crash.lived >= self.inner.options.stable_after {
                    1
                } else {
                    crashes.saturating_add(1)
                };
                let Some(pause) = self.pause_after(sandbox, &entry, crash, crashes).await else {
                    self.clear(left).await;
                    return;
                };
                if unless_stopped(&entry, stops, tokio::time::sleep(pause))
                    .await
                    .is_none()
                {
                    self.clear(left).await;
                    settle(&entry, State::Stopped);
                    return;
                }
            }
            let running = match left {
                Some(left) => self.start_again(sandbox, &entry, stops, left).await,
                None => self.start_once(sandbox, &entry, stops).await,
            };
            let born = Instant::now();
            crashed = self
                .live(sandbox, &entry, stops, crashes, running, born)
                .await;
            if crashed.is_none() {
                return;
            }
        }
    }

    /// How long to wait before the restart after a crash; `None` after too many, and then
    /// the sandbox has failed.
    async fn pause_after(
        &self,
        sandbox: SandboxId,
        entry: &Entry,
        crash: Crash,
        crashes: u32,
    ) -> Option<Duration> {
        let options = &self.inner.options;
        let again = crashes < options.max_crashes && !crash.is_over_disk();
        let restarts_in = again.then(|| {
            options
                .restart_backoff
                .saturating_mul(2_u32.saturating_pow(crashes - 1))
        });
        let error = crash.into_error(crashes, restarts_in.is_none());
        let crashed = Crashed {
            crashes,
            error: error.clone(),
            restarts_in,
        };
        // Kept before it is shown: a hypervisor that dies now still counts it.
        self.inner.host.crashed(sandbox, crashed).await;
        if restarts_in.is_none() {
            settle(entry, State::Failed(error));
        }
        restarts_in
    }

    /// Publishes what a start came to, and waits until it ends. `None` when nothing is to
    /// follow: it was stopped, or could not be started.
    async fn live(
        &self,
        sandbox: SandboxId,
        entry: &Entry,
        stops: u64,
        crashes: u32,
        running: Result<Option<Running>, Fault>,
        born: Instant,
    ) -> Option<Crash> {
        match running {
            Ok(None) => {
                settle(entry, State::Stopped);
                None
            }
            Ok(Some((instance, exited))) => {
                // Never after an order to stop, which found no start that runs.
                entry.state.send_modify(|state| {
                    *state = if *entry.stops.borrow() == stops {
                        State::Running(Arc::clone(&instance))
                    } else {
                        State::Stopping
                    };
                });
                let watch = self.watch(entry, &instance, exited, stops, born);
                let stable = async {
                    if crashes > 0 {
                        tokio::time::sleep_until(born + self.inner.options.stable_after).await;
                        self.inner.host.settled(sandbox).await;
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    crashed = watch => crashed,
                    () = stable => None,
                }
            }
            // One that dies before its first health is tried again like any other: what it
            // waits for may be there by then.
            Err(Fault::Crashed(crash)) => Some(*crash),
            Err(Fault::Refused(error)) => {
                tracing::warn!(%sandbox, code = %error.code, %error, "sandbox did not start");
                settle(entry, State::Failed(error));
                None
            }
        }
    }

    /// Starts the guest of a crashed start again, next to the commands that go on in it;
    /// where that does not help, a new start takes its place.
    async fn start_again(
        &self,
        sandbox: SandboxId,
        entry: &Entry,
        stops: u64,
        left: Arc<Instance>,
    ) -> Result<Option<Running>, Fault> {
        if !self.inner.host.restartable(&left) {
            self.take_down(&left).await;
            return self.start_once(sandbox, entry, stops).await;
        }
        let control = left.control().clone();
        match self.inner.driver.restart(left.start_id, control).await {
            Ok(started) => {
                let started_at = left.started_at.clone();
                let (instance, exited) =
                    self.publish(sandbox, left.start_id, started_at, started, Some(&left));
                // One that does not get healthy is taken down there.
                match self.prove(entry, stops, instance, exited).await {
                    Ok(running) => return Ok(running),
                    // It was taken down there: the next try is a new start, after a pause.
                    Err(fault @ Fault::Crashed(_)) => return Err(fault),
                    Err(Fault::Refused(error)) => {
                        tracing::warn!(%sandbox, %error, "a restarted guest did not get healthy");
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%sandbox, %error, "a guest is not restarted where it was");
                self.take_down(&left).await;
            }
        }
        self.start_once(sandbox, entry, stops).await
    }

    /// Removes what a crash left.
    async fn clear(&self, left: Option<Arc<Instance>>) {
        if let Some(left) = left {
            self.take_down(&left).await;
        }
    }

    /// One start, up to health. `None` when a stop came first. A failed start leaves nothing.
    async fn start_once(
        &self,
        sandbox: SandboxId,
        entry: &Entry,
        stops: u64,
    ) -> Result<Option<Running>, Fault> {
        self.clear_remains(entry).await?;
        let start = StartId::generate();
        let started_at = jiff::Timestamp::now().to_string();
        let request = self.inner.host.prepare(sandbox, start).await?;
        let started = self.inner.driver.start(request).await?;
        let (instance, exited) = self.publish(sandbox, start, started_at, started, None);
        self.prove(entry, stops, instance, exited).await
    }

    /// Waits for a guest's first health. `None` when a stop came first.
    async fn prove(
        &self,
        entry: &Entry,
        stops: u64,
        instance: Arc<Instance>,
        mut exited: BoxFuture<'static, CommandExit>,
    ) -> Result<Option<Running>, Fault> {
        let healthy = tokio::select! {
            healthy = unless_stopped(entry, stops, self.wait_healthy(&instance)) => healthy.map(Ok),
            exit = &mut exited => Some(Err(exit)),
        };
        match healthy {
            Some(Ok(Ok(()))) => Ok(Some((instance, exited))),
            Some(Ok(Err(error))) => {
                let error = with_log(error, last_log_lines(&instance).await);
                self.take_down(&instance).await;
                Err(error.into())
            }
            Some(Err(exit)) => {
                let log = last_log_lines(&instance).await;
                self.take_down(&instance).await;
                Err(Fault::Crashed(Box::new(Crash {
                    lived: Duration::ZERO,
                    exit,
                    log,
                    left: None,
                })))
            }
            None => {
                self.take_down(&instance).await;
                Ok(None)
            }
        }
    }

    /// Makes a start known, or a guest in the start of one that crashed `before`.
    fn publish(
        &self,
        sandbox: SandboxId,
        start: StartId,
        started_at: String,
        started: Started,
        before: Option<&Instance>,
    ) -> (Arc<Instance>, BoxFuture<'static, CommandExit>) {
        let Started {
            control,
            app_dir,
            channel,
            exited,
            events,
            host_record,
        } = started;
        let instance = Instance::new(
            sandbox,
            start,
            started_at,
            app_dir,
            control,
            events,
            host_record,
        );
        let instance = Arc::new(match before {
            Some(before) => instance.going_on_from(before),
            None => instance,
        });
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
        mut exited: BoxFuture<'static, CommandExit>,
        stops: u64,
        born: Instant,
    ) -> Option<Crash> {
        let exit = unless_stopped(entry, stops, &mut exited).await;
        let log = if exit.is_some() {
            last_log_lines(instance).await
        } else {
            Vec::new()
        };
        let after = if exit.is_some() {
            State::Starting
        } else {
            State::Stopping
        };
        if exit.is_some() {
            // Its runners go on, and with them what is theirs.
            instance.ended().cancel();
        } else {
            instance.start_ended().cancel();
        }
        entry.state.send_replace(after);
        match exit {
            Some(exit) => Some(Crash {
                lived: born.elapsed(),
                exit,
                log,
                left: Some(Arc::clone(instance)),
            }),
            None => {
                let mut down = std::pin::pin!(self.take_down(instance));
                tokio::select! {
                    () = &mut down => {}
                    // It is what hears the supervisor's last words.
                    _ = exited => down.await,
                }
                settle(entry, State::Stopped);
                None
            }
        }
    }
}

/// A healthy start, and the future of its end.
type Running = (Arc<Instance>, BoxFuture<'static, CommandExit>);

/// Brings a sandbox to rest. It is not stopped while something of it is left.
fn settle(entry: &Entry, state: State) {
    let remains = entry.remains().clone();
    let state = match (state, remains) {
        (State::Stopped, Some(remains)) => State::Failed(remains.why),
        (state, _) => state,
    };
    entry.state.send_replace(state);
    entry.rests.send_modify(|count| *count += 1);
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

#[cfg(test)]
mod tests;

//! One start of one sandbox, as long as it lives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isolation::protocol::{Event, RunnerStatus, Signal};
use isolation::spec::RunnerSpec;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use types::{CommandId, ListeningPort, SandboxId, StartId};

use crate::control::{Attachment, Control, ControlError, Frozen, Spawned};

/// One start of one sandbox, and its guest's life there. What belongs to the guest
/// (connections, its token, its channel) ends with [`Instance::ended`]; what belongs to the
/// start, its runners first of all, with [`Instance::start_ended`].
pub struct Instance {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// This start of it.
    pub start_id: StartId,
    /// When it began, RFC 3339.
    pub started_at: String,
    app_dir: OwnedFd,
    control: Control,
    start_ended: CancellationToken,
    /// Whether its stop was ordered. Locked for one decision, never across an await.
    stopping: Arc<Mutex<bool>>,
    ended: CancellationToken,
    events: broadcast::Sender<Event>,
    host_record: String,
}

impl Instance {
    /// Longest line of [`Self::last_log_line`], in characters.
    pub const MAX_LOG_LINE: usize = 200;

    pub(crate) fn new(
        sandbox_id: SandboxId,
        start_id: StartId,
        started_at: String,
        app_dir: OwnedFd,
        control: Control,
        events: broadcast::Sender<Event>,
        host_record: String,
    ) -> Self {
        let start_ended = CancellationToken::new();
        let ended = start_ended.child_token();
        Self {
            sandbox_id,
            start_id,
            started_at,
            app_dir,
            control,
            start_ended,
            stopping: Arc::default(),
            ended,
            events,
            host_record,
        }
    }

    /// This one is the same start as `before`, whose guest crashed: what outlived that guest
    /// ends with this one's start.
    pub(crate) fn going_on_from(mut self, before: &Self) -> Self {
        self.start_ended = before.start_ended.clone();
        self.stopping = Arc::clone(&before.stopping);
        self.ended = self.start_ended.child_token();
        self
    }

    /// Notes what is to keep this start going, unless its stop was ordered before: then `note`
    /// is not called.
    pub fn unless_stopping<T>(&self, note: impl FnOnce() -> T) -> Option<T> {
        let stopping = self.stopping();
        (!*stopping).then(note)
    }

    /// Notes that the stop of this start is ordered, if `still` holds. Nothing else is noted
    /// between the two.
    pub(crate) fn order_stop(&self, still: impl FnOnce() -> bool) -> bool {
        let mut stopping = self.stopping();
        let stops = still();
        *stopping |= stops;
        stops
    }

    fn stopping(&self) -> MutexGuard<'_, bool> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory that holds the guest's `app.sock`. Its contents are the sandbox's to
    /// write: open nothing in it without `O_NOFOLLOW` and a look at what it is.
    #[must_use]
    pub fn app_dir(&self) -> BorrowedFd<'_> {
        self.app_dir.as_fd()
    }

    /// Cancelled as soon as this start stops, its guest dies, or it is taken down.
    #[must_use]
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Cancelled as soon as this start stops or is taken down. A guest that crashes does not
    /// end it: it is started again next to the runners, which go on.
    #[must_use]
    pub fn start_ended(&self) -> &CancellationToken {
        &self.start_ended
    }

    /// What the host wrote when it prepared this start.
    #[must_use]
    pub fn host_record(&self) -> &str {
        &self.host_record
    }

    /// What the supervisor tells from now on, but for the guest's end. A receiver that lags
    /// misses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Makes everything in the sandbox stand still, for at most `limit` (and never longer
    /// than `isolation::protocol::MAX_FREEZE_MS`).
    ///
    /// # Errors
    /// The supervisor's refusal, or that it cannot be reached.
    pub async fn freeze(&self, limit: std::time::Duration) -> Result<Frozen, ControlError> {
        self.control.freeze(limit).await
    }

    /// Starts a command in a fresh runner of the sandbox's workbench.
    ///
    /// # Errors
    /// The supervisor's refusal, or that it cannot be reached.
    pub async fn spawn(&self, spec: RunnerSpec) -> Result<Spawned, ControlError> {
        self.control.spawn(spec).await
    }

    /// Follows a runner's output from byte `from` until it exits.
    ///
    /// # Errors
    /// There is no such runner, or the supervisor cannot be reached.
    pub async fn attach(&self, id: CommandId, from: u64) -> Result<Attachment, ControlError> {
        self.control.attach(id, from).await
    }

    /// Sends a signal to a runner's whole tree.
    ///
    /// # Errors
    /// There is no such runner, or the supervisor cannot be reached.
    pub async fn signal(&self, id: CommandId, signal: Signal) -> Result<(), ControlError> {
        self.control.signal(id, signal).await
    }

    /// The channel listener of a runner that was granted one, for a host that takes this
    /// start over.
    ///
    /// # Errors
    /// The runner is gone or has no channel, or the supervisor cannot be reached.
    pub async fn runner_channel(
        &self,
        id: CommandId,
    ) -> Result<std::os::unix::net::UnixListener, ControlError> {
        self.control.runner_channel(id).await
    }

    /// Forgets an exited runner and its output.
    ///
    /// # Errors
    /// The supervisor cannot be reached.
    pub async fn forget(&self, id: CommandId) -> Result<(), ControlError> {
        self.control.forget(id).await
    }

    /// The runners that the supervisor knows, exited ones that were not forgotten included.
    ///
    /// # Errors
    /// The supervisor cannot be reached.
    pub async fn runners(&self) -> Result<Vec<RunnerStatus>, ControlError> {
        self.control.runners().await
    }

    /// Whether denied system calls are counted here. Where they are not, they are refused all the
    /// same, and nobody is told.
    ///
    /// # Errors
    /// The supervisor cannot be reached.
    pub async fn counts_denials(&self) -> Result<bool, ControlError> {
        Ok(!self.control.hello().await?.uncounted)
    }

    /// A TCP connection to a port of the workbench's loopback. Whoever listens there is the
    /// sandbox's own: believe nothing it says.
    ///
    /// # Errors
    /// Refused with `nothing_listens`, `timeout`, `busy` or `reserved_port`; or the
    /// supervisor cannot be reached.
    pub async fn connect(&self, port: u16) -> Result<OwnedFd, ControlError> {
        self.control.connect(port).await
    }

    /// The ports of the workbench on which somebody listens, lowest first; at most a hundred.
    ///
    /// # Errors
    /// The supervisor cannot be reached.
    pub async fn ports(&self) -> Result<Vec<ListeningPort>, ControlError> {
        self.control.ports().await
    }

    /// The guest's log from byte `from`; keeps following.
    ///
    /// # Errors
    /// The supervisor cannot be reached.
    pub async fn guest_log(&self, from: u64) -> Result<Attachment, ControlError> {
        self.control.guest_log(from).await
    }

    /// The last line of the guest's log that is not empty, without control characters and
    /// at most [`Self::MAX_LOG_LINE`] characters long. `None` when it cannot be had within
    /// a second or so.
    pub async fn last_log_line(&self) -> Option<String> {
        let text = self.control.log_tail().await.ok()?;
        let line = text
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())?;
        Some(
            line.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(Self::MAX_LOG_LINE)
                .collect(),
        )
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("sandbox_id", &self.sandbox_id)
            .field("start_id", &self.start_id)
            .finish_non_exhaustive()
    }
}

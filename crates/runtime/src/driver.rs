//! The port that every isolation backend implements.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::pin::Pin;

use isolation::protocol::Event;
use isolation::spec::SandboxSpec;
use tokio::sync::broadcast;
use types::{CommandExit, SandboxId, StartId};

use crate::control::Control;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a new start is made of. Contains the guest's environment, so it is never logged.
pub struct StartRequest {
    /// What to build.
    pub spec: SandboxSpec,
    /// What the host wants to know again when it adopts this start after a restart of
    /// its own; kept in a file that no sandbox can see. Never a secret: hashes only.
    pub host_record: String,
}

impl std::fmt::Debug for StartRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartRequest")
            .field("start_id", &self.spec.start_id)
            .finish_non_exhaustive()
    }
}

/// A sandbox that a driver has started, or found again.
pub struct Started {
    /// How to talk to its supervisor.
    pub control: Control,
    /// The directory in which the guest puts `app.sock`; distrusted (arch §1).
    pub app_dir: OwnedFd,
    /// The guest's channel.
    pub channel: UnixListener,
    /// Resolves when the guest is gone.
    pub exited: BoxFuture<'static, CommandExit>,
    /// Whom its supervisor's news is told. It is read while `exited` is being awaited.
    pub events: broadcast::Sender<Event>,
    /// What the host wrote into the [`StartRequest`].
    pub host_record: String,
}

/// A start that outlived the process that made it.
pub struct Adopted {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The start.
    pub start_id: StartId,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// How to talk to its supervisor.
    pub control: Control,
    /// The start itself; or why it cannot be taken over although it runs. Then it goes on
    /// until it is stopped, and nothing else is started in its place.
    pub started: Result<Started, StartError>,
}

/// Why a sandbox could not be started. Each text is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// Stable code, such as `wall_missing`.
    pub code: String,
    /// What happened and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The end of the guest's log, when it had one: bounded, one entry per line, and the
    /// guest's own words. Belongs to the sandbox's owner; never logged.
    pub log: Vec<String>,
}

impl StartError {
    /// An error with a code and a message.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            log: Vec::new(),
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A backend that can build sandboxes.
pub trait SandboxRuntime: Send + Sync {
    /// Builds the sandbox and starts its guest. Returns once the guest process runs;
    /// whether it is healthy is for the fleet to find out.
    ///
    /// # Errors
    /// Whatever stood in the way; nothing of the attempt is left behind.
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Started, StartError>>;

    /// Starts the guest of a start again whose guest has ended, next to the runners that go
    /// on in it.
    ///
    /// # Errors
    /// Only a new start helps; what is left of this one is for [`SandboxRuntime::stop`].
    fn restart(
        &self,
        start: StartId,
        control: Control,
    ) -> BoxFuture<'_, Result<Started, StartError>>;

    /// Takes a sandbox down: runners first, then the guest with `grace_ms` between
    /// TERM and KILL. Idempotent; returns once nothing of the start is left.
    ///
    /// # Errors
    /// Something of it is left, which may use its files.
    fn stop(
        &self,
        start: StartId,
        control: Control,
        grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), StartError>>;

    /// Finds the sandboxes that outlived the process that started them, each proved to
    /// be the one it claims to be. What is not, and what is being taken down, is removed.
    fn adopt(&self) -> BoxFuture<'_, Vec<Adopted>>;
}

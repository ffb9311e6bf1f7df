//! What the parts of the guest runtime share.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use types::CommandId;

use crate::agent::Conductor;
use crate::channel::Channel;
use crate::config::Identity;
use crate::files::Workspace;
use crate::store::EventStore;

/// WebSockets open at a time, over all routes.
pub const MAX_WEBSOCKETS: u32 = 128;
/// File operations that run at a time; each takes a thread.
pub const MAX_FILE_OPERATIONS: usize = 8;
/// File bodies received at a time; each is held in memory, up to 16 MiB.
pub const MAX_UPLOADS: usize = 8;

/// The state of the guest runtime; clones share it.
#[derive(Debug, Clone)]
pub struct App {
    /// The event store.
    pub store: EventStore,
    /// The channel to the hypervisor.
    pub channel: Channel,
    /// Files beneath the workspace.
    pub workspace: Workspace,
    /// The agent.
    pub conductor: Conductor,
    /// Who this sandbox is.
    pub identity: Arc<Identity>,
    /// Places for WebSockets.
    pub websockets: Arc<Semaphore>,
    /// Places for file operations.
    pub file_operations: Arc<Semaphore>,
    /// Places for bodies of files that are being received.
    pub uploads: Arc<Semaphore>,
    /// Terminals whose end was not recorded yet. The router bounds how many there are.
    open_terminals: Arc<Mutex<HashSet<CommandId>>>,
    /// When the process started.
    pub started: Instant,
    /// Cancelled when the process is to end.
    pub cancelled: CancellationToken,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        store: EventStore,
        channel: Channel,
        workspace: Workspace,
        identity: Identity,
        cancelled: CancellationToken,
    ) -> Self {
        let file_operations = Arc::new(Semaphore::new(MAX_FILE_OPERATIONS));
        let conductor = Conductor::new(
            store.clone(),
            channel.clone(),
            workspace.clone(),
            file_operations.clone(),
            cancelled.clone(),
        );
        Self {
            store,
            channel,
            workspace,
            conductor,
            identity: Arc::new(identity),
            websockets: Arc::new(Semaphore::new(MAX_WEBSOCKETS as usize)),
            file_operations,
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            open_terminals: Arc::default(),
            started: Instant::now(),
            cancelled,
        }
    }

    pub(crate) fn terminals(&self) -> MutexGuard<'_, HashSet<CommandId>> {
        self.open_terminals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a file operation on a blocking thread, as many at a time as there are places.
///
/// # Errors
/// What the operation answers, or [`crate::files::FileError::Io`] when the process ends.
pub async fn blocking<T: Send + 'static>(
    places: &Arc<Semaphore>,
    operation: impl FnOnce() -> Result<T, crate::files::FileError> + Send + 'static,
) -> Result<T, crate::files::FileError> {
    let ended = || crate::files::FileError::Io(std::io::Error::other("the process is ending"));
    let place = places.clone().acquire_owned().await.map_err(|_| ended())?;
    tokio::task::spawn_blocking(move || {
        let result = operation();
        drop(place);
        result
    })
    .await
    .map_err(|_| ended())?
}

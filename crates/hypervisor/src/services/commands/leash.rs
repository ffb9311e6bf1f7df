//! What ties a command to its caller.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::protocol::Signal;
use runtime::{ControlError, Instance, Output};
use types::{CommandId, CommandState};

use crate::error::Error;
use crate::services::sandboxes::Plane;

/// A caller may go away while its command is still being spawned; then the signal finds
/// nothing yet. This many more attempts are made, this far apart.
const KILL_ATTEMPTS: u32 = 20;
const KILL_PAUSE: Duration = Duration::from_millis(100);

/// Kills a command whose caller went away, and forgets it once it is gone.
#[derive(Debug)]
pub(crate) struct Leash {
    instance: Arc<Instance>,
    id: CommandId,
    exited: bool,
}

impl Leash {
    pub(super) const fn new(instance: Arc<Instance>, id: CommandId) -> Self {
        Self {
            instance,
            id,
            exited: false,
        }
    }

    /// The command.
    pub(crate) const fn id(&self) -> CommandId {
        self.id
    }

    /// Notes that the command ended by itself, or that its sandbox did.
    pub(crate) const fn exited(&mut self) {
        self.exited = true;
    }

    /// Whether the command's sandbox has ended.
    pub(crate) fn sandbox_ended(&self) -> bool {
        self.instance.ended().is_cancelled()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let (instance, id, exited) = (Arc::clone(&self.instance), self.id, self.exited);
        // Without a runtime the process is ending; the command's own bounds hold then.
        let Ok(handle) = tokio::runtime::Handle::try_current() else {
            return;
        };
        // Also when the start has ended: a guest that crashed is started again next to its
        // commands, and one without a caller must not go on there.
        handle.spawn(async move { end(&instance, id, exited).await });
    }
}

async fn end(instance: &Instance, id: CommandId, exited: bool) {
    if !exited {
        kill(instance, id).await;
        wait_for_exit(instance, id).await;
    }
    if let Err(error) = instance.forget(id).await {
        tracing::debug!(command = %id, %error, "a command could not be forgotten");
    }
}

async fn kill(instance: &Instance, id: CommandId) {
    for _ in 0..KILL_ATTEMPTS {
        match instance.signal(id, Signal::Kill).await {
            Err(ControlError::Refused(refusal)) if refusal.code == "not_found" => {
                tokio::time::sleep(KILL_PAUSE).await;
            }
            Ok(()) => return,
            Err(error) if instance.ended().is_cancelled() => {
                return tracing::debug!(command = %id, %error, "a command ended with its sandbox");
            }
            Err(error) => {
                tracing::warn!(command = %id, %error, "a command without a caller could not be killed");
                return;
            }
        }
    }
}

/// Notes that a command's caller will come back for it (ADR 0016), beside the start's other
/// records, which no sandbox sees and which go with the start.
///
/// # Errors
/// It cannot be written; then the command must not begin.
pub(super) async fn keep(plane: &Plane, instance: &Instance, id: CommandId) -> Result<(), Error> {
    let file = file(plane, instance, id);
    if let Some(dir) = file.parent() {
        let made = tokio::fs::create_dir_all(dir).await;
        made.map_err(Error::internal)?;
    }
    tokio::fs::write(file, "").await.map_err(Error::internal)
}

/// Its caller has let go of it.
pub(super) async fn lose(plane: &Plane, instance: &Instance, id: CommandId) {
    // Most have none.
    let _ = tokio::fs::remove_file(file(plane, instance, id)).await;
}

fn file(plane: &Plane, instance: &Instance, id: CommandId) -> PathBuf {
    let run = plane.config.data_dir.join("run");
    run.join(instance.start_id.to_string())
        .join("rejoined")
        .join(id.to_string())
}

/// Ends the commands of a start whose callers went with an earlier hypervisor: their
/// connections ended with it, and so would the commands have. Services, terminals and what its
/// caller comes back for go on.
pub(crate) async fn end_orphans(plane: &Plane, instance: &Arc<Instance>) {
    let runners = match instance.runners().await {
        Ok(runners) => runners,
        Err(error) => {
            tracing::warn!(start = %instance.start_id, %error, "commands without a caller could not be looked for");
            return;
        }
    };
    for view in runners.into_iter().map(|runner| runner.view) {
        let lasting = view.detach || view.terminal || file(plane, instance, view.id).exists();
        if view.state == CommandState::Running && !lasting {
            tracing::info!(command = %view.id, "ending a command whose caller went with the hypervisor");
            drop(Leash::new(Arc::clone(instance), view.id));
        }
    }
}

/// Waits until a command is gone, without looking at its output.
pub(super) async fn wait_for_exit(instance: &Instance, id: CommandId) {
    let Ok(mut attachment) = instance.attach(id, u64::MAX).await else {
        return;
    };
    while let Ok(Some(output)) = attachment.next().await {
        if matches!(output, Output::Exited(_)) {
            return;
        }
    }
}

//! Holds what is on the disk against what is known of it, at every start: what a crash left
//! half done is finished or undone, and nothing in between.

use std::path::Path;
use std::sync::Arc;

use types::{SandboxId, SnapshotId};

use super::super::{Plane, Sandboxes, plane::STATE};
use super::{engine, files};
use crate::error::Error;
use crate::store::{SnapshotRow, Standing};

/// What a start of the hypervisor has left to do once sandboxes are taken over.
#[derive(Debug, Default)]
pub(in super::super) struct Unfinished {
    /// Sandboxes that a restore had stopped when a crash came, and its snapshots.
    stopped: Vec<(SandboxId, SnapshotId)>,
    /// What is to be removed.
    doomed: Vec<SnapshotRow>,
}

impl Sandboxes {
    /// Settles every sandbox's snapshots. Removes nothing yet, because that can take long.
    ///
    /// # Errors
    /// The database failed.
    pub(in super::super) async fn reconcile_snapshots(&self) -> Result<Unfinished, Error> {
        let mut unfinished = Unfinished::default();
        for sandbox in self.plane.store.sandboxes().await? {
            let dir = self.plane.sandbox_dir(sandbox.id);
            if let Err(error) = files::adopt_old_layout(&dir, &dir.join(STATE)) {
                tracing::error!(sandbox = %sandbox.id, %error, "its files cannot be gathered");
            }
            for row in self.plane.store.snapshots(sandbox.id).await? {
                let id = row.id;
                if row.was_running {
                    unfinished.stopped.push((sandbox.id, id));
                }
                match self.plane.settle(row).await {
                    Ok(Settled::Doomed(row)) => unfinished.doomed.push(*row),
                    Ok(Settled::Stands) => {}
                    Err(error) => {
                        tracing::error!(sandbox = %sandbox.id, snapshot = %id, %error, "a snapshot cannot be settled");
                    }
                }
            }
            self.plane.find_strays(sandbox.id).await?;
        }
        Ok(unfinished)
    }

    /// Starts again what a restore had stopped when a crash came, and removes what it left.
    pub(in super::super) fn finish_reconciling(self: &Arc<Self>, unfinished: Unfinished) {
        let Unfinished { stopped, doomed } = unfinished;
        for (sandbox, snapshot) in stopped {
            let sandboxes = Arc::clone(self);
            tokio::spawn(async move {
                let in_place = sandboxes.plane.copies.start_after(sandbox).await;
                if let Err(error) = sandboxes.begin_in_place(sandbox, in_place).await {
                    tracing::warn!(%sandbox, %error, "a restored sandbox does not start");
                }
                if let Err(error) = sandboxes.plane.is_back(sandbox, snapshot).await {
                    tracing::warn!(%sandbox, %error, "it is not noted that a sandbox is back");
                }
            });
        }
        let plane = Arc::clone(&self.plane);
        tokio::spawn(async move {
            for row in doomed {
                let id = row.id;
                if let Err(error) = plane.remove_snapshot(row).await {
                    tracing::error!(snapshot = %id, %error, "what a crash left cannot be removed");
                }
            }
        });
    }
}

/// What became of a row.
pub(super) enum Settled {
    /// It holds a complete snapshot.
    Stands,
    /// It holds nothing of worth, and is to be removed.
    Doomed(Box<SnapshotRow>),
}

impl Plane {
    /// Notes that the sandbox of a restore was started again, so that it is not once more
    /// after the next crash.
    pub(super) async fn is_back(&self, sandbox: SandboxId, id: SnapshotId) -> Result<(), Error> {
        if let Some(mut row) = self.store.snapshot(sandbox, id).await?
            && row.was_running
            && row.standing == Standing::Ready
        {
            row.was_running = false;
            self.store.put_snapshot(&row).await?;
        }
        Ok(())
    }

    /// Finds out what a row is worth that may have been cut by a crash or a failure, and
    /// completes it when it holds a state that was put aside.
    pub(super) async fn settle(&self, mut row: SnapshotRow) -> Result<Settled, Error> {
        let state = self.snapshot_state(&row);
        let stands = match row.standing {
            Standing::Ready => state.is_dir(),
            Standing::Making | Standing::Removing => false,
            Standing::Replacing => {
                row.replaces.is_some() && files::inode(&state).ok() == row.replaces
            }
        };
        if !stands {
            return Ok(Settled::Doomed(Box::new(row)));
        }
        if row.standing == Standing::Replacing {
            tracing::info!(snapshot = %row.id, "finishing a restore that was cut");
            row.standing = Standing::Ready;
            row.replaces = None;
            files::write_manifest(self, &row).map_err(Error::internal)?;
            self.store.put_snapshot(&row).await?;
        }
        Ok(Settled::Stands)
    }

    /// Directories that the database does not know: a complete snapshot is taken in again (the
    /// database may come from a backup), anything else goes.
    async fn find_strays(&self, sandbox: SandboxId) -> Result<(), Error> {
        let all = self.sandbox_dir(sandbox).join(files::SNAPSHOTS);
        let Ok(entries) = std::fs::read_dir(all) else {
            return Ok(());
        };
        for dir in entries.flatten().map(|entry| entry.path()) {
            let id = dir.file_name().and_then(|name| name.to_str()?.parse().ok());
            let known = match id {
                Some(id) => self.store.snapshot(sandbox, id).await?.is_some(),
                None => false,
            };
            if known {
                continue;
            }
            match files::read_manifest(sandbox, &dir).filter(|_| dir.join(STATE).is_dir()) {
                Some(row) => {
                    tracing::warn!(snapshot = %row.id, "found a snapshot that the database had lost");
                    self.store.put_snapshot(&row).await?;
                }
                None => self.remove_stray(sandbox, &dir).await,
            }
        }
        Ok(())
    }

    async fn remove_stray(&self, sandbox: SandboxId, dir: &Path) {
        tracing::warn!(dir = %dir.display(), "removing what is no snapshot");
        let removed = async {
            let ids = engine::owner(self, sandbox).await?;
            engine::remove(&self.binaries.supervisor, dir.join(STATE), ids).await?;
            files::remove_dir(dir).map_err(Error::internal)
        };
        if let Err(error) = removed.await {
            tracing::error!(dir = %dir.display(), %error, "it cannot be removed");
        }
    }
}

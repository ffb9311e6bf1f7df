//! Copying that is under way: one at a time per sandbox, told to whoever looks, cancelled by
//! its owner, and never at the same time as a start of what is replaced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};
use tokio_util::sync::CancellationToken;
use types::{CopyKind, CopyPhase, CopyProgress, Role, SandboxId};

use crate::error::Error;

/// All copying of this hypervisor.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Held for a look-up, never across an await. Both grow with the sandboxes that exist.
    under_way: Mutex<HashMap<SandboxId, Arc<Copying>>>,
    gates: Mutex<HashMap<SandboxId, Arc<RwLock<()>>>>,
}

/// One copy.
#[derive(Debug)]
pub(crate) struct Copying {
    progress: watch::Sender<CopyProgress>,
    cancelled: CancellationToken,
}

/// Leave to copy; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    copies: Arc<Copies>,
    sandboxes: Vec<SandboxId>,
    copying: Arc<Copying>,
}

impl Copies {
    /// Takes leave to copy these sandboxes.
    ///
    /// # Errors
    /// One of them is being copied already.
    pub(super) fn claim(
        self: &Arc<Self>,
        sandboxes: &[SandboxId],
        kind: CopyKind,
        role: Role,
    ) -> Result<Claim, Error> {
        let copying = Arc::new(Copying {
            progress: watch::Sender::new(CopyProgress {
                kind,
                role,
                phase: CopyPhase::Counting,
                files: 0,
                bytes: 0,
                total_files: 0,
                total_bytes: 0,
            }),
            cancelled: CancellationToken::new(),
        });
        let mut under_way = self.lock();
        if let Some(other) = sandboxes.iter().find_map(|id| under_way.get(id)) {
            let kind = other.progress.borrow().kind.as_str();
            return Err(Error::conflict(format!(
                "a {kind} of this sandbox is under way; wait for it, or cancel it"
            )));
        }
        for &sandbox in sandboxes {
            under_way.insert(sandbox, Arc::clone(&copying));
        }
        drop(under_way);
        Ok(Claim {
            copies: Arc::clone(self),
            sandboxes: sandboxes.to_vec(),
            copying,
        })
    }

    /// What is being copied of a sandbox.
    pub(super) fn of(&self, sandbox: SandboxId) -> Option<Arc<Copying>> {
        self.lock().get(&sandbox).cloned()
    }

    /// Held while a sandbox is started: its files stay in place meanwhile.
    pub(crate) async fn start(&self, sandbox: SandboxId) -> OwnedRwLockReadGuard<()> {
        self.gate(sandbox).read_owned().await
    }

    /// Held while nothing may be started, because the files are not to change, or to be
    /// replaced. Waits for a start that is under way.
    pub(super) async fn hold(&self, sandbox: SandboxId) -> OwnedRwLockWriteGuard<()> {
        self.gate(sandbox).write_owned().await
    }

    fn gate(&self, sandbox: SandboxId) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry(sandbox).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<Copying>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copying {
    /// Where it stands.
    pub(super) fn progress(&self) -> CopyProgress {
        self.progress.borrow().clone()
    }

    /// Asks it to end. What cannot be cancelled any more goes on.
    pub(super) fn cancel(&self) {
        self.cancelled.cancel();
    }
}

impl Claim {
    pub(super) fn follow(&self) -> watch::Receiver<CopyProgress> {
        self.copying.progress.subscribe()
    }

    pub(super) fn cancelled(&self) -> &CancellationToken {
        &self.copying.cancelled
    }

    pub(super) fn phase(&self, phase: CopyPhase) {
        self.update(|progress| progress.phase = phase);
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut CopyProgress)) {
        self.copying.progress.send_modify(change);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut under_way = self.copies.lock();
        for sandbox in &self.sandboxes {
            under_way.remove(sandbox);
        }
    }
}

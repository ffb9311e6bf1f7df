//! Copying that is under way: one at a time per sandbox, told to whoever looks, cancelled by
//! its owner, and never at the same time as a start of what is replaced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};
use tokio_util::sync::CancellationToken;
use types::{CopyKind, CopyPhase, CopyProgress, Role, SandboxId};

use crate::error::Error;

/// How long an order to start waits for a copy: as long as an exchange takes, and not as long
/// as a copy may.
const START_WAITS: Duration = Duration::from_secs(3);

/// All copying of this hypervisor.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Held for a look-up, never across an await. Both grow with the sandboxes that exist.
    under_way: Mutex<UnderWay>,
    gates: Mutex<HashMap<SandboxId, Arc<RwLock<()>>>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    copies: HashMap<SandboxId, Arc<Copying>>,
    /// Whose roles are changing at this moment; once for each order to swap them.
    swapping: Vec<SandboxId>,
}

/// Leave to change the roles of a pair; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Swapping {
    copies: Arc<Copies>,
    pair: [SandboxId; 2],
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
    /// One of them is being copied already, or what is to be replaced changes its role.
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
        if let Some(other) = sandboxes.iter().find_map(|id| under_way.copies.get(id)) {
            let kind = other.kind().as_str();
            return Err(Error::conflict(format!(
                "a {kind} of this sandbox is under way; wait for it, or cancel it"
            )));
        }
        if replaces(kind) && sandboxes.iter().any(|id| under_way.swapping.contains(id)) {
            return Err(Error::conflict(
                "live and dev are being swapped; look which is which, and try again",
            ));
        }
        for &sandbox in sandboxes {
            under_way.copies.insert(sandbox, Arc::clone(&copying));
        }
        drop(under_way);
        Ok(Claim {
            copies: Arc::clone(self),
            sandboxes: sandboxes.to_vec(),
            copying,
        })
    }

    /// What is being copied of a sandbox.
    pub(in super::super) fn of(&self, sandbox: SandboxId) -> Option<Arc<Copying>> {
        self.lock().copies.get(&sandbox).cloned()
    }

    /// Takes leave to change the roles of a pair. While one of them is being replaced they
    /// stay: a clone would end in what is `live` by then.
    ///
    /// # Errors
    /// The copy that is in the way.
    pub(in super::super) fn swap(
        self: &Arc<Self>,
        pair: [SandboxId; 2],
    ) -> Result<Swapping, Arc<Copying>> {
        let mut under_way = self.lock();
        let copies = pair.iter().filter_map(|id| under_way.copies.get(id));
        if let Some(other) = copies.into_iter().find(|copy| replaces(copy.kind())) {
            return Err(Arc::clone(other));
        }
        under_way.swapping.extend(pair);
        drop(under_way);
        Ok(Swapping {
            copies: Arc::clone(self),
            pair,
        })
    }

    /// Held while a sandbox is started: its files stay in place meanwhile. Waits for a moment.
    ///
    /// # Errors
    /// It is being copied, and that takes longer.
    pub(crate) async fn start(
        &self,
        sandbox: SandboxId,
    ) -> Result<OwnedRwLockReadGuard<()>, Error> {
        tokio::time::timeout(START_WAITS, self.start_after(sandbox))
            .await
            .map_err(|_| {
                let words = self.in_words(sandbox);
                Error::Unavailable(format!("{words}; start it once that is done, or cancel it"))
            })
    }

    /// The same once no copy is in the way any more.
    pub(crate) async fn start_after(&self, sandbox: SandboxId) -> OwnedRwLockReadGuard<()> {
        self.gate(sandbox).read_owned().await
    }

    /// The same at once or not at all.
    pub(in super::super) fn start_now(
        &self,
        sandbox: SandboxId,
    ) -> Option<OwnedRwLockReadGuard<()>> {
        self.gate(sandbox).try_read_owned().ok()
    }

    /// What keeps a sandbox from being started, for people.
    pub(crate) fn in_the_way(&self, sandbox: SandboxId) -> Option<String> {
        let held = self.start_now(sandbox).is_none();
        held.then(|| self.in_words(sandbox))
    }

    fn in_words(&self, sandbox: SandboxId) -> String {
        let Some(copying) = self.of(sandbox) else {
            return "its files are being copied".to_owned();
        };
        let progress = copying.progress();
        let kind = progress.kind.as_str();
        let done = progress.bytes.saturating_mul(100);
        match done.checked_div(progress.total_bytes) {
            Some(percent) if progress.phase == CopyPhase::Copying => {
                format!(
                    "a {kind} of this sandbox is under way ({} %)",
                    percent.min(100)
                )
            }
            _ => format!("a {kind} of this sandbox is under way"),
        }
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

    fn lock(&self) -> std::sync::MutexGuard<'_, UnderWay> {
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

    /// Follows it. It is over when that fails.
    pub(in super::super) fn follow(&self) -> watch::Receiver<CopyProgress> {
        self.progress.subscribe()
    }

    pub(in super::super) fn kind(&self) -> CopyKind {
        self.progress.borrow().kind
    }

    /// Asks it to end. What cannot be cancelled any more goes on.
    pub(in super::super) fn cancel(&self) {
        self.cancelled.cancel();
    }
}

impl Claim {
    pub(super) fn follow(&self) -> watch::Receiver<CopyProgress> {
        self.copying.follow()
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
            under_way.copies.remove(sandbox);
        }
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        let mut under_way = self.copies.lock();
        for sandbox in &self.pair {
            let at = under_way.swapping.iter().position(|id| id == sandbox);
            at.map(|at| under_way.swapping.swap_remove(at));
        }
    }
}

/// Whether a copy of this kind ends in the place of a sandbox's files.
const fn replaces(kind: CopyKind) -> bool {
    match kind {
        CopyKind::Snapshot => false,
        CopyKind::Restore | CopyKind::Clone => true,
    }
}

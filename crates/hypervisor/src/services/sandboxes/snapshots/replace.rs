//! Restore and clone: a sandbox's files are replaced by a copy, in one step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::websocket::CloseNotice;
use policy::Action;
use runtime::Instance;
use runtime::spec::HostIds;
use types::{CopyKind, CopyOutcome, CopyPhase, Role, SandboxState, SnapshotId, SnapshotReason};

use super::super::{Sandboxes, Whose};
use super::engine::{self, Copied, Job};
use super::{Begun, Errand, files, millis, spawn, view};
use crate::actor::Actor;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::store::{SnapshotRow, Standing};

/// The WebSockets of a sandbox that is replaced close within this time. Their desktops load
/// the page again, which waits until the sandbox is back.
const CLOSE_WINDOW: Duration = Duration::from_millis(200);

/// Where the copy comes from.
struct Source {
    dir: PathBuf,
    ids: Option<HostIds>,
    live: Option<Arc<Instance>>,
}

impl Sandboxes {
    /// Begins to put a snapshot in the place of a sandbox's files. What is there now becomes
    /// a snapshot itself. A sandbox that runs is stopped for that and started again.
    ///
    /// # Errors
    /// The actor may not; there is no such snapshot; something is being copied already; the
    /// ledger cannot take the record.
    pub async fn restore(
        self: &Arc<Self>,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
        id: SnapshotId,
    ) -> Result<Begun, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::RestoreSnapshot)
            .await?;
        let sandbox = route.sandbox(role);
        let from = self.ready(sandbox, id).await?;
        let claim = self
            .plane
            .copies
            .claim(&[sandbox], CopyKind::Restore, role)?;
        // Looked at once more: it may have gone before the claim, or the roles changed.
        self.ready(sandbox, id).await?;
        self.unchanged(&route).await?;
        let aside = SnapshotId::generate();
        let entry = Entry::allowed("sandbox.restore", sandbox.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role))
            .with("snapshot", id.to_string())
            .with("put_aside", aside.to_string());
        self.plane.audit.record(actor, entry).await?;
        let row = self.new_row(aside, &route, role, SnapshotReason::BeforeRestore, None);
        let errand = Errand {
            actor: actor.clone(),
            owner,
            route,
            role,
            claim,
            began: Instant::now(),
        };
        let sandboxes = Arc::clone(self);
        Ok(spawn(errand, move |errand| async move {
            let restore = async {
                let source = Source {
                    dir: sandboxes.plane.snapshot_state(&from),
                    ids: engine::owner(&sandboxes.plane, from.sandbox_id).await?,
                    live: None,
                };
                sandboxes.replace(&errand, row, source).await
            };
            let result = restore.await;
            sandboxes
                .conclude(&errand, "sandbox.restore", aside, result)
                .await
        }))
    }

    /// Begins to make `dev` a copy of `live`, which goes on, but for a moment. What `dev` is
    /// now becomes a snapshot. If `dev` runs it is stopped for that and started again.
    ///
    /// # Errors
    /// The actor may not; something is being copied already; the ledger cannot take the
    /// record.
    pub async fn clone_live(
        self: &Arc<Self>,
        actor: &Actor,
        whose: Whose<'_>,
    ) -> Result<Begun, Error> {
        let (owner, route) = self
            .authorize(actor, whose, Role::Dev, Action::CloneSandbox)
            .await?;
        let claim =
            self.plane
                .copies
                .claim(&[route.dev, route.live], CopyKind::Clone, Role::Dev)?;
        self.unchanged(&route).await?;
        let aside = SnapshotId::generate();
        let entry = Entry::allowed("sandbox.clone", route.dev.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(route.dev, Some(Role::Dev))
            .with("from", route.live.to_string())
            .with("put_aside", aside.to_string());
        self.plane.audit.record(actor, entry).await?;
        let row = self.new_row(aside, &route, Role::Dev, SnapshotReason::BeforeClone, None);
        let errand = Errand {
            actor: actor.clone(),
            owner,
            route,
            role: Role::Dev,
            claim,
            began: Instant::now(),
        };
        let sandboxes = Arc::clone(self);
        Ok(spawn(errand, move |errand| async move {
            let clone = async {
                let live = errand.route.live;
                let (instance, _held) = sandboxes.hold_source(live).await?;
                let source = Source {
                    dir: sandboxes.plane.state_dir(live)?,
                    ids: engine::owner(&sandboxes.plane, live).await?,
                    live: instance,
                };
                sandboxes.replace(&errand, row, source).await
            };
            let result = clone.await;
            sandboxes
                .conclude(&errand, "sandbox.clone", aside, result)
                .await
        }))
    }

    /// Copies the source to where `row` lies, exchanges that for the sandbox's state, and
    /// starts the sandbox again when it ran.
    async fn replace(
        &self,
        errand: &Errand,
        mut row: SnapshotRow,
        source: Source,
    ) -> Result<CopyOutcome, Error> {
        let plane = &self.plane;
        let sandbox = row.sandbox_id;
        let state = plane.state_dir(sandbox)?;
        let ids = engine::owner(plane, sandbox).await?;
        plane.room_for(sandbox, row.reason).await?;
        plane.store.put_snapshot(&row).await?;
        let job = Job {
            source: source.dir,
            source_ids: source.ids,
            target: plane.snapshot_state(&row),
            target_ids: ids,
            max_bytes: plane.config.sandbox.snapshots.max_bytes,
            live: source.live,
        };
        let copied = engine::copy(plane, &errand.claim, job).await?;
        // What a listing says of the state that is put aside. One that nests too deep to be
        // counted is put aside all the same.
        match engine::measure(plane, state.clone(), ids).await {
            Ok(tally) => (row.bytes, row.files) = (tally.bytes, tally.files),
            Err(error) => tracing::info!(%sandbox, %error, "a state could not be measured"),
        }
        if errand.claim.cancelled().is_cancelled() {
            return Err(Error::conflict("it was cancelled"));
        }

        // From here on it is not cancelled any more.
        errand.claim.phase(CopyPhase::Replacing);
        let held = plane.copies.hold(sandbox).await;
        let stopping = Instant::now();
        row.was_running = matches!(
            self.fleet.status(sandbox).state,
            SandboxState::Running | SandboxState::Starting
        );
        row.replaces = Some(files::inode(&state).map_err(Error::internal)?);
        plane.store.put_snapshot(&row).await?;
        self.end_trial(&errand.route, errand.role, "its files were replaced")
            .await;
        self.say_goodbye(errand);
        self.fleet.stop(sandbox).await;
        if let Err(error) = self.put_in_place(&mut row, &state).await {
            drop(held);
            // Nothing was replaced.
            if row.was_running {
                self.begin(sandbox).await?;
            }
            return Err(error);
        }
        drop(held);

        let mut started = Ok(());
        if row.was_running {
            errand.claim.phase(CopyPhase::Starting);
            started = self.begin(sandbox).await.map(drop);
            row.was_running = false;
            // So that it is not started once more after the next crash.
            self.note(&row).await;
        }
        started.map_err(|error| back(error, &row))?;
        let down = stopping.elapsed();
        plane.prune(sandbox).await;
        Ok(self.replaced(errand, &row, &copied, down))
    }

    /// Exchanges the two states.
    ///
    /// # Errors
    /// Nothing was replaced.
    pub(super) async fn put_in_place(
        &self,
        row: &mut SnapshotRow,
        state: &Path,
    ) -> Result<(), Error> {
        let aside = self.plane.snapshot_state(row);
        if let Err(error) = files::exchange(state, &aside) {
            // The names may be exchanged, and only not on the disk yet.
            if row.replaces.is_none() || files::inode(&aside).ok() != row.replaces {
                return Err(Error::internal(error));
            }
            tracing::error!(snapshot = %row.id, %error, "an exchange is not on the disk yet");
        }
        row.standing = Standing::Ready;
        row.replaces = None;
        self.note(row).await;
        Ok(())
    }

    /// Notes what has happened to a state already. Where that fails the row tells as much: the
    /// next start settles it.
    async fn note(&self, row: &SnapshotRow) {
        if let Err(error) = files::write_manifest(&self.plane, row) {
            tracing::error!(snapshot = %row.id, %error, "a snapshot's manifest cannot be written");
        }
        if let Err(error) = self.plane.store.put_snapshot(row).await {
            tracing::error!(snapshot = %row.id, %error, "a restore that was done cannot be noted");
        }
    }

    /// Has the desktops of a sandbox load their page again.
    fn say_goodbye(&self, errand: &Errand) {
        let sandbox = errand.route.sandbox(errand.role);
        let upstream = self
            .fleet
            .running(sandbox)
            .and_then(|instance| self.plane.upstreams.get(instance.start_id));
        if let Some(upstream) = upstream {
            let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "{\"replaced\":true}");
            // Which socket goes first does not matter here.
            upstream.close_websockets(&notice, CLOSE_WINDOW, 0);
        }
    }

    fn replaced(
        &self,
        errand: &Errand,
        row: &SnapshotRow,
        copied: &Copied,
        down: Duration,
    ) -> CopyOutcome {
        let kind = match row.reason {
            SnapshotReason::BeforeClone => CopyKind::Clone,
            SnapshotReason::Manual | SnapshotReason::BeforeRestore => CopyKind::Restore,
        };
        CopyOutcome {
            kind,
            snapshot: view(row),
            sandbox: Some(self.view(&errand.route, &errand.owner.name, errand.role)),
            took_ms: millis(errand.began.elapsed()),
            frozen_ms: millis(copied.frozen),
            down_ms: millis(down),
            files: copied.report.tally.files,
            bytes: copied.report.tally.bytes,
            skipped: copied.report.tally.skipped,
            reflinked: copied.report.reflinked,
        }
    }
}

/// The files are in place and the sandbox does not start with them: the way back.
fn back(error: Error, row: &SnapshotRow) -> Error {
    Error::SandboxFailed {
        message: format!("the files are in place, and the sandbox does not start: {error}"),
        hint: Some(format!(
            "the state before is kept: choir sandbox restore {}",
            row.id
        )),
    }
}

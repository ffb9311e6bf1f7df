//! Generations of a sandbox's files: snapshot, restore, clone (arch §4).
//!
//! A sandbox's files lie in `sandboxes/ID/state`, those of a snapshot in
//! `sandboxes/ID/snapshots/SNAPSHOT/state`. A restore builds the copy in a snapshot's place
//! and then exchanges the two names in one step (renameat2(2), `RENAME_EXCHANGE`): before it
//! nothing has happened, after it everything has, and the state that was replaced is a
//! snapshot itself.

pub(crate) mod copies;
mod engine;
mod files;
mod reconcile;
mod replace;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::Action;
use runtime::Instance;
use tokio::sync::{OwnedRwLockWriteGuard, oneshot, watch};
use types::{
    CopyKind, CopyOutcome, CopyProgress, Role, SandboxId, SandboxState, SnapshotId, SnapshotReason,
    SnapshotView, SnapshotsView,
};

use super::{Plane, Sandboxes, Whose};
use crate::actor::{Actor, User};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::store::{RouteRow, SnapshotRow, Standing};
use copies::Claim;
use engine::Job;
use reconcile::Settled;

/// Longest name of a snapshot, in characters.
const MAX_NAME: usize = 80;

/// Copying that has begun. It goes on when nobody follows it.
#[derive(Debug)]
pub struct Begun {
    /// Where it stands.
    pub progress: watch::Receiver<CopyProgress>,
    /// What came of it.
    pub outcome: oneshot::Receiver<Result<CopyOutcome, Error>>,
}

/// What is to change about a snapshot; absent: stays.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Its name; an empty one takes it away.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is known to work, and never goes by itself.
    #[serde(default)]
    pub known_good: Option<bool>,
}

/// The running start of a sandbox, or the guard without which it is not started.
type Held = (Option<Arc<Instance>>, Option<OwnedRwLockWriteGuard<()>>);

/// For whom, and on what, something is copied.
struct Errand {
    actor: Actor,
    owner: User,
    route: RouteRow,
    role: Role,
    claim: Claim,
    began: Instant,
}

impl Sandboxes {
    /// A sandbox's snapshots, newest first, and what is being copied.
    ///
    /// # Errors
    /// The actor may not, or the database failed.
    pub async fn snapshots(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<SnapshotsView, Error> {
        let (_, route) = self
            .authorize(actor, whose, role, Action::ViewSandbox)
            .await?;
        let sandbox = route.sandbox(role);
        let rows = self.plane.store.snapshots(sandbox).await?;
        let ready = rows.iter().filter(|row| row.standing == Standing::Ready);
        let mut snapshots: Vec<SnapshotView> = ready.map(view).collect();
        snapshots.reverse();
        let config = &self.plane.config.sandbox.snapshots;
        Ok(SnapshotsView {
            used_bytes: snapshots.iter().map(|snapshot| snapshot.bytes).sum(),
            snapshots,
            max_count: config.max_count,
            max_bytes: config.max_bytes,
            under_way: self.plane.copies.of(sandbox).map(|it| it.progress()),
        })
    }

    /// Begins to take a snapshot. A running sandbox goes on, but for a moment.
    ///
    /// # Errors
    /// The actor may not; as many are kept as may be; something is being copied already; the
    /// ledger cannot take the record.
    pub async fn snapshot(
        self: &Arc<Self>,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
        name: Option<String>,
    ) -> Result<Begun, Error> {
        let name = name.map(|name| checked_name(&name)).transpose()?.flatten();
        let (owner, route) = self
            .authorize(actor, whose, role, Action::TakeSnapshot)
            .await?;
        let sandbox = route.sandbox(role);
        let claim = self
            .plane
            .copies
            .claim(&[sandbox], CopyKind::Snapshot, role)?;
        let id = SnapshotId::generate();
        let max_bytes = self.plane.room_for(sandbox, SnapshotReason::Manual).await?;
        let entry = Entry::allowed("sandbox.snapshot", sandbox.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role))
            .with("snapshot", id.to_string());
        self.plane.audit.record(actor, entry).await?;
        let row = self.new_row(id, &route, role, SnapshotReason::Manual, name);
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
            let result = sandboxes.take(&errand, row, max_bytes).await;
            sandboxes
                .conclude(&errand, "sandbox.snapshot", id, result)
                .await
        }))
    }

    /// Names a snapshot, or marks it as known to work.
    ///
    /// # Errors
    /// The actor may not; there is none; the name is too long; as many are kept as may be;
    /// something is being copied; the ledger cannot take the record.
    pub async fn change_snapshot(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
        id: SnapshotId,
        change: Change,
    ) -> Result<SnapshotView, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::ChangeSnapshot)
            .await?;
        let sandbox = route.sandbox(role);
        self.ready(sandbox, id).await?;
        // Whoever removes it has one too; without this it would be written back without files.
        let _claim = self.claim_rows(sandbox, role)?;
        let mut row = self.ready(sandbox, id).await?;
        if let Some(name) = &change.name {
            row.name = checked_name(name)?;
        }
        let went_by_itself = goes_by_itself(&row);
        row.known_good = change.known_good.unwrap_or(row.known_good);
        if went_by_itself && row.known_good {
            self.plane.room_to_keep(&row).await?;
        }
        let entry = Entry::allowed("sandbox.snapshot.change", id.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(row.sandbox_id, Some(role))
            .with("known_good", row.known_good.to_string());
        self.plane.audit.record(actor, entry).await?;
        files::write_manifest(&self.plane, &row).map_err(Error::internal)?;
        self.plane.store.put_snapshot(&row).await?;
        Ok(view(&row))
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// The actor may not; there is none; it is being copied; the ledger cannot take the
    /// record; its files cannot be removed.
    pub async fn delete_snapshot(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
        id: SnapshotId,
    ) -> Result<(), Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::ChangeSnapshot)
            .await?;
        let sandbox = route.sandbox(role);
        self.ready(sandbox, id).await?;
        // A restore may be reading it.
        let _claim = self.claim_rows(sandbox, role)?;
        let row = self.ready(sandbox, id).await?;
        let entry = Entry::allowed("sandbox.snapshot.delete", id.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role));
        self.plane.audit.record(actor, entry).await?;
        self.plane.remove_snapshot(row).await
    }

    /// Cancels what is being copied, as long as that changes nothing. `false`: nothing is.
    ///
    /// # Errors
    /// The actor may not; the ledger cannot take the record.
    pub async fn cancel_copying(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<bool, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::ChangeSnapshot)
            .await?;
        let sandbox = route.sandbox(role);
        let Some(copying) = self.plane.copies.of(sandbox) else {
            return Ok(false);
        };
        let entry = Entry::allowed("sandbox.copy.cancel", sandbox.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role));
        self.plane.audit.record(actor, entry).await?;
        copying.cancel();
        Ok(true)
    }

    async fn ready(&self, sandbox: SandboxId, id: SnapshotId) -> Result<SnapshotRow, Error> {
        self.plane
            .store
            .snapshot(sandbox, id)
            .await?
            .filter(|row| row.standing == Standing::Ready)
            .ok_or(Error::NotFound("snapshot"))
    }

    /// Leave to change what is known of a sandbox's snapshots.
    fn claim_rows(&self, sandbox: SandboxId, role: Role) -> Result<Claim, Error> {
        let copies = &self.plane.copies;
        copies.claim(&[sandbox], CopyKind::Snapshot, role)
    }

    /// Refuses when the roles changed since `seen` was read. With a claim on one that is to be
    /// replaced they do not any more.
    async fn unchanged(&self, seen: &RouteRow) -> Result<(), Error> {
        let now = self.plane.route(seen.user_id).await?;
        if now.generation == seen.generation {
            return Ok(());
        }
        Err(Error::conflict(
            "live and dev were swapped at the same moment, so nothing was done; look which is which, and try again",
        ))
    }

    fn new_row(
        &self,
        id: SnapshotId,
        route: &RouteRow,
        role: Role,
        reason: SnapshotReason,
        name: Option<String>,
    ) -> SnapshotRow {
        SnapshotRow {
            id,
            sandbox_id: route.sandbox(role),
            standing: if reason.is_automatic() {
                Standing::Replacing
            } else {
                Standing::Making
            },
            name,
            reason,
            known_good: false,
            created_at: self.plane.clock.now_ms(),
            bytes: 0,
            files: 0,
            generation: route.generation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replaces: None,
            was_running: false,
        }
    }

    /// Takes a snapshot, or leaves nothing behind.
    async fn take(
        &self,
        errand: &Errand,
        mut row: SnapshotRow,
        max_bytes: u64,
    ) -> Result<CopyOutcome, Error> {
        let sandbox = row.sandbox_id;
        self.plane.store.put_snapshot(&row).await?;
        let ids = engine::owner(&self.plane, sandbox).await?;
        let (live, _held) = self.hold_source(sandbox).await?;
        let job = Job {
            source: self.plane.state_dir(sandbox)?,
            source_ids: ids,
            target: self.plane.snapshot_state(&row),
            target_ids: ids,
            max_bytes,
            live,
        };
        let copied = engine::copy(&self.plane, &errand.claim, job).await?;
        row.standing = Standing::Ready;
        row.bytes = copied.report.tally.bytes;
        row.files = copied.report.tally.files;
        files::write_manifest(&self.plane, &row).map_err(Error::internal)?;
        self.plane.store.put_snapshot(&row).await?;
        self.plane.prune(sandbox).await;
        Ok(CopyOutcome {
            kind: CopyKind::Snapshot,
            snapshot: view(&row),
            sandbox: None,
            took_ms: millis(errand.began.elapsed()),
            frozen_ms: millis(copied.frozen),
            down_ms: 0,
            files: row.files,
            bytes: row.bytes,
            skipped: copied.report.tally.skipped,
            reflinked: copied.report.reflinked,
        })
    }

    /// The running start of what is copied, or leave to copy it while it does not run: it is
    /// not started then until the guard is dropped.
    async fn hold_source(&self, sandbox: SandboxId) -> Result<Held, Error> {
        let held = self.plane.copies.hold(sandbox).await;
        let status = self.fleet.status(sandbox);
        match (status.state, status.instance) {
            (SandboxState::Running, Some(instance)) => Ok((Some(instance), None)),
            (SandboxState::Stopped | SandboxState::Failed, _) => Ok((None, Some(held))),
            (state, _) => Err(Error::conflict(format!(
                "the sandbox is {state}; try again in a moment"
            ))),
        }
    }

    /// Records a failure and takes back what was made.
    async fn conclude(
        &self,
        errand: &Errand,
        action: &'static str,
        id: SnapshotId,
        result: Result<CopyOutcome, Error>,
    ) -> Result<CopyOutcome, Error> {
        let sandbox = errand.route.sandbox(errand.role);
        let kind = errand.claim.follow().borrow().kind;
        self.plane
            .metrics
            .copy(kind, result.is_ok(), errand.began.elapsed());
        let Err(error) = &result else {
            return result;
        };
        let entry = Entry::failed(action, sandbox.to_string(), error.to_string())
            .about_user(errand.owner.id, &errand.owner.name)
            .in_sandbox(sandbox, Some(errand.role))
            .with("snapshot", id.to_string());
        if let Err(error) = self.plane.audit.record(&errand.actor, entry).await {
            tracing::error!(%error, "a failed copy could not be recorded");
        }
        match self.plane.store.snapshot(sandbox, id).await {
            // What stands is kept: the state that a restore put aside, above all.
            Ok(Some(row)) => {
                let settled = match self.plane.settle(row).await {
                    Ok(Settled::Doomed(row)) => self.plane.remove_snapshot(*row).await,
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = settled {
                    tracing::warn!(%error, %id, "what is left of a copy goes at the next start");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, %id, "the database does not tell of a snapshot"),
        }
        result
    }
}

impl Plane {
    /// A sandbox's state, made if it never had one.
    fn state_dir(&self, sandbox: SandboxId) -> Result<PathBuf, Error> {
        let dir = self.sandbox_dir(sandbox).join(super::plane::STATE);
        engine::make_dir(&dir).map_err(Error::internal)?;
        Ok(dir)
    }

    fn snapshot_dir(&self, row: &SnapshotRow) -> PathBuf {
        self.sandbox_dir(row.sandbox_id)
            .join(files::SNAPSHOTS)
            .join(row.id.to_string())
    }

    fn snapshot_state(&self, row: &SnapshotRow) -> PathBuf {
        self.snapshot_dir(row).join(super::plane::STATE)
    }

    /// How many bytes another snapshot may have. Makes room among those that go by
    /// themselves when there are too many.
    async fn room_for(&self, sandbox: SandboxId, reason: SnapshotReason) -> Result<u64, Error> {
        let config = &self.config.sandbox.snapshots;
        let rows = self.store.snapshots(sandbox).await?;
        let (going, staying): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .filter(|row| row.standing == Standing::Ready)
            .partition(goes_by_itself);
        let most = usize::try_from(config.max_count).unwrap_or(usize::MAX);
        if staying.len() >= most && !reason.is_automatic() {
            return Err(full(format!(
                "{most} snapshots of this sandbox are kept, and that is the limit"
            )));
        }
        let kept: u64 = staying.iter().map(|row| row.bytes).sum();
        let room = config.max_bytes.saturating_sub(kept);
        if room == 0 && !reason.is_automatic() {
            return Err(full(format!(
                "the snapshots of this sandbox hold {} MiB, and that is the limit",
                config.max_bytes >> 20
            )));
        }
        let total = staying.len() + going.len();
        for row in going.into_iter().take((total + 1).saturating_sub(most)) {
            match self.remove_snapshot(row).await {
                // What cannot be removed must not keep somebody from going back.
                Err(error) if reason.is_automatic() => {
                    tracing::warn!(%sandbox, %error, "an older snapshot could not be removed");
                }
                removed => removed?,
            }
        }
        Ok(room)
    }

    /// Whether one that goes by itself may be kept for good.
    async fn room_to_keep(&self, row: &SnapshotRow) -> Result<(), Error> {
        let config = &self.config.sandbox.snapshots;
        let mut staying = self.store.snapshots(row.sandbox_id).await?;
        staying.retain(|other| other.standing == Standing::Ready && !goes_by_itself(other));
        let most = usize::try_from(config.max_count).unwrap_or(usize::MAX);
        if staying.len() >= most {
            return Err(full(format!(
                "{most} snapshots of this sandbox are kept, and that is the limit"
            )));
        }
        let kept: u64 = staying.iter().map(|other| other.bytes).sum();
        if kept.saturating_add(row.bytes) > config.max_bytes {
            return Err(full(format!(
                "with this one the snapshots that are kept would hold more than {} MiB, and that is the limit",
                config.max_bytes >> 20
            )));
        }
        Ok(())
    }

    /// Removes the oldest of what goes by itself until the bounds hold. The latest state that
    /// was put aside always stays: it is the way back. What was done before has been done,
    /// also when this fails; the next copy tries again.
    async fn prune(&self, sandbox: SandboxId) {
        if let Err(error) = self.try_prune(sandbox).await {
            tracing::warn!(%sandbox, %error, "older snapshots could not be removed");
        }
    }

    async fn try_prune(&self, sandbox: SandboxId) -> Result<(), Error> {
        let config = &self.config.sandbox.snapshots;
        let mut rows = self.store.snapshots(sandbox).await?;
        rows.retain(|row| row.standing == Standing::Ready);
        let newest = rows.iter().rev().find(|row| row.reason.is_automatic());
        let newest = newest.map(|row| row.id);
        let mut count = rows.len();
        let mut bytes: u64 = rows.iter().map(|row| row.bytes).sum();
        let most = usize::try_from(config.max_count).unwrap_or(usize::MAX);
        for row in rows {
            if count <= most && bytes <= config.max_bytes {
                break;
            }
            if goes_by_itself(&row) && Some(row.id) != newest {
                count -= 1;
                bytes -= row.bytes;
                self.remove_snapshot(row).await?;
            }
        }
        Ok(())
    }

    /// Removes a snapshot's files, and then what is known of it.
    async fn remove_snapshot(&self, mut row: SnapshotRow) -> Result<(), Error> {
        row.standing = Standing::Removing;
        self.store.put_snapshot(&row).await?;
        let ids = engine::owner(self, row.sandbox_id).await?;
        engine::remove(&self.binaries.supervisor, self.snapshot_state(&row), ids).await?;
        files::remove_dir(&self.snapshot_dir(&row)).map_err(Error::internal)?;
        self.store.forget_snapshot(row.id).await?;
        Ok(())
    }
}

/// Runs an errand to its end, whoever follows it.
fn spawn<F>(errand: Errand, work: impl FnOnce(Errand) -> F) -> Begun
where
    F: Future<Output = Result<CopyOutcome, Error>> + Send + 'static,
{
    let progress = errand.claim.follow();
    let (tell, outcome) = oneshot::channel();
    let work = work(errand);
    tokio::spawn(async move {
        let result = work.await;
        if let Err(error) = &result {
            tracing::warn!(%error, "copying a sandbox failed");
        }
        // An error means that nobody waits for it.
        let _ = tell.send(result);
    });
    Begun { progress, outcome }
}

fn goes_by_itself(row: &SnapshotRow) -> bool {
    row.reason.is_automatic() && !row.known_good
}

fn full(message: String) -> Error {
    Error::Conflict(format!(
        "{message}; delete one that is not needed: choir sandbox snapshots delete"
    ))
}

/// A name that can be shown; `None` for an empty one.
fn checked_name(name: &str) -> Result<Option<String>, Error> {
    let name = name.trim();
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a snapshot's name has at most {MAX_NAME} characters, on one line"
        )));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

fn view(row: &SnapshotRow) -> SnapshotView {
    SnapshotView {
        id: row.id,
        name: row.name.clone(),
        created_at: rfc3339(row.created_at),
        reason: row.reason,
        known_good: row.known_good,
        bytes: row.bytes,
        files: row.files,
        generation: row.generation,
        version: row.version.clone(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! Copies a sandbox's files with the copier, and has the sandbox stand still for the moment
//! that its databases need (arch §4). The hypervisor opens none of the files itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::copying::{
    CopyBounds, CopyEvent, CopyJob, CopyReport, CopySpec, DEFAULT_DEPTH, Tally,
};
use runtime::protocol::Refusal;
use runtime::spec::HostIds;
use runtime::{ControlError, Copier, Frozen, Instance};
use types::{CopyPhase, SandboxId};

use super::super::Plane;
use super::copies::Claim;
use crate::error::Error;

/// What a state and a snapshot consist of.
const PARTS: [&str; 3] = ["workspace", "home", "data"];

/// The longest that a sandbox stands still for a copy. What cannot be copied by then changes
/// too fast, and the copy is given up.
const FROZEN_AT_MOST: Duration = Duration::from_secs(10);

/// A process may be busy in the kernel for a moment: this many tries to stop everything.
const FREEZE_TRIES: u32 = 3;

/// The longest that copying may take altogether.
const COPY_WITHIN: Duration = Duration::from_secs(2 * 60 * 60);

/// A finished copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    pub(super) report: CopyReport,
    pub(super) frozen: Duration,
}

/// Who owns the files in a state or a snapshot; `None` when this process is no root.
pub(super) async fn owner(plane: &Plane, sandbox: SandboxId) -> Result<Option<HostIds>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let row = plane.store.sandbox(sandbox).await?;
    let uid = row.ok_or(Error::NotFound("sandbox"))?.host_uid;
    Ok(Some(HostIds { uid, gid: uid }))
}

/// What to copy.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) source: PathBuf,
    pub(super) source_ids: Option<HostIds>,
    pub(super) target: PathBuf,
    pub(super) target_ids: Option<HostIds>,
    /// Bytes that the copy may have.
    pub(super) max_bytes: u64,
    /// The sandbox that uses the source, when it runs.
    pub(super) live: Option<Arc<Instance>>,
}

/// Copies, up to the disk.
pub(super) async fn copy(plane: &Plane, claim: &Claim, job: Job) -> Result<Copied, Error> {
    make_dir(&job.target).map_err(Error::internal)?;
    let spec = CopySpec {
        source: job.source,
        target: job.target,
        source_ids: job.source_ids,
        target_ids: job.target_ids,
        parts: PARTS.map(str::to_owned).to_vec(),
        live: job.live.is_some(),
        bounds: bounds(plane, job.max_bytes),
    };
    let supervisor = &plane.binaries.supervisor;
    let mut copier = Copier::start(supervisor, &CopyJob::Copy(spec))
        .await
        .map_err(Error::internal)?;
    let copying = follow(&mut copier, claim, job.live.as_deref());
    tokio::select! {
        // Dropping the copier ends it.
        () = claim.cancelled().cancelled() => Err(Error::conflict("it was cancelled")),
        copied = tokio::time::timeout(COPY_WITHIN, copying) => {
            copied.unwrap_or_else(|_| Err(Error::GatewayTimeout("copying took too long".to_owned())))
        }
    }
}

async fn follow(
    copier: &mut Copier,
    claim: &Claim,
    live: Option<&Instance>,
) -> Result<Copied, Error> {
    let mut frozen: Option<Frozen> = None;
    let mut stood_still = Duration::ZERO;
    loop {
        match copier.next().await.map_err(failed)? {
            CopyEvent::Counted { tally } => claim.update(|progress| {
                progress.phase = CopyPhase::Copying;
                progress.total_files = tally.files;
                progress.total_bytes = tally.bytes;
            }),
            CopyEvent::Progress { files, bytes } => claim.update(|progress| {
                progress.files = files;
                progress.bytes = bytes;
            }),
            CopyEvent::Ready => {
                let live = live.ok_or_else(|| confused("waits for nobody"))?;
                claim.phase(CopyPhase::Frozen);
                frozen = Some(freeze(live).await?);
                copier.finish().await.map_err(Error::internal)?;
            }
            CopyEvent::Copied { report } => {
                if let Some(frozen) = frozen.take() {
                    stood_still = thaw(frozen).await?;
                }
                claim.update(|progress| {
                    progress.phase = CopyPhase::Syncing;
                    progress.files = progress.files.max(report.tally.files);
                });
            }
            CopyEvent::Done { report } => {
                return Ok(Copied {
                    report,
                    frozen: stood_still,
                });
            }
            CopyEvent::Failed { refusal } => return Err(failed(refusal)),
        }
    }
}

async fn freeze(live: &Instance) -> Result<Frozen, Error> {
    let mut tries = 1;
    loop {
        match live.freeze(FROZEN_AT_MOST).await {
            Ok(frozen) => return Ok(frozen),
            Err(ControlError::Refused(refusal))
                if refusal.code == "cannot_freeze" && tries < FREEZE_TRIES =>
            {
                tries += 1;
            }
            Err(ControlError::Refused(refusal)) => return Err(failed(refusal)),
            Err(error) => {
                tracing::debug!(%error, "a sandbox could not be frozen");
                return Err(ended_meanwhile());
            }
        }
    }
}

async fn thaw(frozen: Frozen) -> Result<Duration, Error> {
    match frozen.thaw().await {
        Ok(Some(stood_still)) => Ok(stood_still),
        Ok(None) => Err(Error::SandboxFailed {
            message: format!(
                "the sandbox changes too much to be copied while it runs: it stood still for {} s and that was not enough",
                FROZEN_AT_MOST.as_secs()
            ),
            hint: Some("stop it first, or try again when less goes on in it".to_owned()),
        }),
        Err(error) => {
            tracing::debug!(%error, "a frozen sandbox is gone");
            Err(ended_meanwhile())
        }
    }
}

fn ended_meanwhile() -> Error {
    Error::conflict("the sandbox ended while it was copied; try again")
}

/// What is in a state, which may be in use.
pub(super) async fn measure(
    plane: &Plane,
    source: PathBuf,
    ids: Option<HostIds>,
) -> Result<Tally, Error> {
    let job = CopyJob::Measure {
        source,
        ids,
        parts: PARTS.map(str::to_owned).to_vec(),
        bounds: bounds(plane, u64::MAX),
    };
    let mut copier = Copier::start(&plane.binaries.supervisor, &job)
        .await
        .map_err(Error::internal)?;
    match copier.next().await.map_err(failed)? {
        CopyEvent::Counted { tally } => Ok(tally),
        _ => Err(confused("does not count")),
    }
}

/// Removes a state or a snapshot's, as its owner. Waits for a copier that still writes there.
pub(super) async fn remove(
    supervisor: &Path,
    dir: PathBuf,
    ids: Option<HostIds>,
) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let mut copier = Copier::start(supervisor, &CopyJob::Remove { dir, ids })
        .await
        .map_err(Error::internal)?;
    match copier.next().await.map_err(failed)? {
        CopyEvent::Done { .. } => Ok(()),
        _ => Err(confused("does not remove")),
    }
}

fn bounds(plane: &Plane, max_bytes: u64) -> CopyBounds {
    let config = &plane.config.sandbox.snapshots;
    CopyBounds {
        entries: config.max_files,
        bytes: max_bytes,
        depth: DEFAULT_DEPTH,
        keep_free: config.keep_free,
    }
}

/// Makes a directory that only this process's user may enter, and those above it.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn failed(refusal: Refusal) -> Error {
    let Refusal {
        code,
        message,
        hint,
    } = refusal;
    match code.as_str() {
        "too_large" | "too_many_files" | "too_deep" => Error::TooLarge(match hint {
            Some(hint) => format!("{message}; {hint}"),
            None => message,
        }),
        "internal" | "bad_spec" => Error::internal(message),
        _ => Error::SandboxFailed { message, hint },
    }
}

fn confused(what: &str) -> Error {
    Error::internal(format!("the copier {what}"))
}

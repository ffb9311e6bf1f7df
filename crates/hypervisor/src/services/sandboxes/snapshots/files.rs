//! What lies on the disk beside a snapshot's own files.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use types::{SandboxId, SnapshotId, SnapshotReason};

use super::super::Plane;
use super::engine;
use crate::store::{SnapshotRow, Standing};

/// The directory of a sandbox that holds its snapshots.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// The file of a snapshot that says what it is. It stands there only once the snapshot is
/// complete and on the disk.
const MANIFEST: &str = "manifest.json";

/// The format of the manifest.
const FORMAT: u32 = 1;

/// What a complete snapshot says of itself, for a database that does not know it any more.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    id: SnapshotId,
    sandbox: SandboxId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    reason: SnapshotReason,
    known_good: bool,
    created_at_ms: i64,
    bytes: u64,
    files: u64,
    generation: u64,
    version: String,
}

/// Writes a snapshot's manifest, in place of an older one, up to the disk.
pub(super) fn write_manifest(plane: &Plane, row: &SnapshotRow) -> io::Result<()> {
    let manifest = Manifest {
        format: FORMAT,
        id: row.id,
        sandbox: row.sandbox_id,
        name: row.name.clone(),
        reason: row.reason,
        known_good: row.known_good,
        created_at_ms: row.created_at,
        bytes: row.bytes,
        files: row.files,
        generation: row.generation,
        version: row.version.clone(),
    };
    let dir = plane.snapshot_dir(row);
    let draft = dir.join("manifest.json.new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
    file.sync_all()?;
    fs::rename(&draft, dir.join(MANIFEST))?;
    sync_dir(&dir)?;
    sync_dir(dir.parent().unwrap_or(&dir))
}

/// What a directory says of itself; `None` when it is no complete snapshot of this sandbox.
pub(super) fn read_manifest(sandbox: SandboxId, dir: &Path) -> Option<SnapshotRow> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()?;
    let named = dir.file_name()?.to_str()? == manifest.id.to_string();
    let fits = manifest.format == FORMAT && manifest.sandbox == sandbox && named;
    fits.then_some(SnapshotRow {
        id: manifest.id,
        sandbox_id: sandbox,
        standing: Standing::Ready,
        name: manifest.name,
        reason: manifest.reason,
        known_good: manifest.known_good,
        created_at: manifest.created_at_ms,
        bytes: manifest.bytes,
        files: manifest.files,
        generation: manifest.generation,
        version: manifest.version,
        replaces: None,
        was_running: false,
    })
}

/// The inode of a directory, which tells after a crash where it lies.
pub(super) fn inode(dir: &Path) -> io::Result<u64> {
    fs::symlink_metadata(dir).map(|found| found.ino())
}

/// Exchanges the names of two directories in one step, up to the disk.
pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
    for dir in [one, other] {
        sync_dir(dir.parent().unwrap_or(dir))?;
    }
    Ok(())
}

/// Removes what is left of a snapshot once its state is gone: files of ours.
pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gathers the parts of a state that an older version kept next to each other.
pub(super) fn adopt_old_layout(dir: &Path, state: &Path) -> io::Result<()> {
    if state.exists() || !dir.join("workspace").exists() {
        return Ok(());
    }
    let gathered: PathBuf = dir.join("state.new");
    engine::make_dir(&gathered)?;
    // `workspace` goes last: it is what tells that this is not finished.
    for part in ["home", "data", "workspace"] {
        if dir.join(part).exists() {
            fs::rename(dir.join(part), gathered.join(part))?;
        }
    }
    fs::rename(&gathered, state)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

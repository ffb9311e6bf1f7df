//! Snapshots: generations of a sandbox's files, and the copying that makes and restores them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Problem, Role, SandboxView, SnapshotId};

/// Why there is a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotReason {
    /// Somebody took it.
    Manual,
    /// The state that a restore put aside.
    BeforeRestore,
    /// The state of `dev` that a clone put aside.
    BeforeClone,
}

impl SnapshotReason {
    /// As it stands in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::BeforeRestore => "before_restore",
            Self::BeforeClone => "before_clone",
        }
    }

    /// Whether it was made by itself, and goes by itself when room is needed.
    #[must_use]
    pub const fn is_automatic(self) -> bool {
        !matches!(self, Self::Manual)
    }
}

/// A text that is not the reason of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseReasonError;

impl fmt::Display for ParseReasonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a reason: expected manual, before_restore or before_clone")
    }
}

impl std::error::Error for ParseReasonError {}

impl FromStr for SnapshotReason {
    type Err = ParseReasonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Manual, Self::BeforeRestore, Self::BeforeClone]
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(ParseReasonError)
    }
}

/// One snapshot, as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Stable id.
    pub id: SnapshotId,
    /// What somebody called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// Why there is one.
    pub reason: SnapshotReason,
    /// Somebody marked it as one that works. It never goes by itself.
    pub known_good: bool,
    /// Bytes of data in it; where the file system shares blocks it takes less room.
    pub bytes: u64,
    /// Regular files in it.
    pub files: u64,
    /// Swaps of the user so far when it was taken.
    pub generation: u64,
    /// Version of the runtime when it was taken.
    pub version: String,
}

/// A sandbox's snapshots, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotsView {
    /// Newest first.
    pub snapshots: Vec<SnapshotView>,
    /// Bytes of data in all of them.
    pub used_bytes: u64,
    /// As many may be kept.
    pub max_count: u32,
    /// As many bytes may be kept.
    pub max_bytes: u64,
    /// What is being copied now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<CopyProgress>,
}

/// What copying is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// A snapshot is taken.
    Snapshot,
    /// A snapshot is put in place.
    Restore,
    /// `dev` becomes a copy of `live`.
    Clone,
}

impl CopyKind {
    /// As it stands in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Restore => "restore",
            Self::Clone => "clone",
        }
    }
}

/// How far copying is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPhase {
    /// Finding out what there is.
    Counting,
    /// Copying; the sandbox goes on meanwhile if it runs.
    Copying,
    /// The sandbox stands still while what has changed meanwhile is copied.
    Frozen,
    /// Waiting for the disk; the sandbox goes on.
    Syncing,
    /// The sandbox is stopped and its files are replaced.
    Replacing,
    /// The sandbox is started again.
    Starting,
}

/// Where copying stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// What for.
    pub kind: CopyKind,
    /// The role of the sandbox that gets the copy.
    pub role: Role,
    /// How far.
    pub phase: CopyPhase,
    /// Files copied so far, in all passes.
    pub files: u64,
    /// Bytes copied so far, in all passes.
    pub bytes: u64,
    /// Files that there were at first.
    pub total_files: u64,
    /// Bytes that there were at first.
    pub total_bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOutcome {
    /// What it was for.
    pub kind: CopyKind,
    /// The snapshot that was taken, or that holds the state that was put aside.
    pub snapshot: SnapshotView,
    /// The sandbox that was changed, as it stands now; none for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxView>,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// For how long the sandbox that was copied stood still.
    pub frozen_ms: u64,
    /// From stopping the sandbox that was changed until it was healthy again, or, if it did
    /// not run, until its files were in place.
    pub down_ms: u64,
    /// Files in the copy.
    pub files: u64,
    /// Bytes of data in the copy.
    pub bytes: u64,
    /// Sockets, FIFOs, devices and mount points that were left out.
    pub skipped: u64,
    /// Whether the copy shares its blocks with the original.
    pub reflinked: bool,
}

/// One line of the answer to whoever asked for copying; the last is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CopyUpdate {
    /// Where it stands.
    Progress(CopyProgress),
    /// It is done.
    Done(Box<CopyOutcome>),
    /// It was not done; everything is as before.
    Failed(Box<Problem>),
}

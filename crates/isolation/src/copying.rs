//! What the copier is told and what it says (arch §4: clone, snapshot, restore).
//!
//! The copier is the supervisor's binary started as `supervisor copy`. It reads one line of
//! JSON, a [`CopyJob`], from standard input and writes [`CopyEvent`]s, one JSON document a
//! line, to standard output. Standard input stays open: a second line [`FINISH`] begins the
//! last pass of a live copy, and its end cancels everything, so that a copier never outlives
//! whoever asked for it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::protocol::Refusal;
use crate::spec::HostIds;

/// What the asker writes when the source stands still and the last pass may begin.
pub const FINISH: &str = "finish";

/// Deepest nesting of directories that is copied, by default.
pub const DEFAULT_DEPTH: u32 = 256;

/// Longest line that the copier writes or reads, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// What the copier does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case", deny_unknown_fields)]
pub enum CopyJob {
    /// Copies the parts of one directory into another.
    Copy(CopySpec),
    /// Counts what is in the parts of a directory, and what a copy would skip.
    Measure {
        /// The directory.
        source: PathBuf,
        /// Who owns what is in the parts, when this process is root.
        #[serde(default)]
        ids: Option<HostIds>,
        /// The parts; one that is missing is empty.
        parts: Vec<String>,
        /// Where counting stops.
        bounds: CopyBounds,
    },
    /// Removes a directory whose parts belong to a sandbox, however deep they nest.
    Remove {
        /// The directory; nothing happens when it is missing.
        dir: PathBuf,
        /// Who owns what is in the parts, when this process is root.
        #[serde(default)]
        ids: Option<HostIds>,
    },
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySpec {
    /// The directory that has the parts.
    pub source: PathBuf,
    /// The directory that gets them; exists and is empty.
    pub target: PathBuf,
    /// Who owns the source's parts on the host; given exactly when this process is root.
    #[serde(default)]
    pub source_ids: Option<HostIds>,
    /// Who shall own the copy; given exactly when this process is root.
    #[serde(default)]
    pub target_ids: Option<HostIds>,
    /// Names of the directories to copy; one that is missing in the source is made empty.
    pub parts: Vec<String>,
    /// The source is in use: copy, say [`CopyEvent::Ready`], wait for [`FINISH`], and then
    /// copy once more what has changed since.
    pub live: bool,
    /// What the copy may come to.
    pub bounds: CopyBounds,
}

/// Bounds of a copy. Beyond one of them it fails and says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyBounds {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of data; holes do not count.
    pub bytes: u64,
    /// Nesting of directories; each level costs two descriptors.
    pub depth: u32,
    /// Bytes that stay free on the target's file system.
    pub keep_free: u64,
}

/// What a tree came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of data in the files; holes do not count.
    pub bytes: u64,
    /// Sockets, FIFOs, devices and mount points, which are not copied.
    pub skipped: u64,
}

impl Tally {
    /// Everything that counts against [`CopyBounds::entries`].
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.files + self.directories + self.links + self.skipped
    }
}

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// What is in the copy.
    pub tally: Tally,
    /// Passes over the source, the last one included.
    pub passes: u32,
    /// Bytes that the last pass had to copy.
    pub last_bytes: u64,
    /// Files that the last pass had to copy.
    pub last_files: u64,
    /// How long the last pass took, in milliseconds.
    pub last_ms: u64,
    /// Whether files share their blocks with the source's (FICLONE).
    pub reflinked: bool,
}

/// What the copier says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CopyEvent {
    /// What there is to copy, before anything is copied; [`CopyJob::Measure`] ends with it.
    Counted {
        /// What was found.
        tally: Tally,
    },
    /// The present pass has come this far. At most ten a second.
    Progress {
        /// Files copied so far in all passes.
        files: u64,
        /// Bytes copied so far in all passes.
        bytes: u64,
    },
    /// What can be copied while the source is in use is copied; waits for [`FINISH`].
    Ready,
    /// Everything was read, so the source may go on. The copy is not on the disk yet.
    Copied {
        /// What it came to.
        report: CopyReport,
    },
    /// The copy is on the disk; or what was to be removed is gone.
    Done {
        /// What it came to.
        report: CopyReport,
    },
    /// It failed. What was made of the target is left for the asker to remove.
    Failed {
        /// Why.
        refusal: Refusal,
    },
}

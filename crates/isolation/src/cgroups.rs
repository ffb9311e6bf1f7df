//! Control groups: limits of memory, processes and processor time that hold for a whole
//! tree of processes, per user, per sandbox start and per command (cgroups(7)).
//!
//! ```text
//! own group ─┬─ hypervisor                    (v2 only: the hypervisor itself)
//!            └─ choir-INSTALLATION
//!                 └─ USER                     limits of the user
//!                      └─ START               limits of the sandbox; given to its host user
//!                           ├─ supervisor     the supervisor and the workbench's first process
//!                           ├─ guest          limits of the guest
//!                           └─ commands
//!                                └─ COMMAND   limits of the command, set by the supervisor
//! ```
//!
//! Version 2 is taken where it carries memory and pids, else version 1, whose three
//! hierarchies get the same tree each. No cgroup file system is ever mounted inside, and
//! each guest and command has a cgroup namespace that begins at its own group, so nothing
//! inside can reach a file of these, whoever owns it.

mod find;
mod group;
mod reached;
mod tree;

use std::io;
use std::path::PathBuf;

/// What to do where memory and processes can be limited, and processor time cannot.
pub const CPU_REMEDY: &str = "let systemd delegate cpu too: `systemctl edit user@.service`, then \
                              under [Service] `Delegate=memory pids cpu`";

pub use find::Home;
pub use group::{Counts, Group};
pub use tree::Tree;

/// Limits of one group. Absent: none of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupLimits {
    /// Memory in bytes, swap included: what does not fit ends something inside.
    pub memory_bytes: Option<u64>,
    /// Processes and threads: one more cannot be forked.
    pub processes: Option<u64>,
    /// Processor time in thousandths of a core, over periods of 100 ms.
    pub cpu_millis: Option<u32>,
    /// Share among siblings when the processor is short, 1 to 10,000; 100 when absent.
    pub weight: Option<u16>,
}

/// Why there are no limits by control groups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither version carries memory and pids.
    #[error("no cgroup file system with the controllers memory and pids is mounted")]
    NoControllers,
    /// The group this process is in gives no controllers to its children.
    #[error("the cgroup {dir} has the controllers \"{have}\", not memory and pids")]
    MissingControllers {
        /// The group.
        dir: PathBuf,
        /// What it has.
        have: String,
    },
    /// The group this process is in belongs to somebody else.
    #[error("the cgroup {dir} is not delegated to this user")]
    NotDelegated {
        /// The group.
        dir: PathBuf,
    },
    /// The cgroup file system cannot be written here, as in most containers.
    #[error("the cgroup file system at {dir} is read-only")]
    ReadOnly {
        /// The group.
        dir: PathBuf,
    },
    /// Version 2 keeps a group with processes from having limited children.
    #[error("the cgroup {dir} holds processes that are not ours")]
    Shared {
        /// The group.
        dir: PathBuf,
    },
    /// Anything else.
    #[error("cannot {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoControllers | Self::MissingControllers { .. } => {
                "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), and let systemd delegate \
                 memory, pids and cpu: `systemctl edit user@.service`, then under [Service] \
                 `Delegate=memory pids cpu`"
            }
            Self::NotDelegated { .. } | Self::Shared { .. } => {
                "run the hypervisor in a group of its own: `systemd-run --user --scope -p Delegate=yes \
                 hypervisor …` (as root without --user), or as a service with Delegate=yes and \
                 DelegateSubgroup=hypervisor"
            }
            Self::ReadOnly { .. } => {
                "this is probably a container: give it a writable cgroup (docker and podman: \
                 --cgroupns=private with --security-opt unmask=/sys/fs/cgroup, or --privileged), or \
                 run on the host"
            }
            Self::Io { .. } => "see whether /sys/fs/cgroup can be written by this user",
        }
    }

    pub(crate) fn io(
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotDelegated { dir: path },
            // Listed among the mounts, and hidden by another one.
            io::ErrorKind::NotFound => Self::NoControllers,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { dir: path },
            _ => Self::Io { step, path, source },
        }
    }
}

pub(crate) use reached::{Levels, reached};
pub(crate) use tree::{COMMANDS, GUEST, settle};

/// The entrances of a group as plain descriptors, to be handed to a process that shall be
/// in it from its birth on.
pub(crate) fn entrances(group: &Group) -> io::Result<Vec<std::os::fd::OwnedFd>> {
    let files = group.entrances().map_err(io::Error::other)?;
    Ok(files.into_iter().map(Into::into).collect())
}

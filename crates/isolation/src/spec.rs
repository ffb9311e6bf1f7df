//! What a supervisor is told to build: the sandbox it starts with, and each runner later.
//!
//! Both travel only through pipes and the control socket, never through a file or an
//! argument list, because their environments hold gateway tokens (arch §5). `Debug`
//! therefore shows the names of variables, never their values.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{CommandId, CommandLimits, NetworkMode, SandboxId, StartId, TerminalSize};
use zeroize::Zeroize;

use crate::cgroups::{Group, GroupLimits};

/// The numeric user and group every sandboxed process sees itself as.
pub const INNER_ID: u32 = 1000;

/// The user name that goes with [`INNER_ID`].
pub const INNER_USER: &str = "choir";

/// Where the workspace is mounted, read-write.
pub const WORKSPACE: &str = "/workspace";

/// Where `HOME` is mounted, read-write.
pub const HOME: &str = "/home/choir";

/// Where the guest keeps its data; not mounted in runners.
pub const DATA: &str = "/var/lib/choir";

/// The read-only directory that holds the host's `channel.sock`.
pub const CHANNEL_DIR: &str = "/run/choir/channel";

/// The guest's own socket directory; not mounted in runners.
pub const APP_DIR: &str = "/run/choir/app";

/// Where the guest binary is mounted, read-only.
pub const GUEST_BINARY: &str = "/choir/bin/sandbox";

/// What `{port}` in [`RunnerSpec::relay_env`] is replaced with: the relay's loopback port.
pub const PORT_PLACEHOLDER: &str = "{port}";

/// Output kept per runner unless its limits say otherwise, in bytes.
pub const DEFAULT_OUTPUT_BYTES: u64 = 1 << 20;

/// The most output that can be kept per runner, in bytes.
pub const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// The longest standard input that a spec may carry, in bytes (`types::CommandRequest`).
pub const MAX_STDIN_BYTES: usize = 1 << 20;

/// The host user and group that a sandbox's processes are, seen from the host.
///
/// Given exactly when the supervisor is started by root; never 0, and best different for
/// each sandbox, so that the file permissions of the host separate them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostIds {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
}

/// A file or directory of the host shown inside, always read-only, nosuid and nodev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside, without `..`.
    pub target: PathBuf,
}

/// Resource limits of one process tree, as `setrlimit` knows them. Absent: as inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rlimits {
    /// Open descriptors per process; capped at the hard limit in force.
    pub open_files: u64,
    /// Processes and threads of the sandbox's user inside its user namespace.
    pub processes: u64,
    /// Size of one file, in bytes.
    pub file_bytes: Option<u64>,
    /// Address space of one process, in bytes.
    pub memory_bytes: Option<u64>,
    /// inotify instances of the guest, and of all runners together. What is counted here
    /// and below counts into the host user's as well, which an ordinary user's sandboxes
    /// all share (inotify(7), namespaces(7) "The /proc/sys/user directory").
    pub inotify_instances: u64,
    /// inotify watches of the guest, and of all runners together.
    pub inotify_watches: u64,
}

impl Default for Rlimits {
    fn default() -> Self {
        Self {
            open_files: 4096,
            processes: 2048,
            file_bytes: None,
            memory_bytes: None,
            inotify_instances: 48,
            inotify_watches: 65_536,
        }
    }
}

/// A wall that a kernel may lack if the installation says so by name (arch §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptionalWall {
    /// Landlock's scopes for abstract sockets and signals, which Linux has since 6.12. The
    /// net and pid namespaces guard the same doors.
    LandlockScopes,
    /// Limits by control groups, of memory, processes and processor time for whole trees.
    /// Without them only the limits of setrlimit(2) hold, each for a single process.
    CgroupLimits,
    /// The cpu controller alone, where a host delegates memory and pids without it.
    CgroupCpu,
}

impl OptionalWall {
    /// Its name in a configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LandlockScopes => "landlock_scopes",
            Self::CgroupLimits => "cgroup_limits",
            Self::CgroupCpu => "cgroup_cpu",
        }
    }
}

/// Limits by control groups of one start, and the user whose share it counts into.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeLimits {
    /// The name of the user's group; letters, digits and `-`.
    pub user: String,
    /// Of all sandboxes of the user together.
    pub of_user: GroupLimits,
    /// Of guest and commands together.
    pub of_sandbox: GroupLimits,
    /// Of the guest.
    pub of_guest: GroupLimits,
}

/// What a sandbox may keep on disk, in its workspace, home and data together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Bytes. Absent: no limit.
    pub bytes: Option<u64>,
    /// Files, directories and links. Absent: no limit.
    pub entries: Option<u64>,
}

/// The guest's process.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Program (an absolute path inside, or a name looked up in the environment's `PATH`)
    /// and arguments.
    pub argv: Vec<String>,
    /// Its whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside.
    #[serde(default = "default_cwd")]
    pub cwd: String,
}

/// One start of one sandbox. The supervisor reads it as JSON from its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// This start of it.
    pub start_id: StartId,
    /// What a client of the control socket has to know, in hexadecimal, at least 32 digits.
    pub nonce: Nonce,
    /// Host name inside; at most 64 bytes.
    pub hostname: String,
    /// Who the sandbox is on the host. `None`: an ordinary user runs it as themselves.
    #[serde(default)]
    pub host_ids: Option<HostIds>,
    /// `…/run/<start_id>` on the host; made by the supervisor.
    pub run_dir: PathBuf,
    /// Host directory of the workspace; made if missing.
    pub workspace: PathBuf,
    /// Host directory of `HOME`; made if missing.
    pub home: PathBuf,
    /// Host directory of the guest's own data; made if missing.
    pub data: PathBuf,
    /// Host path of the binary shown at [`GUEST_BINARY`].
    pub guest_binary: PathBuf,
    /// Further read-only mounts, shown to guest and runners alike.
    #[serde(default)]
    pub extra_mounts: Vec<Bind>,
    /// Directories put before the `PATH` of guest and runners.
    #[serde(default)]
    pub path_additions: Vec<String>,
    /// Host directory that replaces the embedded desktop, shown read-only at
    /// `/choir/desktop` in the guest.
    #[serde(default)]
    pub desktop_override: Option<PathBuf>,
    /// What runs in it.
    pub guest: GuestSpec,
    /// Bounds of the guest and of each runner (whose `processes` may ask for less).
    #[serde(default)]
    pub rlimits: Rlimits,
    /// Limits of whole trees, which the driver turns into groups.
    #[serde(default)]
    pub limits: TreeLimits,
    /// The group made for this start; without it, and without the name of that in
    /// `accept_missing`, nothing starts.
    #[serde(default)]
    pub cgroup: Option<Group>,
    /// What may be kept on disk.
    #[serde(default)]
    pub disk: DiskLimits,
    /// Walls that may be missing; without an entry here their absence refuses the start.
    #[serde(default)]
    pub accept_missing: Vec<OptionalWall>,
    /// Bytes of guest output kept.
    #[serde(default = "default_log_bytes")]
    pub log_bytes: u64,
}

/// One command in a fresh runner. Travels in a `spawn` request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerSpec {
    /// The id under which it is known from now on; never used before in this start.
    pub command_id: CommandId,
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// Absolute working directory inside; [`WORKSPACE`] when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Variables added when `channel` is set, with [`PORT_PLACEHOLDER`] replaced.
    #[serde(default)]
    pub relay_env: Vec<(String, String)>,
    /// Standard input, at most [`MAX_STDIN_BYTES`].
    #[serde(default)]
    pub stdin: Option<String>,
    /// Keep standard input open for what `attach` sends; otherwise it ends after `stdin`.
    #[serde(default)]
    pub stdin_open: bool,
    /// Run in a pseudo-terminal of this size.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Told back in listings; the supervisor does nothing with it.
    #[serde(default)]
    pub detach: bool,
    /// Give it a channel of its own, and a loopback relay to it.
    #[serde(default)]
    pub channel: bool,
    /// Told back in listings; the way out itself is the channel.
    #[serde(default, skip_serializing_if = "NetworkMode::is_none")]
    pub network: NetworkMode,
    /// Bounds.
    #[serde(default)]
    pub limits: CommandLimits,
    /// Told back in listings.
    #[serde(default)]
    pub label: Option<String>,
}

/// The secret that a client of the control socket proves itself with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(String);

impl Nonce {
    /// Takes the hexadecimal text.
    #[must_use]
    pub fn new(hex: String) -> Self {
        Self(hex)
    }

    /// The text, to be sent and to be kept by the host.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is long enough to be unguessable and is hexadecimal.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        (32..=128).contains(&self.0.len()) && self.0.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// Overwrites it, in a process that does not need it.
    pub(crate) fn wipe(&mut self) {
        self.0.zeroize();
    }

    /// Compares without telling by its duration how much was right.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y)) == 0
    }
}

impl SandboxSpec {
    /// Overwrites what is secret in it: the guest's environment, which holds its token, and
    /// the nonce. A forked process has a copy of its parent's memory, and none but the
    /// guest's own may keep the guest's credential (arch §1).
    pub(crate) fn wipe(&mut self) {
        self.nonce.wipe();
        self.wipe_guest_environment();
    }

    /// Overwrites the guest's environment alone.
    pub(crate) fn wipe_guest_environment(&mut self) {
        for (_, value) in &mut self.guest.env {
            value.zeroize();
        }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(…)")
    }
}

impl fmt::Debug for GuestSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSpec")
            .field("argv", &self.argv)
            .field("env", &Names(&self.env))
            .field("cwd", &self.cwd)
            .finish()
    }
}

impl fmt::Debug for RunnerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerSpec")
            .field("command_id", &self.command_id)
            .field("argv", &self.argv)
            .field("cwd", &self.cwd)
            .field("env", &Names(&self.env))
            .field("channel", &self.channel)
            .field("terminal", &self.terminal)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Shows the names of variables without their values.
struct Names<'a>(&'a [(String, String)]);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

fn default_cwd() -> String {
    WORKSPACE.to_owned()
}

const fn default_log_bytes() -> u64 {
    1 << 20
}

#[cfg(test)]
mod tests {
    use super::{GuestSpec, Nonce};

    #[test]
    fn debug_shows_no_value_of_a_variable() {
        let guest = GuestSpec {
            argv: vec!["sandbox".into()],
            env: vec![("TOKEN".into(), "choirgw_secret".into())],
            cwd: "/".into(),
        };
        let shown = format!("{guest:?} {:?}", Nonce::new("5ec2e7".into()));
        assert!(shown.contains("TOKEN"));
        assert!(!shown.contains("secret") && !shown.contains("5ec2e7"));
    }

    #[test]
    fn a_nonce_matches_only_itself() {
        let nonce = Nonce::new("ab".repeat(16));
        assert!(nonce.is_well_formed() && nonce.matches(&nonce.clone()));
        assert!(!nonce.matches(&Nonce::new("ab".repeat(15))));
        assert!(!nonce.matches(&Nonce::new("ac".repeat(16))));
        assert!(!Nonce::new("abc".into()).is_well_formed());
    }
}

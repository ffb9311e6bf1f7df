//! What limits a sandbox has: for its spec, and in words for whoever asks.

use runtime::cgroups::GroupLimits;
use runtime::spec::{DiskLimits, OptionalWall, Rlimits, TreeLimits};
use serde::Serialize;
use types::{
    CommandExit, LimitReached, LimitScope, LimitedResource, NoticeKind, SandboxId, UserId,
    format_bytes,
};

use super::notices::Notices;

use crate::config::{Limits, Sandbox, Share};

/// Share of a guest when the processor is short, against 100 of all commands together: what
/// a person looks at goes on answering while commands compute.
const GUEST_WEIGHT: u16 = 300;

/// `live` and `dev`.
const SANDBOXES_OF_A_USER: u64 = 2;

/// Every limit of a sandbox, its commands and its user. Sizes in bytes, processor time in
/// thousandths of a core; absent means that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EffectiveLimits {
    /// Of one command, unless it asks for less.
    pub(crate) command: CommandShare,
    /// Of the guest runtime.
    pub(crate) guest: CommandShare,
    /// Of guest and commands together.
    pub(crate) sandbox: WholeShare,
    /// Of all sandboxes of the user together.
    pub(crate) user: WholeShare,
    /// Commands at once.
    pub(crate) commands: u32,
    /// Open files per process.
    pub(crate) open_files: u64,
    /// inotify instances of the guest, and of all commands together.
    pub(crate) inotify_instances: u64,
    /// inotify watches of the guest, and of all commands together.
    pub(crate) inotify_watches: u64,
    /// Whether a sandbox's bytes and entries on disk are limited by its part of what its user
    /// may have, rather than by what one sandbox may.
    #[serde(skip)]
    pub(crate) users_disk: (bool, bool),
    /// Whether the configuration accepts that a host without cgroups does not keep those of
    /// memory, whole sandboxes and whole users.
    pub(crate) cgroups_may_be_missing: bool,
}

/// What one tree of processes may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct CommandShare {
    /// Memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// Processor time.
    pub(crate) cpu_millis: Option<u32>,
    /// Size of one file.
    pub(crate) file_bytes: Option<u64>,
    /// Wall time in milliseconds, for a command that names none.
    pub(crate) wall_ms: Option<u64>,
    /// Bytes of output kept.
    pub(crate) output_bytes: Option<u64>,
}

/// What many trees may have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct WholeShare {
    /// Memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// Processor time.
    pub(crate) cpu_millis: Option<u32>,
    /// Bytes on disk.
    pub(crate) disk_bytes: Option<u64>,
    /// Files, directories and links on disk.
    pub(crate) disk_entries: Option<u64>,
}

impl EffectiveLimits {
    /// What the configuration says.
    #[must_use]
    pub(crate) fn of(config: &Sandbox) -> Self {
        let limits = &config.limits;
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).ok();
        Self {
            command: CommandShare {
                memory_bytes: limits.memory,
                processes: limits.processes.into(),
                cpu_millis: narrower(limits.cpu_millis, limits.sandbox.cpu_millis),
                file_bytes: limits.file_bytes,
                wall_ms: millis(limits.command_wall),
                output_bytes: Some(limits.output_bytes),
            },
            guest: CommandShare {
                memory_bytes: limits.guest_memory,
                processes: limits.guest_processes.into(),
                cpu_millis: None,
                file_bytes: limits.file_bytes,
                wall_ms: None,
                output_bytes: None,
            },
            sandbox: WholeShare {
                disk_bytes: part(limits.sandbox.disk, limits.user.disk),
                disk_entries: part(limits.sandbox.disk_entries, limits.user.disk_entries),
                ..whole(&limits.sandbox, limits.user.cpu_millis)
            },
            user: whole(&limits.user, None),
            commands: limits.commands,
            open_files: limits.open_files,
            inotify_instances: limits.inotify_instances,
            inotify_watches: limits.inotify_watches,
            users_disk: (
                binds(limits.sandbox.disk, limits.user.disk),
                binds(limits.sandbox.disk_entries, limits.user.disk_entries),
            ),
            cgroups_may_be_missing: config.accept_missing.contains(&OptionalWall::CgroupLimits),
        }
    }

    /// As groups of processes.
    pub(crate) fn of_trees(&self, user: UserId) -> TreeLimits {
        let group = |share: &WholeShare| GroupLimits {
            memory_bytes: share.memory_bytes,
            processes: Some(share.processes),
            cpu_millis: share.cpu_millis,
            weight: None,
        };
        TreeLimits {
            user: user.to_string(),
            of_user: group(&self.user),
            of_sandbox: group(&self.sandbox),
            of_guest: GroupLimits {
                memory_bytes: self.guest.memory_bytes,
                // Counted per process as well, see `of_processes`; the guest's own count
                // has room for what the supervisor starts beside it.
                processes: Some(self.guest.processes.saturating_add(1)),
                cpu_millis: None,
                weight: Some(GUEST_WEIGHT),
            },
        }
    }

    /// As limits that each process inherits.
    pub(crate) fn of_processes(&self) -> Rlimits {
        Rlimits {
            open_files: self.open_files,
            // Guest and runners are one user of one user namespace, and counted together.
            processes: self.command.processes.saturating_add(self.guest.processes),
            file_bytes: self.command.file_bytes,
            inotify_instances: self.inotify_instances,
            inotify_watches: self.inotify_watches,
            ..Rlimits::default()
        }
    }

    /// What may be kept on disk.
    pub(crate) fn of_disk(&self) -> DiskLimits {
        // The part of a user's share is what binds when the sandbox's own limit is not less.
        DiskLimits {
            bytes: self.sandbox.disk_bytes,
            entries: self.sandbox.disk_entries,
            bytes_are_the_users: self.users_disk.0,
            entries_are_the_users: self.users_disk.1,
        }
    }
}

/// Tells the owner which limit ended something, or made it fail.
pub(super) fn tell(notices: &Notices, sandbox: SandboxId, who: &str, exit: &CommandExit) {
    if let Some(reached) = &exit.limit {
        notices.note(
            sandbox,
            NoticeKind::Quota,
            &format!("{}:{}", reached.scope.as_str(), reached.resource.as_str()),
            &format!("{who} met a limit: {reached}"),
            Some(&how_to_raise(reached)),
        );
    }
}

/// Tells the owner that a sandbox has too much on disk, and what that means.
pub(super) fn tell_disk(
    notices: &Notices,
    sandbox: SandboxId,
    bytes: u64,
    over: Option<LimitReached>,
) {
    let Some(reached) = over else { return };
    notices.note(
        sandbox,
        NoticeKind::Quota,
        &format!("disk:{}", reached.resource.as_str()),
        &format!(
            "the sandbox keeps too much on disk ({}): {reached}; commands were ended, and only \
             terminals can be opened until it is less",
            format_bytes(bytes)
        ),
        Some(&how_to_raise(&reached)),
    );
}

/// Where a limit that was reached is raised, as a hint for people.
#[must_use]
pub(crate) fn how_to_raise(reached: &LimitReached) -> String {
    use LimitScope::{Command, Sandbox, User};
    use LimitedResource::{DiskBytes, DiskEntries, Memory, Processes};
    let key = match (reached.scope, reached.resource) {
        (Command, Memory) => "memory",
        (Command, Processes) => "processes",
        (Sandbox, Memory) => "sandbox_memory",
        (Sandbox, Processes) => "sandbox_processes",
        (User, Memory) => "user_memory",
        (User, Processes) => "user_processes",
        (User, DiskBytes) => "user_disk",
        (User, DiskEntries) => "user_files",
        (Sandbox | Command, DiskBytes) => "sandbox_disk",
        (Sandbox | Command, DiskEntries) => "sandbox_files",
    };
    let first = match (reached.scope, reached.resource) {
        (Command, Memory) => {
            "let it need less (fewer parallel jobs), or, if it was started with --memory, ask for more"
        }
        (Command, Processes) => {
            "let it start fewer, or, if it was started with --processes, ask for more"
        }
        (_, Memory | Processes) => "end other commands first",
        (_, DiskBytes | DiskEntries) => "delete files, in the desktop or in a terminal",
    };
    let part = match (reached.scope, reached.resource) {
        (User, DiskBytes | DiskEntries) => {
            format!(", of which each sandbox has one part in {SANDBOXES_OF_A_USER}")
        }
        _ => String::new(),
    };
    format!("{first}; an operator raises it with sandbox.limits.{key}{part}")
}

const fn whole(share: &Share, around: Option<u32>) -> WholeShare {
    WholeShare {
        memory_bytes: share.memory,
        processes: share.processes,
        cpu_millis: narrower(share.cpu_millis, around),
        disk_bytes: share.disk,
        disk_entries: share.disk_entries,
    }
}

/// Whether the even part of what a user may keep is less than what one sandbox may.
fn binds(own: Option<u64>, user: Option<u64>) -> bool {
    part(own, user) != own
}

/// What one sandbox may keep on disk: no more than its even part of what its user may.
fn part(own: Option<u64>, user: Option<u64>) -> Option<u64> {
    let even = user.map(|all| all / SANDBOXES_OF_A_USER);
    match (own, even) {
        (Some(own), Some(even)) => Some(own.min(even)),
        (own, even) => own.or(even),
    }
}

/// The smaller of two limits: version 1 of cgroups refuses an inner one above the outer.
const fn narrower(own: Option<u32>, around: Option<u32>) -> Option<u32> {
    match (own, around) {
        (Some(own), Some(around)) if own > around => Some(around),
        (own, _) => own,
    }
}

/// The limits of one command that it may not exceed, for requests.
pub(crate) const fn most(limits: &Limits) -> (Option<u64>, Option<u32>, Option<u64>) {
    (
        limits.memory,
        narrower(limits.cpu_millis, limits.sandbox.cpu_millis),
        limits.file_bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::{EffectiveLimits, how_to_raise};
    use crate::config::{Config, RawConfig};
    use types::{LimitReached, LimitScope, LimitedResource, UserId};

    #[test]
    fn an_inner_share_of_the_processor_is_never_above_the_outer() {
        let variables = [
            ("CHOIR_SANDBOX__LIMITS__CPU", "3"),
            ("CHOIR_SANDBOX__LIMITS__SANDBOX_CPU", "2"),
            ("CHOIR_SANDBOX__LIMITS__USER_CPU", "1.5"),
            ("CHOIR_SANDBOX__LIMITS__SANDBOX_MEMORY", "512 MiB"),
            ("CHOIR_SANDBOX__LIMITS__USER_DISK", "6 GiB"),
            ("CHOIR_SANDBOX__LIMITS__FILE_BYTES", "unlimited"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::build(RawConfig::read(None, variables).unwrap()).unwrap();
        let limits = EffectiveLimits::of(&config.sandbox);
        assert_eq!(limits.command.cpu_millis, Some(2000));
        assert_eq!(limits.sandbox.cpu_millis, Some(1500));
        assert_eq!(limits.sandbox.disk_bytes, Some(3 << 30));
        let disk = limits.of_disk();
        assert!(
            disk.bytes_are_the_users && !disk.entries_are_the_users,
            "{disk:?}"
        );
        assert_eq!(limits.command.file_bytes, None);
        let trees = limits.of_trees(UserId::generate());
        assert_eq!(trees.of_sandbox.memory_bytes, Some(512 << 20));
        assert_eq!(trees.of_sandbox.cpu_millis, Some(1500));
        assert!(!limits.cgroups_may_be_missing);
    }

    #[test]
    fn every_reached_limit_names_the_key_that_raises_it() {
        let mut keys = std::collections::BTreeSet::new();
        for scope in [LimitScope::Sandbox, LimitScope::User] {
            for resource in [
                LimitedResource::Memory,
                LimitedResource::Processes,
                LimitedResource::DiskBytes,
                LimitedResource::DiskEntries,
            ] {
                let hint = how_to_raise(&LimitReached {
                    resource,
                    scope,
                    limit: 1,
                });
                let (_, key) = hint.rsplit_once("sandbox.limits.").unwrap();
                let (key, _) = key.split_once(',').unwrap_or((key, ""));
                let value = if key.contains("memory") || key.contains("disk") {
                    "\"1 GiB\""
                } else {
                    "5000"
                };
                let text = format!("[sandbox.limits]\n{key} = {value}");
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("choir.toml");
                std::fs::write(&path, text).unwrap();
                Config::build(RawConfig::read(Some(&path), Vec::new()).unwrap()).unwrap();
                keys.insert(key.to_owned());
            }
        }
        assert_eq!(keys.len(), 8);
    }
}

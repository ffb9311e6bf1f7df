//! Which limit a command or a guest met.

use types::{LimitReached, LimitScope, LimitedResource};

use super::{Counts, GroupLimits};

/// Whose limits may have been met, and what had happened at each level before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Levels {
    /// The command's own.
    pub(crate) command: GroupLimits,
    /// The sandbox's.
    pub(crate) sandbox: GroupLimits,
    /// The user's.
    pub(crate) user: GroupLimits,
    /// The sandbox's counts when the command began.
    pub(crate) before: Counts,
}

/// Finds it in what happened in the command's group and in the sandbox's. Being ended for
/// memory comes before forks that failed.
pub(crate) fn reached(levels: &Levels, command: Counts, sandbox: Counts) -> Option<LimitReached> {
    if command.oom_kills > 0 {
        // Memory is charged in batches, so the last one may have been left out.
        let full = |limit: u64, counts: Counts| {
            counts
                .most_memory
                .is_some_and(|most| most >= limit - limit / 64)
        };
        let own = levels
            .command
            .memory_bytes
            .filter(|limit| command.memory_limit > 0 || full(*limit, command));
        let of_sandbox = levels.sandbox.memory_bytes.filter(|limit| {
            sandbox.memory_limit > levels.before.memory_limit || full(*limit, sandbox)
        });
        return narrowest(
            LimitedResource::Memory,
            own,
            of_sandbox,
            levels.user.memory_bytes,
        );
    }
    if command.failed_forks > 0 {
        // A limit was met only by a group that ever was that full.
        let full = |limit: &u64, counts: Counts| counts.most_processes.is_none_or(|n| n >= *limit);
        let own = levels.command.processes.filter(|n| full(n, command));
        let of_sandbox = levels.sandbox.processes.filter(|n| full(n, sandbox));
        return narrowest(
            LimitedResource::Processes,
            // The first process of the tree is ours.
            own.map(|n| n.saturating_sub(1)),
            of_sandbox,
            levels.user.processes,
        );
    }
    None
}

fn narrowest(
    resource: LimitedResource,
    command: Option<u64>,
    sandbox: Option<u64>,
    user: Option<u64>,
) -> Option<LimitReached> {
    let (scope, limit) = command
        .map(|limit| (LimitScope::Command, limit))
        .or(sandbox.map(|limit| (LimitScope::Sandbox, limit)))
        .or(user.map(|limit| (LimitScope::User, limit)))?;
    Some(LimitReached {
        resource,
        scope,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use types::{LimitScope, LimitedResource};

    use super::{Counts, GroupLimits, Levels, reached};

    const fn limits(memory: u64, processes: u64) -> GroupLimits {
        GroupLimits {
            memory_bytes: Some(memory),
            processes: Some(processes),
            cpu_millis: None,
            weight: None,
        }
    }

    fn levels() -> Levels {
        Levels {
            command: limits(10, 65),
            sandbox: limits(20, 100),
            user: limits(30, 300),
            before: Counts {
                memory_limit: 5,
                ..Counts::default()
            },
        }
    }

    fn scope(command: Counts, sandbox: Counts) -> Option<(LimitedResource, LimitScope, u64)> {
        reached(&levels(), command, sandbox).map(|one| (one.resource, one.scope, one.limit))
    }

    #[test]
    fn the_level_that_was_full_is_named() {
        let none = Counts::default();
        assert_eq!(scope(none, none), None);
        let killed = Counts {
            oom_kills: 1,
            ..none
        };
        let own = Counts {
            memory_limit: 1,
            ..killed
        };
        // A kernel that counts no such thing tells by the peak.
        let peak = Counts {
            most_memory: Some(10),
            ..killed
        };
        assert_eq!(
            scope(peak, none),
            Some((LimitedResource::Memory, LimitScope::Command, 10))
        );
        let sandbox = Counts {
            memory_limit: 6,
            ..none
        };
        let memory = LimitedResource::Memory;
        assert_eq!(scope(own, none), Some((memory, LimitScope::Command, 10)));
        assert_eq!(
            scope(killed, sandbox),
            Some((memory, LimitScope::Sandbox, 20))
        );
        // What the sandbox met before this command began was not its doing.
        assert_eq!(
            scope(
                killed,
                Counts {
                    memory_limit: 5,
                    ..none
                }
            ),
            Some((memory, LimitScope::User, 30))
        );
    }

    #[test]
    fn failed_forks_are_laid_to_the_group_that_was_full() {
        let at = |most| Counts {
            failed_forks: 1,
            most_processes: Some(most),
            ..Counts::default()
        };
        let processes = LimitedResource::Processes;
        assert_eq!(
            scope(at(65), at(70)),
            Some((processes, LimitScope::Command, 64))
        );
        assert_eq!(
            scope(at(12), at(100)),
            Some((processes, LimitScope::Sandbox, 100))
        );
        assert_eq!(
            scope(at(12), at(70)),
            Some((processes, LimitScope::User, 300))
        );
    }
}

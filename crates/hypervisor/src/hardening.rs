//! What this process gives up before it holds a secret.

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

/// What this process writes is for its own user alone; no core dump of this process, whose memory holds platform keys, is ever written; and
/// no other process of the same user reads its memory or environment through `/proc`.
/// Children that execute another program are traceable again, but dump no core either.
///
/// # Errors
/// The kernel refused.
pub fn keep_memory_private() -> std::io::Result<()> {
    // One byte, not none: with 0 the kernel still runs a `core_pattern` program of the host
    // over a crashed process, and sandboxes inherit this limit (core(5)).
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(1),
            maximum: Some(1),
        },
    )?;
    // The database and its journals take their mode from here.
    umask(Mode::RWXG | Mode::RWXO);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

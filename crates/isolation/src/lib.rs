//! The walls around sandboxes and runners, and the supervisor that keeps them (arch §1, §4, §8).
//!
//! ```text
//! hypervisor ─spawns─▶ supervisor, one per start, the sandbox's host user, no privileges
//!                        ├─▶ guest init: own user, mount, pid, net, ipc, uts, cgroup namespaces
//!                        │     └─▶ guest
//!                        └─▶ workbench init: the same, of its own; runs nothing untrusted
//!                              └─▶ runner init, one per command: user, mount, pid, ipc, cgroup
//!                                    └─▶ command
//! ```
//!
//! Each init builds its view from what was planned before (`walls::plan`), then gives up
//! for good, in this order: being readable by others, capabilities, files outside its view
//! (Landlock), and every system call that its programs do not need (seccomp). All of it is
//! one thread per process, forked without exec, so `sys` is the only module with `unsafe`
//! beside the drills.
//!
//! Everyone else needs only [`spec`] (what to build), [`protocol`] (how to talk to a
//! supervisor) and [`probe`] (whether this machine can build it). The `supervisor` binary
//! is [`supervisor::main`].

pub mod cgroups;
mod copier;
pub mod copying;
mod disk;
mod exec;
mod freeze;
mod init;
mod namespaces;
mod packet;
mod ports;
pub mod probe;
pub mod protocol;
mod relay;
pub mod spec;
pub mod supervisor;
mod sys;
mod walls;

/// Whether this kernel has Landlock's scopes (since Linux 6.12, ABI 6).
#[must_use]
pub fn has_landlock_scopes() -> bool {
    sys::landlock_abi() >= 6
}

/// The name of a system call as the seccomp profiles have it, and their reason for what happens
/// to it. `None` for what no profile names.
#[must_use]
pub fn describe_call(name: &str) -> Option<(&'static str, &'static str)> {
    walls::profile::describe(name)
}

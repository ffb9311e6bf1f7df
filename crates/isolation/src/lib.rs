//! The walls around sandboxes and runners, and the supervisor that keeps them (arch §1, §4, §8).
//!
//! Everyone else needs only [`spec`] (what to build), [`protocol`] (how to talk to a
//! supervisor) and [`probe`] (whether this machine can build it). The `supervisor` binary
//! is [`supervisor::main`].

mod exec;
mod init;
mod namespaces;
mod packet;
pub mod probe;
pub mod protocol;
mod relay;
pub mod spec;
pub mod supervisor;
mod sys;
mod walls;

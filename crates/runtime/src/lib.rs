//! Sandbox lifecycle (arch §4): the driver port, the drivers, and the state machine
//! that decides from the facts they report.
//!
//! A *driver* builds a sandbox and reports what is so. The [`Fleet`] decides what is
//! ready, joins concurrent starts, restarts what crashed and gives up on what cannot
//! live. What belongs to the control plane (tokens, channels, health over HTTP) is
//! asked of a [`Host`].

mod control;
mod copier;
mod driver;
mod fleet;
mod groups;
mod instance;
mod namespace;

pub use control::{Attachment, Control, ControlError, Frozen, Output, Spawned};
pub use copier::Copier;
pub use driver::{Adopted, BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
pub use fleet::{Crashed, Fleet, FleetOptions, Host, State, Status};
pub use instance::Instance;
pub use isolation::probe::{Check, probe};
pub use isolation::{cgroups, copying, describe_call, protocol, spec};
pub use namespace::NamespaceDriver;

//! The agent: a run takes a prompt, calls a model through the gateway and lets it use
//! tools until it is done or meets a bound. Every step is an event.
//!
//! The model client is our own (`model`). The crates that would serve bring their own
//! HTTP stack and their own idea of retries, keys and base URLs, and the better kept ones
//! change their types monthly; what is needed here is two request encodings and two
//! decoders of server-sent events over the channel's Unix socket, a few hundred lines
//! that property tests cover.

mod conductor;
mod history;
mod model;
mod outage;
mod output;
mod prompt;
mod providers;
mod resume;
mod run;
mod task;
mod tools;

pub use conductor::{Conductor, ConductorError, MAX_RUNS};
pub use model::{MAX_ATTEMPTS, RetryPolicy};
pub use providers::{ModelName, Provider, ProviderKind, Providers};
pub use resume::{MAX_FRUITLESS, MAX_RESUMPTIONS};
pub use task::{Bounds, MAX_PROMPT, Task, TaskError};

//! Who may do what: a pure function from a request to a decision with its reasons.
//!
//! There is one rule set for now, built in: an owner may use and manage their own sandboxes,
//! an admin may manage the lifecycle of anybody's, a sandbox may run commands in itself, and
//! a runner may call providers when that was granted to it. Everything else is denied, and
//! the decision says what was missing (a default deny that names nothing helps nobody).
//!
//! The subject comes from authentication, never from the request's own words (threats.md).

mod capability;
mod decide;
mod decision;
mod request;

pub use capability::{Capability, ParseCapabilityError};
pub use decide::decide;
pub use decision::{Decision, Effect, Reason};
pub use request::{Action, ParseScopeError, Request, Resource, Scope, Standing, Subject};

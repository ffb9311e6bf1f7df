//! A swap and what became of it (arch §4).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::SandboxId;

/// What a swap is asked to do; an absent body means the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwapRequest {
    /// Whether the swap is taken back by itself when the new `live` fails within its grace
    /// period and the old one is healthy.
    pub rollback: bool,
}

impl Default for SwapRequest {
    fn default() -> Self {
        Self { rollback: true }
    }
}

/// The outcome of a swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapView {
    /// The generation that the swap made.
    pub generation: u64,
    /// The sandbox that is `live` now.
    pub live: SandboxId,
    /// The sandbox that is `dev` now.
    pub dev: SandboxId,
    /// Time from request to the new pointer being served, in milliseconds.
    pub took_ms: u64,
    /// How much of that the change of the pointer took, on the disk and served, in
    /// microseconds; the rest is the proof of health and the audit log.
    #[serde(default)]
    pub flip_us: u64,
    /// Until when the new `live` is on trial, RFC 3339; absent without automatic rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_until: Option<String>,
}

/// What became of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapOutcome {
    /// The new `live` is being watched; if it fails, the swap is taken back.
    OnTrial,
    /// It stands.
    Kept,
    /// The new `live` failed, and the roles are as they were before.
    RolledBack,
    /// The new `live` failed, and so has the old one: nothing was changed.
    Stayed,
}

impl SwapOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::OnTrial, Self::Kept, Self::RolledBack, Self::Stayed];

    /// The outcome as it stands in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnTrial => "on_trial",
            Self::Kept => "kept",
            Self::RolledBack => "rolled_back",
            Self::Stayed => "stayed",
        }
    }
}

impl fmt::Display for SwapOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not an outcome of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseSwapOutcomeError;

impl fmt::Display for ParseSwapOutcomeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an outcome of a swap: expected on_trial, kept, rolled_back or stayed")
    }
}

impl std::error::Error for ParseSwapOutcomeError {}

impl std::str::FromStr for SwapOutcome {
    type Err = ParseSwapOutcomeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
            .ok_or(ParseSwapOutcomeError)
    }
}

/// A user's last swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapStatus {
    /// The generation that it made; an automatic rollback makes one more.
    pub generation: u64,
    /// When, RFC 3339.
    pub swapped_at: String,
    /// What became of it.
    pub outcome: SwapOutcome,
    /// Until when the new `live` is on trial, RFC 3339; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_until: Option<String>,
    /// How long that still is, in milliseconds, for clients with another clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_left_ms: Option<u64>,
    /// Why it was taken back, or was not, in a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{SwapOutcome, SwapRequest};

    #[test]
    fn outcomes_are_written_as_they_are_read() {
        for outcome in SwapOutcome::ALL {
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
            assert_eq!(
                serde_json::to_value(outcome).unwrap(),
                serde_json::json!(outcome.as_str())
            );
        }
        assert!("lost".parse::<SwapOutcome>().is_err());
    }

    #[test]
    fn a_swap_that_says_nothing_is_taken_back_when_it_fails() {
        let empty: SwapRequest = serde_json::from_str("{}").unwrap();
        assert!(empty.rollback);
        let without: SwapRequest = serde_json::from_str("{\"rollback\":false}").unwrap();
        assert!(!without.rollback);
    }
}

//! What is asked of a run, and its bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest prompt, in bytes.
pub const MAX_PROMPT: usize = 64 * 1024;

const DEFAULT_STEPS: u32 = 30;
const MOST_STEPS: u32 = 500;
const DEFAULT_SECONDS: u64 = 900;
const MOST_SECONDS: u64 = 4 * 3600;
const DEFAULT_TOKENS: u64 = 200_000;
const MOST_TOKENS: u64 = 10_000_000;

/// A task for the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What to do, at most 64 KiB.
    pub prompt: String,
    /// `provider/model`; the gateway's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Model calls at most, 1 to 500; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// Wall time at most, 1 to 14,400 seconds; 900 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u64>,
    /// Tokens read and written by the model at most, 1 to 10,000,000; 200,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

/// Why a task is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TaskError {
    /// Nothing to do.
    #[error("the prompt is empty")]
    Empty,
    /// Too long.
    #[error(
        "the prompt has {0} bytes; at most {MAX_PROMPT} are accepted. Put long material into a file"
    )]
    TooLong(usize),
    /// A bound is out of range.
    #[error("{name} has to be between 1 and {most}")]
    Bound {
        /// The field.
        name: &'static str,
        /// Its greatest value.
        most: u64,
    },
}

/// The bounds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Model calls.
    pub steps: u32,
    /// Time that it works, over all its resumptions.
    pub time: Duration,
    /// Tokens read and written.
    pub tokens: u64,
}

impl Task {
    /// The bounds that the task asks for.
    ///
    /// # Errors
    /// When the prompt or a bound is not acceptable.
    pub fn bounds(&self) -> Result<Bounds, TaskError> {
        if self.prompt.trim().is_empty() {
            return Err(TaskError::Empty);
        }
        if self.prompt.len() > MAX_PROMPT {
            return Err(TaskError::TooLong(self.prompt.len()));
        }
        let within = |name, value: u64, most: u64| {
            if (1..=most).contains(&value) {
                Ok(value)
            } else {
                Err(TaskError::Bound { name, most })
            }
        };
        let steps = self.max_steps.unwrap_or(DEFAULT_STEPS);
        within("max_steps", u64::from(steps), u64::from(MOST_STEPS))?;
        let seconds = within(
            "max_seconds",
            self.max_seconds.unwrap_or(DEFAULT_SECONDS),
            MOST_SECONDS,
        )?;
        let tokens = within(
            "max_tokens",
            self.max_tokens.unwrap_or(DEFAULT_TOKENS),
            MOST_TOKENS,
        )?;
        Ok(Bounds {
            steps,
            time: Duration::from_secs(seconds),
            tokens,
        })
    }
}

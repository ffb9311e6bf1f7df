//! What the control plane tells about a sandbox.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{NetworkMode, Role, SandboxId, StartId, UserName};

/// Where a sandbox stands in its lifecycle (arch §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// No process.
    Stopped,
    /// Being built, or built and not yet healthy.
    Starting,
    /// Healthy.
    Running,
    /// Being taken down.
    Stopping,
    /// Could not start or died too often; `reason` says why.
    Failed,
}

impl SandboxState {
    /// The state as it stands in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a sandbox state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseStateError;

impl fmt::Display for ParseStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a sandbox state: expected stopped, starting, running, stopping or failed")
    }
}

impl std::error::Error for ParseStateError {}

impl FromStr for SandboxState {
    type Err = ParseStateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::Stopped,
            Self::Starting,
            Self::Running,
            Self::Stopping,
            Self::Failed,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or(ParseStateError)
    }
}

/// One sandbox, as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxView {
    /// Stable id.
    pub id: SandboxId,
    /// Its owner.
    pub user: UserName,
    /// Its present role.
    pub role: Role,
    /// Its state.
    pub state: SandboxState,
    /// Why it is `failed`, or was stopped by nobody's order, in a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The end of the guest's log when it is `failed`, one entry per line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// The present start, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_id: Option<StartId>,
    /// When the present start began, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Number of swaps so far; a client that knows a smaller one is stale.
    pub generation: u64,
    /// What it can reach at the moment: the widest mode of the commands that run in it,
    /// because commands share a loopback and so each other's way out.
    #[serde(default)]
    pub network: NetworkMode,
    /// Where a browser opens it.
    pub url: String,
}

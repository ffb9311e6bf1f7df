//! What a command may be granted beyond running.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A capability, as `CommandRequest::capabilities` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Capability {
    /// Call model providers through a channel of the runner's own.
    #[serde(rename = "provider:call")]
    ProviderCall,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 1] = [Self::ProviderCall];

    /// As it stands in requests and in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderCall => "provider:call",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseCapabilityError;

impl fmt::Display for ParseCapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a capability: expected provider:call")
    }
}

impl std::error::Error for ParseCapabilityError {}

impl FromStr for Capability {
    type Err = ParseCapabilityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or(ParseCapabilityError)
    }
}

//! The two roles of a user's sandboxes (ADR-0004 of the seeds, arch §3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a sandbox is for at the moment. A swap exchanges the roles of two sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The stable runtime, at `/` of the user's runtime origin.
    Live,
    /// The runtime on trial, at `/dev/*` and at an origin of its own.
    Dev,
}

impl Role {
    /// Both roles, `live` first.
    pub const ALL: [Self; 2] = [Self::Live, Self::Dev];

    /// The role as it stands in URLs, headers and the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Dev => "dev",
        }
    }

    /// The role that a swap gives to the holder of this one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Live => Self::Dev,
            Self::Dev => Self::Live,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseRoleError;

impl fmt::Display for ParseRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a role: expected live or dev")
    }
}

impl std::error::Error for ParseRoleError {}

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "live" => Ok(Self::Live),
            "dev" => Ok(Self::Dev),
            _ => Err(ParseRoleError),
        }
    }
}

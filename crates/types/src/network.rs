//! How much of the network a command may reach (arch §1, §5).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::NetworkRuleId;

/// What a command may reach beyond its sandbox's loopback. Ordered by width.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Nothing.
    #[default]
    None,
    /// The names that the rules allow, through the egress proxy.
    Allowlist,
    /// Every public address, through the egress proxy.
    Open,
}

impl NetworkMode {
    /// Every mode, the narrowest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Allowlist, Self::Open];

    /// Whether nothing may be reached.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The mode as it stands in JSON, in the configuration and on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Allowlist => "allowlist",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a network mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseNetworkModeError;

impl fmt::Display for ParseNetworkModeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a network mode: expected none, allowlist or open")
    }
}

impl std::error::Error for ParseNetworkModeError {}

impl FromStr for NetworkMode {
    type Err = ParseNetworkModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or(ParseNetworkModeError)
    }
}

/// Where a rule of the allowlist comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkRuleSource {
    /// The configuration file.
    Config,
    /// An admin added it.
    Admin,
}

impl fmt::Display for NetworkRuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Admin => "admin",
        })
    }
}

/// A rule of the allowlist, as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRuleView {
    /// Its id; rules of the configuration have none, and are changed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NetworkRuleId>,
    /// What it allows, such as `crates.io`, `*.crates.io` or `git.example.com:8443`.
    pub rule: String,
    /// Where it comes from.
    pub source: NetworkRuleSource,
    /// What it is for.
    #[serde(default)]
    pub note: String,
    /// Who added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// What commands of this installation may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The mode of a command that names none.
    pub default: NetworkMode,
    /// The widest mode that a command may ask for.
    pub max: NetworkMode,
    /// The allowlist.
    pub rules: Vec<NetworkRuleView>,
}

#[cfg(test)]
mod tests {
    use super::NetworkMode;

    #[test]
    fn modes_are_ordered_by_width_and_read_back() {
        assert!(NetworkMode::None < NetworkMode::Allowlist);
        assert!(NetworkMode::Allowlist < NetworkMode::Open);
        for mode in NetworkMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
        assert!("everything".parse::<NetworkMode>().is_err());
    }
}

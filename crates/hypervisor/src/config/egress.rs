//! `[network]`: what commands may reach.

use gateway::egress::{MAX_RULES, Rule};
use types::NetworkMode;

use super::ConfigError;
use super::raw::RawNetwork;
use super::values::within;

/// What commands may reach.
#[derive(Debug, Clone)]
pub struct Egress {
    /// The mode of a command that names none.
    pub default: NetworkMode,
    /// The widest mode that a command may ask for.
    pub max: NetworkMode,
    /// Rules of the allowlist that stand here; admins add others while it runs.
    pub allow: Vec<Rule>,
    /// Connections that one sandbox may have open, all its commands together.
    pub connections: usize,
}

impl Egress {
    pub(super) fn build(raw: &RawNetwork) -> Result<Self, ConfigError> {
        let mode = |key: &str, text: &Option<String>, usual| match text {
            None => Ok(usual),
            Some(text) => text.parse::<NetworkMode>().map_err(|_| {
                ConfigError::value(
                    key,
                    text,
                    "there is no such mode",
                    "none, allowlist or open",
                )
            }),
        };
        let max = mode("network.max", &raw.max, NetworkMode::Allowlist)?;
        let default = mode("network.default", &raw.default, NetworkMode::None)?;
        if default > max {
            return Err(ConfigError::value(
                "network.default",
                default,
                format!("it is wider than network.max, which is {max}"),
                "a mode that is not wider",
            ));
        }
        let allow = raw
            .allow
            .iter()
            .map(|text| {
                text.parse::<Rule>().map_err(|error| {
                    ConfigError::value(
                        "network.allow",
                        text,
                        error.to_string(),
                        "a name such as crates.io, *.crates.io or git.example.com:8443",
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if allow.len() > MAX_RULES {
            return Err(ConfigError::value(
                "network.allow",
                format!("{} rules", allow.len()),
                "they are too many",
                format!("at most {MAX_RULES}"),
            ));
        }
        Ok(Self {
            default,
            max,
            allow,
            connections: within(
                "network.connections",
                raw.connections.unwrap_or(128),
                1,
                4096,
            )?,
        })
    }
}

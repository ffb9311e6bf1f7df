//! Whether this machine can build the walls.

use serde::{Deserialize, Serialize};

/// What was found about one wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The wall, such as `user namespace`.
    pub name: String,
    /// Whether it can be built.
    pub ok: bool,
    /// Whether nothing starts without it (arch §8).
    pub mandatory: bool,
    /// What was found, for people.
    pub detail: String,
    /// What to do when it is missing, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Tries every wall in child processes and tells what was found.
#[must_use]
pub fn probe() -> Vec<Check> {
    Vec::new()
}

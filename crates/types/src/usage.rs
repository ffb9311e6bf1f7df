//! What model calls took.

use serde::{Deserialize, Serialize};

/// Model calls that have something in common, added up. Of the names, those are there that
/// were asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageView {
    /// The day (UTC), as `2026-01-31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// The user's name; their id once they are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The sandbox's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The model, `-` where a call named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Calls that reached a provider.
    pub calls: u64,
    /// Of these, those that did not end whole and well.
    pub failures: u64,
    /// Tokens read, cached ones included.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of `input_tokens`, those that came from a cache.
    pub cached_tokens: u64,
    /// What they cost by the configured prices, in US dollars.
    pub cost_usd: f64,
}

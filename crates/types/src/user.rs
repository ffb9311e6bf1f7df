//! Accounts, as administrators see them.

use serde::{Deserialize, Serialize};

use crate::UserName;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// Its name.
    pub name: UserName,
    /// Whether it may administer the installation.
    pub is_admin: bool,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Whether it is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<DisabledView>,
}

/// That an account is disabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisabledView {
    /// Since when, RFC 3339.
    pub at: String,
    /// Why, for other administrators.
    pub note: String,
}

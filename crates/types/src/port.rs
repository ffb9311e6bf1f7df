//! Ports of a sandbox's workbench, on which commands listen.

use serde::{Deserialize, Serialize};

use crate::CommandId;

/// A port on which a command listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningPort {
    /// Its number.
    pub port: u16,
    /// The address that it is bound to, inside the workbench.
    pub address: String,
    /// The command whose process listens, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_id: Option<CommandId>,
}

/// A port as its owner is shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// The port and who listens.
    #[serde(flatten)]
    pub listening: ListeningPort,
    /// What the command is called, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Where a browser opens it; absent in an installation without preview origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The answer of `GET /me/sandboxes/{role}/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsView {
    /// Lowest first.
    pub ports: Vec<PortView>,
    /// Why there are no preview addresses, where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_preview: Option<String>,
}

/// The answer of `GET /me/sandboxes/{role}/ports/{port}`: where a port is opened, whether or
/// not somebody listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortAddress {
    /// Its number.
    pub port: u16,
    /// Where a browser opens it; absent in an installation without preview origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Why there is no preview address, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_preview: Option<String>,
}

/// A text frame on a port's WebSocket (`GET /me/sandboxes/{role}/ports/{port}/connect`).
/// Binary frames carry bytes in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum PortControl {
    /// This side sends no more; the other may still.
    End,
}

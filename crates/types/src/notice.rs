//! What a user should know about a sandbox, apart from its state.

use serde::{Deserialize, Serialize};

use crate::Role;

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// The kernel refused a system call that the profile does not allow.
    SyscallDenied,
    /// A limit was reached: memory, processes, disk, output.
    Quota,
    /// A connection was refused by the network rules.
    NetworkDenied,
    /// Clients open WebSockets again and again.
    ReconnectStorm,
    /// A page of one runtime talks to another one.
    MismatchedRuntime,
    /// The guest ended by itself.
    Crash,
    /// A swap was taken back because the new `live` failed.
    RolledBack,
    /// Anything else that is worth a line.
    Other,
}

impl NoticeKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::SyscallDenied,
        Self::Quota,
        Self::NetworkDenied,
        Self::ReconnectStorm,
        Self::MismatchedRuntime,
        Self::Crash,
        Self::RolledBack,
        Self::Other,
    ];

    /// The kind as it stands in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SyscallDenied => "syscall_denied",
            Self::Quota => "quota",
            Self::NetworkDenied => "network_denied",
            Self::ReconnectStorm => "reconnect_storm",
            Self::MismatchedRuntime => "mismatched_runtime",
            Self::Crash => "crash",
            Self::RolledBack => "rolled_back",
            Self::Other => "other",
        }
    }
}

/// One thing that happened, once or often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxNotice {
    /// What it is about.
    pub kind: NoticeKind,
    /// The role that the sandbox has now.
    pub role: Role,
    /// What happened, in a sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How often.
    pub count: u64,
    /// The first time, RFC 3339.
    pub first_at: String,
    /// The last time, RFC 3339.
    pub last_at: String,
}

#[cfg(test)]
mod tests {
    use super::NoticeKind;

    #[test]
    fn a_kind_has_one_name() {
        for kind in NoticeKind::ALL {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
        }
    }
}

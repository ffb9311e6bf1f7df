//! What goes into the policy.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::{NetworkMode, SandboxId, UserId};

use crate::Capability;

/// What an API token may be used for. A token never allows more than its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read the account: passkeys, sessions and tokens by name.
    Account,
    /// List, start, stop, restart, swap, snapshot and restore one's own sandboxes, and read
    /// their logs.
    Sandboxes,
    /// Run commands in one's own sandboxes.
    Commands,
    /// What admins may, if the user is one.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Account, Self::Sandboxes, Self::Commands, Self::Admin];

    /// As it stands in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Sandboxes => "sandboxes",
            Self::Commands => "commands",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseScopeError;

impl fmt::Display for ParseScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a scope: expected account, sandboxes, commands or admin")
    }
}

impl std::error::Error for ParseScopeError {}

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(ParseScopeError)
    }
}

/// How a user proved who they are, and so how far it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A full session of the control origin.
    Session,
    /// A session after recovery, which may only settle the account's passkeys.
    RecoverySession,
    /// A session of a runtime origin, which opens the proxy and nothing else (arch §2).
    RuntimeSession,
    /// An API token with these scopes.
    Token(BTreeSet<Scope>),
}

/// Who asks, as authentication found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Nobody who is known.
    Nobody,
    /// A signed-in user.
    User {
        /// The account.
        id: UserId,
        /// Whether the account administers the installation.
        admin: bool,
        /// How they proved it.
        standing: Standing,
    },
    /// A sandbox, known by its channel (arch §1).
    Sandbox {
        /// Which.
        id: SandboxId,
        /// Whose.
        owner: UserId,
    },
    /// A runner, known by its own channel.
    Runner {
        /// The sandbox that it works for.
        sandbox: SandboxId,
        /// Whose.
        owner: UserId,
        /// What its command was granted.
        capabilities: BTreeSet<Capability>,
        /// The network mode that its command was granted.
        network: NetworkMode,
    },
    /// The hypervisor itself: start-up, timers, idle stops.
    Internal,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// List or look at a sandbox.
    ViewSandbox,
    /// Start it.
    StartSandbox,
    /// Stop it.
    StopSandbox,
    /// Restart it.
    RestartSandbox,
    /// Exchange the roles of a user's two sandboxes.
    SwapSandboxes,
    /// Take a snapshot of its files.
    TakeSnapshot,
    /// Put a snapshot in the place of its files.
    RestoreSnapshot,
    /// Name, mark or delete its snapshots, or cancel copying.
    ChangeSnapshot,
    /// Make it a copy of the user's other sandbox.
    CloneSandbox,
    /// Read what it logs.
    ReadLogs,
    /// Reach what it serves, through the proxy.
    UseRuntime,
    /// Reach the ports on which its commands listen, and list them.
    UsePort,
    /// Run a command in it, with these capabilities as they were asked for.
    RunCommand {
        /// The names as they came; a name that is no capability denies the command.
        capabilities: Vec<String>,
        /// The network mode that it wants.
        network: NetworkMode,
        /// The widest mode that the installation gives to anybody.
        widest: NetworkMode,
    },
    /// List, attach to or signal a command in it.
    ControlCommand,
    /// Call a model provider.
    CallProvider,
    /// Connect to the internet through the egress proxy.
    UseNetwork,
    /// Read an account's passkeys, sessions and tokens by name.
    ViewAccount,
    /// Add, rename or remove an account's passkeys.
    ManagePasskeys,
    /// Change an account's sessions, tokens or recovery codes.
    ChangeAccount,
    /// Read or verify the audit log.
    ReadAudit,
    /// Invite users, list and change them.
    ManageUsers,
}

/// What it is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// One sandbox, or for a swap either of a user's two.
    Sandbox {
        /// Which.
        id: SandboxId,
        /// Whose.
        owner: UserId,
    },
    /// An account.
    Account {
        /// Whose.
        owner: UserId,
    },
    /// The installation as a whole.
    Installation,
}

/// A question to the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub subject: Subject,
    /// What is to be done.
    pub action: Action,
    /// What to.
    pub resource: Resource,
}

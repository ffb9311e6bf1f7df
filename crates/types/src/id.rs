//! Typed identifiers. Each is a UUID; none converts into another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseIdError {
    kind: &'static str,
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid {} id: expected a UUID", self.kind)
    }
}

impl std::error::Error for ParseIdError {}

/// Length of an id as text, in bytes.
pub const ID_LENGTH: usize = 36;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the caller generated or read back from its store.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// The id as text, without an allocation.
            #[must_use]
            pub fn encode<'a>(&self, buffer: &'a mut [u8; ID_LENGTH]) -> &'a str {
                self.0.as_hyphenated().encode_lower(buffer)
            }

            /// A fresh, time-ordered id (UUID version 7, RFC 9562).
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self).map_err(|_| ParseIdError { kind: $kind })
            }
        }
    )*};
}

ids! {
    /// A person with an account.
    UserId = "user";
    /// One sandbox: a slot of one user. Its role can change; its id never does.
    SandboxId = "sandbox";
    /// One start of a sandbox. Tokens, connection pools and sockets belong to a start.
    StartId = "start";
    /// One snapshot of a sandbox's files.
    SnapshotId = "snapshot";
    /// One command, terminal or service that a runner executes.
    CommandId = "command";
    /// A browser session.
    SessionId = "session";
    /// An API token.
    TokenId = "token";
    /// A registered passkey.
    PasskeyId = "passkey";
    /// An invitation to register.
    InviteId = "invite";
    /// A rule of the network allowlist that an admin added.
    NetworkRuleId = "network rule";
    /// One request, on any listener.
    RequestId = "request";
    /// One run of the agent.
    RunId = "run";
}

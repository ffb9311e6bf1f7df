//! Why a connection is refused, and what would allow it.

use std::fmt;
use std::io;
use std::time::Duration;

use super::address::AddressClass;
use super::hello::HelloError;
use super::name::{DomainName, Host, Target};
use super::rule::Rule;

/// A connection that the rules do not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// No rule of the allowlist covers it.
    NotAllowed {
        /// The name.
        name: DomainName,
        /// The port.
        port: u16,
    },
    /// An address where the allowlist wants a name.
    Literal(Target),
    /// A name of the control plane's or of a runtime's own.
    OwnName(Target),
    /// It leads to an address that no mode connects to.
    NotPublic {
        /// What was asked for.
        target: Target,
        /// What it leads to.
        class: AddressClass,
    },
    /// What was sent first is no TLS that names its server.
    Hello {
        /// What was asked for.
        target: Target,
        /// What is wrong with it.
        error: HelloError,
    },
    /// TLS for another name than the one that was asked for.
    OtherName {
        /// What was asked for.
        target: Target,
        /// The name in the `ClientHello`.
        named: DomainName,
    },
}

impl Denial {
    /// For metrics and the ledger; a handful of values.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => "not_allowed",
            Self::Literal(_) => "address_literal",
            Self::OwnName(_) => "own_name",
            Self::NotPublic { .. } => "not_public",
            Self::Hello { error, .. } => match error {
                HelloError::NotTls => "not_tls",
                HelloError::Malformed => "malformed_hello",
                HelloError::TooLong => "long_hello",
                HelloError::NoName => "no_sni",
                HelloError::Encrypted => "encrypted_hello",
            },
            Self::OtherName { .. } => "other_sni",
        }
    }

    /// What was asked for, in its one spelling.
    #[must_use]
    pub fn target(&self) -> Target {
        match self {
            Self::NotAllowed { name, port } => Target {
                host: Host::Name(name.clone()),
                port: *port,
            },
            Self::Literal(target)
            | Self::OwnName(target)
            | Self::NotPublic { target, .. }
            | Self::Hello { target, .. }
            | Self::OtherName { target, .. } => target.clone(),
        }
    }

    /// The rule that would allow it, when one would.
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        match self {
            // Somewhere in a local network: no rule is about those.
            Self::NotAllowed { name, port } if name.labels() > 1 => {
                Some(Rule::exactly(name, *port))
            }
            _ => None,
        }
    }

    /// What to do about it, for whoever ran the command.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotAllowed { .. } => match self.rule() {
                Some(rule) => format!("to allow: choir network allow {rule}"),
                None => "no rule can allow a name without a dot".to_owned(),
            },
            Self::Literal(_) => {
                "connect by name; the network mode `open` also connects to public addresses"
                    .to_owned()
            }
            Self::OwnName(_) => {
                "sandboxes reach the control plane through their channel only".to_owned()
            }
            Self::NotPublic { .. } => {
                "no rule and no mode allows this; only public addresses are connected to".to_owned()
            }
            Self::Hello {
                error: HelloError::Encrypted,
                ..
            } => "turn off Encrypted ClientHello in the client".to_owned(),
            Self::Hello { .. } | Self::OtherName { .. } => {
                "on the allowlist a tunnel carries TLS for the name it was opened for; the network mode `open` carries anything".to_owned()
            }
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed { name, port } => {
                write!(f, "no rule of the network allowlist allows {name}:{port}")
            }
            Self::Literal(target) => {
                write!(
                    f,
                    "{target} is an address, and the network allowlist is about names"
                )
            }
            Self::OwnName(target) => write!(f, "{target} belongs to this ChoirOS installation"),
            Self::NotPublic { target, class } => {
                write!(f, "{target} leads to a {class} address")
            }
            Self::Hello { target, error } => {
                write!(f, "the tunnel to {target} was closed: {error}")
            }
            Self::OtherName { target, named } => write!(
                f,
                "the tunnel to {target} was closed: its TLS ClientHello names {named}"
            ),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not allowed.
    #[error("{0}")]
    Denied(Denial),
    /// The name has no address.
    #[error("{target} cannot be resolved")]
    Unresolved {
        /// What was asked for.
        target: Target,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// No address accepts a connection.
    #[error("{target} cannot be reached: {source}")]
    Unreachable {
        /// What was asked for.
        target: Target,
        /// The last address's answer.
        source: io::Error,
    },
    /// Look-up or connection took too long.
    #[error("{target} did not answer within {within:?}")]
    Timeout {
        /// What was asked for.
        target: Target,
        /// How long was waited.
        within: Duration,
    },
    /// The rule was taken back meanwhile, or whoever asked has ended.
    #[error("the connection is not allowed any more")]
    Revoked,
}

//! Who acts, and through what. Every operation of a service takes an actor: it is what the
//! service authorizes by, and what labels the log and the ledger (style 6).

use std::net::IpAddr;

pub use policy::Scope;
use serde::{Deserialize, Serialize};
use types::{
    CommandId, NetworkMode, RequestId, Role, SandboxId, SessionId, StartId, TokenId, UserId,
    UserName,
};

use crate::error::Error;

/// A signed-in user.
#[derive(Debug, Clone)]
pub struct User {
    /// The account.
    pub id: UserId,
    /// Its name.
    pub name: UserName,
    /// Whether it may administer the installation.
    pub is_admin: bool,
}

/// What a runner was granted, and its channel therefore carries (arch §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Calls of model providers.
    pub provider: bool,
    /// Connections to the outside.
    pub network: NetworkMode,
}

/// Through what somebody acts.
#[derive(Debug, Clone)]
pub enum Via {
    /// Nothing that identifies anybody.
    Nothing,
    /// A session of the control origin.
    Session(SessionId),
    /// A session after recovery: it may only settle the passkeys (arch: `/auth/recovery`).
    RecoverySession(SessionId),
    /// A session of a runtime origin: it opens the proxy and nothing else (arch §2).
    RuntimeSession(SessionId),
    /// An API token.
    ApiToken {
        /// Which.
        id: TokenId,
        /// What it may be used for.
        scopes: Vec<Scope>,
    },
    /// A sandbox's channel, which *is* the identity (arch §1).
    Channel {
        /// The sandbox.
        sandbox: SandboxId,
        /// Its start.
        start: StartId,
        /// The role it has now.
        role: Role,
        /// The runner, when it is a runner's channel.
        command: Option<CommandId>,
        /// What a runner's channel carries.
        grant: Grant,
    },
    /// The hypervisor itself, at start-up or on a timer.
    Internal,
}

/// Who acts, through what, on which request.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The user; for a channel, the sandbox's owner. `None` when nobody is known.
    pub user: Option<User>,
    /// Through what.
    pub via: Via,
    /// The request.
    pub request_id: RequestId,
    /// The client's address, where there is one.
    pub address: Option<IpAddr>,
}

impl Actor {
    /// Somebody unknown.
    #[must_use]
    pub const fn anonymous(request_id: RequestId, address: Option<IpAddr>) -> Self {
        Self {
            user: None,
            via: Via::Nothing,
            request_id,
            address,
        }
    }

    /// The hypervisor itself.
    #[must_use]
    pub fn internal() -> Self {
        Self {
            user: None,
            via: Via::Internal,
            request_id: RequestId::generate(),
            address: None,
        }
    }

    /// The user, whatever they came through.
    ///
    /// # Errors
    /// Nobody is signed in.
    pub fn user(&self) -> Result<&User, Error> {
        self.user.as_ref().ok_or(Error::Unauthenticated)
    }

    /// The user, if the way they came allows what `scope` stands for: a full session of
    /// the control origin, or a token with that scope.
    ///
    /// # Errors
    /// Nobody is signed in, or through something that may not.
    pub fn allow(&self, scope: Scope) -> Result<&User, Error> {
        let user = self.user()?;
        match &self.via {
            Via::Session(_) => Ok(user),
            Via::ApiToken { scopes, .. } if scopes.contains(&scope) => Ok(user),
            Via::ApiToken { .. } => Err(Error::forbidden(format!(
                "this token does not have the scope {}",
                scope.as_str()
            ))),
            Via::RecoverySession(_) => Err(Error::forbidden(
                "this session comes from a recovery code; decide about your passkeys first",
            )),
            Via::Nothing | Via::RuntimeSession(_) | Via::Channel { .. } | Via::Internal => {
                Err(Error::Unauthenticated)
            }
        }
    }

    /// The user, if they are signed in with a full session of the control origin. For what
    /// no token may do: making tokens, passkeys, sessions and recovery codes.
    ///
    /// # Errors
    /// Nobody is signed in, or through something else.
    pub fn require_session(&self) -> Result<(&User, SessionId), Error> {
        let user = self.user()?;
        match &self.via {
            Via::Session(id) => Ok((user, *id)),
            Via::ApiToken { .. } => Err(Error::forbidden(
                "an API token cannot do this; use the console in a browser",
            )),
            Via::RecoverySession(_) => Err(Error::forbidden(
                "this session comes from a recovery code; decide about your passkeys first",
            )),
            _ => Err(Error::Unauthenticated),
        }
    }

    /// The user, if they are an admin and the way they came allows acting as one.
    ///
    /// # Errors
    /// Nobody is signed in, or they are no admin, or their token lacks the scope.
    pub fn require_admin(&self) -> Result<&User, Error> {
        let user = self.allow(Scope::Admin)?;
        if user.is_admin {
            Ok(user)
        } else {
            Err(Error::forbidden("this needs an admin"))
        }
    }
}

//! From an actor to the policy's question, and from its decision to an answer.

use policy::{Action, Capability, Decision, Request, Resource, Standing, Subject};
use types::{SandboxId, UserId};

use crate::actor::{Actor, Via};
use crate::error::Error;

/// Asks the policy whether the actor may do this to a sandbox.
///
/// # Errors
/// Nobody is signed in, or the policy says no; then with its reasons.
pub(crate) fn on_sandbox(
    actor: &Actor,
    action: Action,
    sandbox: SandboxId,
    owner: UserId,
) -> Result<Decision, Error> {
    let request = Request {
        subject: subject(actor),
        action,
        resource: Resource::Sandbox { id: sandbox, owner },
    };
    if request.subject == Subject::Nobody {
        return Err(Error::Unauthenticated);
    }
    let decision = policy::decide(&request);
    if decision.is_allowed() {
        Ok(decision)
    } else {
        Err(Error::forbidden(decision.to_string()))
    }
}

fn subject(actor: &Actor) -> Subject {
    let Some(user) = &actor.user else {
        return if matches!(actor.via, Via::Internal) {
            Subject::Internal
        } else {
            Subject::Nobody
        };
    };
    let standing = match &actor.via {
        Via::Channel {
            sandbox,
            command: None,
            ..
        } => {
            return Subject::Sandbox {
                id: *sandbox,
                owner: user.id,
            };
        }
        Via::Channel { sandbox, grant, .. } => {
            let capabilities = grant
                .provider
                .then_some(Capability::ProviderCall)
                .into_iter()
                .collect();
            return Subject::Runner {
                sandbox: *sandbox,
                owner: user.id,
                capabilities,
                network: grant.network,
            };
        }
        Via::Nothing | Via::Internal => return Subject::Nobody,
        Via::Session(_) => Standing::Session,
        Via::RecoverySession(_) => Standing::RecoverySession,
        Via::RuntimeSession(_) => Standing::RuntimeSession,
        Via::ApiToken { scopes, .. } => Standing::Token(scopes.iter().copied().collect()),
    };
    Subject::User {
        id: user.id,
        admin: user.is_admin,
        standing,
    }
}

//! The built-in rule set.

use std::collections::BTreeSet;

use types::{NetworkMode, SandboxId, UserId};

use crate::{Action, Capability, Decision, Request, Resource, Scope, Standing, Subject};

/// Decides. Total and pure: the same request always gets the same decision.
#[must_use]
pub fn decide(request: &Request) -> Decision {
    let Request {
        subject,
        action,
        resource,
    } = request;
    match subject {
        Subject::Nobody => Decision::deny("sign-in-first", "nobody is signed in"),
        Subject::Internal => internal(action),
        Subject::User {
            id,
            admin,
            standing,
        } => user(*id, *admin, standing, action, resource),
        Subject::Sandbox { id, .. } => sandbox(*id, action, resource),
        Subject::Runner {
            sandbox,
            capabilities,
            network,
            ..
        } => runner(*sandbox, capabilities, *network, action, resource),
    }
}

/// The hypervisor may do what keeps sandboxes going; it never runs commands of its own will.
fn internal(action: &Action) -> Decision {
    match action {
        Action::ViewSandbox
        | Action::StartSandbox
        | Action::StopSandbox
        | Action::RestartSandbox
        | Action::ReadAudit => Decision::allow(
            "hypervisor-keeps-sandboxes",
            "the hypervisor keeps sandboxes going",
        ),
        _ => Decision::deny(
            "hypervisor-only-keeps-sandboxes",
            "the hypervisor does this for somebody, never of its own will",
        ),
    }
}

fn user(
    id: UserId,
    admin: bool,
    standing: &Standing,
    action: &Action,
    resource: &Resource,
) -> Decision {
    let own = match resource {
        Resource::Sandbox { owner, .. } | Resource::Account { owner } => *owner == id,
        Resource::Installation => false,
    };
    let as_admin = !own && needs_admin(action);
    if let Some(denied) = standing_denies(standing, action, as_admin) {
        return denied;
    }
    match (action, resource) {
        (Action::CallProvider, _) => Decision::deny(
            "providers-through-channels-only",
            "model providers are reached from inside a sandbox only",
        ),
        (Action::UseNetwork, _) => Decision::deny(
            "network-through-runners-only",
            "only commands reach the internet, each through a channel of its own",
        ),
        (Action::ReadAudit | Action::ManageUsers, Resource::Installation) if admin => {
            Decision::allow("admin-runs-installation", "an admin runs the installation")
        }
        (Action::ReadAudit | Action::ManageUsers, _) => {
            Decision::deny("admin-needed", "this needs an admin")
        }
        (
            Action::ViewAccount | Action::ManagePasskeys | Action::ChangeAccount,
            Resource::Account { .. },
        ) if own => Decision::allow("owner-keeps-own-account", "the account is their own"),
        (
            Action::RunCommand {
                capabilities,
                network,
                widest,
            },
            Resource::Sandbox { .. },
        ) if own => grant(
            capabilities,
            (*network, *widest),
            "owner-runs-commands",
            "the sandbox is their own",
        ),
        (Action::ViewAccount | Action::ManagePasskeys | Action::ChangeAccount, _)
        | (_, Resource::Account { .. } | Resource::Installation) => {
            Decision::deny("not-theirs", "this is not theirs")
        }
        (_, Resource::Sandbox { .. }) if own => {
            Decision::allow("owner-manages-own-sandboxes", "the sandbox is their own")
        }
        (_, Resource::Sandbox { .. }) if as_admin && admin => Decision::allow(
            "admin-manages-lifecycle",
            "an admin manages the lifecycle of anybody's sandbox",
        ),
        // An admin keeps sandboxes running; what is inside stays its owner's.
        (_, Resource::Sandbox { .. }) if admin => Decision::deny(
            "inside-is-the-owners",
            "the sandbox is somebody else's, and an admin manages its lifecycle only",
        ),
        (_, Resource::Sandbox { .. }) => {
            Decision::deny("not-theirs", "the sandbox is somebody else's")
        }
    }
}

/// What an admin may do to somebody else's things, or to the installation.
const fn needs_admin(action: &Action) -> bool {
    matches!(
        action,
        Action::ViewSandbox
            | Action::StartSandbox
            | Action::StopSandbox
            | Action::RestartSandbox
            | Action::SwapSandboxes
            | Action::TakeSnapshot
            | Action::RestoreSnapshot
            | Action::ChangeSnapshot
            | Action::CloneSandbox
            | Action::ReadAudit
            | Action::ManageUsers
    )
}

fn standing_denies(standing: &Standing, action: &Action, as_admin: bool) -> Option<Decision> {
    match standing {
        Standing::Session => None,
        Standing::RecoverySession
            if matches!(action, Action::ViewAccount | Action::ManagePasskeys) =>
        {
            None
        }
        Standing::RecoverySession => Some(Decision::deny(
            "settle-passkeys-first",
            "this session comes from a recovery code, and the passkeys have to be settled first",
        )),
        Standing::RuntimeSession if matches!(action, Action::UseRuntime | Action::UsePort) => None,
        Standing::RuntimeSession => Some(Decision::deny(
            "runtime-session-opens-proxy-only",
            "a session of a runtime origin opens the runtime and nothing else",
        )),
        Standing::Token(scopes) => match scope_for(action, as_admin) {
            Some(scope) if scopes.contains(&scope) => None,
            Some(scope) => Some(Decision::deny(
                "token-scope",
                format!("the token does not have the scope {scope}"),
            )),
            None => Some(Decision::deny(
                "session-needed",
                "no token may do this: it needs a session in a browser",
            )),
        },
    }
}

/// The scope that a token needs; `None` where no token will do.
const fn scope_for(action: &Action, as_admin: bool) -> Option<Scope> {
    match action {
        _ if as_admin => Some(Scope::Admin),
        Action::ViewSandbox
        | Action::StartSandbox
        | Action::StopSandbox
        | Action::RestartSandbox
        | Action::SwapSandboxes
        | Action::TakeSnapshot
        | Action::RestoreSnapshot
        | Action::ChangeSnapshot
        | Action::CloneSandbox
        | Action::ReadLogs
        | Action::UseRuntime => Some(Scope::Sandboxes),
        Action::RunCommand { .. } | Action::ControlCommand | Action::UsePort => {
            Some(Scope::Commands)
        }
        Action::ViewAccount => Some(Scope::Account),
        Action::ReadAudit | Action::ManageUsers => Some(Scope::Admin),
        Action::ManagePasskeys
        | Action::ChangeAccount
        | Action::CallProvider
        | Action::UseNetwork => None,
    }
}

fn sandbox(own: SandboxId, action: &Action, resource: &Resource) -> Decision {
    let Resource::Sandbox { id, .. } = resource else {
        return Decision::deny(
            "sandbox-stays-inside",
            "a sandbox has no say outside itself",
        );
    };
    if *id != own {
        return Decision::deny(
            "sandbox-stays-inside",
            "a sandbox has no say in another one",
        );
    }
    match action {
        Action::RunCommand {
            capabilities,
            network,
            widest,
        } => grant(
            capabilities,
            (*network, *widest),
            "sandbox-runs-commands",
            "a sandbox runs commands in itself",
        ),
        Action::ControlCommand => {
            Decision::allow("sandbox-runs-commands", "the command runs in this sandbox")
        }
        Action::UsePort => Decision::allow(
            "sandbox-runs-commands",
            "the port is of a command in this sandbox",
        ),
        Action::CallProvider => Decision::allow(
            "sandbox-calls-providers",
            "a sandbox calls providers for its owner",
        ),
        Action::UseNetwork => Decision::deny(
            "network-through-runners-only",
            "the guest runtime has no network; only commands that were granted a network mode do",
        ),
        _ => Decision::deny(
            "sandbox-stays-inside",
            "a sandbox does not manage sandboxes, accounts or the installation",
        ),
    }
}

fn runner(
    own: SandboxId,
    capabilities: &BTreeSet<Capability>,
    network: NetworkMode,
    action: &Action,
    resource: &Resource,
) -> Decision {
    let inside = matches!(resource, Resource::Sandbox { id, .. } if *id == own);
    match action {
        Action::CallProvider if inside && capabilities.contains(&Capability::ProviderCall) => {
            Decision::allow("runner-granted", "its command was granted provider:call")
        }
        Action::CallProvider if inside => Decision::deny(
            "runner-not-granted",
            "its command was not granted provider:call",
        ),
        Action::UseNetwork if inside && network > NetworkMode::None => Decision::allow(
            "runner-granted-network",
            format!("its command was granted the network mode {network}"),
        ),
        Action::UseNetwork if inside => Decision::deny(
            "runner-not-granted-network",
            "its command was granted no network",
        ),
        _ => Decision::deny(
            "runner-only-granted-routes",
            "a runner reaches what its command was granted and nothing else",
        ),
    }
}

/// Grants capabilities that were asked for by name, and a network mode up to the widest.
fn grant(
    asked: &[String],
    (network, widest): (NetworkMode, NetworkMode),
    rule: &'static str,
    because: &'static str,
) -> Decision {
    if network > widest {
        return Decision::deny(
            "network-wider-than-installation",
            format!(
                "the widest network mode of this installation is {widest} ([network] max), and {network} was asked for"
            ),
        );
    }
    match asked
        .iter()
        .find(|name| name.parse::<Capability>().is_err())
    {
        // Names come from the caller: keep what is repeated short.
        Some(name) => Decision::deny(
            "unknown-capability",
            format!(
                "there is no capability {:?}",
                name.chars().take(40).collect::<String>()
            ),
        ),
        None => Decision::allow(rule, because),
    }
}

#[cfg(test)]
mod tests;

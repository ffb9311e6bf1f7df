use std::collections::BTreeSet;

use types::{NetworkMode, SandboxId, UserId};

use super::decide;
use crate::{Action, Capability, Decision, Request, Resource, Scope, Standing, Subject};

struct World {
    alice: UserId,
    bob: UserId,
    alices: SandboxId,
    bobs: SandboxId,
}

fn world() -> World {
    World {
        alice: UserId::generate(),
        bob: UserId::generate(),
        alices: SandboxId::generate(),
        bobs: SandboxId::generate(),
    }
}

impl World {
    fn alice(&self, standing: Standing) -> Subject {
        Subject::User {
            id: self.alice,
            admin: false,
            standing,
        }
    }

    fn admin(&self, standing: Standing) -> Subject {
        Subject::User {
            id: self.alice,
            admin: true,
            standing,
        }
    }

    fn own(&self) -> Resource {
        Resource::Sandbox {
            id: self.alices,
            owner: self.alice,
        }
    }

    fn foreign(&self) -> Resource {
        Resource::Sandbox {
            id: self.bobs,
            owner: self.bob,
        }
    }

    fn runner(&self, capabilities: &[Capability]) -> Subject {
        Subject::Runner {
            sandbox: self.alices,
            owner: self.alice,
            capabilities: capabilities.iter().copied().collect(),
            network: NetworkMode::None,
        }
    }

    fn networked(&self, network: NetworkMode) -> Subject {
        Subject::Runner {
            sandbox: self.alices,
            owner: self.alice,
            capabilities: BTreeSet::new(),
            network,
        }
    }
}

fn ask(subject: Subject, action: Action, resource: Resource) -> Decision {
    decide(&Request {
        subject,
        action,
        resource,
    })
}

fn run(capabilities: &[&str]) -> Action {
    Action::RunCommand {
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        network: NetworkMode::None,
        widest: NetworkMode::None,
    }
}

fn reach(network: NetworkMode, widest: NetworkMode) -> Action {
    Action::RunCommand {
        capabilities: Vec::new(),
        network,
        widest,
    }
}

fn token(scopes: &[Scope]) -> Standing {
    Standing::Token(scopes.iter().copied().collect())
}

fn every_action() -> Vec<Action> {
    vec![
        Action::ViewSandbox,
        Action::StartSandbox,
        Action::StopSandbox,
        Action::RestartSandbox,
        Action::SwapSandboxes,
        Action::TakeSnapshot,
        Action::RestoreSnapshot,
        Action::ChangeSnapshot,
        Action::CloneSandbox,
        Action::ReadLogs,
        Action::UseRuntime,
        Action::UsePort,
        run(&[]),
        Action::ControlCommand,
        Action::CallProvider,
        Action::UseNetwork,
        Action::ViewAccount,
        Action::ManagePasskeys,
        Action::ChangeAccount,
        Action::ReadAudit,
        Action::ManageUsers,
    ]
}

#[test]
fn an_owner_uses_and_manages_their_own_sandboxes() {
    let w = world();
    for action in [
        Action::ViewSandbox,
        Action::StartSandbox,
        Action::StopSandbox,
        Action::RestartSandbox,
        Action::SwapSandboxes,
        Action::TakeSnapshot,
        Action::RestoreSnapshot,
        Action::ChangeSnapshot,
        Action::CloneSandbox,
        Action::ReadLogs,
        Action::UseRuntime,
        Action::UsePort,
        run(&["provider:call"]),
        Action::ControlCommand,
    ] {
        let decision = ask(w.alice(Standing::Session), action.clone(), w.own());
        assert!(decision.is_allowed(), "{action:?}: {decision}");
    }
}

#[test]
fn nobody_touches_somebody_elses_sandbox() {
    let w = world();
    for action in every_action() {
        let decision = ask(w.alice(Standing::Session), action.clone(), w.foreign());
        assert!(!decision.is_allowed(), "{action:?}: {decision}");
    }
    let decision = ask(
        w.alice(Standing::Session),
        Action::StartSandbox,
        w.foreign(),
    );
    assert_eq!(
        decision.to_string(),
        "denied because the sandbox is somebody else's"
    );
}

#[test]
fn an_admin_manages_lifecycles_and_stays_out_of_what_is_inside() {
    let w = world();
    for action in every_action() {
        let lifecycle = matches!(
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
        );
        let decision = ask(w.admin(Standing::Session), action.clone(), w.foreign());
        assert_eq!(decision.is_allowed(), lifecycle, "{action:?}: {decision}");
    }
}

#[test]
fn only_an_admin_reads_the_audit_log_and_manages_users() {
    let w = world();
    for action in [Action::ReadAudit, Action::ManageUsers] {
        let installation = Resource::Installation;
        assert!(ask(w.admin(Standing::Session), action.clone(), installation).is_allowed());
        let denied = ask(w.alice(Standing::Session), action, installation);
        assert_eq!(denied.to_string(), "denied because this needs an admin");
    }
}

#[test]
fn an_account_is_its_owners_alone() {
    let w = world();
    for action in [
        Action::ViewAccount,
        Action::ManagePasskeys,
        Action::ChangeAccount,
    ] {
        let mine = Resource::Account { owner: w.alice };
        let bobs = Resource::Account { owner: w.bob };
        assert!(ask(w.alice(Standing::Session), action.clone(), mine).is_allowed());
        assert!(!ask(w.admin(Standing::Session), action, bobs).is_allowed());
    }
}

#[test]
fn a_token_carries_as_far_as_its_scopes() {
    let w = world();
    let commands = token(&[Scope::Commands]);
    assert!(ask(w.alice(commands.clone()), run(&[]), w.own()).is_allowed());
    let denied = ask(w.alice(commands), Action::StopSandbox, w.own());
    assert_eq!(
        denied.to_string(),
        "denied because the token does not have the scope sandboxes"
    );
    let all = token(&Scope::ALL);
    assert!(
        !ask(
            w.alice(all.clone()),
            Action::ReadAudit,
            Resource::Installation
        )
        .is_allowed()
    );
    assert!(ask(w.admin(all), Action::ReadAudit, Resource::Installation).is_allowed());
}

#[test]
fn an_admins_token_needs_the_admin_scope_for_somebody_elses_sandbox() {
    let w = world();
    let narrow = token(&[Scope::Sandboxes]);
    assert!(ask(w.admin(narrow.clone()), Action::StopSandbox, w.own()).is_allowed());
    assert!(!ask(w.admin(narrow), Action::StopSandbox, w.foreign()).is_allowed());
    assert!(
        ask(
            w.admin(token(&[Scope::Admin])),
            Action::StopSandbox,
            w.foreign()
        )
        .is_allowed()
    );
}

#[test]
fn no_token_changes_an_account() {
    let w = world();
    let mine = Resource::Account { owner: w.alice };
    let denied = ask(w.alice(token(&Scope::ALL)), Action::ChangeAccount, mine);
    assert_eq!(denied.rules(), "session-needed");
}

#[test]
fn a_runtime_session_opens_the_runtime_and_nothing_else() {
    let w = world();
    for action in every_action() {
        let decision = ask(w.alice(Standing::RuntimeSession), action.clone(), w.own());
        assert_eq!(
            decision.is_allowed(),
            matches!(action, Action::UseRuntime | Action::UsePort),
            "{action:?}: {decision}"
        );
    }
}

#[test]
fn a_recovery_session_settles_the_passkeys_and_nothing_else() {
    let w = world();
    let mine = Resource::Account { owner: w.alice };
    for action in every_action() {
        let passkeys = matches!(action, Action::ViewAccount | Action::ManagePasskeys);
        let decision = ask(w.alice(Standing::RecoverySession), action.clone(), mine);
        assert_eq!(decision.is_allowed(), passkeys, "{action:?}: {decision}");
        assert!(!ask(w.alice(Standing::RecoverySession), action, w.own()).is_allowed());
    }
}

#[test]
fn a_sandbox_works_in_itself_and_nowhere_else() {
    let w = world();
    let subject = || Subject::Sandbox {
        id: w.alices,
        owner: w.alice,
    };
    for action in every_action() {
        let inside = matches!(
            action,
            Action::RunCommand { .. }
                | Action::ControlCommand
                | Action::UsePort
                | Action::CallProvider
        );
        let decision = ask(subject(), action.clone(), w.own());
        assert_eq!(decision.is_allowed(), inside, "{action:?}: {decision}");
        // Also not in the other sandbox of the same owner.
        let other = Resource::Sandbox {
            id: w.bobs,
            owner: w.alice,
        };
        assert!(!ask(subject(), action.clone(), other).is_allowed());
        assert!(!ask(subject(), action, Resource::Installation).is_allowed());
    }
}

#[test]
fn a_runner_calls_providers_only_when_granted() {
    let w = world();
    let granted = w.runner(&[Capability::ProviderCall]);
    assert!(ask(granted.clone(), Action::CallProvider, w.own()).is_allowed());
    assert!(!ask(granted.clone(), Action::CallProvider, w.foreign()).is_allowed());
    assert!(!ask(granted, run(&[]), w.own()).is_allowed());
    let denied = ask(w.runner(&[]), Action::CallProvider, w.own());
    assert_eq!(
        denied.to_string(),
        "denied because its command was not granted provider:call"
    );
}

#[test]
fn a_command_gets_a_network_mode_up_to_the_widest_of_the_installation() {
    let w = world();
    let inside = Subject::Sandbox {
        id: w.alices,
        owner: w.alice,
    };
    for subject in [w.alice(Standing::Session), inside] {
        for network in NetworkMode::ALL {
            for widest in NetworkMode::ALL {
                let decision = ask(subject.clone(), reach(network, widest), w.own());
                assert_eq!(decision.is_allowed(), network <= widest, "{decision}");
            }
        }
        let denied = ask(
            subject,
            reach(NetworkMode::Open, NetworkMode::Allowlist),
            w.own(),
        );
        assert_eq!(denied.rules(), "network-wider-than-installation");
        assert_eq!(
            denied.to_string(),
            "denied because the widest network mode of this installation is allowlist ([network] max), and open was asked for"
        );
    }
}

#[test]
fn only_a_runner_with_a_network_mode_uses_the_network() {
    let w = world();
    for network in NetworkMode::ALL {
        let decision = ask(w.networked(network), Action::UseNetwork, w.own());
        assert_eq!(
            decision.is_allowed(),
            network > NetworkMode::None,
            "{decision}"
        );
        assert!(!ask(w.networked(network), Action::UseNetwork, w.foreign()).is_allowed());
        // The one grant is not the other.
        assert!(!ask(w.networked(network), Action::CallProvider, w.own()).is_allowed());
    }
    let caller = w.runner(&[Capability::ProviderCall]);
    assert!(!ask(caller, Action::UseNetwork, w.own()).is_allowed());
}

#[test]
fn an_unknown_capability_denies_the_command() {
    let w = world();
    let denied = ask(
        w.alice(Standing::Session),
        run(&["provider:call", "root"]),
        w.own(),
    );
    assert_eq!(
        denied.to_string(),
        "denied because there is no capability \"root\""
    );
    assert_eq!(denied.rules(), "unknown-capability");
}

#[test]
fn nobody_may_do_nothing_and_every_decision_has_a_reason() {
    let w = world();
    for action in every_action() {
        let decision = ask(Subject::Nobody, action.clone(), w.own());
        assert!(!decision.is_allowed());
        for subject in [Subject::Internal, w.runner(&[]), w.admin(Standing::Session)] {
            for resource in [w.own(), w.foreign(), Resource::Installation] {
                assert!(
                    !ask(subject.clone(), action.clone(), resource)
                        .reasons
                        .is_empty()
                );
            }
        }
    }
}

#[test]
fn the_hypervisor_itself_runs_no_commands() {
    let w = world();
    assert!(ask(Subject::Internal, Action::StopSandbox, w.own()).is_allowed());
    assert!(!ask(Subject::Internal, run(&[]), w.own()).is_allowed());
}

#[test]
fn names_read_back_and_serialize() {
    for scope in Scope::ALL {
        assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
        assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
    }
    for capability in Capability::ALL {
        assert_eq!(
            capability.to_string().parse::<Capability>().unwrap(),
            capability
        );
        assert_eq!(
            serde_json::to_value(capability).unwrap(),
            capability.as_str()
        );
    }
    assert!("root".parse::<Scope>().is_err());
    let set: BTreeSet<_> = Scope::ALL.into_iter().collect();
    assert_eq!(set.len(), Scope::ALL.len());
    let json = serde_json::to_value(ask(Subject::Nobody, Action::ReadLogs, world().own())).unwrap();
    assert_eq!(json["effect"], "deny");
    assert_eq!(json["reasons"][0]["rule"], "sign-in-first");
}

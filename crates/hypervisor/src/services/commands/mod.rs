//! The command router: what the agent, a terminal or the owner wants to run becomes a
//! runner, after policy and ledger (arch §6).

mod grants;
mod leash;
mod request;

use std::sync::Arc;
use std::time::Instant;

use policy::Action;
use runtime::protocol::{Refusal, RunnerStatus, Signal};
use runtime::spec::RunnerSpec;
use runtime::{Attachment, ControlError, Instance};
use types::{CommandId, CommandRequest, CommandState, CommandView, NetworkMode, NoticeKind};

use crate::actor::{Actor, Grant};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::services::authorize;
use crate::services::sandboxes::tokens::Tokens;
use crate::services::sandboxes::{
    Identity, Plane, of_runner, of_runner_gateway, of_runner_network,
};
pub(crate) use grants::take_over;
pub(crate) use leash::{Leash, end_orphans};
use request::{PROVIDER_CALL, runner_spec};

/// Exited commands whose output a sandbox keeps, beyond those that still run.
const MAX_EXITED: usize = 64;

/// Longest program name that the ledger repeats, in characters.
const MAX_PROGRAM: usize = 200;

/// The commands of one start.
pub(crate) struct Commands<'a> {
    plane: &'a Arc<Plane>,
    instance: &'a Arc<Instance>,
}

/// A command that has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) view: CommandView,
    /// Ties it to its caller; `None` when it goes on without one.
    pub(crate) leash: Option<Leash>,
}

impl<'a> Commands<'a> {
    pub(crate) const fn new(plane: &'a Arc<Plane>, instance: &'a Arc<Instance>) -> Self {
        Self { plane, instance }
    }

    /// Validates, decides, records, and only then spawns.
    ///
    /// # Errors
    /// A field out of its bounds, a denial, too many commands, a ledger that cannot take
    /// the record, a supervisor that refuses, a sandbox that is being stopped.
    pub(crate) async fn start(
        &self,
        actor: &Actor,
        request: CommandRequest,
    ) -> Result<Begun, Error> {
        match self.begin(actor, request).await {
            // Its supervisor refuses in many ways then, of which none is a fault.
            Err(Error::BadGateway(_) | Error::GatewayTimeout(_) | Error::SandboxFailed { .. })
                if self.instance.start_ended().is_cancelled() =>
            {
                Err(Error::SandboxNotRunning)
            }
            begun => begun,
        }
    }

    async fn begin(&self, actor: &Actor, request: CommandRequest) -> Result<Begun, Error> {
        let id = request.id.unwrap_or_else(CommandId::generate);
        let limits = &self.plane.config.sandbox.limits;
        let mut spec = runner_spec(&request, limits, id)?;
        // Terminals are the owner's own hands: they get the gateway without asking.
        let provider =
            request.terminal.is_some() || request.capabilities.iter().any(|c| c == PROVIDER_CALL);
        let network = request.network.unwrap_or(self.plane.config.network.default);
        let granted = Grant { provider, network };
        spec.network = network;
        self.make_room(id).await?;
        self.decide(actor, &request, id, granted).await?;
        let (owner, role) = self.plane.owner(self.instance.sandbox_id).await?;
        let identity = Identity {
            sandbox: self.instance.sandbox_id,
            user: owner.id,
            role,
        };
        spec.env = of_runner(&self.plane.config, identity, network);
        for (name, value) in request.env {
            spec.env.retain(|(have, _)| *have != name);
            spec.env.push((name, value));
        }
        let view = CommandView {
            id,
            argv: request.argv,
            label: request.label,
            terminal: request.terminal.is_some(),
            detach: request.detach,
            network,
            state: CommandState::Running,
            exit: None,
            started_at: Some(rfc3339(self.plane.clock.now_ms())),
        };
        let lasting = view.detach || view.terminal || request.rejoin;
        if request.rejoin {
            leash::keep(self.plane, self.instance, id).await?;
        }
        let leash = (!lasting).then(|| Leash::new(Arc::clone(self.instance), id));
        // In a task of its own: a caller that goes away must not leave half a spawn behind.
        let (plane, instance) = (Arc::clone(self.plane), Arc::clone(self.instance));
        tokio::spawn(async move { spawn(&plane, &instance, spec, granted).await })
            .await
            .map_err(Error::internal)??;
        self.plane.metrics.command();
        Ok(Begun { view, leash })
    }

    async fn decide(
        &self,
        actor: &Actor,
        request: &CommandRequest,
        id: CommandId,
        granted: Grant,
    ) -> Result<(), Error> {
        let (owner, role) = self.plane.owner(self.instance.sandbox_id).await?;
        let capabilities = if granted.provider {
            vec![PROVIDER_CALL.to_owned()]
        } else {
            Vec::new()
        };
        let action = Action::RunCommand {
            capabilities: capabilities.clone(),
            network: granted.network,
            widest: self.plane.config.network.max,
        };
        let decided = authorize::on_sandbox(actor, action, self.instance.sandbox_id, owner.id);
        // The program only: arguments may hold what people should not have put there.
        let program: String = request
            .argv
            .first()
            .map(String::as_str)
            .unwrap_or_default()
            .chars()
            .take(MAX_PROGRAM)
            .collect();
        if let Err(error) = &decided {
            // Denials stand where `choir sandbox explain` shows them, those of the policy too.
            let message = format!("A command ({program}) was refused: {error}.");
            self.plane.notices.note(
                self.instance.sandbox_id,
                NoticeKind::Other,
                &format!("command.run {error}"),
                &message,
                error.hint().as_deref(),
            );
        }
        let entry = match &decided {
            Ok(_) => Entry::allowed("command.run", id.to_string()),
            Err(error) => Entry::denied("command.run", id.to_string(), error.to_string()),
        };
        let mut entry = entry
            .about_user(owner.id, &owner.name)
            .in_sandbox(self.instance.sandbox_id, Some(role))
            .with("program", program)
            .with(
                "arguments",
                request.argv.len().saturating_sub(1).to_string(),
            )
            .with("capabilities", capabilities.join(" "))
            .with("network", granted.network.as_str());
        if request.terminal.is_some() {
            entry = entry.with("terminal", "true");
        }
        if request.detach {
            entry = entry.with("detach", "true");
        }
        if let Ok(decision) = &decided {
            entry = entry.with("rules", decision.rules());
        }
        self.plane.audit.record(actor, entry).await?;
        decided.map(drop)
    }

    /// Refuses an id that is taken and when too many run, and forgets the oldest that have
    /// exited.
    async fn make_room(&self, id: CommandId) -> Result<(), Error> {
        let most = self.plane.config.sandbox.limits.commands;
        let runners = self.instance.runners().await.map_err(refused)?;
        if runners.iter().any(|runner| runner.view.id == id) {
            return Err(taken());
        }
        let (running, mut exited): (Vec<_>, Vec<_>) = runners
            .into_iter()
            .partition(|runner| runner.view.state == CommandState::Running);
        if running.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            return Err(Error::Unavailable(format!(
                "{most} commands run in this sandbox already; wait for one or stop one"
            )));
        }
        exited.sort_by_key(|runner| runner.started_unix_ms);
        let excess = exited.len().saturating_sub(MAX_EXITED);
        for runner in exited.iter().take(excess) {
            self.instance
                .forget(runner.view.id)
                .await
                .map_err(refused)?;
            leash::lose(self.plane, self.instance, runner.view.id).await;
        }
        Ok(())
    }

    /// All commands that the supervisor knows.
    ///
    /// # Errors
    /// The actor may not, or the supervisor cannot be reached.
    pub(crate) async fn list(&self, actor: &Actor) -> Result<Vec<CommandView>, Error> {
        self.may_control(actor).await?;
        Ok(self
            .runners()
            .await?
            .into_iter()
            .map(|runner| CommandView {
                started_at: i64::try_from(runner.started_unix_ms).ok().map(rfc3339),
                ..runner.view
            })
            .collect())
    }

    /// One command.
    ///
    /// # Errors
    /// There is none, the actor may not, or the supervisor cannot be reached.
    pub(crate) async fn show(&self, actor: &Actor, id: CommandId) -> Result<CommandView, Error> {
        let listed = self.list(actor).await?;
        listed
            .into_iter()
            .find(|view| view.id == id)
            .ok_or(Error::NotFound("command"))
    }

    /// Signals a command's whole tree.
    ///
    /// # Errors
    /// There is none, the actor may not, or the ledger cannot take the record.
    pub(crate) async fn signal(
        &self,
        actor: &Actor,
        id: CommandId,
        signal: Signal,
    ) -> Result<(), Error> {
        self.may_control(actor).await?;
        let name = match signal {
            Signal::Int => "int",
            Signal::Term => "term",
            Signal::Kill => "kill",
        };
        let entry = Entry::allowed("command.signal", id.to_string())
            .in_sandbox(self.instance.sandbox_id, None)
            .with("signal", name);
        self.plane.audit.record(actor, entry).await?;
        self.instance.signal(id, signal).await.map_err(refused)
    }

    /// Lets go of a command that has ended, and of its output.
    ///
    /// # Errors
    /// The actor may not, or the supervisor cannot be reached.
    pub(crate) async fn forget(&self, actor: &Actor, id: CommandId) -> Result<(), Error> {
        self.may_control(actor).await?;
        self.instance.forget(id).await.map_err(refused)?;
        leash::lose(self.plane, self.instance, id).await;
        Ok(())
    }

    /// Follows a command's output from a byte on.
    ///
    /// # Errors
    /// There is none, the actor may not, or the supervisor cannot be reached.
    pub(crate) async fn attach(
        &self,
        actor: &Actor,
        id: CommandId,
        from: u64,
    ) -> Result<Attachment, Error> {
        self.may_control(actor).await?;
        self.instance.attach(id, from).await.map_err(refused)
    }

    async fn runners(&self) -> Result<Vec<RunnerStatus>, Error> {
        self.instance.runners().await.map_err(refused)
    }

    async fn may_control(&self, actor: &Actor) -> Result<(), Error> {
        let (owner, _) = self.plane.owner(self.instance.sandbox_id).await?;
        authorize::on_sandbox(
            actor,
            Action::ControlCommand,
            self.instance.sandbox_id,
            owner.id,
        )
        .map(drop)
    }
}

async fn spawn(
    plane: &Arc<Plane>,
    instance: &Arc<Instance>,
    mut spec: RunnerSpec,
    granted: Grant,
) -> Result<(), Error> {
    // Before it runs: a look for idle sandboxes may have been over before it did. If that has
    // ordered the stop already, the command would be taken down as soon as it was begun.
    let upstream = plane.upstream(instance);
    let noted = instance.unless_stopping(|| {
        if let Ok(upstream) = upstream {
            upstream.activity().touch(Instant::now());
        }
    });
    noted.ok_or(Error::SandboxNotRunning)?;
    if granted == Grant::default() {
        instance.spawn(spec).await.map_err(refused)?;
        return Ok(());
    }
    let id = spec.command_id;
    let token = Tokens::mint(&plane.random).map_err(Error::internal)?;
    spec.channel = true;
    // Without the grant the token is given to nobody, so nobody can show it.
    if granted.provider {
        spec.relay_env = of_runner_gateway(&plane.config, token.expose());
    }
    if granted.network > NetworkMode::None {
        spec.relay_env.extend(of_runner_network());
    }
    // What was asked for with the command stands.
    let asked: Vec<String> = spec.env.iter().map(|(name, _)| name.clone()).collect();
    spec.relay_env.retain(|(name, _)| !asked.contains(name));
    let kept = grants::Kept {
        token_hash: token.hash(),
        grant: granted,
    };
    grants::keep(plane, instance, id, kept).await?;
    let spawned = instance.spawn(spec).await.map_err(refused)?;
    let Some(listener) = spawned.channel else {
        return Err(Error::BadGateway(
            "the supervisor gave no channel for the command".to_owned(),
        ));
    };
    grants::serve(plane, instance, id, kept, listener);
    Ok(())
}

fn taken() -> Error {
    Error::conflict("there is a command with this id already")
}

/// A supervisor's refusal in the words of the caller's problem.
pub(crate) fn refused(error: ControlError) -> Error {
    match error {
        ControlError::Refused(Refusal {
            code,
            message,
            hint,
        }) => match code.as_str() {
            "not_found" => Error::NotFound("command"),
            "bad_request" => Error::bad_request(message),
            "conflict" => taken(),
            "too_many" | "limit" => Error::Unavailable(message),
            _ => Error::SandboxFailed { message, hint },
        },
        ControlError::Timeout => Error::GatewayTimeout(error.to_string()),
        ControlError::Io(_)
        | ControlError::Frame(_)
        | ControlError::Protocol(_)
        | ControlError::Version(_)
        | ControlError::NotOurs(_) => {
            tracing::warn!(%error, "a supervisor could not be asked");
            Error::BadGateway("the sandbox's supervisor cannot be asked".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use types::Role;

    use super::*;
    use crate::services::sandboxes::Whose;
    use crate::services::sandboxes::testing::Installation;

    /// Its guests have no supervisor that could be asked.
    #[tokio::test]
    async fn a_command_is_activity_before_it_runs_and_is_refused_once_its_sandbox_is_stopped() {
        let installation = Installation::new("").await;
        let actor = installation.actor();
        let sandboxes = &installation.app.sandboxes;
        let started = sandboxes.start(&actor, Whose::Own, Role::Live).await;
        let instance = sandboxes.running(started.unwrap().id).unwrap();
        let plane = sandboxes.plane();
        let request = || serde_json::from_value(json!({ "argv": ["true"] })).unwrap();
        let upstream = plane.upstream(&instance).unwrap();
        let before = upstream.activity().last();
        tokio::time::timeout(Duration::from_secs(10), async {
            while upstream.activity().last() == before {
                let limits = &plane.config.sandbox.limits;
                let spec = runner_spec(&request(), limits, CommandId::generate()).unwrap();
                let refused = spawn(plane, &instance, spec, Grant::default()).await;
                assert!(matches!(refused, Err(Error::BadGateway(_))), "{refused:?}");
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a command is activity");
        let commands = Commands::new(plane, &instance);
        let refused = commands.start(&actor, request()).await;
        assert!(matches!(refused, Err(Error::BadGateway(_))), "{refused:?}");
        sandboxes
            .stop(&actor, Whose::Own, Role::Live)
            .await
            .unwrap();
        let refused = commands.start(&actor, request()).await;
        assert!(
            matches!(refused, Err(Error::SandboxNotRunning)),
            "{refused:?}"
        );
    }
}

//! One runner's way out.

use std::collections::HashSet;
use std::error::Error as _;
use std::sync::{Arc, PoisonError};

use gateway::egress::{Access, Caller, Denial, End, Ended, NameError, OpenError, Permit, Target};
use policy::Action;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use types::{CommandId, NetworkMode, NoticeKind, SandboxId, UserId};

use super::ration::{Further, Told};
use super::{CONNECTIONS_PER_RUNNER, OfSandbox};
use crate::actor::{Actor, Via};
use crate::error::Error;
use crate::http::metrics::EgressGuard;
use crate::services::audit::Entry;
use crate::services::authorize;
use crate::services::sandboxes::Plane;

/// Targets of one runner, and refusals of them, that have a record of their own in the ledger;
/// a program in a loop must not fill it. What its sandbox may write in all is bounded besides
/// ([`super::ration`]); further connections share records. All are counted and, as far as they
/// are refused and differ, noted for the user.
const MAX_RECORDED: usize = 256;

/// The outcome of a connection that was let through.
const ALLOWED: &str = "allowed";

/// The place of one runner in the egress. Dropping it takes it out of what its sandbox can
/// reach; its connections end with its channel.
#[derive(Debug)]
pub(crate) struct RunnerNetwork {
    command: CommandId,
    mode: NetworkMode,
    access: Access,
    of_sandbox: Arc<OfSandbox>,
    connections: Arc<Semaphore>,
    /// What the ledger knows of already: the first connection to each target, and the first
    /// refusal. At most [`MAX_RECORDED`].
    recorded: tokio::sync::Mutex<HashSet<(String, &'static str)>>,
}

impl Drop for RunnerNetwork {
    fn drop(&mut self) {
        self.of_sandbox
            .modes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.command);
    }
}

/// Counts against a runner, its sandbox and the gauge as long as it lives.
#[derive(Debug)]
pub(crate) struct Carried {
    _permits: [OwnedSemaphorePermit; 2],
    _open: EgressGuard,
}

/// A connection that stands.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    pub(crate) permit: Permit,
    pub(crate) carried: Carried,
}

impl RunnerNetwork {
    pub(super) fn new(
        command: CommandId,
        mode: NetworkMode,
        access: Access,
        of_sandbox: Arc<OfSandbox>,
    ) -> Self {
        Self {
            command,
            mode,
            access,
            of_sandbox,
            connections: Arc::new(Semaphore::new(CONNECTIONS_PER_RUNNER)),
            recorded: tokio::sync::Mutex::default(),
        }
    }

    /// Decides, records, resolves and connects, in this order. What is refused is recorded,
    /// counted, and noted for the user with what would allow it.
    ///
    /// # Errors
    /// It is not allowed, cannot be reached, there are too many connections, or the ledger
    /// cannot take the record.
    pub(crate) async fn open(
        &self,
        plane: &Plane,
        actor: &Actor,
        owner: UserId,
        target: Result<Target, NameError>,
        ended: &CancellationToken,
    ) -> Result<Opened, Error> {
        let Via::Channel { sandbox, .. } = actor.via else {
            return Err(Error::NotFound("path on this channel"));
        };
        authorize::on_sandbox(actor, Action::UseNetwork, sandbox, owner)?;
        let target = target.map_err(|error| {
            plane.metrics.egress("malformed");
            Error::bad_request(format!("the target of the request cannot be read: {error}"))
        })?;
        let carried = self.carry(plane)?;
        let caller = Caller {
            access: self.access,
            cancel: ended.clone(),
            lookups: Arc::clone(&self.of_sandbox.lookups),
        };
        let mut permit = match plane.networks.egress().check(caller, target) {
            Ok(permit) => permit,
            Err(denial) => return Err(self.refuse(plane, actor, &denial).await),
        };
        let target = permit.target().to_string();
        let mut entry = Entry::allowed("network.connect", target.clone());
        if let Some(rule) = permit.rule() {
            entry = entry.with("rule", rule.to_string());
        }
        self.tell(plane, actor, sandbox, (&target, ALLOWED), entry)
            .await?;
        match plane.networks.egress().open(&mut permit).await {
            Ok(stream) => {
                plane.metrics.egress("connected");
                Ok(Opened {
                    stream,
                    permit,
                    carried,
                })
            }
            Err(OpenError::Denied(denial)) => Err(self.refuse(plane, actor, &denial).await),
            Err(error) => {
                plane.metrics.egress("unreachable");
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                tracing::info!(%sandbox, command = %self.command, %error, cause, "egress failed");
                Err(match error {
                    OpenError::Timeout { .. } => Error::GatewayTimeout(error.to_string()),
                    _ => Error::BadGateway(error.to_string()),
                })
            }
        }
    }

    fn carry(&self, plane: &Plane) -> Result<Carried, Error> {
        let take = |slots: &Arc<Semaphore>, whose: &str| {
            Arc::clone(slots).try_acquire_owned().map_err(|_| {
                plane.metrics.egress("busy");
                Error::Unavailable(format!(
                    "this {whose} has too many connections open; wait for one to end"
                ))
            })
        };
        Ok(Carried {
            _permits: [
                take(&self.connections, "command")?,
                take(&self.of_sandbox.connections, "sandbox")?,
            ],
            _open: plane.metrics.egress_open(),
        })
    }

    /// Has the ledger told, unless it knows. The first connection to each target has its record
    /// before it is made; the next ones of the same command use the same leave, and wait for it
    /// if need be. Beyond [`MAX_RECORDED`] there is a record that further ones follow before the
    /// first of them is made, and their number in the next.
    async fn tell(
        &self,
        plane: &Plane,
        actor: &Actor,
        sandbox: SandboxId,
        (target, outcome): (&str, &'static str),
        entry: Entry,
    ) -> Result<(), Error> {
        let one = (target.to_owned(), outcome);
        // Held until the record is on the disk, so that nobody relies on one that is not.
        let mut recorded = self.recorded.lock().await;
        if recorded.contains(&one) {
            return Ok(());
        }
        let own = recorded.len() < MAX_RECORDED;
        let (now, allowed) = (plane.clock.now_ms(), outcome == ALLOWED);
        match plane.networks.ration(sandbox, now, own, allowed) {
            Told::Counted => {}
            Told::Together(further) => self.sum_up(plane, actor, sandbox, further).await?,
            Told::Itself => {
                let entry = entry
                    .with("command", self.command.to_string())
                    .with("network", self.mode.as_str());
                plane.audit.record(actor, entry).await?;
                recorded.insert(one);
            }
        }
        Ok(())
    }

    /// One record about many connections of the sandbox.
    async fn sum_up(
        &self,
        plane: &Plane,
        actor: &Actor,
        sandbox: SandboxId,
        further: Further,
    ) -> Result<(), Error> {
        let entry = Entry::allowed("network.connect", "further targets")
            .with("command", self.command.to_string())
            .with("network", self.mode.as_str())
            .with("allowed", further.allowed.to_string())
            .with("refused", further.refused.to_string());
        let recorded = plane.audit.record(actor, entry).await;
        if recorded.is_err() {
            plane.networks.give_back(sandbox, further);
        }
        recorded
    }

    /// Records, counts and notes a refusal, and makes the answer of it.
    pub(crate) async fn refuse(&self, plane: &Plane, actor: &Actor, denial: &Denial) -> Error {
        plane.metrics.egress(denial.code());
        let (target, message, hint) = (
            denial.target().to_string(),
            denial.to_string(),
            denial.hint(),
        );
        if let Via::Channel { sandbox, .. } = actor.via {
            let key = format!("{} {target}", denial.code());
            plane.notices.note(
                sandbox,
                NoticeKind::NetworkDenied,
                &key,
                &message,
                Some(&hint),
            );
            let entry = Entry::denied("network.connect", target.clone(), denial.code());
            let outcome = (target.as_str(), denial.code());
            let recorded = self.tell(plane, actor, sandbox, outcome, entry).await;
            // Refused either way; a full ledger must not turn a refusal into anything else.
            if let Err(error) = recorded {
                tracing::error!(command = %self.command, %error, "a refused connection could not be recorded");
            }
        }
        Error::NetworkDenied { message, hint }
    }

    /// Carries a tunnel to its end.
    pub(crate) async fn carry_tunnel<C>(
        &self,
        plane: &Plane,
        actor: &Actor,
        client: C,
        opened: Opened,
    ) where
        C: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Opened {
            stream,
            permit,
            carried,
        } = opened;
        let target = permit.target().to_string();
        let ended = plane.networks.egress().tunnel(client, stream, permit).await;
        drop(carried);
        if let End::Denied(denial) = &ended.end {
            self.refuse(plane, actor, denial).await;
        }
        over(plane, actor, &target, &ended);
    }
}

/// Counts and logs a connection that is over.
pub(crate) fn over(plane: &Plane, actor: &Actor, target: &str, ended: &Ended) {
    plane
        .metrics
        .egress_ended(ended.end.as_str(), ended.sent, ended.received);
    let Via::Channel {
        sandbox, command, ..
    } = &actor.via
    else {
        return;
    };
    tracing::info!(
        request_id = %actor.request_id,
        %sandbox,
        command = command.map(|id| id.to_string()).unwrap_or_default(),
        target,
        end = ended.end.as_str(),
        sent = ended.sent,
        received = ended.received,
        "egress connection ended"
    );
}

#[cfg(test)]
mod tests {
    use types::Role;

    use super::*;
    use crate::services::sandboxes::testing::Installation;

    #[tokio::test]
    async fn nobody_relies_on_a_record_that_fails() {
        let installation = Installation::new("").await;
        let sandbox = installation.sandbox(Role::Live).await;
        let plane = installation.app.sandboxes.plane();
        let command = CommandId::generate();
        let networks = &plane.networks;
        let network = networks.admit(sandbox, command, NetworkMode::Open).unwrap();
        let actor = Actor {
            via: Via::Channel {
                sandbox,
                start: types::StartId::generate(),
                role: Role::Live,
                command: Some(command),
                grant: crate::actor::Grant {
                    provider: false,
                    network: NetworkMode::Open,
                },
            },
            ..installation.actor()
        };
        let ledger = installation.app.config.data_dir.join("audit");
        std::fs::remove_file(ledger.join("segment-00000001.log")).unwrap();

        let ended = CancellationToken::new();
        let open = || {
            let target = Target::parse("name.invalid:443", None);
            network.open(plane, &actor, installation.user.id, target, &ended)
        };
        let (first, second) = tokio::join!(open(), open());
        for opened in [first, second] {
            let error = opened.unwrap_err();
            assert!(matches!(error, Error::AuditUnavailable(_)), "{error}");
        }
        // An address is refused in every mode.
        let target = Target::parse("127.0.0.1:443", None);
        let refused = network.open(plane, &actor, installation.user.id, target, &ended);
        let refused = refused.await.unwrap_err();
        assert!(matches!(refused, Error::NetworkDenied { .. }), "{refused}");
        assert!(network.recorded.lock().await.is_empty());
    }
}

//! One runner's way out.

use std::collections::HashSet;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

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
    recorded: Mutex<HashSet<(String, &'static str)>>,
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
            recorded: Mutex::default(),
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
        self.record(plane, actor, sandbox, &permit).await?;
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

    /// How the ledger has to be told of this; `None` when it knows. A target is remembered
    /// with its record, and never without one.
    fn news(
        &self,
        plane: &Plane,
        sandbox: SandboxId,
        target: &str,
        outcome: &'static str,
    ) -> Option<Told> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let one = (target.to_owned(), outcome);
        if recorded.contains(&one) {
            return None;
        }
        let own = recorded.len() < MAX_RECORDED;
        let (now, allowed) = (plane.clock.now_ms(), outcome == ALLOWED);
        let told = plane.networks.ration(sandbox, now, own, allowed);
        if told == Told::Itself {
            recorded.insert(one);
        }
        Some(told)
    }

    fn forget(&self, target: &str, outcome: &'static str) {
        self.recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(target.to_owned(), outcome));
    }

    /// The first connection to each target has its record before it is made; the next ones of
    /// the same command use the same leave. Beyond [`MAX_RECORDED`] there is a record that
    /// further ones follow before the first of them is made, and their number in the next.
    async fn record(
        &self,
        plane: &Plane,
        actor: &Actor,
        sandbox: SandboxId,
        permit: &Permit,
    ) -> Result<(), Error> {
        let target = permit.target().to_string();
        match self.news(plane, sandbox, &target, ALLOWED) {
            None | Some(Told::Counted) => Ok(()),
            Some(Told::Together(further)) => self.sum_up(plane, actor, sandbox, further).await,
            Some(Told::Itself) => {
                let mut entry = Entry::allowed("network.connect", target.clone())
                    .with("command", self.command.to_string())
                    .with("network", self.mode.as_str());
                if let Some(rule) = permit.rule() {
                    entry = entry.with("rule", rule.to_string());
                }
                let recorded = plane.audit.record(actor, entry).await;
                if recorded.is_err() {
                    self.forget(&target, ALLOWED);
                }
                recorded
            }
        }
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
            let recorded = match self.news(plane, sandbox, &target, denial.code()) {
                None | Some(Told::Counted) => Ok(()),
                Some(Told::Together(further)) => self.sum_up(plane, actor, sandbox, further).await,
                Some(Told::Itself) => {
                    let entry = Entry::denied("network.connect", target.clone(), denial.code())
                        .with("command", self.command.to_string())
                        .with("network", self.mode.as_str());
                    let recorded = plane.audit.record(actor, entry).await;
                    if recorded.is_err() {
                        self.forget(&target, denial.code());
                    }
                    recorded
                }
            };
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

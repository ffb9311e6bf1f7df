//! Egress of commands: who may connect where, recorded, counted and told to the user.
//!
//! The proxy itself is [`gateway::egress`]; here is whose connection it is. A runner with a
//! network mode has a channel of its own, and that channel is all the authority there is: no
//! token stands in a proxy's URL (arch §3).

mod ration;
pub(crate) mod rules;
mod runner;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use gateway::egress::{Access, Egress, EgressLimits, HostNetwork, Network, Rules};
use tokio::sync::Semaphore;
use types::{CommandId, NetworkMode, SandboxId};

use crate::actor::Actor;
use crate::config::Config;
use crate::services::audit::Entry;
use crate::services::sandboxes::Plane;
use ration::{Further, Ration, Told};
pub(crate) use runner::{Opened, RunnerNetwork, over};

/// Look-ups of names that one sandbox has under way at the same time.
const LOOKUPS_PER_SANDBOX: usize = 4;

/// Connections of one runner at the same time; as many as its relay carries.
pub(crate) const CONNECTIONS_PER_RUNNER: usize = 64;

/// The egress of the installation and who uses it.
#[derive(Debug)]
pub(crate) struct Networks {
    egress: Arc<Egress>,
    connections: usize,
    /// Held while the rules are read and put in place.
    publishing: tokio::sync::Mutex<()>,
    /// As many entries as sandboxes that have a command with a network mode.
    sandboxes: Mutex<HashMap<SandboxId, Weak<OfSandbox>>>,
    /// What sandboxes may still write into the ledger. It outlives their commands, so that
    /// one after the other writes no more than one; as many entries as sandboxes that wrote
    /// something lately.
    rations: Mutex<HashMap<SandboxId, Ration>>,
}

/// What the commands of one sandbox share.
#[derive(Debug)]
struct OfSandbox {
    modes: Mutex<HashMap<CommandId, NetworkMode>>,
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Networks {
    /// The egress over the host's network, with the rules of the configuration.
    pub(crate) fn new(config: &Config) -> Self {
        Self::over(config, Arc::new(HostNetwork::new()))
    }

    /// The same over any network.
    pub(crate) fn over(config: &Config, network: Arc<dyn Network>) -> Self {
        let own = config.origins.own_names();
        let egress = Egress::new(network, own, EgressLimits::default());
        egress.set_rules(Rules::new(config.network.allow.iter().cloned()));
        Self {
            egress: Arc::new(egress),
            connections: config.network.connections,
            publishing: tokio::sync::Mutex::default(),
            sandboxes: Mutex::default(),
            rations: Mutex::default(),
        }
    }

    /// The proxy.
    pub(crate) fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// The place of a command that was granted a mode; it counts until it is dropped.
    /// `None` for the mode `none`.
    pub(crate) fn admit(
        &self,
        sandbox: SandboxId,
        command: CommandId,
        mode: NetworkMode,
    ) -> Option<RunnerNetwork> {
        let access = match mode {
            NetworkMode::None => return None,
            NetworkMode::Allowlist => Access::Allowlist,
            NetworkMode::Open => Access::Open,
        };
        let mut all = self
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, of_sandbox| of_sandbox.strong_count() > 0);
        let known = all.get(&sandbox).and_then(Weak::upgrade);
        let of_sandbox = known.unwrap_or_else(|| {
            let made = Arc::new(OfSandbox {
                modes: Mutex::default(),
                connections: Arc::new(Semaphore::new(self.connections)),
                lookups: Arc::new(Semaphore::new(LOOKUPS_PER_SANDBOX)),
            });
            all.insert(sandbox, Arc::downgrade(&made));
            made
        });
        of_sandbox
            .modes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(command, mode);
        Some(RunnerNetwork::new(command, mode, access, of_sandbox))
    }

    /// How a connection of this sandbox is to be told; see [`Ration::take`].
    fn ration(&self, sandbox: SandboxId, now_ms: i64, own: bool, allowed: bool) -> Told {
        let mut all = self.rations.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one, ration| *one == sandbox || !ration.is_full(now_ms));
        all.entry(sandbox).or_default().take(now_ms, own, allowed)
    }

    /// A record about many could not be written.
    fn give_back(&self, sandbox: SandboxId, further: Further) {
        let mut all = self.rations.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(sandbox).or_default().give_back(further);
    }

    /// Records the connections of a sandbox that were counted for a record about many, when
    /// no further one may come to be told with.
    pub(crate) async fn sum_up(&self, plane: &Plane, sandbox: SandboxId) {
        let further = {
            let mut all = self.rations.lock().unwrap_or_else(PoisonError::into_inner);
            all.get_mut(&sandbox).and_then(Ration::rest)
        };
        let Some(further) = further else { return };
        let entry = Entry::allowed("network.connect", "further targets")
            .in_sandbox(sandbox, None)
            .with("allowed", further.allowed.to_string())
            .with("refused", further.refused.to_string());
        if let Err(error) = plane.audit.record(&Actor::internal(), entry).await {
            tracing::error!(%sandbox, %error, "connections could not be recorded");
            self.give_back(sandbox, further);
        }
    }

    /// What a sandbox can reach: the widest mode of its running commands.
    pub(crate) fn effective(&self, sandbox: SandboxId) -> NetworkMode {
        let all = self
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(of_sandbox) = all.get(&sandbox).and_then(Weak::upgrade) else {
            return NetworkMode::None;
        };
        let modes = of_sandbox
            .modes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        modes.values().copied().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Networks;
    use crate::config::{Config, RawConfig};
    use types::{CommandId, NetworkMode, SandboxId};

    #[test]
    fn a_sandbox_is_as_wide_as_its_widest_running_command() {
        let config = Config::build(RawConfig::read(None, Vec::new()).unwrap()).unwrap();
        let networks = Networks::new(&config);
        let (a, b) = (SandboxId::generate(), SandboxId::generate());
        let admit = |mode| networks.admit(a, CommandId::generate(), mode);
        assert_eq!(networks.effective(a), NetworkMode::None);
        assert!(admit(NetworkMode::None).is_none());
        let list = admit(NetworkMode::Allowlist);
        assert_eq!(networks.effective(a), NetworkMode::Allowlist);
        let open = admit(NetworkMode::Open);
        assert_eq!(networks.effective(a), NetworkMode::Open);
        assert_eq!(networks.effective(b), NetworkMode::None);
        drop(open);
        assert_eq!(networks.effective(a), NetworkMode::Allowlist);
        drop(list);
        assert_eq!(networks.effective(a), NetworkMode::None);
    }
}

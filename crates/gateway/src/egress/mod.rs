//! Egress: the only way from a sandbox to the internet (arch §1, ADR 0011).
//!
//! A runner with a network mode asks for connections on its channel, by `CONNECT` or by a
//! plain HTTP request in absolute form. What it asks for is read in one way ([`Target`]),
//! held against the rules ([`Egress::check`]), resolved once, and connected to at exactly
//! the addresses that were looked at ([`Egress::open`]): there is no second look-up in which
//! a name could lead elsewhere.
//!
//! On the allowlist a tunnel carries TLS for the name it was opened for, which the first
//! bytes have to show ([`hello`]). When the list gets shorter, what it no longer allows is
//! cut at once. No mode leads to a private address, to the host itself or to the names of
//! the installation.

mod address;
mod denial;
mod dial;
pub mod hello;
mod name;
mod network;
mod plain;
mod rule;
#[cfg(test)]
mod tests;
mod traffic;
mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use address::{AddressClass, not_public};
pub use denial::{Denial, OpenError};
pub use name::{DomainName, Host, NameError, Target};
pub use network::{BoxFuture, HostNetwork, Network};
pub use plain::PlainError;
pub use rule::{DEFAULT_PORTS, MAX_RULES, Rule, RuleError, Rules};
pub use traffic::{End, Ended};

/// How far a runner may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Names and ports of the rules, by TLS or plain HTTP.
    Allowlist,
    /// Every public name, address and port.
    Open,
}

/// Bounds of one connection.
#[derive(Debug, Clone)]
pub struct EgressLimits {
    /// Longest look-up of a name.
    pub resolve: Duration,
    /// Longest wait for a connection, over all addresses.
    pub connect: Duration,
    /// Head start of one address before the next is tried as well (RFC 8305 §5).
    pub stagger: Duration,
    /// Addresses of a name that are tried at most.
    pub addresses: usize,
    /// Longest wait for a whole `ClientHello`.
    pub hello: Duration,
    /// Longest silence, both directions together, before a connection is closed.
    pub idle: Duration,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            resolve: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            stagger: Duration::from_millis(250),
            addresses: 6,
            hello: Duration::from_secs(10),
            idle: Duration::from_secs(10 * 60),
        }
    }
}

/// Names that belong to the installation and are never connected to. `localhost` and what is
/// beneath it always do.
#[derive(Debug, Clone, Default)]
pub struct OwnNames {
    exact: Vec<DomainName>,
    beneath: Vec<DomainName>,
}

impl OwnNames {
    /// One name.
    #[must_use]
    pub fn with(mut self, host: &str) -> Self {
        if let Ok(Host::Name(name)) = Host::parse(host) {
            self.exact.push(name);
        }
        self
    }

    /// Every name beneath one.
    #[must_use]
    pub fn with_beneath(mut self, host: &str) -> Self {
        if let Ok(Host::Name(name)) = Host::parse(host) {
            self.beneath.push(name);
        }
        self
    }

    fn covers(&self, name: &DomainName) -> bool {
        let localhost = name.as_str() == "localhost" || name.as_str().ends_with(".localhost");
        localhost
            || self.exact.contains(name)
            || self.beneath.iter().any(|base| name.is_beneath(base))
    }
}

/// The egress of an installation.
#[derive(Debug)]
pub struct Egress {
    network: Arc<dyn Network>,
    own: OwnNames,
    rules: watch::Sender<Arc<Rules>>,
    limits: EgressLimits,
}

/// On whose behalf a connection is made.
#[derive(Debug, Clone)]
pub struct Caller {
    /// How far it may reach.
    pub access: Access,
    /// Ends its connections.
    pub cancel: CancellationToken,
    /// Look-ups that it may have under way at the same time, so that one who asks for names
    /// that never resolve does not take everybody's.
    pub lookups: Arc<Semaphore>,
}

/// Leave to connect, as long as a rule gives it.
#[derive(Debug)]
pub struct Permit {
    caller: Caller,
    target: Target,
    rule: Option<Rule>,
    /// Has seen the list that gave it; whatever comes after is news.
    rules: watch::Receiver<Arc<Rules>>,
}

impl Permit {
    /// What it is for.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The rule that gives it; `None` in the mode `open`.
    #[must_use]
    pub const fn rule(&self) -> Option<&Rule> {
        self.rule.as_ref()
    }

    /// Returns once whoever asked has ended, or no rule allows it any more.
    async fn ended(&mut self) -> End {
        loop {
            tokio::select! {
                biased;
                () = self.caller.cancel.cancelled() => return End::Cancelled,
                changed = self.rules.changed() => {
                    if changed.is_err() {
                        return End::Cancelled;
                    }
                }
            }
            if self.caller.access == Access::Allowlist
                && let Host::Name(name) = &self.target.host
                && self
                    .rules
                    .borrow_and_update()
                    .find(name, self.target.port)
                    .is_none()
            {
                return End::Revoked;
            }
        }
    }
}

impl Egress {
    /// An egress without rules.
    #[must_use]
    pub fn new(network: Arc<dyn Network>, own: OwnNames, limits: EgressLimits) -> Self {
        Self {
            network,
            own,
            rules: watch::Sender::new(Arc::default()),
            limits,
        }
    }

    /// Puts other rules in place. Connections that they do not allow are cut.
    pub fn set_rules(&self, rules: Rules) {
        self.rules.send_replace(Arc::new(rules));
    }

    /// The rules in place.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.borrow())
    }

    /// The bounds.
    #[must_use]
    pub const fn limits(&self) -> &EgressLimits {
        &self.limits
    }

    /// Whether the caller may ask for this, by name and port alone.
    ///
    /// # Errors
    /// It is not allowed.
    pub fn check(&self, caller: Caller, target: Target) -> Result<Permit, Denial> {
        let access = caller.access;
        let mut rules = self.rules.subscribe();
        let mut rule = None;
        match &target.host {
            Host::Name(name) => {
                if self.own.covers(name) {
                    return Err(Denial::OwnName(target));
                }
                if access == Access::Allowlist {
                    rule = rules.borrow_and_update().find(name, target.port).cloned();
                    if rule.is_none() {
                        return Err(Denial::NotAllowed {
                            name: name.clone(),
                            port: target.port,
                        });
                    }
                }
            }
            Host::Address(_) if access == Access::Allowlist => return Err(Denial::Literal(target)),
            Host::Address(address) => {
                if let Some(class) = self.refused(*address) {
                    return Err(Denial::NotPublic { target, class });
                }
            }
        }
        Ok(Permit {
            caller,
            target,
            rule,
            rules,
        })
    }

    /// Resolves once and connects to what was looked at.
    ///
    /// # Errors
    /// Nothing that the name leads to may be connected to, or answers; or the permit ended.
    pub async fn open(&self, permit: &mut Permit) -> Result<TcpStream, OpenError> {
        let (target, lookups) = (permit.target.clone(), Arc::clone(&permit.caller.lookups));
        tokio::select! {
            biased;
            _ = permit.ended() => Err(OpenError::Revoked),
            opened = self.connect(&target, lookups) => opened,
        }
    }

    async fn connect(
        &self,
        target: &Target,
        lookups: Arc<Semaphore>,
    ) -> Result<TcpStream, OpenError> {
        let addresses = self.addresses(target, lookups).await?;
        let within = self.limits.connect;
        match tokio::time::timeout(within, dial::dial(&self.network, addresses, &self.limits)).await
        {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(OpenError::Unreachable {
                target: target.clone(),
                source,
            }),
            Err(_) => Err(OpenError::Timeout {
                target: target.clone(),
                within,
            }),
        }
    }

    /// The addresses of a target that may be connected to. Those that may not are left out;
    /// with none left the target is refused.
    async fn addresses(
        &self,
        target: &Target,
        lookups: Arc<Semaphore>,
    ) -> Result<Vec<SocketAddr>, OpenError> {
        let found = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let within = self.limits.resolve;
                let found = async {
                    let turn = lookups.acquire_owned().await;
                    let turn = turn.map_err(std::io::Error::other)?;
                    self.network.resolve(name, turn).await
                };
                match tokio::time::timeout(within, found).await {
                    Ok(Ok(found)) => found,
                    Ok(Err(source)) => {
                        return Err(OpenError::Unresolved {
                            target: target.clone(),
                            source,
                        });
                    }
                    Err(_) => {
                        return Err(OpenError::Timeout {
                            target: target.clone(),
                            within,
                        });
                    }
                }
            }
        };
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in found {
            match self.refused(address) {
                Some(class) => refused = Some(class),
                None if allowed.len() < self.limits.addresses => {
                    let address = SocketAddr::new(address, target.port);
                    if !allowed.contains(&address) {
                        allowed.push(address);
                    }
                }
                None => {}
            }
        }
        match refused {
            Some(class) if allowed.is_empty() => Err(OpenError::Denied(Denial::NotPublic {
                target: target.clone(),
                class,
            })),
            _ if allowed.is_empty() => Err(OpenError::Unresolved {
                target: target.clone(),
                source: std::io::Error::other("the name has no address"),
            }),
            _ => Ok(dial::interleave(allowed)),
        }
    }

    fn refused(&self, address: std::net::IpAddr) -> Option<AddressClass> {
        not_public(address).or_else(|| {
            self.network
                .is_own(address)
                .then_some(AddressClass::OwnHost)
        })
    }
}

//! The ledger as services use it: a record is on the disk before the effect (arch §6).

use std::path::Path;

use ledger::{Filter, Health, Ledger, Options, Record, Report};
use tokio::sync::watch;
use types::{Role, SandboxId, UserId, UserName};

use crate::actor::{Actor, Via};
use crate::clock::Clock;
use crate::error::Error;

/// How an act ended, or that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was allowed and is about to happen.
    Allowed,
    /// It was refused.
    Denied,
    /// It was allowed and failed.
    Failed,
}

impl From<Outcome> for ledger::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Allowed => Self::Allowed,
            Outcome::Denied => Self::Denied,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// An entry in the making. Names and reasons only; never a value, a token or a body.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What, such as `sandbox.start` or `auth.login`.
    pub action: &'static str,
    /// To what: an id or a name.
    pub target: String,
    /// How it went.
    pub outcome: Outcome,
    /// Why, when it was refused or failed.
    pub reason: Option<String>,
    /// The user it is about, when that is not the actor.
    pub subject: Option<(UserId, UserName)>,
    /// The sandbox it is about, and its role, when that is not the channel's.
    pub sandbox: Option<(SandboxId, Option<Role>)>,
    /// Further small facts.
    pub details: Vec<(&'static str, String)>,
}

impl Entry {
    /// An allowed act.
    #[must_use]
    pub fn allowed(action: &'static str, target: impl Into<String>) -> Self {
        Self {
            action,
            target: target.into(),
            outcome: Outcome::Allowed,
            reason: None,
            subject: None,
            sandbox: None,
            details: Vec::new(),
        }
    }

    /// A refused act.
    #[must_use]
    pub fn denied(
        action: &'static str,
        target: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Denied,
            reason: Some(reason.into()),
            ..Self::allowed(action, target)
        }
    }

    /// An act that failed after it was allowed.
    #[must_use]
    pub fn failed(
        action: &'static str,
        target: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: Some(reason.into()),
            ..Self::allowed(action, target)
        }
    }

    /// Names the user it is about, as far as a name is known.
    #[must_use]
    pub fn about(self, name: impl Into<String>) -> Self {
        self.with("user", name)
    }

    /// Says which user it is about.
    #[must_use]
    pub fn about_user(mut self, id: UserId, name: &UserName) -> Self {
        self.subject = Some((id, name.clone()));
        self
    }

    /// Says which sandbox it is about.
    #[must_use]
    pub const fn in_sandbox(mut self, id: SandboxId, role: Option<Role>) -> Self {
        self.sandbox = Some((id, role));
        self
    }

    /// Adds a small fact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.details.push((key, value.into()));
        self
    }
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    ledger: Ledger,
    clock: Clock,
    /// The number of the last record on the disk, for those who follow.
    head: watch::Receiver<u64>,
}

impl Audit {
    /// Opens the ledger in its directory, which verifies all of it.
    ///
    /// # Errors
    /// It cannot be opened, or somebody changed it.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, Error> {
        let (commits, head) = watch::channel(0);
        let on_commit = move |head: ledger::Head| {
            commits.send_replace(head.seq);
        };
        let options = Options {
            on_commit: Some(Box::new(on_commit)),
            ..Options::default()
        };
        let ledger = Ledger::open(dir, options).map_err(Error::internal)?;
        Ok(Self {
            ledger,
            clock,
            head,
        })
    }

    /// Whether the ledger takes records.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.ledger.health() == Health::Ok
    }

    /// Records an act, and returns once the record is on the disk. The effect comes after.
    ///
    /// # Errors
    /// [`Error::AuditUnavailable`]: then the act must not happen.
    pub async fn record(&self, actor: &Actor, entry: Entry) -> Result<(), Error> {
        let record = self.compose(actor, entry)?;
        match self.ledger.append(&record).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::AuditUnavailable(Box::new(error))),
        }
    }

    fn compose(&self, actor: &Actor, entry: Entry) -> Result<Record, Error> {
        let at = jiff::Timestamp::from_millisecond(self.clock.now_ms()).map_err(Error::internal)?;
        let (who, channel) = describe(actor);
        let mut record = Record::new(at, who, channel, entry.action, entry.outcome.into())
            .target(&entry.target)
            .request(actor.request_id);
        if let Some((id, name)) = &entry.subject {
            record = record.for_user(ledger::User::new(*id, name));
        } else if let Some(user) = &actor.user {
            record = record.for_user(ledger::User::new(user.id, &user.name));
        }
        if let Some((sandbox, role)) = entry.sandbox {
            record = record.in_sandbox(sandbox, role);
        } else if let Via::Channel { sandbox, role, .. } = &actor.via {
            record = record.in_sandbox(*sandbox, Some(*role));
        }
        if let Some(reason) = &entry.reason {
            record = record.reason(reason);
        }
        if let Some(address) = actor.address {
            record = record.detail("address", address.to_string());
        }
        Ok(entry
            .details
            .into_iter()
            .fold(record, |record, (key, value)| record.detail(key, value)))
    }

    /// The last records, oldest first; at most 10,000.
    ///
    /// # Errors
    /// Not an admin, or the files cannot be read.
    pub async fn tail(&self, actor: &Actor, count: usize) -> Result<Vec<ledger::Entry>, Error> {
        actor.require_admin()?;
        let reader = self.ledger.reader();
        blocking(move || reader.tail(count, &Filter::default()))
            .await?
            .map_err(Error::internal)
    }

    /// Records from a number on, oldest first, up to `most` of them.
    ///
    /// # Errors
    /// Not an admin, or the files cannot be read.
    pub async fn since(
        &self,
        actor: &Actor,
        seq: u64,
        most: usize,
    ) -> Result<Vec<ledger::Entry>, Error> {
        actor.require_admin()?;
        let reader = self.ledger.reader();
        blocking(move || reader.from(seq)?.take(most).collect::<Result<Vec<_>, _>>())
            .await?
            .map_err(Error::internal)
    }

    /// Follows the number of the last record on the disk.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.clone()
    }

    /// Verifies the whole log. The look itself is recorded.
    ///
    /// # Errors
    /// Not an admin, or the files cannot be read.
    pub async fn verify(&self, actor: &Actor) -> Result<Report, Error> {
        actor.require_admin()?;
        self.record(actor, Entry::allowed("audit.verify", "log"))
            .await?;
        let dir = self.ledger.dir().to_owned();
        blocking(move || ledger::verify(&dir))
            .await?
            .map_err(Error::internal)
    }
}

/// Reading files does not belong on an async worker.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(Error::internal)
}

/// Who, and through what, in the ledger's words.
fn describe(actor: &Actor) -> (ledger::Actor, ledger::Channel) {
    let user = actor.user.as_ref().map_or(ledger::Actor::Nobody, |user| {
        ledger::Actor::User(ledger::User::new(user.id, &user.name))
    });
    match &actor.via {
        Via::Nothing => (user, ledger::Channel::Public),
        Via::Session(id) | Via::RecoverySession(id) | Via::RuntimeSession(id) => {
            (user, ledger::Channel::Session { id: *id })
        }
        Via::ApiToken { id, .. } => (user, ledger::Channel::Token { id: *id }),
        Via::Channel {
            sandbox,
            start,
            command,
            ..
        } => {
            let who = match command {
                None => ledger::Actor::Sandbox {
                    id: *sandbox,
                    start: *start,
                },
                Some(command) => ledger::Actor::Runner {
                    sandbox: *sandbox,
                    start: *start,
                    command: *command,
                },
            };
            (who, ledger::Channel::Socket)
        }
        Via::Internal => (ledger::Actor::Internal, ledger::Channel::Internal),
    }
}

//! What one record says: who, for whom, through what, did what to what, with which outcome.

use std::collections::BTreeMap;

use crypto::redact_tokens;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use types::{CommandId, RequestId, Role, SandboxId, SessionId, StartId, TokenId, UserId, UserName};

/// Longest action name in bytes.
pub(crate) const MAX_ACTION: usize = 64;
/// Longest user name in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// Longest target, reason and value of a detail in bytes.
pub(crate) const MAX_TEXT: usize = 1024;
/// Longest key of a detail in bytes.
pub(crate) const MAX_KEY: usize = 64;
/// Most details of one record.
pub(crate) const MAX_DETAILS: usize = 12;

/// A user, by id and by the name they had then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The account.
    pub id: UserId,
    /// Its name at the time; at most 64 bytes.
    pub name: String,
}

impl User {
    /// A user.
    #[must_use]
    pub fn new(id: UserId, name: &UserName) -> Self {
        Self {
            id,
            name: name.as_str().to_owned(),
        }
    }
}

/// Who acted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Actor {
    /// Somebody who did not prove who they are.
    Nobody,
    /// A signed-in user.
    User(User),
    /// A sandbox, known by its channel.
    Sandbox {
        /// Which.
        id: SandboxId,
        /// Which start of it.
        start: StartId,
    },
    /// A runner, known by its own channel.
    Runner {
        /// The sandbox that it works for.
        sandbox: SandboxId,
        /// Which start of it.
        start: StartId,
        /// The command that it runs.
        command: CommandId,
    },
    /// The hypervisor itself.
    Internal,
}

/// Through what the actor came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Channel {
    /// A public listener, without a session or token.
    Public,
    /// A browser session of a control or runtime origin.
    Session {
        /// Which.
        id: SessionId,
    },
    /// An API token.
    Token {
        /// Which.
        id: TokenId,
    },
    /// The channel socket of a sandbox or runner.
    Socket,
    /// No request at all: start-up, a timer, the machine's own command line.
    Internal,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was allowed and is about to happen; a later record tells how it ended.
    Allowed,
    /// It was refused; `reason` says why.
    Denied,
    /// It happened.
    Succeeded,
    /// It was tried and failed; `reason` says why.
    Failed,
}

impl Outcome {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// One record. Never holds a value: no secret, no body, no output.
///
/// The methods that fill it in shorten what is too long, visibly, and take out anything that
/// looks like one of our tokens, so that no text from outside can make an append fail or
/// carry a secret into the log. Setting the fields directly skips that; the encoding then
/// refuses what is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, to the microsecond; what is finer is dropped.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// Through what.
    pub channel: Channel,
    /// For whom, or whose things: the owner of the sandbox or account concerned.
    pub subject: Option<User>,
    /// The sandbox concerned.
    pub sandbox: Option<SandboxId>,
    /// The role that the sandbox had.
    pub role: Option<Role>,
    /// What: dotted lower-case words such as `auth.login`; at most 64 bytes.
    pub action: String,
    /// To what: a name or id; at most 1024 bytes.
    pub target: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// Why, for people; at most 1024 bytes.
    pub reason: Option<String>,
    /// The request, as the logs name it.
    pub request_id: Option<RequestId>,
    /// More facts: at most 12, keys of at most 64 and values of at most 1024 bytes.
    pub details: BTreeMap<String, String>,
}

impl Record {
    /// A record with what every record has.
    #[must_use]
    pub fn new(
        at: Timestamp,
        actor: Actor,
        channel: Channel,
        action: impl Into<String>,
        outcome: Outcome,
    ) -> Self {
        Self {
            at,
            actor,
            channel,
            subject: None,
            sandbox: None,
            role: None,
            action: action.into(),
            target: None,
            outcome,
            reason: None,
            request_id: None,
            details: BTreeMap::new(),
        }
    }

    /// Says for whom.
    #[must_use]
    pub fn for_user(mut self, user: User) -> Self {
        self.subject = Some(user);
        self
    }

    /// Says which sandbox, and its role when known.
    #[must_use]
    pub fn in_sandbox(mut self, id: SandboxId, role: Option<Role>) -> Self {
        self.sandbox = Some(id);
        self.role = role;
        self
    }

    /// Says to what.
    #[must_use]
    pub fn target(mut self, target: impl AsRef<str>) -> Self {
        self.target = Some(presentable(target.as_ref(), MAX_TEXT));
        self
    }

    /// Says why.
    #[must_use]
    pub fn reason(mut self, reason: impl AsRef<str>) -> Self {
        self.reason = Some(presentable(reason.as_ref(), MAX_TEXT));
        self
    }

    /// Says on which request.
    #[must_use]
    pub fn request(mut self, id: RequestId) -> Self {
        self.request_id = Some(id);
        self
    }

    /// Adds a fact. The thirteenth and later ones are dropped.
    #[must_use]
    pub fn detail(mut self, key: &'static str, value: impl AsRef<str>) -> Self {
        if self.details.len() < MAX_DETAILS || self.details.contains_key(key) {
            self.details
                .insert(key.to_owned(), presentable(value.as_ref(), MAX_TEXT));
        }
        self
    }
}

/// Without tokens, and at most `max` bytes; a shortened text ends in `…`.
fn presentable(text: &str, max: usize) -> String {
    const MARK: &str = "…";
    let clean = redact_tokens(text);
    if clean.len() <= max {
        return clean.into_owned();
    }
    let end = clean.floor_char_boundary(max.saturating_sub(MARK.len()));
    let mut short = clean.get(..end).unwrap_or_default().to_owned();
    short.push_str(MARK);
    short
}

#[cfg(test)]
mod tests {
    use crypto::{OsRandom, Token, TokenKind};
    use jiff::Timestamp;

    use super::{Actor, Channel, MAX_DETAILS, MAX_TEXT, Outcome, Record};

    fn record() -> Record {
        Record::new(
            Timestamp::UNIX_EPOCH,
            Actor::Nobody,
            Channel::Public,
            "auth.login",
            Outcome::Denied,
        )
    }

    #[test]
    fn long_texts_are_shortened_at_a_character() {
        let target = record().target("ä".repeat(MAX_TEXT)).target.unwrap();
        assert!(target.len() <= MAX_TEXT);
        assert!(target.ends_with("ä…"));
    }

    #[test]
    fn tokens_do_not_reach_the_log() {
        let token = Token::generate(TokenKind::Api, &OsRandom::new()).unwrap();
        let record = record()
            .reason(token.expose())
            .detail("argv", token.expose());
        assert_eq!(record.reason.unwrap(), "choirpat_[redacted]");
        assert_eq!(record.details["argv"], "choirpat_[redacted]");
    }

    #[test]
    fn details_are_bounded() {
        const KEYS: [&str; 14] = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n",
        ];
        let record = KEYS
            .iter()
            .fold(record(), |record, key| record.detail(key, "x"));
        assert_eq!(record.details.len(), MAX_DETAILS);
        assert_eq!(record.detail("a", "y").details["a"], "y");
    }
}

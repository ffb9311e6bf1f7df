//! The canonical encoding of a record: one record, one sequence of bytes, and back.
//!
//! Fields stand in the order of [`Record`]'s declaration and are never left out, so a field
//! cannot be taken for another one. Version 1:
//! ```text
//! u8 version = 1
//! at          i64, microseconds since 1970
//! actor       u8 0 nobody | 1 user: user | 2 sandbox: id id | 3 runner: id id id | 4 internal
//! channel     u8 0 public | 1 session: id | 2 token: id | 3 socket | 4 internal
//! subject     option of user
//! sandbox     option of id
//! role        option of u8 (0 live, 1 dev)
//! action      text
//! target      option of text
//! outcome     u8 0 allowed | 1 denied | 2 succeeded | 3 failed
//! reason      option of text
//! request_id  option of id
//! details     u32 count, then key text and value text of each, keys strictly ascending
//!
//! id = 16 bytes of the UUID; text = u32 length, UTF-8; option = u8 0, or u8 1 and the value;
//! user = id, text
//! ```
//! Reading accepts exactly what writing produces: every bound is checked, nothing may follow,
//! and a repeated or unsorted key is refused.

use std::collections::BTreeMap;

use jiff::Timestamp;
use types::{CommandId, RequestId, Role, SandboxId, SessionId, StartId, TokenId, UserId};
use uuid::Uuid;

use crate::record::{MAX_ACTION, MAX_DETAILS, MAX_KEY, MAX_NAME, MAX_TEXT};
use crate::{Actor, Channel, Outcome, Record, RecordError, User};

/// Most bytes of one encoded record. The bounds of the fields keep below it.
pub(crate) const MAX_RECORD: usize = 16 * 1024;
const VERSION: u8 = 1;

/// Writes a record.
///
/// # Errors
/// A field is longer than its bound.
pub(crate) fn encode(record: &Record) -> Result<Vec<u8>, RecordError> {
    let mut out = Writer(Vec::with_capacity(256));
    out.byte(VERSION);
    out.0
        .extend_from_slice(&record.at.as_microsecond().to_be_bytes());
    match &record.actor {
        Actor::Nobody => out.byte(0),
        Actor::User(user) => {
            out.byte(1);
            out.user(user)?;
        }
        Actor::Sandbox { id, start } => {
            out.byte(2);
            out.id(id.as_uuid());
            out.id(start.as_uuid());
        }
        Actor::Runner {
            sandbox,
            start,
            command,
        } => {
            out.byte(3);
            out.id(sandbox.as_uuid());
            out.id(start.as_uuid());
            out.id(command.as_uuid());
        }
        Actor::Internal => out.byte(4),
    }
    match &record.channel {
        Channel::Public => out.byte(0),
        Channel::Session { id } => {
            out.byte(1);
            out.id(id.as_uuid());
        }
        Channel::Token { id } => {
            out.byte(2);
            out.id(id.as_uuid());
        }
        Channel::Socket => out.byte(3),
        Channel::Internal => out.byte(4),
    }
    out.option(record.subject.as_ref(), Writer::user)?;
    out.option(record.sandbox.as_ref(), |out, id| {
        out.id(id.as_uuid());
        Ok(())
    })?;
    out.option(record.role, |out, role| {
        out.byte(match role {
            Role::Live => 0,
            Role::Dev => 1,
        });
        Ok(())
    })?;
    out.text("action", &record.action, MAX_ACTION)?;
    out.option(record.target.as_ref(), |out, text| {
        out.text("target", text, MAX_TEXT)
    })?;
    out.byte(match record.outcome {
        Outcome::Allowed => 0,
        Outcome::Denied => 1,
        Outcome::Succeeded => 2,
        Outcome::Failed => 3,
    });
    out.option(record.reason.as_ref(), |out, text| {
        out.text("reason", text, MAX_TEXT)
    })?;
    out.option(record.request_id.as_ref(), |out, id| {
        out.id(id.as_uuid());
        Ok(())
    })?;
    if record.details.len() > MAX_DETAILS {
        return Err(RecordError::TooMany { max: MAX_DETAILS });
    }
    out.length(record.details.len())?;
    for (key, value) in &record.details {
        out.text("detail's key", key, MAX_KEY)?;
        out.text("detail's value", value, MAX_TEXT)?;
    }
    if out.0.len() > MAX_RECORD {
        return Err(RecordError::TooLong {
            field: "encoding",
            max: MAX_RECORD,
        });
    }
    Ok(out.0)
}

/// Reads a record.
///
/// # Errors
/// The bytes are not exactly what [`encode`] writes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
    if bytes.len() > MAX_RECORD {
        return Err(malformed("it is too long"));
    }
    let mut input = Input(bytes);
    if input.byte()? != VERSION {
        return Err(malformed("its version is unknown"));
    }
    let at = Timestamp::from_microsecond(i64::from_be_bytes(input.array()?))
        .map_err(|_| malformed("its time is out of range"))?;
    let actor = match input.byte()? {
        0 => Actor::Nobody,
        1 => Actor::User(input.user()?),
        2 => Actor::Sandbox {
            id: SandboxId::from_uuid(input.id()?),
            start: StartId::from_uuid(input.id()?),
        },
        3 => Actor::Runner {
            sandbox: SandboxId::from_uuid(input.id()?),
            start: StartId::from_uuid(input.id()?),
            command: CommandId::from_uuid(input.id()?),
        },
        4 => Actor::Internal,
        _ => return Err(malformed("its actor is of an unknown kind")),
    };
    let channel = match input.byte()? {
        0 => Channel::Public,
        1 => Channel::Session {
            id: SessionId::from_uuid(input.id()?),
        },
        2 => Channel::Token {
            id: TokenId::from_uuid(input.id()?),
        },
        3 => Channel::Socket,
        4 => Channel::Internal,
        _ => return Err(malformed("its channel is of an unknown kind")),
    };
    let subject = input.option(Input::user)?;
    let sandbox = input.option(Input::id)?.map(SandboxId::from_uuid);
    let role = input.option(|input| match input.byte()? {
        0 => Ok(Role::Live),
        1 => Ok(Role::Dev),
        _ => Err(malformed("its role is unknown")),
    })?;
    let action = input.text(MAX_ACTION)?;
    let target = input.option(|input| input.text(MAX_TEXT))?;
    let outcome = match input.byte()? {
        0 => Outcome::Allowed,
        1 => Outcome::Denied,
        2 => Outcome::Succeeded,
        3 => Outcome::Failed,
        _ => return Err(malformed("its outcome is unknown")),
    };
    let reason = input.option(|input| input.text(MAX_TEXT))?;
    let request_id = input.option(Input::id)?.map(RequestId::from_uuid);
    let count = input.length()?;
    if count > MAX_DETAILS {
        return Err(malformed("it has too many details"));
    }
    let mut details = BTreeMap::new();
    for _ in 0..count {
        let key = input.text(MAX_KEY)?;
        if details
            .last_key_value()
            .is_some_and(|(last, _)| *last >= key)
        {
            return Err(malformed("its details are not in order"));
        }
        details.insert(key, input.text(MAX_TEXT)?);
    }
    if !input.0.is_empty() {
        return Err(malformed("something follows it"));
    }
    Ok(Record {
        at,
        actor,
        channel,
        subject,
        sandbox,
        role,
        action,
        target,
        outcome,
        reason,
        request_id,
        details,
    })
}

const fn malformed(what: &'static str) -> RecordError {
    RecordError::Malformed { what }
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn id(&mut self, id: &Uuid) {
        self.0.extend_from_slice(id.as_bytes());
    }

    fn length(&mut self, length: usize) -> Result<(), RecordError> {
        let length = u32::try_from(length).map_err(|_| RecordError::TooLong {
            field: "encoding",
            max: MAX_RECORD,
        })?;
        self.0.extend_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn text(&mut self, field: &'static str, text: &str, max: usize) -> Result<(), RecordError> {
        if text.len() > max {
            return Err(RecordError::TooLong { field, max });
        }
        self.length(text.len())?;
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn user(&mut self, user: &User) -> Result<(), RecordError> {
        self.id(user.id.as_uuid());
        self.text("user name", &user.name, MAX_NAME)
    }

    fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        match value {
            None => {
                self.byte(0);
                Ok(())
            }
            Some(value) => {
                self.byte(1);
                write(self, value)
            }
        }
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]| byte)
    }

    fn id(&mut self) -> Result<Uuid, RecordError> {
        self.array().map(Uuid::from_bytes)
    }

    fn length(&mut self) -> Result<usize, RecordError> {
        let length = u32::from_be_bytes(self.array()?);
        usize::try_from(length).map_err(|_| malformed("it ends too early"))
    }

    fn text(&mut self, max: usize) -> Result<String, RecordError> {
        let length = self.length()?;
        if length > max {
            return Err(malformed("a text is too long"));
        }
        let bytes = self.take(length)?;
        let text = str::from_utf8(bytes).map_err(|_| malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn user(&mut self) -> Result<User, RecordError> {
        Ok(User {
            id: UserId::from_uuid(self.id()?),
            name: self.text(MAX_NAME)?,
        })
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Option<T>, RecordError> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(malformed("an option is neither there nor absent")),
        }
    }
}

#[cfg(test)]
mod tests;

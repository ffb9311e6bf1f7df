//! Invitations.

use crypto::{Token, TokenKind};
use serde::{Deserialize, Serialize};
use types::InviteId;

use super::audit::Entry;
use crate::actor::Actor;
use crate::app::App;
use crate::clock::{millis, rfc3339};
use crate::error::Error;
use crate::store::{InviteRow, NewInvite};

/// Longest note, in characters.
const MAX_NOTE: usize = 100;

/// A wish for an invitation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// Whom it is for, for people.
    #[serde(default)]
    pub note: String,
    /// Whether whoever uses it becomes an admin.
    #[serde(default)]
    pub makes_admin: bool,
}

/// An invitation, as listings show it; never the link itself.
#[derive(Debug, Serialize)]
pub struct InviteView {
    /// Its id.
    pub id: InviteId,
    /// Whom it is for.
    pub note: String,
    /// Whether whoever uses it becomes an admin.
    pub makes_admin: bool,
    /// `open`, `used` or `expired`.
    pub state: &'static str,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// Who registered with it.
    pub used_by: Option<String>,
    /// RFC 3339.
    pub used_at: Option<String>,
}

fn view(row: InviteRow, now: i64) -> InviteView {
    InviteView {
        id: row.id,
        note: row.note,
        makes_admin: row.makes_admin,
        state: match row.used_at {
            Some(_) => "used",
            None if row.expires_at <= now => "expired",
            None => "open",
        },
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
        used_by: row.used_by,
        used_at: row.used_at.map(rfc3339),
    }
}

/// All invitations.
///
/// # Errors
/// Not an admin.
pub async fn list(app: &App, actor: &Actor) -> Result<Vec<InviteView>, Error> {
    actor.require_admin()?;
    let now = app.clock.now_ms();
    Ok(app
        .store
        .invites()
        .await?
        .into_iter()
        .map(|row| view(row, now))
        .collect())
}

/// Makes an invitation and returns its link, which is shown this once.
///
/// # Errors
/// Not an admin, or a note that cannot be.
pub async fn create(
    app: &App,
    actor: &Actor,
    request: &InviteRequest,
) -> Result<(String, InviteView), Error> {
    let user = actor.require_admin()?;
    let note = request.note.trim();
    if note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a note has at most {MAX_NOTE} printable characters"
        )));
    }
    let token = Token::generate(TokenKind::Invite, &app.random).map_err(Error::internal)?;
    let now = app.clock.now_ms();
    let invite = NewInvite {
        id: InviteId::generate(),
        token_hash: token.hash().to_string(),
        note: note.to_owned(),
        makes_admin: request.makes_admin,
        created_by: user.id,
        now,
        expires_at: now.saturating_add(millis(app.config.auth.invite_lifetime)),
    };
    let entry = Entry::allowed("invite.create", invite.id.to_string())
        .with("note", note)
        .with("admin", request.makes_admin.to_string());
    app.audit.record(actor, entry).await?;
    app.store.add_invite(&invite).await?;
    let url = format!(
        "{}/register?invite={}",
        app.config.origins.control,
        token.expose()
    );
    let shown = InviteView {
        id: invite.id,
        note: invite.note,
        makes_admin: invite.makes_admin,
        state: "open",
        created_at: rfc3339(now),
        expires_at: rfc3339(invite.expires_at),
        used_by: None,
        used_at: None,
    };
    Ok((url, shown))
}

/// Withdraws an unused invitation.
///
/// # Errors
/// Not an admin, or there is none of this id.
pub async fn withdraw(app: &App, actor: &Actor, id: InviteId) -> Result<(), Error> {
    actor.require_admin()?;
    app.audit
        .record(actor, Entry::allowed("invite.withdraw", id.to_string()))
        .await?;
    if app.store.remove_invite(id).await? {
        Ok(())
    } else {
        Err(Error::NotFound("invitation"))
    }
}

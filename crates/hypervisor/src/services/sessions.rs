//! Sessions: made at sign-in, shown to their owner, ended by them.

use std::time::Duration;

use crypto::{Token, TokenKind};
use serde::Serialize;
use types::{SessionId, UserId};

use super::audit::Entry;
use crate::actor::{Actor, Scope, User, Via};
use crate::app::App;
use crate::clock::{millis, rfc3339};
use crate::error::Error;
use crate::store::{NewSession, SessionKind, SessionRow};

/// How long the decision after a recovery may take.
pub const RECOVERY_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Uses within this time of the last noted one are not written down.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// Longest `User-Agent` that is kept, in characters.
const MAX_USER_AGENT: usize = 200;

/// A session that was just made: its token goes into the cookie and nowhere else.
pub struct Made {
    /// What is stored.
    pub session: NewSession,
    /// The token.
    pub token: Token,
    /// How long the cookie is kept.
    pub lifetime: Duration,
}

/// A session, as listings show it.
#[derive(Debug, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// What it opens: `control`, `recovery` or `runtime`.
    pub kind: &'static str,
    /// Whether it is the one that asks.
    pub current: bool,
    /// The host that may present it.
    pub host: String,
    /// The browser, as it named itself.
    pub user_agent: String,
    /// The address it was made from.
    pub address: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; up to a minute late.
    pub last_seen_at: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// Composes a session of the control origin; the caller stores it.
///
/// # Errors
/// The random source failed.
pub fn make(
    app: &App,
    actor: &Actor,
    user: UserId,
    kind: SessionKind,
    user_agent: Option<&str>,
) -> Result<Made, Error> {
    let token = Token::generate(TokenKind::Session, &app.random).map_err(Error::internal)?;
    let lifetime = match kind {
        SessionKind::Recovery => RECOVERY_LIFETIME,
        SessionKind::Control | SessionKind::Runtime => app.config.auth.session_lifetime,
    };
    let now = app.clock.now_ms();
    let session = NewSession {
        id: SessionId::generate(),
        user_id: user,
        kind,
        parent: None,
        token_hash: token.hash().to_string(),
        host: app.config.origins.control.host().to_owned(),
        user_agent: clean_user_agent(user_agent),
        address: actor
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        now,
        expires_at: now.saturating_add(millis(lifetime)),
    };
    Ok(Made {
        session,
        token,
        lifetime,
    })
}

/// What a browser says of itself, cut to what is kept.
#[must_use]
pub fn clean_user_agent(user_agent: Option<&str>) -> String {
    user_agent
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_USER_AGENT)
        .collect()
}

/// Finds the session of a token that a browser presented to a host. `None` when there is
/// none, or when it has ended, or when it belongs to another host.
///
/// # Errors
/// The database failed.
pub async fn find(app: &App, token: &Token, host: &str) -> Result<Option<SessionRow>, Error> {
    let Some(row) = app.store.session(&token.hash().to_string()).await? else {
        return Ok(None);
    };
    let now = app.clock.now_ms();
    let idle_end = row
        .last_seen_at
        .saturating_add(millis(app.config.auth.session_idle));
    let wanted = match row.kind {
        SessionKind::Control | SessionKind::Recovery => TokenKind::Session,
        SessionKind::Runtime => TokenKind::Runtime,
    };
    if row.host != host || row.expires_at <= now || idle_end <= now || token.kind() != wanted {
        return Ok(None);
    }
    if row.last_seen_at.saturating_add(millis(TOUCH_EVERY)) <= now {
        app.store.touch_session(row.id, now).await?;
    }
    Ok(Some(row))
}

/// Who a session of the control origin stands for.
#[must_use]
pub fn identity(row: SessionRow) -> (User, Via) {
    let via = match row.kind {
        SessionKind::Control => Via::Session(row.id),
        SessionKind::Recovery => Via::RecoverySession(row.id),
        SessionKind::Runtime => Via::RuntimeSession(row.id),
    };
    (
        User {
            id: row.user_id,
            name: row.user_name,
            is_admin: row.is_admin,
        },
        via,
    )
}

/// A user's sessions.
///
/// # Errors
/// Not signed in, or not allowed.
pub async fn list(app: &App, actor: &Actor) -> Result<Vec<SessionView>, Error> {
    let user = actor.allow(Scope::Account)?;
    let current = match actor.via {
        Via::Session(id) => Some(id),
        _ => None,
    };
    let rows = app.store.sessions(user.id, app.clock.now_ms()).await?;
    Ok(rows.into_iter().map(|row| view(row, current)).collect())
}

fn view(row: SessionRow, current: Option<SessionId>) -> SessionView {
    SessionView {
        id: row.id,
        kind: match row.kind {
            SessionKind::Control => "control",
            SessionKind::Recovery => "recovery",
            SessionKind::Runtime => "runtime",
        },
        current: Some(row.id) == current,
        host: row.host,
        user_agent: row.user_agent,
        address: row.address,
        created_at: rfc3339(row.created_at),
        last_seen_at: rfc3339(row.last_seen_at),
        expires_at: rfc3339(row.expires_at),
    }
}

/// Ends one of the caller's sessions.
///
/// # Errors
/// There is none of this id.
pub async fn revoke(app: &App, actor: &Actor, id: SessionId) -> Result<(), Error> {
    let (user, _) = actor.require_session()?;
    app.audit
        .record(actor, Entry::allowed("session.revoke", id.to_string()))
        .await?;
    if !app.store.remove_session(user.id, id).await? {
        return Err(Error::NotFound("session"));
    }
    app.sessions_ended(user.id).await;
    Ok(())
}

/// Ends all of the caller's sessions but the one that asks.
///
/// # Errors
/// Not signed in with a full session.
pub async fn revoke_others(app: &App, actor: &Actor) -> Result<u64, Error> {
    let (user, current) = actor.require_session()?;
    app.audit
        .record(
            actor,
            Entry::allowed("session.revoke_others", user.name.as_str()),
        )
        .await?;
    let count = app.store.remove_other_sessions(user.id, current).await?;
    app.sessions_ended(user.id).await;
    Ok(count)
}

/// Ends the session that asks. Nothing to do when nobody is signed in.
///
/// # Errors
/// The ledger or the database failed.
pub async fn logout(app: &App, actor: &Actor) -> Result<(), Error> {
    let (Some(user), Via::Session(id) | Via::RecoverySession(id)) = (&actor.user, &actor.via)
    else {
        return Ok(());
    };
    app.audit
        .record(actor, Entry::allowed("auth.logout", id.to_string()))
        .await?;
    app.store.remove_session(user.id, *id).await?;
    app.sessions_ended(user.id).await;
    Ok(())
}

//! API tokens: for `choir` and scripts.

use std::time::Duration;

use crypto::{Token, TokenKind};
use serde::{Deserialize, Serialize};
use types::TokenId;

use super::audit::Entry;
use crate::actor::{Actor, Scope, User, Via};
use crate::app::App;
use crate::clock::{millis, rfc3339};
use crate::error::Error;
use crate::store::{NewToken, TokenRow};

/// Longest name of a token, in characters.
const MAX_NAME: usize = 60;

/// Tokens of one account.
const MAX_TOKENS: usize = 50;

/// Uses within this time of the last noted one are not written down.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A wish for a token.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is for.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// Its lifetime in days; 30 when absent.
    #[serde(default)]
    pub expires_in_days: Option<u32>,
}

/// A token, as listings show it; never the token itself.
#[derive(Debug, Serialize)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// What it is for.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// Whether it has ended by time.
    pub expired: bool,
    /// RFC 3339; up to a minute late.
    pub last_used_at: Option<String>,
}

/// Reads scopes.
///
/// # Errors
/// None, or an unknown one.
pub fn parse_scopes(texts: &[String]) -> Result<Vec<Scope>, Error> {
    let unknown = || {
        let known: Vec<&str> = Scope::ALL.into_iter().map(Scope::as_str).collect();
        Error::bad_request(format!("scopes are one or more of {}", known.join(", ")))
    };
    let mut scopes = Vec::new();
    for text in texts {
        let scope: Scope = text.parse().map_err(|_| unknown())?;
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    if scopes.is_empty() {
        Err(unknown())
    } else {
        Ok(scopes)
    }
}

/// Scopes as they are stored.
#[must_use]
pub fn join_scopes(scopes: &[Scope]) -> String {
    let texts: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    texts.join(" ")
}

/// Composes a token; the caller stores it.
pub(super) fn compose(
    app: &App,
    user: types::UserId,
    name: String,
    scopes: String,
    lifetime: Duration,
) -> Result<(Token, NewToken), Error> {
    let token = Token::generate(TokenKind::Api, &app.random).map_err(Error::internal)?;
    let now = app.clock.now_ms();
    let row = NewToken {
        id: TokenId::generate(),
        user_id: user,
        name,
        token_hash: token.hash().to_string(),
        scopes,
        now,
        expires_at: now.saturating_add(millis(lifetime)),
    };
    Ok((token, row))
}

/// Finds out who a token stands for. `None` when it is not valid.
///
/// # Errors
/// The database failed.
pub async fn find(app: &App, text: &str) -> Result<Option<(User, Via)>, Error> {
    let Ok(token) = Token::parse_kind(TokenKind::Api, text) else {
        return Ok(None);
    };
    let Some(row) = app.store.token(&token.hash().to_string()).await? else {
        return Ok(None);
    };
    let now = app.clock.now_ms();
    if row.expires_at <= now {
        return Ok(None);
    }
    if row
        .last_used_at
        .is_none_or(|last| last.saturating_add(millis(TOUCH_EVERY)) <= now)
    {
        app.store.touch_token(row.id, now).await?;
    }
    let scopes = row
        .scopes
        .split(' ')
        .filter_map(|text| text.parse().ok())
        .collect();
    let user = User {
        id: row.user_id,
        name: row.user_name,
        is_admin: row.is_admin,
    };
    Ok(Some((user, Via::ApiToken { id: row.id, scopes })))
}

/// A user's tokens.
///
/// # Errors
/// Not signed in, or not allowed.
pub async fn list(app: &App, actor: &Actor) -> Result<Vec<TokenView>, Error> {
    let user = actor.allow(Scope::Account)?;
    let now = app.clock.now_ms();
    Ok(app
        .store
        .tokens(user.id)
        .await?
        .into_iter()
        .map(|row| view(row, now))
        .collect())
}

fn view(row: TokenRow, now: i64) -> TokenView {
    TokenView {
        id: row.id,
        name: row.name,
        scopes: row.scopes.split(' ').map(str::to_owned).collect(),
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
        expired: row.expires_at <= now,
        last_used_at: row.last_used_at.map(rfc3339),
    }
}

/// Makes a token, which is shown this once.
///
/// # Errors
/// Not signed in with a full session, or a name, scope or lifetime that cannot be.
pub async fn create(
    app: &App,
    actor: &Actor,
    request: &TokenRequest,
) -> Result<(Token, TokenView), Error> {
    let (user, _) = actor.require_session()?;
    let name = request.name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a token's name has 1 to {MAX_NAME} printable characters"
        )));
    }
    let scopes = parse_scopes(&request.scopes)?;
    if scopes.contains(&Scope::Admin) && !user.is_admin {
        return Err(Error::forbidden(
            "only an administrator's token can have the scope admin",
        ));
    }
    let lifetime = DAY.saturating_mul(request.expires_in_days.unwrap_or(30));
    if lifetime.is_zero() || lifetime > app.config.auth.token_max_lifetime {
        let most = app.config.auth.token_max_lifetime.as_secs() / DAY.as_secs();
        return Err(Error::bad_request(format!(
            "a token lives 1 to {most} days"
        )));
    }
    if app.store.tokens(user.id).await?.len() >= MAX_TOKENS {
        return Err(Error::conflict(format!(
            "an account has at most {MAX_TOKENS} tokens; revoke one first"
        )));
    }
    let (token, row) = compose(
        app,
        user.id,
        name.to_owned(),
        join_scopes(&scopes),
        lifetime,
    )?;
    let entry = Entry::allowed("token.create", row.id.to_string())
        .with("name", name)
        .with("scopes", &row.scopes);
    app.audit.record(actor, entry).await?;
    app.store.add_token(&row).await?;
    let shown = TokenView {
        id: row.id,
        name: row.name,
        scopes: scopes
            .iter()
            .map(|scope| scope.as_str().to_owned())
            .collect(),
        created_at: rfc3339(row.now),
        expires_at: rfc3339(row.expires_at),
        expired: false,
        last_used_at: None,
    };
    Ok((token, shown))
}

/// Revokes a token. A token may revoke itself, so that `choir logout` can.
///
/// # Errors
/// There is none of this id.
pub async fn revoke(app: &App, actor: &Actor, id: TokenId) -> Result<(), Error> {
    let user = match &actor.via {
        Via::ApiToken { id: own, .. } if *own == id => actor.user()?,
        _ => actor.require_session()?.0,
    };
    app.audit
        .record(actor, Entry::allowed("token.revoke", id.to_string()))
        .await?;
    if !app.store.remove_token(user.id, id).await? {
        return Err(Error::NotFound("token"));
    }
    app.sessions_ended(user.id).await;
    Ok(())
}

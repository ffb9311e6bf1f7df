//! Pairing: `choir login` asks, a person compares a code and approves in the browser, and
//! the command gets an API token (in the manner of RFC 8628).

use std::time::Duration;

use crypto::{PairingCode, Token, TokenKind};
use serde::{Deserialize, Serialize};
use types::UserName;
use uuid::Uuid;

use super::audit::Entry;
use super::rate::Attempt;
use super::tokens;
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::clock::{millis, rfc3339};
use crate::error::Error;
use crate::store::{NewPairing, PairingRow};

/// How long a pairing waits for a decision.
const LIFETIME: Duration = Duration::from_secs(600);

/// How often the command should ask.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// How long the token of a paired command lives, unless the configuration says less.
const TOKEN_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Pairings under way, over everybody.
const MAX_PAIRINGS: i64 = 1000;

/// Longest name of what asks, in characters.
const MAX_CLIENT_NAME: usize = 60;

/// The one answer to every pairing code that does not fit.
const NO_SUCH_CODE: Error =
    Error::NotFound("code waiting for approval; it may have expired, so run choir login again");

/// What asks.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairingRequest {
    /// Such as `choir on laptop`.
    pub client_name: String,
}

/// What the command needs to go on.
#[derive(Serialize)]
pub struct PairingStarted {
    /// What to poll with; a secret.
    pub device_code: String,
    /// What to show.
    pub user_code: String,
    /// Where the person approves.
    pub verification_url: String,
    /// Seconds until it ends.
    pub expires_in: u64,
    /// Seconds between two polls.
    pub interval: u64,
}

/// A poll.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollRequest {
    /// As it came from the start.
    pub device_code: String,
}

/// The answer to a poll.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum PollAnswer {
    /// Ask again.
    Pending,
    /// The person said no.
    Denied,
    /// It took too long, or never was, or was fetched already.
    Expired,
    /// Here it is, this once.
    Approved {
        /// The API token.
        token: String,
        /// Whose it is.
        user: UserName,
        /// What it may be used for.
        scopes: Vec<String>,
        /// RFC 3339.
        expires_at: String,
    },
}

/// What a person is about to approve.
#[derive(Debug, Serialize)]
pub struct PairingView {
    /// The code, in its normal form, to be compared.
    pub user_code: String,
    /// What asks, as it named itself.
    pub client_name: String,
    /// The address it asks from.
    pub address: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// A look at a code.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// As the person typed it.
    pub user_code: String,
}

/// A decision.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// As the person typed it.
    pub user_code: String,
    /// Yes or no.
    pub approve: bool,
    /// What the token may be used for; needed for a yes.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// Begins a pairing. Nobody is known yet, and nothing is given away.
///
/// # Errors
/// Too many pairings under way.
pub async fn start(
    app: &App,
    actor: &Actor,
    request: &PairingRequest,
) -> Result<PairingStarted, Error> {
    let device = Token::generate(TokenKind::Pairing, &app.random).map_err(Error::internal)?;
    let code = PairingCode::generate(&app.random).map_err(Error::internal)?;
    let client_name: String = request
        .client_name
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_CLIENT_NAME)
        .collect();
    let now = app.clock.now_ms();
    let pairing = NewPairing {
        id: Uuid::now_v7(),
        device_hash: device.hash().to_string(),
        user_code: code.expose().to_owned(),
        client_name: if client_name.trim().is_empty() {
            "choir".to_owned()
        } else {
            client_name
        },
        address: actor
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        now,
        expires_at: now.saturating_add(millis(LIFETIME)),
    };
    if !app.store.add_pairing(&pairing, MAX_PAIRINGS).await? {
        return Err(Error::Unavailable(
            "too many pairings are under way; try again in a few minutes".to_owned(),
        ));
    }
    Ok(PairingStarted {
        device_code: device.expose().to_owned(),
        verification_url: format!(
            "{}/console/pair?code={}",
            app.config.origins.control,
            code.expose()
        ),
        user_code: code.expose().to_owned(),
        expires_in: LIFETIME.as_secs(),
        interval: POLL_EVERY.as_secs(),
    })
}

/// Answers a poll; the token is made when it is fetched, and handed out once.
///
/// # Errors
/// The ledger or the database failed.
pub async fn poll(app: &App, actor: &Actor, request: &PollRequest) -> Result<PollAnswer, Error> {
    let Ok(device) = Token::parse_kind(TokenKind::Pairing, &request.device_code) else {
        return Ok(PollAnswer::Expired);
    };
    let now = app.clock.now_ms();
    let Some(row) = app
        .store
        .pairing_by_device(&device.hash().to_string(), now)
        .await?
    else {
        return Ok(PollAnswer::Expired);
    };
    if row.denied {
        return Ok(PollAnswer::Denied);
    }
    let (Some(user), Some(scopes)) = (row.approved_by, row.scopes) else {
        return Ok(PollAnswer::Pending);
    };
    let Some(user) = app
        .store
        .user(user)
        .await?
        .filter(|user| user.disabled.is_none())
    else {
        return Ok(PollAnswer::Expired);
    };
    let lifetime = TOKEN_LIFETIME.min(app.config.auth.token_max_lifetime);
    let (token, new) = tokens::compose(app, user.id, row.client_name, scopes, lifetime)?;
    let entry = Entry::allowed("token.create", new.id.to_string())
        .about_user(user.id, &user.name)
        .with("name", &new.name)
        .with("scopes", &new.scopes)
        .with("pairing", row.id.to_string());
    app.audit.record(actor, entry).await?;
    if !app.store.finish_pairing(row.id, &new).await? {
        return Ok(PollAnswer::Expired);
    }
    Ok(PollAnswer::Approved {
        token: token.expose().to_owned(),
        user: user.name,
        scopes: new.scopes.split(' ').map(str::to_owned).collect(),
        expires_at: rfc3339(new.expires_at),
    })
}

async fn waiting(app: &App, actor: &Actor, typed: &str) -> Result<(String, PairingRow), Error> {
    let (user, _) = actor.require_session()?;
    app.rate
        .account(Attempt::PairingDecision, user.name.as_str())?;
    let Ok(code) = PairingCode::parse(typed) else {
        return Err(NO_SUCH_CODE);
    };
    let row = app
        .store
        .pairing_by_user_code(code.expose(), app.clock.now_ms())
        .await?;
    row.map(|row| (code.expose().to_owned(), row))
        .ok_or(NO_SUCH_CODE)
}

/// What the caller is about to approve.
///
/// # Errors
/// Not signed in with a full session, or no such code.
pub async fn look_up(
    app: &App,
    actor: &Actor,
    request: &LookupRequest,
) -> Result<PairingView, Error> {
    let (user_code, row) = waiting(app, actor, &request.user_code).await?;
    Ok(PairingView {
        user_code,
        client_name: row.client_name,
        address: row.address,
        expires_at: rfc3339(row.expires_at),
    })
}

/// Approves or refuses a pairing.
///
/// # Errors
/// Not signed in with a full session, no such code, or scopes that cannot be.
pub async fn decide(app: &App, actor: &Actor, decision: &Decision) -> Result<(), Error> {
    let (_, row) = waiting(app, actor, &decision.user_code).await?;
    let (user, _) = actor.require_session()?;
    let scopes = if decision.approve {
        let scopes = tokens::parse_scopes(&decision.scopes)?;
        if scopes.contains(&Scope::Admin) && !user.is_admin {
            return Err(Error::forbidden(
                "only an administrator can grant the scope admin",
            ));
        }
        Some(tokens::join_scopes(&scopes))
    } else {
        None
    };
    let entry = match &scopes {
        Some(scopes) => {
            Entry::allowed("pairing.approve", row.id.to_string()).with("scopes", scopes)
        }
        None => Entry::allowed("pairing.deny", row.id.to_string()),
    };
    app.audit
        .record(actor, entry.with("client", &row.client_name))
        .await?;
    if app
        .store
        .decide_pairing(row.id, user.id, scopes.as_deref(), app.clock.now_ms())
        .await?
    {
        Ok(())
    } else {
        Err(NO_SUCH_CODE)
    }
}

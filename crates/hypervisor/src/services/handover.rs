//! The hand-over of a session from the control origin to a runtime origin (arch §2).
//!
//! 1. The runtime origin gives the browser a random state in a cookie of its own and sends
//!    it to `/auth/handover` of the control origin with the state's hash.
//! 2. There the session is seen, and a one-time code goes back: for this host, for whoever
//!    holds the state, for a minute.
//! 3. `/.choir/enter` of the runtime origin redeems it for a runtime session, which opens
//!    the proxy and nothing else, and ends with the session behind it.
//!
//! So a code that leaks (a history, a log, a `Referer`) opens nothing in another browser, and
//! nobody can be signed in as somebody else by a link.

use std::time::Duration;

use crypto::{Token, TokenHash, TokenKind};
use policy::Action;
use types::{Role, SessionId};

use super::audit::Entry;
use super::{authorize, sessions};
use crate::actor::Actor;
use crate::app::App;
use crate::clock::millis;
use crate::config::HostMatch;
use crate::error::Error;
use crate::store::{NewHandover, NewSession, SessionKind};

/// How long a code can be redeemed.
pub const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// What a runtime origin asks the control origin for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The runtime host, as in `Host`.
    pub host: &'a str,
    /// Hash of the state that the browser holds there.
    pub binding: &'a str,
    /// Where to go afterwards: a path that was checked with `safe_next`.
    pub next: &'a str,
}

/// Where a code is redeemed.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host, without its port.
    pub host: &'a str,
    /// The role and the port of the workbench, on a preview origin.
    pub port: Option<(Role, u16)>,
}

/// A session of a runtime origin that was just made.
#[derive(Debug)]
pub struct Entered {
    /// For the cookie, and nowhere else.
    pub token: Token,
    /// How long the cookie is kept.
    pub lifetime: Duration,
    /// Where to go, a path.
    pub next: String,
}

/// Makes a code, and returns the address at which it is redeemed.
///
/// # Errors
/// Nobody is signed in with a full session; the host is not this user's (told as "no such
/// page", whether or not somebody else has it); the ledger cannot take the record.
pub async fn issue(app: &App, actor: &Actor, asked: Asked<'_>) -> Result<String, Error> {
    let (user, session) = actor.require_session()?;
    let origin = match app.config.origins.match_host(asked.host) {
        Some(HostMatch::Runtime { user: owner, role }) if owner == user.name => {
            app.config.origins.runtime_origin(&user.name, role)
        }
        Some(HostMatch::Preview {
            user: owner,
            role,
            port,
        }) if owner == user.name => {
            let route = app.sandboxes.plane().route(user.id).await?;
            authorize::on_sandbox(actor, Action::UsePort, route.sandbox(role), user.id)?;
            app.config
                .origins
                .preview_origin(&user.name, role, port)
                .ok_or(Error::NotFound("page"))?
        }
        Some(HostMatch::SingleHost) => app.config.origins.runtime_origin(&user.name, Role::Live),
        _ => return Err(Error::NotFound("page")),
    };
    // A text that is no hash could never be matched; refusing it tells a broken client why.
    let binding: TokenHash = asked
        .binding
        .parse()
        .map_err(|_| Error::bad_request("state is not a hash"))?;
    let entry = Entry::allowed("session.handover", session.to_string()).with("host", asked.host);
    app.audit.record(actor, entry).await?;
    let code = Token::generate(TokenKind::Handover, &app.random).map_err(Error::internal)?;
    let now = app.clock.now_ms();
    app.store
        .add_handover(&NewHandover {
            code_hash: code.hash().to_string(),
            session,
            user: user.id,
            host: origin.host().to_owned(),
            binding_hash: binding.to_string(),
            return_to: asked.next.to_owned(),
            now,
            expires_at: now.saturating_add(millis(CODE_LIFETIME)),
        })
        .await?;
    // The alphabet of a token needs no escaping in a query.
    Ok(format!("{origin}/.choir/enter?code={}", code.expose()))
}

/// Redeems a code; `state` is what the browser holds. `None` when the code is not good; deliberately without a reason.
///
/// # Errors
/// The database failed, or the ledger cannot take the record.
pub async fn redeem(
    app: &App,
    actor: &Actor,
    place: Place<'_>,
    code: &str,
    state: &str,
    user_agent: Option<&str>,
) -> Result<Option<Entered>, Error> {
    let Ok(code) = Token::parse_kind(TokenKind::Handover, code) else {
        return Ok(None);
    };
    let Ok(state) = Token::parse_kind(TokenKind::Handover, state) else {
        return Ok(None);
    };
    let Place { host, port } = place;
    let now = app.clock.now_ms();
    let taken = app
        .store
        .take_handover(
            &code.hash().to_string(),
            host,
            &state.hash().to_string(),
            now,
        )
        .await?;
    let Some(taken) = taken else {
        app.audit
            .record(
                actor,
                Entry::denied("session.enter", host, "the code is not valid here"),
            )
            .await?;
        return Ok(None);
    };
    let token = Token::generate(TokenKind::Runtime, &app.random).map_err(Error::internal)?;
    let lifetime = app.config.auth.session_lifetime;
    let id = SessionId::generate();
    let entry = Entry::allowed("session.enter", id.to_string())
        .about(taken.user.to_string())
        .with("host", host)
        .with("parent", taken.session.to_string());
    app.audit.record(actor, entry).await?;
    if let Some((role, port)) = port {
        let sandbox = app.sandboxes.plane().route(taken.user).await?.sandbox(role);
        let entry = Entry::allowed("preview.open", sandbox.to_string())
            .about(taken.user.to_string())
            .in_sandbox(sandbox, Some(role))
            .with("port", port.to_string());
        app.audit.record(actor, entry).await?;
    }
    let session = NewSession {
        id,
        user_id: taken.user,
        kind: SessionKind::Runtime,
        parent: Some(taken.session),
        token_hash: token.hash().to_string(),
        host: host.to_owned(),
        user_agent: sessions::clean_user_agent(user_agent),
        address: actor
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        now,
        expires_at: now.saturating_add(millis(lifetime)),
    };
    app.store.add_session(&session).await?;
    Ok(Some(Entered {
        token,
        lifetime,
        next: taken.return_to,
    }))
}

/// A fresh state for a browser, and its hash for the control origin.
///
/// # Errors
/// The random source failed.
pub fn state(app: &App) -> Result<Token, Error> {
    Token::generate(TokenKind::Handover, &app.random).map_err(Error::internal)
}

//! Registering and signing in.

use crypto::{RecoveryCode, Token, TokenKind};
use serde::{Deserialize, Serialize};
use types::{SandboxId, UserId, UserName};
use uuid::Uuid;
use webauthn_rs::prelude::PublicKeyCredential;

use super::accounts::DISABLED;
use super::audit::Entry;
use super::ceremonies::{Ceremony, Purpose};
use super::passkeys::{Challenge, Created, SIGN_IN_REFUSED};
use super::rate::Attempt;
use super::recovery;
use super::sessions::{self, Made};
use crate::actor::{Actor, User, Via};
use crate::app::App;
use crate::config::{HostMatch, Registration};
use crate::error::Error;
use crate::store::{self, Entitlement, NewUser, SessionKind};

/// The one answer to a registration that nothing lets happen.
const NOT_ENTITLED: Error = Error::Refused(
    "this link is not valid any more: it was used, withdrawn, or has expired; ask an administrator for a new one",
);

/// Who wants to register.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterStart {
    /// The wanted name.
    pub name: String,
    /// The token of an invitation.
    #[serde(default)]
    pub invite: Option<String>,
    /// The token of the set-up link.
    #[serde(default)]
    pub setup: Option<String>,
}

/// Who wants to sign in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginStart {
    /// The account's name; without one the passkey says who.
    #[serde(default)]
    pub name: Option<String>,
}

/// The browser's answer to a sign-in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginFinish {
    /// The ceremony.
    pub ceremony: Uuid,
    /// The assertion, in WebAuthn's JSON form.
    pub credential: PublicKeyCredential,
}

/// An account that was just made.
pub struct Registered {
    /// The account.
    pub user: User,
    /// Its first session.
    pub made: Made,
    /// Shown once.
    pub codes: Vec<RecoveryCode>,
}

/// Whether a registration link can still be used, for the page to say so before it asks
/// for anything.
#[derive(Debug, Serialize)]
pub struct Entitled {
    /// Whether it can.
    pub valid: bool,
    /// Whether it makes an administrator.
    pub makes_admin: bool,
}

/// Makes a new set-up link while there is no admin. Its address is printed at start.
///
/// # Errors
/// The database or the random source failed.
pub async fn setup_link(app: &App) -> Result<Option<String>, Error> {
    if app.store.has_admin().await? {
        return Ok(None);
    }
    let token = Token::generate(TokenKind::Setup, &app.random).map_err(Error::internal)?;
    let now = app.clock.now_ms();
    let expires_at = now.saturating_add(crate::clock::millis(app.config.auth.invite_lifetime));
    app.audit
        .record(
            &Actor::internal(),
            Entry::allowed("setup_link.create", "first admin"),
        )
        .await?;
    app.store
        .replace_setup_link(&token.hash().to_string(), now, expires_at)
        .await?;
    Ok(Some(format!(
        "{}/register?setup={}",
        app.config.origins.control,
        token.expose()
    )))
}

/// Says whether what a link carries can still be used.
///
/// # Errors
/// Too many attempts, or the database failed.
pub async fn check_entitlement(
    app: &App,
    invite: Option<&str>,
    setup: Option<&str>,
) -> Result<Entitled, Error> {
    let Ok(entitlement) = entitlement(app, invite, setup) else {
        return Ok(Entitled {
            valid: false,
            makes_admin: false,
        });
    };
    let found = app.store.entitled(&entitlement, app.clock.now_ms()).await?;
    Ok(Entitled {
        valid: found.is_some(),
        makes_admin: found.unwrap_or(false),
    })
}

fn entitlement(app: &App, invite: Option<&str>, setup: Option<&str>) -> Result<Entitlement, Error> {
    let hash = |kind, text| {
        Token::parse_kind(kind, text)
            .map(|token| token.hash().to_string())
            .map_err(|_| NOT_ENTITLED)
    };
    match (setup, invite) {
        (Some(setup), _) => hash(TokenKind::Setup, setup).map(Entitlement::Setup),
        (None, Some(invite)) => hash(TokenKind::Invite, invite).map(Entitlement::Invite),
        (None, None) => match app.config.auth.registration {
            Registration::Open => Ok(Entitlement::Open),
            Registration::Closed => Err(Error::Refused(
                "registration is by invitation here; ask an administrator for a link",
            )),
        },
    }
}

/// Begins a registration.
///
/// # Errors
/// The name cannot be or is taken, nothing lets it happen, or too many attempts.
pub async fn register_start(
    app: &App,
    actor: &Actor,
    request: &RegisterStart,
) -> Result<Challenge, Error> {
    let name: UserName = request.name.trim().to_ascii_lowercase().parse().map_err(
        |error: types::UserNameError| Error::bad_request(format!("{error}; choose another name")),
    )?;
    app.rate.account(Attempt::Register, name.as_str())?;
    let entitlement = entitlement(app, request.invite.as_deref(), request.setup.as_deref())?;
    if app
        .store
        .entitled(&entitlement, app.clock.now_ms())
        .await?
        .is_none()
    {
        app.audit
            .record(
                actor,
                Entry::denied("auth.register", name.as_str(), "the link is not valid"),
            )
            .await?;
        return Err(NOT_ENTITLED);
    }
    // Only whoever may register learns which names are taken.
    if app.store.user_by_name(&name).await?.is_some() || !has_own_host(app, &name) {
        return Err(Error::conflict("this name is taken; choose another"));
    }
    let user = UserId::generate();
    let (options, state) = app.relying_party.begin_creation(user, &name, &[])?;
    let purpose = Purpose::Register {
        user,
        name,
        entitlement,
    };
    let ceremony = app.ceremonies.begin(Ceremony::Create {
        purpose,
        state: Box::new(state),
    });
    Ok(Challenge { ceremony, options })
}

/// Whether a user of this name would have a runtime host of their own, and not, for
/// instance, the control plane's.
fn has_own_host(app: &App, name: &UserName) -> bool {
    types::Role::ALL.into_iter().all(|role| {
        let origin = app.config.origins.runtime_origin(name, role);
        let authority = format!("{}:{}", origin.host(), origin.port());
        match app.config.origins.match_host(&authority) {
            Some(HostMatch::Runtime { user, role: found }) => user == *name && found == role,
            Some(HostMatch::SingleHost) => true,
            Some(HostMatch::Control | HostMatch::Preview { .. }) | None => false,
        }
    })
}

/// Ends a registration: account, passkey, recovery codes and session at once, or nothing.
///
/// # Errors
/// The answer does not fit the ceremony, or name or link were used up meanwhile.
pub async fn register_finish(
    app: &App,
    actor: &Actor,
    created: &Created,
    user_agent: Option<&str>,
) -> Result<Registered, Error> {
    let Ceremony::Create {
        purpose:
            Purpose::Register {
                user,
                name,
                entitlement,
            },
        state,
    } = app.ceremonies.take(created.ceremony)?
    else {
        return Err(Error::bad_request("this ceremony is for something else"));
    };
    let checked = app.relying_party.finish_creation(
        &created.credential,
        &state,
        created.passkey_name.as_deref(),
    );
    let passkey = match checked {
        Ok(passkey) => passkey,
        Err(error) => {
            let entry = Entry::denied("auth.register", name.as_str(), error.to_string());
            app.audit.record(actor, entry).await?;
            return Err(error);
        }
    };
    let now = app.clock.now_ms();
    let Some(is_admin) = app.store.entitled(&entitlement, now).await? else {
        return Err(NOT_ENTITLED);
    };
    let (codes, hashed) = recovery::new_codes(app).await?;
    let made = sessions::make(app, actor, user, SessionKind::Control, user_agent)?;
    let registration = store::Registration {
        user: NewUser {
            id: user,
            name: name.clone(),
            is_admin,
            live: SandboxId::generate(),
            dev: SandboxId::generate(),
            host_uid_base: app.config.sandbox.host_uid_base,
            now,
        },
        passkey,
        codes: hashed,
        session: made.session.clone(),
        entitlement,
    };
    let entry = Entry::allowed("auth.register", user.to_string())
        .about_user(user, &name)
        .with("passkey", registration.passkey.id.to_string())
        .with("admin", is_admin.to_string());
    app.audit.record(actor, entry).await?;
    if !app.store.register(&registration).await? {
        return Err(NOT_ENTITLED);
    }
    Ok(Registered {
        user: User {
            id: user,
            name,
            is_admin,
        },
        made,
        codes,
    })
}

/// Begins a sign-in. The answer has the same form whether or not the account exists.
///
/// # Errors
/// Too many attempts.
pub async fn login_start(app: &App, request: &LoginStart) -> Result<Challenge, Error> {
    let name = match request.name.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => {
            let name: UserName = text
                .to_ascii_lowercase()
                .parse()
                .map_err(|error: types::UserNameError| Error::bad_request(error.to_string()))?;
            app.rate.account(Attempt::Login, name.as_str())?;
            Some(name)
        }
    };
    let (options, ceremony) = app.relying_party.begin_sign_in(app, name.as_ref()).await?;
    Ok(Challenge {
        ceremony: app.ceremonies.begin(ceremony),
        options,
    })
}

/// Ends a sign-in. A session that was presented with it ends: a new one takes its place,
/// so that nobody can plant one beforehand.
///
/// # Errors
/// One and the same answer for every reason.
pub async fn login_finish(
    app: &App,
    actor: &Actor,
    finish: &LoginFinish,
    user_agent: Option<&str>,
) -> Result<(User, Made), Error> {
    let checked = match app.ceremonies.take(finish.ceremony) {
        Ok(ceremony) => {
            app.relying_party
                .finish_sign_in(app, ceremony, &finish.credential)
                .await
        }
        Err(error) => Err(error),
    };
    let row = match checked {
        Ok(row) => row,
        Err(error @ Error::Refused(_)) => {
            app.audit
                .record(
                    actor,
                    Entry::denied("auth.login", "-", "the passkey was refused"),
                )
                .await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    let Some(user) = app.store.user(row.user_id).await? else {
        return Err(SIGN_IN_REFUSED);
    };
    app.rate.account(Attempt::Login, user.name.as_str())?;
    if user.disabled.is_some() {
        let entry = Entry::denied("auth.login", "-", "the account is disabled")
            .about_user(user.id, &user.name);
        app.audit.record(actor, entry).await?;
        return Err(DISABLED);
    }
    let made = sessions::make(app, actor, user.id, SessionKind::Control, user_agent)?;
    let entry = Entry::allowed("auth.login", made.session.id.to_string())
        .about_user(user.id, &user.name)
        .with("passkey", row.id.to_string());
    app.audit.record(actor, entry).await?;
    app.store
        .touch_passkey(row.id, &row.credential, app.clock.now_ms())
        .await?;
    if let (Some(before), Via::Session(id) | Via::RecoverySession(id)) = (&actor.user, &actor.via) {
        app.store.remove_session(before.id, *id).await?;
        app.sessions_ended(before.id).await;
    }
    app.store.add_session(&made.session).await?;
    Ok((
        User {
            id: user.id,
            name: user.name,
            is_admin: user.is_admin,
        },
        made,
    ))
}

//! Recovery codes: ten per account, each good once. Using one ends every session and token
//! of the account and opens a session that can do one thing: decide about the old passkeys
//! and register a new one.

use std::sync::Arc;

use crypto::RecoveryCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use types::{PasskeyId, UserId, UserName};
use uuid::Uuid;
use webauthn_rs::prelude::RegisterPublicKeyCredential;

use super::accounts::DISABLED;
use super::argon::Scratch;
use super::audit::Entry;
use super::ceremonies::{Ceremony, Purpose};
use super::passkeys::{Challenge, PasskeyView};
use super::rate::Attempt;
use super::sessions::{self, Made};
use crate::actor::{Actor, User, Via};
use crate::app::App;
use crate::error::Error;
use crate::store::{NewRecoveryCode, RecoveryCodeRow, SessionKind};

/// Hashes computed at the same time. Each takes 19 MiB and about 20 ms of one core.
const CONCURRENT_HASHES: usize = 2;

/// The one answer to every failed recovery.
const REFUSED: Error = Error::Refused(
    "this name and this recovery code do not fit together, or the code was used already",
);

/// Argon2id off the async workers, and not too many at once (style 14).
#[derive(Debug, Clone)]
pub struct CodeHashing {
    slots: Arc<Semaphore>,
    /// The hash of nothing that anybody knows; stands in where an account has fewer codes.
    stand_in: Arc<str>,
}

impl CodeHashing {
    /// Ready to hash.
    ///
    /// # Errors
    /// The random source or Argon2 failed.
    pub fn new(app_random: &dyn crypto::Random) -> Result<Self, Error> {
        let nobodys = RecoveryCode::generate(app_random).map_err(Error::internal)?;
        Ok(Self {
            slots: Arc::new(Semaphore::new(CONCURRENT_HASHES)),
            stand_in: hash(&mut Scratch::new(), &nobodys, app_random)?.into(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(Error::internal)?;
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(slot);
            result
        })
        .await
        .map_err(Error::internal)
    }

    /// Finds the code among an account's. Takes as long for any account: as many hashes
    /// are compared as a full set has, and none is skipped after a match.
    async fn find(
        &self,
        code: RecoveryCode,
        rows: Vec<RecoveryCodeRow>,
    ) -> Result<Option<Uuid>, Error> {
        let stand_in = Arc::clone(&self.stand_in);
        self.run(move || {
            let mut scratch = Scratch::new();
            let mut found = None;
            for at in 0..RecoveryCode::SET {
                let row = rows.get(at);
                let phc = row.map_or(&*stand_in, |row| row.code_hash.as_str());
                if scratch.verify(code.expose().as_bytes(), phc) {
                    found = row.map(|row| row.id).or(found);
                }
            }
            found
        })
        .await
    }
}

fn hash(
    scratch: &mut Scratch,
    code: &RecoveryCode,
    random: &dyn crypto::Random,
) -> Result<String, Error> {
    let mut salt = [0_u8; 16];
    random.fill(&mut salt).map_err(Error::internal)?;
    scratch.hash(code.expose().as_bytes(), &salt)
}

/// A fresh set of codes with their hashes.
pub(super) async fn new_codes(
    app: &App,
) -> Result<(Vec<RecoveryCode>, Vec<NewRecoveryCode>), Error> {
    let codes = RecoveryCode::generate_set(&app.random).map_err(Error::internal)?;
    let (random, for_hashing) = (app.random.clone(), codes.clone());
    let hashed = app
        .code_hashing
        .run(move || {
            let mut scratch = Scratch::new();
            for_hashing
                .iter()
                .map(|code| {
                    Ok(NewRecoveryCode {
                        id: Uuid::new_v4(),
                        code_hash: hash(&mut scratch, code, &random)?,
                    })
                })
                .collect::<Result<Vec<_>, Error>>()
        })
        .await??;
    Ok((codes, hashed))
}

/// Who wants to recover an account.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryStart {
    /// The account's name.
    pub name: String,
    /// One of its codes.
    pub code: String,
}

/// What the owner has to decide about after a recovery.
#[derive(Debug, Serialize)]
pub struct RecoveryView {
    /// The account's name.
    pub name: UserName,
    /// Its passkeys, one of which may be lost or in wrong hands.
    pub passkeys: Vec<PasskeyView>,
    /// Unused codes.
    pub codes_left: usize,
}

/// The decision, and the new passkey.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryFinish {
    /// The ceremony.
    pub ceremony: Uuid,
    /// The new credential, in WebAuthn's JSON form.
    pub credential: RegisterPublicKeyCredential,
    /// The owner's name for it.
    #[serde(default)]
    pub passkey_name: Option<String>,
    /// The old passkeys to revoke; the others are kept. Has no default: it is a decision.
    pub revoke: Vec<PasskeyId>,
}

/// Uses a code.
///
/// # Errors
/// One and the same answer for every reason, in about the same time.
pub async fn recover(
    app: &App,
    actor: &Actor,
    request: &RecoveryStart,
    user_agent: Option<&str>,
) -> Result<(RecoveryView, Made), Error> {
    let name = request.name.trim().to_ascii_lowercase();
    app.rate.account(Attempt::Recovery, &name)?;
    let (Ok(name), Ok(code)) = (name.parse::<UserName>(), RecoveryCode::parse(&request.code))
    else {
        app.audit
            .record(
                actor,
                Entry::denied("auth.recovery", "-", "malformed name or code"),
            )
            .await?;
        return Err(REFUSED);
    };
    let user = app.store.user_by_name(&name).await?;
    let id = user
        .as_ref()
        .map_or(UserId::from_uuid(Uuid::nil()), |user| user.id);
    let rows = app.store.recovery_codes(id).await?;
    let codes_left = rows.len().saturating_sub(1);
    let found = app.code_hashing.find(code, rows).await?;
    let (Some(user), Some(code)) = (user, found) else {
        let entry =
            Entry::denied("auth.recovery", "-", "no such account or code").about(name.as_str());
        app.audit.record(actor, entry).await?;
        return Err(REFUSED);
    };
    if user.disabled.is_some() {
        let entry = Entry::denied("auth.recovery", "-", "the account is disabled")
            .about_user(user.id, &user.name);
        app.audit.record(actor, entry).await?;
        return Err(DISABLED);
    }
    let made = sessions::make(app, actor, user.id, SessionKind::Recovery, user_agent)?;
    let entry = Entry::allowed("auth.recovery", made.session.id.to_string())
        .about_user(user.id, &user.name)
        .with("code", code.to_string())
        .with("effect", "all sessions and API tokens end");
    app.audit.record(actor, entry).await?;
    if !app.store.recover(user.id, code, &made.session).await? {
        return Err(REFUSED);
    }
    app.sessions_ended(user.id).await;
    let passkeys = app
        .store
        .passkeys(user.id)
        .await?
        .into_iter()
        .map(PasskeyView::from)
        .collect();
    Ok((
        RecoveryView {
            name: user.name,
            passkeys,
            codes_left,
        },
        made,
    ))
}

/// What the owner has to decide about.
///
/// # Errors
/// There is no recovery session.
pub async fn pending(app: &App, actor: &Actor) -> Result<RecoveryView, Error> {
    let (user, _) = require_recovery(actor)?;
    let passkeys = app
        .store
        .passkeys(user.id)
        .await?
        .into_iter()
        .map(PasskeyView::from)
        .collect();
    let codes_left = app.store.recovery_codes(user.id).await?.len();
    Ok(RecoveryView {
        name: user.name.clone(),
        passkeys,
        codes_left,
    })
}

/// Begins to make the new passkey.
///
/// # Errors
/// There is no recovery session.
pub async fn passkey_start(app: &App, actor: &Actor) -> Result<Challenge, Error> {
    let (user, session) = require_recovery(actor)?;
    // Nothing is excluded: the old passkey's device may be the one that makes the new one.
    let (options, state) = app.relying_party.begin_creation(user.id, &user.name, &[])?;
    let purpose = Purpose::Recover {
        user: user.id,
        session,
    };
    let ceremony = app.ceremonies.begin(Ceremony::Create {
        purpose,
        state: Box::new(state),
    });
    Ok(Challenge { ceremony, options })
}

/// Ends a recovery with the new passkey and the decision about the old ones.
///
/// # Errors
/// There is no recovery session, or the answer does not fit the ceremony.
pub async fn finish(
    app: &App,
    actor: &Actor,
    finish: &RecoveryFinish,
    user_agent: Option<&str>,
) -> Result<(User, Made), Error> {
    let (user, session) = require_recovery(actor)?;
    let Ceremony::Create {
        purpose:
            Purpose::Recover {
                user: owner,
                session: begun_in,
            },
        state,
    } = app.ceremonies.take(finish.ceremony)?
    else {
        return Err(Error::bad_request("this ceremony is for something else"));
    };
    if owner != user.id || begun_in != session {
        return Err(Error::bad_request("this ceremony is for another recovery"));
    }
    let passkey = app.relying_party.finish_creation(
        &finish.credential,
        &state,
        finish.passkey_name.as_deref(),
    )?;
    let made = sessions::make(app, actor, user.id, SessionKind::Control, user_agent)?;
    let revoked: Vec<String> = finish
        .revoke
        .iter()
        .take(32)
        .map(ToString::to_string)
        .collect();
    let entry = Entry::allowed("auth.recovery.finish", passkey.id.to_string())
        .with("revoked", revoked.join(" "));
    app.audit.record(actor, entry).await?;
    if !app
        .store
        .finish_recovery(session, &passkey, &finish.revoke, &made.session)
        .await?
    {
        return Err(Error::Unauthenticated);
    }
    Ok((user.clone(), made))
}

fn require_recovery(actor: &Actor) -> Result<(&User, types::SessionId), Error> {
    match (&actor.user, &actor.via) {
        (Some(user), Via::RecoverySession(id)) => Ok((user, *id)),
        _ => Err(Error::Unauthenticated),
    }
}

/// How many codes the caller has left.
///
/// # Errors
/// Not signed in with a full session.
pub async fn count(app: &App, actor: &Actor) -> Result<usize, Error> {
    let (user, _) = actor.require_session()?;
    Ok(app.store.recovery_codes(user.id).await?.len())
}

/// Replaces the caller's codes; the old ones are void.
///
/// # Errors
/// Not signed in with a full session.
pub async fn replace(app: &App, actor: &Actor) -> Result<Vec<RecoveryCode>, Error> {
    let (user, _) = actor.require_session()?;
    let (codes, hashed) = new_codes(app).await?;
    app.audit
        .record(
            actor,
            Entry::allowed("recovery_codes.replace", user.name.as_str()),
        )
        .await?;
    app.store
        .set_recovery_codes(user.id, &hashed, app.clock.now_ms())
        .await?;
    Ok(codes)
}

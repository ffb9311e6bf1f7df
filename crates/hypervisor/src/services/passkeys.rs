//! Passkeys: making them, checking them, naming and revoking them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use types::{PasskeyId, UserId, UserName};
use uuid::Uuid;
use webauthn_rs::prelude::{
    DiscoverableKey, Passkey, PasskeyRegistration, PublicKeyCredential,
    RegisterPublicKeyCredential, Webauthn, WebauthnBuilder,
};

use super::audit::Entry;
use super::ceremonies::{CEREMONY_LIFETIME, Ceremony, Named, Purpose};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::clock::rfc3339;
use crate::config::Origins;
use crate::error::Error;
use crate::store::{NewPasskey, PasskeyRow};

/// Longest name of a passkey, in characters.
const MAX_NAME: usize = 60;

/// Passkeys of one account.
const MAX_PASSKEYS: usize = 20;

/// Lengths of credential ids that authenticators in wide use make.
const STAND_IN_LENGTHS: [usize; 4] = [16, 20, 32, 64];

/// The one answer to every failed sign-in.
pub(super) const SIGN_IN_REFUSED: Error =
    Error::Refused("signing in did not work: this passkey is not known here, or was revoked");

/// A ceremony for the browser to go on with.
#[derive(Debug, Serialize)]
pub struct Challenge {
    /// Its name; goes back with the answer.
    pub ceremony: Uuid,
    /// What `navigator.credentials` takes, in WebAuthn's JSON form.
    pub options: Value,
}

/// The browser's answer to a creation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Created {
    /// The ceremony.
    pub ceremony: Uuid,
    /// The new credential, in WebAuthn's JSON form.
    pub credential: RegisterPublicKeyCredential,
    /// The owner's name for it.
    #[serde(default)]
    pub passkey_name: Option<String>,
}

/// A passkey, as listings show it.
#[derive(Debug, Serialize)]
pub struct PasskeyView {
    /// Its id.
    pub id: PasskeyId,
    /// The owner's name for it.
    pub name: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub last_used_at: Option<String>,
}

impl From<PasskeyRow> for PasskeyView {
    fn from(row: PasskeyRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            created_at: rfc3339(row.created_at),
            last_used_at: row.last_used_at.map(rfc3339),
        }
    }
}

/// The relying party (WebAuthn §4).
#[derive(Debug)]
pub struct RelyingParty {
    webauthn: Webauthn,
    /// Makes up stand-ins for the credentials of accounts that do not exist: the same at
    /// every attempt, so that nobody can tell them from real ones by asking twice.
    stand_in_key: String,
}

impl RelyingParty {
    /// A relying party whose id is the control host and whose only origin is the control
    /// origin (arch §2).
    ///
    /// # Errors
    /// The control origin cannot be one.
    pub fn new(origins: &Origins, stand_in_key: String) -> Result<Self, Error> {
        let url = origins
            .control
            .to_string()
            .parse()
            .map_err(Error::internal)?;
        let webauthn = WebauthnBuilder::new(origins.control.host(), &url)
            .map_err(Error::internal)?
            .rp_name("ChoirOS")
            .timeout(CEREMONY_LIFETIME)
            .build()
            .map_err(Error::internal)?;
        Ok(Self {
            webauthn,
            stand_in_key,
        })
    }

    /// Begins to make a passkey. Authenticators are asked to keep it themselves where they
    /// can, so that signing in needs no name; those that cannot are welcome too.
    pub(super) fn begin_creation(
        &self,
        user: UserId,
        name: &UserName,
        existing: &[PasskeyRow],
    ) -> Result<(Value, PasskeyRegistration), Error> {
        let exclude = existing
            .iter()
            .filter_map(|row| serde_json::from_str::<Passkey>(&row.credential).ok())
            .map(|passkey| passkey.cred_id().clone())
            .collect();
        let (options, state) = self
            .webauthn
            .start_passkey_registration(
                *user.as_uuid(),
                name.as_str(),
                name.as_str(),
                Some(exclude),
            )
            .map_err(Error::internal)?;
        let mut options = serde_json::to_value(&options).map_err(Error::internal)?;
        let selection = options.pointer_mut("/publicKey/authenticatorSelection");
        if let Some(selection) = selection.and_then(Value::as_object_mut) {
            selection.insert("residentKey".to_owned(), json!("preferred"));
        }
        Ok((options, state))
    }

    /// Checks a new passkey.
    pub(super) fn finish_creation(
        &self,
        credential: &RegisterPublicKeyCredential,
        state: &PasskeyRegistration,
        name: Option<&str>,
    ) -> Result<NewPasskey, Error> {
        let passkey = self
            .webauthn
            .finish_passkey_registration(credential, state)
            .map_err(|error| {
                tracing::info!(%error, "a new passkey was refused");
                Error::bad_request("the browser's answer does not fit this page; try again here")
            })?;
        Ok(NewPasskey {
            id: PasskeyId::generate(),
            name: passkey_name(name)?,
            credential_id: URL_SAFE_NO_PAD.encode(passkey.cred_id()),
            credential: serde_json::to_string(&passkey).map_err(Error::internal)?,
        })
    }

    /// Begins a sign-in. With a name, the answer lists the account's credentials, or
    /// stand-ins when there is no such account.
    pub(super) async fn begin_sign_in(
        &self,
        app: &App,
        name: Option<&UserName>,
    ) -> Result<(Value, Ceremony), Error> {
        let (mut request, state) = self
            .webauthn
            .start_discoverable_authentication()
            .map_err(Error::internal)?;
        request.mediation = None;
        let mut options = serde_json::to_value(&request).map_err(Error::internal)?;
        let mut named = Named::Nobody;
        if let Some(name) = name {
            let user = app.store.user_by_name(name).await?;
            let rows = app
                .store
                .passkeys(
                    user.as_ref()
                        .map_or(UserId::from_uuid(Uuid::nil()), |user| user.id),
                )
                .await?;
            let real = rows
                .iter()
                .filter_map(|row| serde_json::from_str::<Passkey>(&row.credential).ok())
                .map(|passkey| passkey.cred_id().to_vec())
                .collect::<Vec<_>>();
            let ids = if user.is_some() {
                real
            } else {
                vec![self.stand_in(name)]
            };
            named = user.map_or(Named::Stranger, |user| Named::Account(user.id));
            let allowed: Vec<Value> = ids
                .iter()
                .map(|id| json!({"type": "public-key", "id": URL_SAFE_NO_PAD.encode(id)}))
                .collect();
            if let Some(public_key) = options.get_mut("publicKey").and_then(Value::as_object_mut) {
                public_key.insert("allowCredentials".to_owned(), Value::Array(allowed));
            }
        }
        Ok((
            options,
            Ceremony::SignIn {
                named,
                state: Box::new(state),
            },
        ))
    }

    /// Checks a sign-in, and says whose passkey it was.
    pub(super) async fn finish_sign_in(
        &self,
        app: &App,
        ceremony: Ceremony,
        credential: &PublicKeyCredential,
    ) -> Result<PasskeyRow, Error> {
        let Ceremony::SignIn { named, state } = ceremony else {
            return Err(SIGN_IN_REFUSED);
        };
        let credential_id = URL_SAFE_NO_PAD.encode(credential.get_credential_id());
        let Some(mut row) = app.store.passkey_by_credential(&credential_id).await? else {
            return Err(SIGN_IN_REFUSED);
        };
        let handle_fits = credential
            .get_user_unique_id()
            .is_none_or(|handle| handle == row.user_id.as_uuid().as_bytes());
        let name_fits = match named {
            Named::Nobody => true,
            Named::Account(user) => user == row.user_id,
            Named::Stranger => false,
        };
        if !handle_fits || !name_fits {
            return Err(SIGN_IN_REFUSED);
        }
        let mut passkey: Passkey =
            serde_json::from_str(&row.credential).map_err(Error::internal)?;
        let result = self
            .webauthn
            .finish_discoverable_authentication_v2(
                credential,
                *state,
                DiscoverableKey::from(&passkey),
            )
            .map_err(|error| {
                tracing::info!(%error, "a sign-in was refused");
                SIGN_IN_REFUSED
            })?;
        passkey.update_credential(&result);
        row.credential = serde_json::to_string(&passkey).map_err(Error::internal)?;
        Ok(row)
    }

    /// What an account of this name would answer with, if there were one.
    fn stand_in(&self, name: &UserName) -> Vec<u8> {
        let block = |part: u8| {
            crypto::Hasher::new("choir stand-in credential v1")
                .update(self.stand_in_key.as_bytes())
                .update(&[part])
                .update(name.as_str().as_bytes())
                .finish()
        };
        let choice = usize::from(block(0).as_bytes().first().copied().unwrap_or_default());
        let length = STAND_IN_LENGTHS
            .get(choice % STAND_IN_LENGTHS.len())
            .copied()
            .unwrap_or(32);
        let mut id = [*block(1).as_bytes(), *block(2).as_bytes()].concat();
        id.truncate(length);
        id
    }
}

/// A user's passkeys.
///
/// # Errors
/// Not signed in, or not allowed.
pub async fn list(app: &App, actor: &Actor) -> Result<Vec<PasskeyView>, Error> {
    let user = actor.allow(Scope::Account)?;
    Ok(app
        .store
        .passkeys(user.id)
        .await?
        .into_iter()
        .map(PasskeyView::from)
        .collect())
}

/// Begins to add a passkey to the caller's account.
///
/// # Errors
/// Not signed in with a full session, or too many passkeys.
pub async fn add_start(app: &App, actor: &Actor) -> Result<Challenge, Error> {
    let (user, _) = actor.require_session()?;
    let existing = app.store.passkeys(user.id).await?;
    if existing.len() >= MAX_PASSKEYS {
        return Err(Error::conflict(format!(
            "an account has at most {MAX_PASSKEYS} passkeys; revoke one first"
        )));
    }
    let (options, state) = app
        .relying_party
        .begin_creation(user.id, &user.name, &existing)?;
    let ceremony = Ceremony::Create {
        purpose: Purpose::Add { user: user.id },
        state: Box::new(state),
    };
    Ok(Challenge {
        ceremony: app.ceremonies.begin(ceremony),
        options,
    })
}

/// Ends adding a passkey.
///
/// # Errors
/// The answer does not fit the ceremony, or the passkey is registered already.
pub async fn add_finish(app: &App, actor: &Actor, created: &Created) -> Result<PasskeyView, Error> {
    let (user, _) = actor.require_session()?;
    let ceremony = app.ceremonies.take(created.ceremony)?;
    let Ceremony::Create {
        purpose: Purpose::Add { user: owner },
        state,
    } = ceremony
    else {
        return Err(Error::bad_request("this ceremony is for something else"));
    };
    if owner != user.id {
        return Err(Error::bad_request("this ceremony is for somebody else"));
    }
    let passkey = app.relying_party.finish_creation(
        &created.credential,
        &state,
        created.passkey_name.as_deref(),
    )?;
    let now = app.clock.now_ms();
    let entry = Entry::allowed("passkey.add", passkey.id.to_string()).with("name", &passkey.name);
    app.audit.record(actor, entry).await?;
    app.store.add_passkey(user.id, &passkey, now).await?;
    Ok(PasskeyView {
        id: passkey.id,
        name: passkey.name,
        created_at: rfc3339(now),
        last_used_at: None,
    })
}

/// Renames a passkey.
///
/// # Errors
/// There is none of this id, or the name cannot be.
pub async fn rename(app: &App, actor: &Actor, id: PasskeyId, name: &str) -> Result<(), Error> {
    let (user, _) = actor.require_session()?;
    let name = passkey_name(Some(name))?;
    let entry = Entry::allowed("passkey.rename", id.to_string()).with("name", &name);
    app.audit.record(actor, entry).await?;
    if app.store.rename_passkey(user.id, id, &name).await? {
        Ok(())
    } else {
        Err(Error::NotFound("passkey"))
    }
}

/// Revokes a passkey; the last one stays.
///
/// # Errors
/// There is none of this id, or it is the last one.
pub async fn revoke(app: &App, actor: &Actor, id: PasskeyId) -> Result<(), Error> {
    let (user, _) = actor.require_session()?;
    let rows = app.store.passkeys(user.id).await?;
    if !rows.iter().any(|row| row.id == id) {
        return Err(Error::NotFound("passkey"));
    }
    if rows.len() == 1 {
        return Err(Error::conflict(
            "this is your last passkey; add another one before you revoke it",
        ));
    }
    app.audit
        .record(actor, Entry::allowed("passkey.revoke", id.to_string()))
        .await?;
    if app.store.remove_passkey(user.id, id).await? {
        Ok(())
    } else {
        Err(Error::NotFound("passkey"))
    }
}

/// A name for a passkey, cleaned; a plain one when none was given.
fn passkey_name(name: Option<&str>) -> Result<String, Error> {
    let name = name.map(str::trim).unwrap_or_default();
    if name.is_empty() {
        return Ok("Passkey".to_owned());
    }
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a passkey's name has at most {MAX_NAME} printable characters"
        )));
    }
    Ok(name.to_owned())
}

//! Accounts, as administrators see them: listed, disabled and enabled again.

use serde::Deserialize;
use types::{DisabledView, UserName, UserView};

use super::audit::Entry;
use crate::actor::Actor;
use crate::app::App;
use crate::clock::rfc3339;
use crate::error::Error;
use crate::store::{Disabling, UserRow};

/// Longest note, in characters.
const MAX_NOTE: usize = 200;

/// The one thing that somebody is told who proved to be the owner of a disabled account.
pub(super) const DISABLED: Error =
    Error::Refused("this account is disabled; ask an administrator of this installation");

/// Why an account is disabled.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisableRequest {
    /// For other administrators.
    #[serde(default)]
    pub note: String,
}

fn view(row: UserRow) -> UserView {
    UserView {
        name: row.name,
        is_admin: row.is_admin,
        created_at: rfc3339(row.created_at),
        disabled: row.disabled.map(|disabled| DisabledView {
            at: rfc3339(disabled.at),
            note: disabled.note,
        }),
    }
}

/// All accounts.
///
/// # Errors
/// Not an admin.
pub async fn list(app: &App, actor: &Actor) -> Result<Vec<UserView>, Error> {
    actor.require_admin()?;
    Ok(app.store.users().await?.into_iter().map(view).collect())
}

/// Disables an account: nobody signs in as it or recovers it, what it was signed in with ends,
/// its API tokens and open invitations are gone, its sandboxes stop, and what goes on through
/// them is cut at once. Files, passkeys and recovery codes stay.
///
/// # Errors
/// Not an admin; it is the admin's own account, the last admin's, or disabled already.
pub async fn disable(
    app: &App,
    actor: &Actor,
    name: &UserName,
    request: &DisableRequest,
) -> Result<UserView, Error> {
    let admin = actor.require_admin()?;
    let note = request.note.trim();
    if note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a note has at most {MAX_NOTE} printable characters"
        )));
    }
    let user = find(app, name).await?;
    if user.id == admin.id {
        return Err(Error::conflict(
            "you cannot disable your own account; ask another administrator",
        ));
    }
    let entry = Entry::allowed("user.disable", user.id.to_string())
        .about_user(user.id, &user.name)
        .with("note", note);
    app.audit.record(actor, entry).await?;
    let disabled = app
        .store
        .disable_user(user.id, note, app.clock.now_ms())
        .await;
    app.sandboxes.owner_changed(user.id);
    match disabled? {
        Disabling::Done => {}
        Disabling::Already => {
            return Err(Error::conflict(format!("{name} is disabled already")));
        }
        Disabling::LastAdmin => {
            return Err(Error::conflict(format!(
                "{name} is the last administrator; make another one first"
            )));
        }
    }
    app.sessions_ended(user.id).await;
    app.sandboxes.stop_of(user.id).await?;
    find(app, name).await.map(view)
}

/// Enables an account again. Its owner signs in anew; nothing is started.
///
/// # Errors
/// Not an admin, or it is not disabled.
pub async fn enable(app: &App, actor: &Actor, name: &UserName) -> Result<UserView, Error> {
    actor.require_admin()?;
    let user = find(app, name).await?;
    let entry = Entry::allowed("user.enable", user.id.to_string()).about_user(user.id, &user.name);
    app.audit.record(actor, entry).await?;
    if !app.store.enable_user(user.id).await? {
        return Err(Error::conflict(format!("{name} is not disabled")));
    }
    find(app, name).await.map(view)
}

async fn find(app: &App, name: &UserName) -> Result<UserRow, Error> {
    app.store
        .user_by_name(name)
        .await?
        .ok_or(Error::NotFound("user"))
}

//! Accounts, as administrators see them: listed, disabled and enabled again.

use std::sync::Arc;

use serde::Deserialize;
use types::{DisabledView, UserId, UserName, UserView};

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
/// them is cut at once. Files, passkeys and recovery codes stay. For an account that is disabled
/// already, all that is done once more: an earlier attempt may have failed half way.
///
/// # Errors
/// Not an admin; it is the admin's own account, the last admin's, or disabled already.
pub async fn disable(
    app: &Arc<App>,
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
    // In a task of its own: a caller that goes away must not leave an account half disabled.
    let (app, id, note) = (Arc::clone(app), user.id, note.to_owned());
    let disabled =
        tokio::spawn(async move { end_all(&app, id, &note).await.map(|done| (app, done)) });
    let (app, done) = disabled.await.map_err(Error::internal)??;
    match done {
        Disabling::Done => find(&app, name).await.map(view),
        Disabling::Already => Err(Error::conflict(format!(
            "{name} is disabled already; what may still have run is stopped"
        ))),
        Disabling::LastAdmin => Err(Error::conflict(format!(
            "{name} is the last administrator; make another one first"
        ))),
    }
}

/// Ends everything of an account, once the database knows that it is disabled.
async fn end_all(app: &App, user: UserId, note: &str) -> Result<Disabling, Error> {
    let done = app.store.disable_user(user, note, app.clock.now_ms()).await;
    app.sandboxes.owner_changed(user);
    let done = done?;
    if !matches!(done, Disabling::LastAdmin) {
        app.sessions_ended(user).await;
        app.sandboxes.stop_of(user).await?;
    }
    Ok(done)
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

#[cfg(test)]
mod tests {
    use types::{Role, SandboxState, UserName};

    use super::{DisableRequest, disable};
    use crate::actor::{Actor, User};
    use crate::error::Error;
    use crate::services::sandboxes::Whose;
    use crate::services::sandboxes::testing::{Installation, NOW, add_user};

    #[tokio::test]
    async fn disabling_once_more_stops_what_a_first_attempt_left() {
        let installation = Installation::new("").await;
        let app = &installation.app;
        let admin = Actor {
            user: Some(User {
                is_admin: true,
                ..add_user(app, "root").await
            }),
            ..installation.actor()
        };
        let owner = installation.actor();
        app.sandboxes
            .start(&owner, Whose::Own, Role::Live)
            .await
            .unwrap();
        // As far as an attempt gets that fails right after it was written down.
        let id = installation.user.id;
        app.store.disable_user(id, "first", NOW).await.unwrap();
        let live = installation.sandbox(Role::Live).await;
        assert_eq!(app.sandboxes.status(live).state, SandboxState::Running);
        let alice: UserName = "alice".parse().unwrap();
        let again = disable(app, &admin, &alice, &DisableRequest::default()).await;
        assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
        assert_eq!(app.sandboxes.status(live).state, SandboxState::Stopped);
        let row = app.store.user(id).await.unwrap().unwrap();
        assert_eq!(row.disabled.unwrap().note, "first");
    }
}

//! The owners of sandboxes in use, kept so that a request on a channel asks no database who
//! it acts for. Nothing that is kept is older than the last change of the account.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use types::UserId;

use super::plane::disabled;
use crate::actor::User;
use crate::error::Error;
use crate::store::Store;

/// Owners by their accounts; at most as many as there are accounts.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// Held for one look-up, never across an await.
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    users: HashMap<UserId, User>,
    /// Counts changes, so that a look-up that began before one keeps nothing after it.
    changes: u64,
}

impl Owners {
    /// The owner with this account.
    ///
    /// # Errors
    /// The database failed, or the account is gone or disabled.
    pub(super) async fn get(&self, store: &Store, id: UserId) -> Result<User, Error> {
        let changes = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(user) = known.users.get(&id) {
                return Ok(user.clone());
            }
            known.changes
        };
        let row = store.user(id).await?.ok_or(Error::NotFound("user"))?;
        if row.disabled.is_some() {
            return Err(disabled(&row.name));
        }
        let user = User {
            id: row.id,
            name: row.name,
            is_admin: row.is_admin,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.changes == changes {
            known.users.insert(id, user.clone());
        }
        Ok(user)
    }

    /// The account has changed in the database.
    pub(crate) fn changed(&self, id: UserId) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.changes += 1;
        known.users.remove(&id);
    }
}

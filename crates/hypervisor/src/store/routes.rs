//! Routes: which of a user's sandboxes is `live`, which is `dev`.

use sqlx::{Row, sqlite::SqliteRow};
use types::{Role, SandboxId, UserId};

use super::{Store, StoreError, number, parse};

/// A user's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRow {
    /// The user.
    pub user_id: UserId,
    /// The sandbox that is `live`.
    pub live: SandboxId,
    /// The sandbox that is `dev`.
    pub dev: SandboxId,
    /// Number of swaps so far.
    pub generation: u64,
}

impl RouteRow {
    /// The sandbox in a role.
    #[must_use]
    pub const fn sandbox(&self, role: Role) -> SandboxId {
        match role {
            Role::Live => self.live,
            Role::Dev => self.dev,
        }
    }

    /// The role of a sandbox, if it is one of this user's.
    #[must_use]
    pub fn role_of(&self, sandbox: SandboxId) -> Option<Role> {
        Role::ALL
            .into_iter()
            .find(|role| self.sandbox(*role) == sandbox)
    }

    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            user_id: parse("routes.user_id", row.try_get("user_id")?)?,
            live: parse("routes.live_sandbox_id", row.try_get("live_sandbox_id")?)?,
            dev: parse("routes.dev_sandbox_id", row.try_get("dev_sandbox_id")?)?,
            generation: number("routes.generation", row.try_get("generation")?)?,
        })
    }
}

impl Store {
    /// A user's route.
    ///
    /// # Errors
    /// The database failed.
    pub async fn route(&self, user: UserId) -> Result<Option<RouteRow>, StoreError> {
        sqlx::query("SELECT user_id, live_sandbox_id, dev_sandbox_id, generation FROM routes WHERE user_id = $1")
            .bind(user.to_string())
            .fetch_optional(&self.read)
            .await?
            .map(|row| RouteRow::read(&row))
            .transpose()
    }

    /// All routes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn routes(&self) -> Result<Vec<RouteRow>, StoreError> {
        sqlx::query("SELECT user_id, live_sandbox_id, dev_sandbox_id, generation FROM routes ORDER BY user_id")
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(RouteRow::read)
            .collect()
    }
}

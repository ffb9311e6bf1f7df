//! Sandboxes: two per user, made with the account.

use sqlx::{Row, sqlite::SqliteRow};
use types::{SandboxId, UserId};

use super::{Store, StoreError, number, parse};

/// A sandbox.
#[derive(Debug, Clone, Copy)]
pub struct SandboxRow {
    /// Its id; never changes.
    pub id: SandboxId,
    /// Its owner.
    pub user_id: UserId,
    /// 0 or 1.
    pub slot: u32,
    /// The host's user that owns its files, when the hypervisor is root.
    pub host_uid: u32,
}

impl SandboxRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("sandboxes.id", row.try_get("id")?)?,
            user_id: parse("sandboxes.user_id", row.try_get("user_id")?)?,
            slot: number("sandboxes.slot", row.try_get("slot")?)?,
            host_uid: number("sandboxes.host_uid", row.try_get("host_uid")?)?,
        })
    }
}

impl Store {
    /// A sandbox by its id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        sqlx::query("SELECT id, user_id, slot, host_uid FROM sandboxes WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?
            .map(|row| SandboxRow::read(&row))
            .transpose()
    }

    /// All sandboxes, in the order in which they were made.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sandboxes(&self) -> Result<Vec<SandboxRow>, StoreError> {
        sqlx::query("SELECT id, user_id, slot, host_uid FROM sandboxes ORDER BY host_uid")
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(SandboxRow::read)
            .collect()
    }
}

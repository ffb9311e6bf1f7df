//! Passkeys: public credentials only.

use sqlx::{Row, sqlite::SqliteRow};
use types::{PasskeyId, UserId};

use super::{Store, StoreError, duplicate, parse};

/// A registered passkey.
#[derive(Debug, Clone)]
pub struct PasskeyRow {
    /// Our id for it.
    pub id: PasskeyId,
    /// Its owner.
    pub user_id: UserId,
    /// The owner's name for it.
    pub name: String,
    /// The public credential as JSON.
    pub credential: String,
    /// When it was registered, Unix milliseconds.
    pub created_at: i64,
    /// When it was last used, Unix milliseconds.
    pub last_used_at: Option<i64>,
}

/// A passkey that is about to be kept.
#[derive(Debug, Clone)]
pub struct NewPasskey {
    /// Our id for it.
    pub id: PasskeyId,
    /// The owner's name for it.
    pub name: String,
    /// The authenticator's id for it, base64url.
    pub credential_id: String,
    /// The public credential as JSON.
    pub credential: String,
}

impl PasskeyRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("passkeys.id", row.try_get("id")?)?,
            user_id: parse("passkeys.user_id", row.try_get("user_id")?)?,
            name: row.try_get("name")?,
            credential: row.try_get("credential")?,
            created_at: row.try_get("created_at")?,
            last_used_at: row.try_get("last_used_at")?,
        })
    }
}

impl Store {
    /// A user's passkeys, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn passkeys(&self, user: UserId) -> Result<Vec<PasskeyRow>, StoreError> {
        sqlx::query(
            "SELECT id, user_id, name, credential, created_at, last_used_at FROM passkeys
             WHERE user_id = $1 ORDER BY created_at, id",
        )
        .bind(user.to_string())
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(PasskeyRow::read)
        .collect()
    }

    /// A passkey by the authenticator's id for it, base64url.
    ///
    /// # Errors
    /// The database failed.
    pub async fn passkey_by_credential(
        &self,
        credential_id: &str,
    ) -> Result<Option<PasskeyRow>, StoreError> {
        sqlx::query(
            "SELECT id, user_id, name, credential, created_at, last_used_at FROM passkeys
             WHERE credential_id = $1",
        )
        .bind(credential_id)
        .fetch_optional(&self.read)
        .await?
        .map(|row| PasskeyRow::read(&row))
        .transpose()
    }

    /// Keeps a further passkey of a user.
    ///
    /// # Errors
    /// It is registered already, or the database failed.
    pub async fn add_passkey(
        &self,
        user: UserId,
        passkey: &NewPasskey,
        now: i64,
    ) -> Result<(), StoreError> {
        let mut connection = self.write.acquire().await?;
        insert_passkey(&mut connection, user, passkey, now).await
    }

    /// Notes that a passkey was used, and what changed in it (its counter).
    ///
    /// # Errors
    /// The database failed.
    pub async fn touch_passkey(
        &self,
        id: PasskeyId,
        credential: &str,
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE passkeys SET credential = $2, last_used_at = $3 WHERE id = $1")
            .bind(id.to_string())
            .bind(credential)
            .bind(now)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Renames a user's passkey. `false` when there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rename_passkey(
        &self,
        user: UserId,
        id: PasskeyId,
        name: &str,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE passkeys SET name = $3 WHERE id = $1 AND user_id = $2")
            .bind(id.to_string())
            .bind(user.to_string())
            .bind(name)
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes a user's passkey unless it is the last one. `false` when there is none to remove.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_passkey(&self, user: UserId, id: PasskeyId) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "DELETE FROM passkeys WHERE id = $1 AND user_id = $2
             AND (SELECT COUNT(*) FROM passkeys WHERE user_id = $2) > 1",
        )
        .bind(id.to_string())
        .bind(user.to_string())
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

pub(super) async fn insert_passkey(
    connection: &mut sqlx::SqliteConnection,
    user: UserId,
    passkey: &NewPasskey,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO passkeys (id, user_id, name, credential_id, credential, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(passkey.id.to_string())
    .bind(user.to_string())
    .bind(&passkey.name)
    .bind(&passkey.credential_id)
    .bind(&passkey.credential)
    .bind(now)
    .execute(connection)
    .await
    .map_err(duplicate("passkey"))?;
    Ok(())
}

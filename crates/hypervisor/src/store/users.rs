//! Accounts.

use sqlx::{AssertSqlSafe, Row, sqlite::SqliteRow};
use types::{SandboxId, UserId, UserName};

use super::{Store, StoreError, duplicate, parse};

/// An account.
#[derive(Debug, Clone)]
pub struct UserRow {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: UserName,
    /// Whether it may administer the installation.
    pub is_admin: bool,
    /// When it was made, Unix milliseconds.
    pub created_at: i64,
    /// Whether it is disabled.
    pub disabled: Option<Disabled>,
}

/// That an account is disabled.
#[derive(Debug, Clone)]
pub struct Disabled {
    /// Since when, Unix milliseconds.
    pub at: i64,
    /// Why, for other administrators.
    pub note: String,
}

/// What came of disabling an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disabling {
    /// It is disabled now.
    Done,
    /// It was before.
    Already,
    /// Nobody would be left to administer the installation.
    LastAdmin,
}

/// The columns of an account.
const COLUMNS: &str = "id, name, is_admin, created_at, disabled_at, disabled_note";

/// What a new account is made of: the user, two sandboxes, and the route between them.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: UserName,
    /// Whether it may administer the installation.
    pub is_admin: bool,
    /// The sandbox that is `live` first.
    pub live: SandboxId,
    /// The sandbox that is `dev` first.
    pub dev: SandboxId,
    /// Host uids are given out from here upwards.
    pub host_uid_base: u32,
    /// Now, Unix milliseconds.
    pub now: i64,
}

impl UserRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("users.id", row.try_get("id")?)?,
            name: parse("users.name", row.try_get("name")?)?,
            is_admin: row.try_get("is_admin")?,
            created_at: row.try_get("created_at")?,
            disabled: match row.try_get::<Option<i64>, _>("disabled_at")? {
                Some(at) => Some(Disabled {
                    at,
                    note: row.try_get("disabled_note")?,
                }),
                None => None,
            },
        })
    }
}

impl Store {
    /// An account by its id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn user(&self, id: UserId) -> Result<Option<UserRow>, StoreError> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM users WHERE id = $1"
        )))
        .bind(id.to_string())
        .fetch_optional(&self.read)
        .await?
        .map(|row| UserRow::read(&row))
        .transpose()
    }

    /// An account by its name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn user_by_name(&self, name: &UserName) -> Result<Option<UserRow>, StoreError> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM users WHERE name = $1"
        )))
        .bind(name.as_str())
        .fetch_optional(&self.read)
        .await?
        .map(|row| UserRow::read(&row))
        .transpose()
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn users(&self) -> Result<Vec<UserRow>, StoreError> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM users ORDER BY name"
        )))
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(UserRow::read)
        .collect()
    }

    /// Disables an account, and ends its sessions, its API tokens and the invitations that it
    /// made and nobody has used yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn disable_user(
        &self,
        id: UserId,
        note: &str,
        now: i64,
    ) -> Result<Disabling, StoreError> {
        let mut transaction = self.write.begin().await?;
        let done = sqlx::query(
            "UPDATE users SET disabled_at = $2, disabled_note = $3
             WHERE id = $1 AND disabled_at IS NULL AND (NOT is_admin OR EXISTS
                 (SELECT 1 FROM users WHERE is_admin AND disabled_at IS NULL AND id <> $1))",
        )
        .bind(id.to_string())
        .bind(now)
        .bind(note)
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() == 0 {
            let before =
                sqlx::query("SELECT 1 FROM users WHERE id = $1 AND disabled_at IS NOT NULL")
                    .bind(id.to_string())
                    .fetch_optional(&mut *transaction)
                    .await?;
            return Ok(match before {
                Some(_) => Disabling::Already,
                None => Disabling::LastAdmin,
            });
        }
        end_access(&mut transaction, id).await?;
        sqlx::query("DELETE FROM invites WHERE created_by = $1 AND used_at IS NULL")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Disabling::Done)
    }

    /// Enables an account again. `false` when it was not disabled.
    ///
    /// # Errors
    /// The database failed.
    pub async fn enable_user(&self, id: UserId) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        // Whatever slipped in while it was being disabled does not come to life.
        end_access(&mut transaction, id).await?;
        let done = sqlx::query(
            "UPDATE users SET disabled_at = NULL, disabled_note = ''
             WHERE id = $1 AND disabled_at IS NOT NULL",
        )
        .bind(id.to_string())
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Whether there is an admin yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn has_admin(&self) -> Result<bool, StoreError> {
        Ok(sqlx::query("SELECT 1 FROM users WHERE is_admin LIMIT 1")
            .fetch_optional(&self.read)
            .await?
            .is_some())
    }
}

/// Ends what an account gets in with, but its passkeys and recovery codes.
async fn end_access(connection: &mut sqlx::SqliteConnection, id: UserId) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM sessions WHERE user_id = $1",
        "DELETE FROM api_tokens WHERE user_id = $1",
        "DELETE FROM pairings WHERE approved_by = $1",
    ] {
        sqlx::query(statement)
            .bind(id.to_string())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Inserts an account with its two sandboxes and its route, inside a transaction of the caller's.
pub(super) async fn insert_user(
    connection: &mut sqlx::SqliteConnection,
    user: &NewUser,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO users (id, name, is_admin, created_at) VALUES ($1, $2, $3, $4)")
        .bind(user.id.to_string())
        .bind(user.name.as_str())
        .bind(user.is_admin)
        .bind(user.now)
        .execute(&mut *connection)
        .await
        .map_err(duplicate("user"))?;
    for (slot, sandbox) in [(0_i64, user.live), (1, user.dev)] {
        // The greatest uid so far plus one: a uid is never given to somebody else later,
        // because files of its former owner may still exist.
        sqlx::query(
            "INSERT INTO sandboxes (id, user_id, slot, host_uid, created_at)
             SELECT $1, $2, $3, COALESCE(MAX(host_uid) + 1, $4), $5 FROM sandboxes",
        )
        .bind(sandbox.to_string())
        .bind(user.id.to_string())
        .bind(slot)
        .bind(i64::from(user.host_uid_base))
        .bind(user.now)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "INSERT INTO routes (user_id, live_sandbox_id, dev_sandbox_id, generation, updated_at)
         VALUES ($1, $2, $3, 0, $4)",
    )
    .bind(user.id.to_string())
    .bind(user.live.to_string())
    .bind(user.dev.to_string())
    .bind(user.now)
    .execute(&mut *connection)
    .await?;
    Ok(())
}

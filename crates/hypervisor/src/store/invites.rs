//! Invitations and the set-up link: what a registration needs.

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use types::{InviteId, UserId};

use super::passkeys::{NewPasskey, insert_passkey};
use super::recovery::{NewRecoveryCode, replace_recovery_codes};
use super::sessions::{NewSession, insert_session};
use super::users::{NewUser, insert_user};
use super::{Store, StoreError, parse};

/// An invitation.
#[derive(Debug, Clone)]
pub struct InviteRow {
    /// Its id.
    pub id: InviteId,
    /// What it is for, for people.
    pub note: String,
    /// Whether whoever uses it becomes an admin.
    pub makes_admin: bool,
    /// When it was made, Unix milliseconds.
    pub created_at: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
    /// The name of the account that was made with it.
    pub used_by: Option<String>,
    /// When it was used, Unix milliseconds.
    pub used_at: Option<i64>,
}

/// An invitation that is about to be made.
#[derive(Debug, Clone)]
pub struct NewInvite {
    /// Its id.
    pub id: InviteId,
    /// Hash of its token.
    pub token_hash: String,
    /// What it is for.
    pub note: String,
    /// Whether whoever uses it becomes an admin.
    pub makes_admin: bool,
    /// Who makes it.
    pub created_by: UserId,
    /// Now, Unix milliseconds.
    pub now: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
}

/// What lets somebody register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entitlement {
    /// The set-up link; by the hash of its token.
    Setup(String),
    /// An invitation; by the hash of its token.
    Invite(String),
    /// Registration is open.
    Open,
}

/// A whole registration, written at once or not at all.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The account.
    pub user: NewUser,
    /// Its first passkey.
    pub passkey: NewPasskey,
    /// Its recovery codes.
    pub codes: Vec<NewRecoveryCode>,
    /// Its first session.
    pub session: NewSession,
    /// What lets it happen; used up by it.
    pub entitlement: Entitlement,
}

impl InviteRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("invites.id", row.try_get("id")?)?,
            note: row.try_get("note")?,
            makes_admin: row.try_get("makes_admin")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            used_by: row.try_get("used_by")?,
            used_at: row.try_get("used_at")?,
        })
    }
}

impl Store {
    /// All invitations, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn invites(&self) -> Result<Vec<InviteRow>, StoreError> {
        sqlx::query(
            "SELECT i.id, i.note, i.makes_admin, i.created_at, i.expires_at, u.name AS used_by, i.used_at
             FROM invites i LEFT JOIN users u ON u.id = i.used_by ORDER BY i.created_at DESC, i.id",
        )
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(InviteRow::read)
        .collect()
    }

    /// Makes an invitation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn add_invite(&self, invite: &NewInvite) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO invites (id, token_hash, note, makes_admin, created_by, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(invite.id.to_string())
        .bind(&invite.token_hash)
        .bind(&invite.note)
        .bind(invite.makes_admin)
        .bind(invite.created_by.to_string())
        .bind(invite.now)
        .bind(invite.expires_at)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Withdraws an unused invitation. `false` when there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_invite(&self, id: InviteId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM invites WHERE id = $1 AND used_at IS NULL")
            .bind(id.to_string())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Replaces the set-up link.
    ///
    /// # Errors
    /// The database failed.
    pub async fn replace_setup_link(
        &self,
        token_hash: &str,
        now: i64,
        expires_at: i64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write.begin().await?;
        sqlx::query("DELETE FROM setup_links")
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO setup_links (token_hash, created_at, expires_at) VALUES ($1, $2, $3)",
        )
        .bind(token_hash)
        .bind(now)
        .bind(expires_at)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Whether something still lets somebody register, and whether as an admin.
    ///
    /// # Errors
    /// The database failed.
    pub async fn entitled(
        &self,
        entitlement: &Entitlement,
        now: i64,
    ) -> Result<Option<bool>, StoreError> {
        match entitlement {
            Entitlement::Open => Ok(Some(false)),
            Entitlement::Setup(hash) => {
                let row = sqlx::query(
                    "SELECT 1 FROM setup_links WHERE token_hash = $1 AND expires_at > $2",
                )
                .bind(hash)
                .bind(now)
                .fetch_optional(&self.read)
                .await?;
                Ok(row.map(|_| true))
            }
            Entitlement::Invite(hash) => {
                let row = sqlx::query(
                    "SELECT makes_admin FROM invites WHERE token_hash = $1 AND expires_at > $2 AND used_at IS NULL",
                )
                .bind(hash)
                .bind(now)
                .fetch_optional(&self.read)
                .await?;
                row.map(|row| row.try_get("makes_admin").map_err(StoreError::from))
                    .transpose()
            }
        }
    }

    /// Writes a whole registration and uses up what let it happen. `false` when that was
    /// used up by somebody else meanwhile; nothing is written then.
    ///
    /// # Errors
    /// The name or the passkey is taken, or the database failed.
    pub async fn register(&self, registration: &Registration) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        let now = registration.user.now;
        insert_user(&mut transaction, &registration.user).await?;
        if !use_up(
            &mut transaction,
            &registration.entitlement,
            registration.user.id,
            now,
        )
        .await?
        {
            return Ok(false);
        }
        insert_passkey(
            &mut transaction,
            registration.user.id,
            &registration.passkey,
            now,
        )
        .await?;
        replace_recovery_codes(
            &mut transaction,
            registration.user.id,
            &registration.codes,
            now,
        )
        .await?;
        insert_session(&mut transaction, &registration.session).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

async fn use_up(
    connection: &mut SqliteConnection,
    entitlement: &Entitlement,
    user: UserId,
    now: i64,
) -> Result<bool, StoreError> {
    let done = match entitlement {
        Entitlement::Open => return Ok(true),
        Entitlement::Setup(hash) => {
            sqlx::query("DELETE FROM setup_links WHERE token_hash = $1 AND expires_at > $2")
                .bind(hash)
                .bind(now)
                .execute(connection)
                .await?
        }
        Entitlement::Invite(hash) => {
            sqlx::query(
                "UPDATE invites SET used_by = $2, used_at = $3
                 WHERE token_hash = $1 AND expires_at > $3 AND used_at IS NULL",
            )
            .bind(hash)
            .bind(user.to_string())
            .bind(now)
            .execute(connection)
            .await?
        }
    };
    Ok(done.rows_affected() == 1)
}

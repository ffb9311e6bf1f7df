//! Recovery codes: ten per account, each good once.

use sqlx::{Row, SqliteConnection};
use types::{PasskeyId, SessionId, UserId};
use uuid::Uuid;

use super::passkeys::{NewPasskey, insert_passkey};
use super::sessions::{NewSession, insert_session};
use super::{Store, StoreError, parse};

/// A code that is about to be kept.
#[derive(Debug, Clone)]
pub struct NewRecoveryCode {
    /// Its id.
    pub id: Uuid,
    /// Argon2id in the PHC string format.
    pub code_hash: String,
}

/// A code that was not used yet.
#[derive(Debug, Clone)]
pub struct RecoveryCodeRow {
    /// Its id.
    pub id: Uuid,
    /// Argon2id in the PHC string format.
    pub code_hash: String,
}

impl Store {
    /// A user's unused codes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recovery_codes(&self, user: UserId) -> Result<Vec<RecoveryCodeRow>, StoreError> {
        sqlx::query("SELECT id, code_hash FROM recovery_codes WHERE user_id = $1 AND used_at IS NULL ORDER BY id")
            .bind(user.to_string())
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(|row| {
                Ok(RecoveryCodeRow {
                    id: parse("recovery_codes.id", row.try_get("id")?)?,
                    code_hash: row.try_get("code_hash")?,
                })
            })
            .collect()
    }

    /// Replaces all codes of a user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_recovery_codes(
        &self,
        user: UserId,
        codes: &[NewRecoveryCode],
        now: i64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write.begin().await?;
        replace_recovery_codes(&mut transaction, user, codes, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Uses up a code: ends every session and API token of the user and makes the recovery
    /// session. `false` when somebody else used the code meanwhile; nothing changes then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recover(
        &self,
        user: UserId,
        code: Uuid,
        session: &NewSession,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        let used = sqlx::query(
            "UPDATE recovery_codes SET used_at = $3 WHERE id = $1 AND user_id = $2 AND used_at IS NULL",
        )
        .bind(code.to_string())
        .bind(user.to_string())
        .bind(session.now)
        .execute(&mut *transaction)
        .await?;
        if used.rows_affected() != 1 {
            return Ok(false);
        }
        for statement in [
            "DELETE FROM sessions WHERE user_id = $1",
            "DELETE FROM api_tokens WHERE user_id = $1",
        ] {
            sqlx::query(statement)
                .bind(user.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        insert_session(&mut transaction, session).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Ends a recovery: a new passkey comes, the old ones go unless they are kept, and a
    /// full session takes the place of the recovery session. `false` when the recovery
    /// session has ended meanwhile; nothing changes then.
    ///
    /// # Errors
    /// The passkey is registered already, or the database failed.
    pub async fn finish_recovery(
        &self,
        recovery: SessionId,
        passkey: &NewPasskey,
        revoke: &[PasskeyId],
        session: &NewSession,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        let ended = sqlx::query("DELETE FROM sessions WHERE id = $1 AND user_id = $2")
            .bind(recovery.to_string())
            .bind(session.user_id.to_string())
            .execute(&mut *transaction)
            .await?;
        if ended.rows_affected() != 1 {
            return Ok(false);
        }
        for id in revoke {
            sqlx::query("DELETE FROM passkeys WHERE id = $1 AND user_id = $2")
                .bind(id.to_string())
                .bind(session.user_id.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        insert_passkey(&mut transaction, session.user_id, passkey, session.now).await?;
        insert_session(&mut transaction, session).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

pub(super) async fn replace_recovery_codes(
    connection: &mut SqliteConnection,
    user: UserId,
    codes: &[NewRecoveryCode],
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM recovery_codes WHERE user_id = $1")
        .bind(user.to_string())
        .execute(&mut *connection)
        .await?;
    for code in codes {
        sqlx::query("INSERT INTO recovery_codes (id, user_id, code_hash, created_at) VALUES ($1, $2, $3, $4)")
            .bind(code.id.to_string())
            .bind(user.to_string())
            .bind(&code.code_hash)
            .bind(now)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

//! One-time codes that hand a session over to a runtime origin (arch §2).

use sqlx::Row;
use types::{SessionId, UserId};

use super::{Store, StoreError, parse};

/// A code that is about to be given out.
#[derive(Debug, Clone)]
pub struct NewHandover {
    /// Hash of the code.
    pub code_hash: String,
    /// The control session behind it.
    pub session: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// The runtime host that may redeem it.
    pub host: String,
    /// Hash of what the browser that asked holds.
    pub binding_hash: String,
    /// Where to go afterwards, a path.
    pub return_to: String,
    /// Now, Unix milliseconds.
    pub now: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
}

/// A redeemed code.
#[derive(Debug, Clone)]
pub struct Handover {
    /// The control session behind it.
    pub session: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// Where to go, a path.
    pub return_to: String,
}

impl Store {
    /// Keeps a code, and clears away those that have ended by time.
    ///
    /// # Errors
    /// The database failed.
    pub async fn add_handover(&self, code: &NewHandover) -> Result<(), StoreError> {
        let mut transaction = self.write.begin().await?;
        sqlx::query("DELETE FROM handover_codes WHERE expires_at <= $1")
            .bind(code.now)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO handover_codes (code_hash, session_id, user_id, host, binding_hash, return_to,
                                         created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&code.code_hash)
        .bind(code.session.to_string())
        .bind(code.user.to_string())
        .bind(&code.host)
        .bind(&code.binding_hash)
        .bind(&code.return_to)
        .bind(code.now)
        .bind(code.expires_at)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Takes a code out: whatever the answer, it cannot be taken out again. `None` when
    /// there is none, when it has ended, or when host or browser are others.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_handover(
        &self,
        code_hash: &str,
        host: &str,
        binding_hash: &str,
        now: i64,
    ) -> Result<Option<Handover>, StoreError> {
        let row = sqlx::query(
            "DELETE FROM handover_codes WHERE code_hash = $1
             RETURNING session_id, user_id, host, binding_hash, return_to, expires_at",
        )
        .bind(code_hash)
        .fetch_optional(&self.write)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let fits = row.try_get::<&str, _>("host")? == host
            && row.try_get::<&str, _>("binding_hash")? == binding_hash
            && row.try_get::<i64, _>("expires_at")? > now;
        if !fits {
            return Ok(None);
        }
        Ok(Some(Handover {
            session: parse("handover_codes.session_id", row.try_get("session_id")?)?,
            user: parse("handover_codes.user_id", row.try_get("user_id")?)?,
            return_to: row.try_get("return_to")?,
        }))
    }
}

//! Pairings: a command on a terminal that asks a signed-in browser for a token.

use sqlx::{Row, sqlite::SqliteRow};
use types::UserId;
use uuid::Uuid;

use super::tokens::{NewToken, insert_token};
use super::{Store, StoreError, parse};

/// A pairing under way.
#[derive(Debug, Clone)]
pub struct PairingRow {
    /// Its id.
    pub id: Uuid,
    /// What asks, as it named itself.
    pub client_name: String,
    /// The address it asks from.
    pub address: String,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
    /// Who approved it.
    pub approved_by: Option<UserId>,
    /// The scopes that were approved, separated by single spaces.
    pub scopes: Option<String>,
    /// Whether it was refused.
    pub denied: bool,
}

/// A pairing that is about to begin.
#[derive(Debug, Clone)]
pub struct NewPairing {
    /// Its id.
    pub id: Uuid,
    /// Hash of what the command polls with.
    pub device_hash: String,
    /// What the person types.
    pub user_code: String,
    /// What asks, as it named itself.
    pub client_name: String,
    /// The address it asks from.
    pub address: String,
    /// Now, Unix milliseconds.
    pub now: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
}

impl PairingRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let approved_by: Option<&str> = row.try_get("approved_by")?;
        Ok(Self {
            id: parse("pairings.id", row.try_get("id")?)?,
            client_name: row.try_get("client_name")?,
            address: row.try_get("address")?,
            expires_at: row.try_get("expires_at")?,
            approved_by: approved_by
                .map(|id| parse("pairings.approved_by", id))
                .transpose()?,
            scopes: row.try_get("scopes")?,
            denied: row.try_get("denied")?,
        })
    }
}

impl Store {
    /// Begins a pairing unless `most` are under way, and clears away those that have ended.
    ///
    /// # Errors
    /// The user code is in use, or the database failed.
    pub async fn add_pairing(&self, pairing: &NewPairing, most: i64) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        sqlx::query("DELETE FROM pairings WHERE expires_at <= $1")
            .bind(pairing.now)
            .execute(&mut *transaction)
            .await?;
        let count: i64 = sqlx::query("SELECT COUNT(*) AS n FROM pairings")
            .fetch_one(&mut *transaction)
            .await?
            .try_get("n")?;
        if count >= most {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO pairings (id, device_hash, user_code, client_name, address, created_at, expires_at, denied)
             VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE)",
        )
        .bind(pairing.id.to_string())
        .bind(&pairing.device_hash)
        .bind(&pairing.user_code)
        .bind(&pairing.client_name)
        .bind(&pairing.address)
        .bind(pairing.now)
        .bind(pairing.expires_at)
        .execute(&mut *transaction)
        .await
        .map_err(super::duplicate("pairing code"))?;
        transaction.commit().await?;
        Ok(true)
    }

    /// A pairing that still waits for a decision, by the code that the person types.
    ///
    /// # Errors
    /// The database failed.
    pub async fn pairing_by_user_code(
        &self,
        code: &str,
        now: i64,
    ) -> Result<Option<PairingRow>, StoreError> {
        sqlx::query(
            "SELECT id, client_name, address, expires_at, approved_by, scopes, denied FROM pairings
             WHERE user_code = $1 AND expires_at > $2 AND approved_by IS NULL AND NOT denied",
        )
        .bind(code)
        .bind(now)
        .fetch_optional(&self.read)
        .await?
        .map(|row| PairingRow::read(&row))
        .transpose()
    }

    /// A pairing by the hash of what the command polls with.
    ///
    /// # Errors
    /// The database failed.
    pub async fn pairing_by_device(
        &self,
        device_hash: &str,
        now: i64,
    ) -> Result<Option<PairingRow>, StoreError> {
        sqlx::query(
            "SELECT id, client_name, address, expires_at, approved_by, scopes, denied FROM pairings
             WHERE device_hash = $1 AND expires_at > $2",
        )
        .bind(device_hash)
        .bind(now)
        .fetch_optional(&self.read)
        .await?
        .map(|row| PairingRow::read(&row))
        .transpose()
    }

    /// Approves (with scopes) or refuses (without) a pairing. `false` when it was decided
    /// or has ended meanwhile.
    ///
    /// # Errors
    /// The database failed.
    pub async fn decide_pairing(
        &self,
        id: Uuid,
        user: UserId,
        scopes: Option<&str>,
        now: i64,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE pairings SET approved_by = $2, scopes = $3, denied = $4
             WHERE id = $1 AND expires_at > $5 AND approved_by IS NULL AND NOT denied",
        )
        .bind(id.to_string())
        .bind(scopes.map(|_| user.to_string()))
        .bind(scopes)
        .bind(scopes.is_none())
        .bind(now)
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Ends an approved pairing with its token. `false` when it was ended meanwhile.
    ///
    /// # Errors
    /// The database failed.
    pub async fn finish_pairing(&self, id: Uuid, token: &NewToken) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        let ended = sqlx::query("DELETE FROM pairings WHERE id = $1 AND approved_by IS NOT NULL")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
        if ended.rows_affected() != 1 {
            return Ok(false);
        }
        insert_token(&mut transaction, token).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

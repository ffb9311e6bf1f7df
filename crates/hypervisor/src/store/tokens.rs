//! API tokens.

use sqlx::{Row, sqlite::SqliteRow};
use types::{TokenId, UserId, UserName};

use super::{Store, StoreError, parse};

/// An API token with its user.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
    /// Its user.
    pub user_id: UserId,
    /// The user's name.
    pub user_name: UserName,
    /// Whether the user is an admin now.
    pub is_admin: bool,
    /// What it is for, for people.
    pub name: String,
    /// Scopes, separated by single spaces.
    pub scopes: String,
    /// When it was made, Unix milliseconds.
    pub created_at: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
    /// When it was last used, Unix milliseconds; up to a minute late.
    pub last_used_at: Option<i64>,
}

/// A token that is about to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its id.
    pub id: TokenId,
    /// Its user.
    pub user_id: UserId,
    /// What it is for.
    pub name: String,
    /// Its hash.
    pub token_hash: String,
    /// Scopes, separated by single spaces.
    pub scopes: String,
    /// Now, Unix milliseconds.
    pub now: i64,
    /// When it ends, Unix milliseconds.
    pub expires_at: i64,
}

impl TokenRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("api_tokens.id", row.try_get("id")?)?,
            user_id: parse("api_tokens.user_id", row.try_get("user_id")?)?,
            user_name: parse("users.name", row.try_get("user_name")?)?,
            is_admin: row.try_get("is_admin")?,
            name: row.try_get("name")?,
            scopes: row.try_get("scopes")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            last_used_at: row.try_get("last_used_at")?,
        })
    }
}

impl Store {
    /// A token by its hash, whether or not it has ended by time. A disabled account has none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn token(&self, token_hash: &str) -> Result<Option<TokenRow>, StoreError> {
        sqlx::query(
            "SELECT t.id, t.user_id, u.name AS user_name, u.is_admin, t.name, t.scopes, t.created_at,
                    t.expires_at, t.last_used_at
             FROM api_tokens t JOIN users u ON u.id = t.user_id
             WHERE t.token_hash = $1 AND u.disabled_at IS NULL",
        )
        .bind(token_hash)
        .fetch_optional(&self.read)
        .await?
        .map(|row| TokenRow::read(&row))
        .transpose()
    }

    /// Whether a token still exists. For long streams, which ask again now and then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn token_lives(&self, id: TokenId, now: i64) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT 1 FROM api_tokens t JOIN users u ON u.id = t.user_id
             WHERE t.id = $1 AND t.expires_at > $2 AND u.disabled_at IS NULL",
        )
        .bind(id.to_string())
        .bind(now)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.is_some())
    }

    /// A user's tokens, the newest first; ended ones too.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tokens(&self, user: UserId) -> Result<Vec<TokenRow>, StoreError> {
        sqlx::query(
            "SELECT t.id, t.user_id, u.name AS user_name, u.is_admin, t.name, t.scopes, t.created_at,
                    t.expires_at, t.last_used_at
             FROM api_tokens t JOIN users u ON u.id = t.user_id
             WHERE t.user_id = $1 AND u.disabled_at IS NULL ORDER BY t.created_at DESC, t.id",
        )
        .bind(user.to_string())
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(TokenRow::read)
        .collect()
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The database failed.
    pub async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        let mut connection = self.write.acquire().await?;
        insert_token(&mut connection, token).await
    }

    /// Notes that a token was used.
    ///
    /// # Errors
    /// The database failed.
    pub async fn touch_token(&self, id: TokenId, now: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE api_tokens SET last_used_at = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(now)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Revokes a user's token. `false` when there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_token(&self, user: UserId, id: TokenId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM api_tokens WHERE id = $1 AND user_id = $2")
            .bind(id.to_string())
            .bind(user.to_string())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

pub(super) async fn insert_token(
    connection: &mut sqlx::SqliteConnection,
    token: &NewToken,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO api_tokens (id, user_id, name, token_hash, scopes, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(token.id.to_string())
    .bind(token.user_id.to_string())
    .bind(&token.name)
    .bind(&token.token_hash)
    .bind(&token.scopes)
    .bind(token.now)
    .bind(token.expires_at)
    .execute(connection)
    .await?;
    Ok(())
}

//! Sessions: of the control origin, after recovery, and of runtime origins.

use sqlx::{Row, sqlite::SqliteRow};
use types::{SessionId, UserId, UserName};

use super::{Store, StoreError, parse};

/// What a session opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// The control origin.
    Control,
    /// Only the decision about the passkeys after recovery.
    Recovery,
    /// The proxy of a runtime origin, and nothing else (arch §2).
    Runtime,
}

impl SessionKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Recovery => "recovery",
            Self::Runtime => "runtime",
        }
    }
}

impl std::str::FromStr for SessionKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Control, Self::Recovery, Self::Runtime]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(())
    }
}

/// A session with its user.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user_id: UserId,
    /// The user's name.
    pub user_name: UserName,
    /// Whether the user is an admin now.
    pub is_admin: bool,
    /// What it opens.
    pub kind: SessionKind,
    /// The only host that may present it.
    pub host: String,
    /// The browser, as it named itself.
    pub user_agent: String,
    /// The address it was made from.
    pub address: String,
    /// When it was made, Unix milliseconds.
    pub created_at: i64,
    /// When it was last used, Unix milliseconds; up to a minute late.
    pub last_seen_at: i64,
    /// When it ends at the latest, Unix milliseconds.
    pub expires_at: i64,
}

/// A session that is about to be made.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user_id: UserId,
    /// What it opens.
    pub kind: SessionKind,
    /// The control session that it was handed over from, and ends with.
    pub parent: Option<SessionId>,
    /// Hash of its token.
    pub token_hash: String,
    /// The only host that may present it.
    pub host: String,
    /// The browser, as it named itself.
    pub user_agent: String,
    /// The address it is made from.
    pub address: String,
    /// Now, Unix milliseconds.
    pub now: i64,
    /// When it ends at the latest, Unix milliseconds.
    pub expires_at: i64,
}

impl SessionRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let kind: &str = row.try_get("kind")?;
        Ok(Self {
            id: parse("sessions.id", row.try_get("id")?)?,
            user_id: parse("sessions.user_id", row.try_get("user_id")?)?,
            user_name: parse("users.name", row.try_get("name")?)?,
            is_admin: row.try_get("is_admin")?,
            kind: parse("sessions.kind", kind)?,
            host: row.try_get("host")?,
            user_agent: row.try_get("user_agent")?,
            address: row.try_get("address")?,
            created_at: row.try_get("created_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            expires_at: row.try_get("expires_at")?,
        })
    }
}

impl Store {
    /// A session by the hash of its token, whether or not it has ended by time. A disabled
    /// account has none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session(&self, token_hash: &str) -> Result<Option<SessionRow>, StoreError> {
        sqlx::query(
            "SELECT s.id, s.user_id, u.name, u.is_admin, s.kind, s.host, s.user_agent, s.address,
                    s.created_at, s.last_seen_at, s.expires_at
             FROM sessions s JOIN users u ON u.id = s.user_id
             WHERE s.token_hash = $1 AND u.disabled_at IS NULL",
        )
        .bind(token_hash)
        .fetch_optional(&self.read)
        .await?
        .map(|row| SessionRow::read(&row))
        .transpose()
    }

    /// Whether a session still exists. For long streams, which ask again now and then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_lives(&self, id: SessionId, now: i64) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT 1 FROM sessions s JOIN users u ON u.id = s.user_id
             WHERE s.id = $1 AND s.expires_at > $2 AND u.disabled_at IS NULL",
        )
        .bind(id.to_string())
        .bind(now)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.is_some())
    }

    /// A user's sessions that have not ended, the last used first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sessions(&self, user: UserId, now: i64) -> Result<Vec<SessionRow>, StoreError> {
        sqlx::query(
            "SELECT s.id, s.user_id, u.name, u.is_admin, s.kind, s.host, s.user_agent, s.address,
                    s.created_at, s.last_seen_at, s.expires_at
             FROM sessions s JOIN users u ON u.id = s.user_id
             WHERE s.user_id = $1 AND s.expires_at > $2 AND u.disabled_at IS NULL
             ORDER BY s.last_seen_at DESC, s.id",
        )
        .bind(user.to_string())
        .bind(now)
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(SessionRow::read)
        .collect()
    }

    /// Makes a session, and clears away those that have ended by time.
    ///
    /// # Errors
    /// The database failed.
    pub async fn add_session(&self, session: &NewSession) -> Result<(), StoreError> {
        let mut transaction = self.write.begin().await?;
        sqlx::query("DELETE FROM sessions WHERE expires_at <= $1")
            .bind(session.now)
            .execute(&mut *transaction)
            .await?;
        insert_session(&mut transaction, session).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Notes that a session was used, and when it now ends.
    ///
    /// # Errors
    /// The database failed.
    pub async fn touch_session(&self, id: SessionId, now: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET last_seen_at = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(now)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Ends one session of a user, and the runtime sessions handed over from it. `false`
    /// when there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_session(&self, user: UserId, id: SessionId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM sessions WHERE id = $1 AND user_id = $2")
            .bind(id.to_string())
            .bind(user.to_string())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Ends all sessions of a user but one and what was handed over from it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_other_sessions(
        &self,
        user: UserId,
        keep: SessionId,
    ) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "DELETE FROM sessions WHERE user_id = $1 AND id <> $2 AND (parent_id IS NULL OR parent_id <> $2)",
        )
        .bind(user.to_string())
        .bind(keep.to_string())
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected())
    }
}

pub(super) async fn insert_session(
    connection: &mut sqlx::SqliteConnection,
    session: &NewSession,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sessions (id, user_id, kind, parent_id, token_hash, host, user_agent, address,
                               created_at, last_seen_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)",
    )
    .bind(session.id.to_string())
    .bind(session.user_id.to_string())
    .bind(session.kind.as_str())
    .bind(session.parent.map(|id| id.to_string()))
    .bind(&session.token_hash)
    .bind(&session.host)
    .bind(&session.user_agent)
    .bind(&session.address)
    .bind(session.now)
    .bind(session.expires_at)
    .execute(connection)
    .await?;
    Ok(())
}

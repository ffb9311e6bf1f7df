//! Crashes in a row, across restarts of the hypervisor.

use sqlx::{Row, sqlite::SqliteRow};
use types::SandboxId;

use super::{Store, StoreError, number, parse};

/// What is kept about a sandbox that crashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashRow {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Crashes in a row.
    pub crashes: u32,
    /// Why it was given up; empty when it was not.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The end of its log: its own words, one entry per line.
    pub log: Vec<String>,
}

/// Why a sandbox was given up.
#[derive(Debug)]
pub struct GivenUp {
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The end of its log, bounded by whoever read it.
    pub log: Vec<String>,
}

impl CrashRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            sandbox_id: parse("sandbox_crashes.sandbox_id", row.try_get("sandbox_id")?)?,
            crashes: number("sandbox_crashes.crashes", row.try_get("crashes")?)?,
            message: row
                .try_get::<Option<String>, _>("failed")?
                .unwrap_or_default(),
            hint: row.try_get("hint")?,
            log: row
                .try_get::<Option<String>, _>("log")?
                .map(|log| log.lines().map(str::to_owned).collect())
                .unwrap_or_default(),
        })
    }
}

impl Store {
    /// Keeps a sandbox's crashes, and with `failed` why it was given up, what to do, and its last words.
    ///
    /// # Errors
    /// The database failed, or there is no such sandbox.
    pub async fn keep_crash(
        &self,
        sandbox: SandboxId,
        crashes: u32,
        failed: Option<GivenUp>,
        now: i64,
    ) -> Result<(), StoreError> {
        let (message, hint, log) = failed.map_or((None, None, None), |failed| {
            let log = (!failed.log.is_empty()).then(|| failed.log.join("\n"));
            (Some(failed.message), failed.hint, log)
        });
        sqlx::query(
            "INSERT INTO sandbox_crashes (sandbox_id, crashes, last_at, failed, hint, log)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (sandbox_id) DO UPDATE
             SET crashes = $2, last_at = $3, failed = $4, hint = $5, log = $6",
        )
        .bind(sandbox.to_string())
        .bind(i64::from(crashes))
        .bind(now)
        .bind(message)
        .bind(hint)
        .bind(log)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Whether a sandbox has crashed since a moment (Unix milliseconds).
    ///
    /// # Errors
    /// The database failed.
    pub async fn crashed_since(&self, sandbox: SandboxId, at: i64) -> Result<bool, StoreError> {
        sqlx::query("SELECT 1 FROM sandbox_crashes WHERE sandbox_id = $1 AND last_at >= $2")
            .bind(sandbox.to_string())
            .bind(at)
            .fetch_optional(&self.read)
            .await
            .map(|row| row.is_some())
            .map_err(StoreError::from)
    }

    /// Forgets a sandbox's crashes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_crashes(&self, sandbox: SandboxId) -> Result<(), StoreError> {
        // Most have none, and reading costs no write.
        if self.crashes(sandbox).await?.is_some() {
            sqlx::query("DELETE FROM sandbox_crashes WHERE sandbox_id = $1")
                .bind(sandbox.to_string())
                .execute(&self.write)
                .await?;
        }
        Ok(())
    }

    /// A sandbox's crashes, if it has any.
    ///
    /// # Errors
    /// The database failed.
    pub async fn crashes(&self, sandbox: SandboxId) -> Result<Option<CrashRow>, StoreError> {
        sqlx::query(
            "SELECT sandbox_id, crashes, failed, hint, log FROM sandbox_crashes WHERE sandbox_id = $1",
        )
        .bind(sandbox.to_string())
        .fetch_optional(&self.read)
        .await?
        .map(|row| CrashRow::read(&row))
        .transpose()
    }

    /// The sandboxes that were given up.
    ///
    /// # Errors
    /// The database failed.
    pub async fn failures(&self) -> Result<Vec<CrashRow>, StoreError> {
        sqlx::query(
            "SELECT sandbox_id, crashes, failed, hint, log FROM sandbox_crashes
             WHERE failed IS NOT NULL ORDER BY sandbox_id",
        )
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(CrashRow::read)
        .collect()
    }
}

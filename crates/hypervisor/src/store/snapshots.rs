//! Snapshots of sandboxes' files.

use std::str::FromStr;

use sqlx::{Row, sqlite::SqliteRow};
use types::{SandboxId, SnapshotId, SnapshotReason};

use super::{Store, StoreError, number, parse};

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Being copied.
    Making,
    /// Its directory holds the copy that is to replace the sandbox's state, and afterwards
    /// the state that was replaced.
    Replacing,
    /// Complete.
    Ready,
    /// On its way out.
    Removing,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Making, Self::Replacing, Self::Ready, Self::Removing];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Replacing => "replacing",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }
}

impl FromStr for Standing {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.into_iter().find(|it| it.as_str() == text);
        found.ok_or(())
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// The sandbox whose files it holds.
    pub sandbox_id: SandboxId,
    /// How far it is.
    pub standing: Standing,
    /// What somebody called it.
    pub name: Option<String>,
    /// Why there is one.
    pub reason: SnapshotReason,
    /// Never goes by itself.
    pub known_good: bool,
    /// When, Unix milliseconds.
    pub created_at: i64,
    /// Bytes of data.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Swaps of the user when it was taken.
    pub generation: u64,
    /// Version of the runtime when it was taken.
    pub version: String,
    /// While replacing, once the copy is complete: the inode of the state to put aside.
    pub replaces: Option<u64>,
    /// Whether the sandbox ran when its state was about to be put aside.
    pub was_running: bool,
}

impl SnapshotRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let replaces: Option<i64> = row.try_get("replaces")?;
        Ok(Self {
            id: parse("snapshots.id", row.try_get("id")?)?,
            sandbox_id: parse("snapshots.sandbox_id", row.try_get("sandbox_id")?)?,
            standing: parse("snapshots.standing", row.try_get("standing")?)?,
            name: row.try_get("name")?,
            reason: parse("snapshots.reason", row.try_get("reason")?)?,
            known_good: row.try_get("known_good")?,
            created_at: row.try_get("created_at")?,
            bytes: number("snapshots.bytes", row.try_get("bytes")?)?,
            files: number("snapshots.files", row.try_get("files")?)?,
            generation: number("snapshots.generation", row.try_get("generation")?)?,
            version: row.try_get("version")?,
            // Inodes are 64 bits without a sign.
            replaces: replaces.map(i64::cast_unsigned),
            was_running: row.try_get("was_running")?,
        })
    }
}

impl Store {
    /// A sandbox's snapshots of every standing, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn snapshots(&self, sandbox: SandboxId) -> Result<Vec<SnapshotRow>, StoreError> {
        sqlx::query("SELECT * FROM snapshots WHERE sandbox_id = $1 ORDER BY created_at, id")
            .bind(sandbox.to_string())
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(SnapshotRow::read)
            .collect()
    }

    /// A snapshot of this sandbox.
    ///
    /// # Errors
    /// The database failed.
    pub async fn snapshot(
        &self,
        sandbox: SandboxId,
        id: SnapshotId,
    ) -> Result<Option<SnapshotRow>, StoreError> {
        sqlx::query("SELECT * FROM snapshots WHERE sandbox_id = $1 AND id = $2")
            .bind(sandbox.to_string())
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?
            .map(|row| SnapshotRow::read(&row))
            .transpose()
    }

    /// Writes a snapshot, in place of what was known of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn put_snapshot(&self, row: &SnapshotRow) -> Result<(), StoreError> {
        let signed =
            |what, value: u64| i64::try_from(value).map_err(|_| StoreError::Corrupt { what });
        sqlx::query(
            "INSERT INTO snapshots (id, sandbox_id, standing, name, reason, known_good,
                created_at, bytes, files, generation, version, replaces, was_running)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             ON CONFLICT (id) DO UPDATE SET standing = $3, name = $4, known_good = $6,
                bytes = $8, files = $9, replaces = $12, was_running = $13",
        )
        .bind(row.id.to_string())
        .bind(row.sandbox_id.to_string())
        .bind(row.standing.as_str())
        .bind(row.name.as_deref())
        .bind(row.reason.as_str())
        .bind(row.known_good)
        .bind(row.created_at)
        .bind(signed("snapshots.bytes", row.bytes)?)
        .bind(signed("snapshots.files", row.files)?)
        .bind(signed("snapshots.generation", row.generation)?)
        .bind(&row.version)
        .bind(row.replaces.map(u64::cast_signed))
        .bind(row.was_running)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Forgets a snapshot.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_snapshot(&self, id: SnapshotId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM snapshots WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.write)
            .await?;
        Ok(())
    }
}

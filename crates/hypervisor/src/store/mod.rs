//! SQL, and nothing but SQL: no decision is taken here (style: services authorize, act, audit).

mod crashes;
mod handover;
mod invites;
mod network_rules;
mod pairings;
mod passkeys;
mod recovery;
mod routes;
mod sandboxes;
mod sessions;
mod snapshots;
mod swaps;
#[cfg(test)]
mod tests;
mod tokens;
mod usage;
mod users;

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub use crashes::{CrashRow, GivenUp};
pub use handover::{Handover, NewHandover};
pub use invites::{Entitlement, InviteRow, NewInvite, Registration};
pub use network_rules::NetworkRuleRow;
pub use pairings::{NewPairing, PairingRow};
pub use passkeys::{NewPasskey, PasskeyRow};
pub use recovery::{NewRecoveryCode, RecoveryCodeRow};
pub use routes::RouteRow;
pub use sandboxes::SandboxRow;
pub use sessions::{NewSession, SessionKind, SessionRow};
pub use snapshots::{SnapshotRow, Standing};
pub use swaps::SwapRow;
pub use tokens::{NewToken, TokenRow};
pub use usage::{CallRow, SpentRow, UsageBy, UsageRow};
pub use users::{Disabled, Disabling, NewUser, UserRow};

/// How long a statement waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits for a free connection before it is told to come back later.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that read. Writes go through one, because SQLite has one writer anyway
/// and a queue in front of it is fairer than its busy handler.
const READERS: u32 = 4;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database itself.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migration(#[source] MigrateError),
    /// A newer release has brought the schema to where this one does not know it.
    #[error(
        "the database was last used by a newer release, which this one does not understand; start the newer one again, or restore a backup from before the upgrade"
    )]
    Newer,
    /// A value that this program did not write.
    #[error("the database holds an invalid {what}")]
    Corrupt {
        /// Which column.
        what: &'static str,
    },
    /// A uniqueness rule of the schema refused the row.
    #[error("there is already such a {what}")]
    Duplicate {
        /// What there is already.
        what: &'static str,
    },
}

/// The primary result codes of SQLite (`sqlite3.h`) that a row brings about and no repetition
/// cures: too big, a constraint, a wrong type.
const REFUSED: [u32; 3] = [18, 19, 20];

impl StoreError {
    /// Whether what was to be written is at fault, and would be refused again.
    pub(crate) fn is_refusal(&self) -> bool {
        let error = match self {
            Self::Database(sqlx::Error::Database(error)) => error,
            Self::Database(sqlx::Error::Encode(_)) => return true,
            _ => return false,
        };
        // The extended code has the primary one in its lowest byte.
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        code.is_some_and(|code| REFUSED.contains(&(code & 0xff)))
    }
}

/// The hypervisor's relational state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    read: SqlitePool,
    write: SqlitePool,
}

impl Store {
    /// Opens the database, creating it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than this program.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A swap's pointer has to be on the disk before it is published (arch §4).
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        let migrated = sqlx::migrate!().run(&write).await;
        migrated.map_err(|error| match error {
            MigrateError::VersionMissing(_) => StoreError::Newer,
            error => StoreError::Migration(error),
        })?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { read, write })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// A value of the installation itself; made by `make` at the first call.
    ///
    /// # Errors
    /// The database failed.
    pub async fn installation_value(
        &self,
        name: &str,
        make: impl FnOnce() -> String,
    ) -> Result<String, StoreError> {
        use sqlx::Row;
        sqlx::query(
            "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(make())
        .execute(&self.write)
        .await?;
        let row = sqlx::query("SELECT value FROM installation WHERE name = $1")
            .bind(name)
            .fetch_one(&self.write)
            .await?;
        Ok(row.try_get("value")?)
    }

    /// Closes the connections; what was committed is on the disk already.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// Reads back a value that was written as text.
fn parse<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt { what })
}

/// Reads back a number that was written as the signed integer that SQL knows.
fn number<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::Corrupt { what })
}

/// Turns a violated uniqueness rule into an answer, and leaves other errors alone.
fn duplicate(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| match &error {
        sqlx::Error::Database(inner) if inner.is_unique_violation() => {
            StoreError::Duplicate { what }
        }
        _ => StoreError::Database(error),
    }
}

//! The EventStore: SQLite in the sandbox's own volume, append-only, ordered by `seq`,
//! the single source of truth (arch §7). Live delivery relays what is committed, in the
//! order it was committed; [`Subscription`] turns that into a stream without gaps.

mod event;
mod runs;
mod subscription;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row, SqliteConnection};
use tokio::sync::{broadcast, mpsc, oneshot};
use types::RunId;

pub use event::{Event, Fragment, NewEvent};
pub use runs::{Run, RunStatus};
pub use subscription::{Delivery, Subscription};
pub(crate) use writer::Change;
use writer::{Outcome, Write};

/// Largest `data` of one event, as JSON.
pub const MAX_DATA_BYTES: usize = 256 * 1024;
/// Most events that one page of a listing or of a replay holds.
pub const MAX_PAGE: u32 = 1000;
/// Writes that may wait for the writer; further ones wait for room.
const WRITE_QUEUE: usize = 256;
/// Events kept for subscribers that read slowly; beyond it they read from the store.
const LIVE_QUEUE: usize = 256;
/// Connections that read.
const READERS: u32 = 3;
/// How long a connection waits for SQLite's lock, which only a checkpoint holds for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where times come from; tests bring their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The clock of the system.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the event store failed")]
    Database(#[source] Arc<sqlx::Error>),
    /// The schema could not be brought up to date.
    #[error("the event store's schema could not be brought up to date")]
    Migration(#[source] Arc<sqlx::migrate::MigrateError>),
    /// A stored row does not read back.
    #[error("the event store holds something unreadable: {0}")]
    Corrupt(String),
    /// `data` is larger than [`MAX_DATA_BYTES`].
    #[error("an event of {0} bytes is larger than the bound of {MAX_DATA_BYTES}")]
    TooLarge(usize),
    /// The writer has ended; the process is shutting down.
    #[error("the event store is closed")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// What is relayed to those who watch.
#[derive(Debug, Clone)]
enum Live {
    Event(Arc<Event>),
    Fragment(Arc<Fragment>),
}

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct EventStore {
    writes: mpsc::Sender<Write>,
    readers: SqlitePool,
    live: broadcast::Sender<Live>,
    clock: Clock,
}

impl std::fmt::Debug for EventStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStore").finish_non_exhaustive()
    }
}

impl EventStore {
    /// Opens the database, creating and migrating it, and starts the only writer.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema cannot be brought up to date.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // What was relayed as committed must survive a power cut as well.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("secure_delete", "on")
            .disable_statement_logging();
        let mut connection: SqliteConnection = options.connect().await?;
        sqlx::migrate!("./migrations")
            .run(&mut connection)
            .await
            .map_err(|error| StoreError::Migration(Arc::new(error)))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.create_if_missing(false).read_only(true))
            .await?;
        let (writes, queue) = mpsc::channel(WRITE_QUEUE);
        let (live, _) = broadcast::channel(LIVE_QUEUE);
        tokio::spawn(writer::run(connection, queue, live.clone(), clock.clone()));
        Ok(Self {
            writes,
            readers,
            live,
            clock,
        })
    }

    /// Commits one event.
    ///
    /// # Errors
    /// When it is too large or could not be committed; then nobody is told of it.
    pub async fn append(&self, event: NewEvent) -> Result<Arc<Event>, StoreError> {
        let mut events = self.append_all(vec![event]).await?;
        events.pop().ok_or(StoreError::Closed)
    }

    /// Commits several events in one transaction, in this order.
    ///
    /// # Errors
    /// As [`EventStore::append`]; either all are committed or none.
    pub async fn append_all(&self, events: Vec<NewEvent>) -> Result<Vec<Arc<Event>>, StoreError> {
        self.write(Change::None, events)
            .await
            .map(|outcome| outcome.events)
    }

    /// Relays a fragment to those who watch now; nobody watching is fine.
    pub fn relay(&self, fragment: Fragment) {
        // An error means that nobody is subscribed.
        let _unwatched = self.live.send(Live::Fragment(Arc::new(fragment)));
    }

    /// Everything after `since_seq`, first what is stored, then what is committed from now on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn subscribe(&self, since_seq: i64) -> Result<Subscription, StoreError> {
        // Subscribed before anything is read: what is committed in between is in one or the other.
        let receiver = self.live.subscribe();
        // A cursor from the future belongs to another store (a restored or swapped one).
        let cursor = since_seq.clamp(0, self.head().await?);
        Ok(Subscription::new(self.clone(), receiver, cursor))
    }

    /// The position of the last event; 0 when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn head(&self) -> Result<i64, StoreError> {
        Ok(
            sqlx::query_scalar::<_, i64>("SELECT COALESCE(MAX(seq), 0) FROM events")
                .fetch_one(&self.readers)
                .await?,
        )
    }

    /// Events after `since_seq` in order, at most `limit` and [`MAX_PAGE`] of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page(
        &self,
        since_seq: i64,
        limit: u32,
        kind: Option<&str>,
        run_id: Option<RunId>,
    ) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq, ts, kind, run_id, data FROM events \
             WHERE seq > ?1 AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR run_id = ?3) \
             ORDER BY seq LIMIT ?4",
        )
        .bind(since_seq)
        .bind(kind)
        .bind(run_id.map(|id| id.to_string()))
        .bind(limit.min(MAX_PAGE))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_event).collect()
    }

    /// The store's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) const fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    pub(crate) async fn write(
        &self,
        change: Change,
        events: Vec<NewEvent>,
    ) -> Result<Outcome, StoreError> {
        let mut encoded = Vec::with_capacity(events.len());
        for event in events {
            let data = event.data.to_string();
            if data.len() > MAX_DATA_BYTES {
                return Err(StoreError::TooLarge(data.len()));
            }
            encoded.push((event, data));
        }
        let (reply, answer) = oneshot::channel();
        self.writes
            .send(Write {
                change,
                events: encoded,
                reply,
            })
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn read_event(row: &sqlx::sqlite::SqliteRow) -> Result<Event, StoreError> {
    let run_id: Option<String> = row.try_get("run_id")?;
    let data: String = row.try_get("data")?;
    Ok(Event {
        seq: row.try_get("seq")?,
        ts: row.try_get("ts")?,
        kind: row.try_get("kind")?,
        run_id: run_id
            .map(|id| id.parse())
            .transpose()
            .map_err(|_| StoreError::Corrupt("a run id".to_owned()))?,
        data: serde_json::from_str(&data)
            .map_err(|_| StoreError::Corrupt("event data".to_owned()))?,
    })
}

#[cfg(test)]
mod tests;

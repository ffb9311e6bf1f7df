//! The only writer. Writes that wait are committed together (one sync for many events),
//! and only then relayed and acknowledged, in the order of their positions.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Clock, Event, Live, NewEvent, StoreError};

/// Writes committed in one transaction at most.
const BATCH: usize = 64;

/// A change of other tables that belongs to the same transaction.
#[derive(Debug)]
pub(crate) enum Change {
    None,
    Remember {
        id: String,
        text: String,
        tags: String,
        keep: i64,
    },
    Forget {
        id: String,
    },
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) change: Change,
    /// Each event with its data as JSON text.
    pub(super) events: Vec<(NewEvent, String)>,
    pub(super) reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// What a write did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) events: Vec<Arc<Event>>,
    /// Whether the change found what it was to change; the events are left out otherwise.
    pub(crate) changed: bool,
}

pub(super) async fn run(
    mut connection: SqliteConnection,
    mut queue: mpsc::Receiver<Write>,
    live: broadcast::Sender<Live>,
    clock: Clock,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let result = commit(&mut connection, &mut batch, clock()).await;
        let writes = batch.drain(..);
        match result {
            Ok(outcomes) => {
                for (write, outcome) in writes.zip(outcomes) {
                    for event in &outcome.events {
                        // An error means that nobody is subscribed.
                        let _unwatched = live.send(Live::Event(event.clone()));
                    }
                    // The caller may have gone; the event is committed all the same.
                    let _gone = write.reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(error = %error, source = ?std::error::Error::source(&error), "events were not committed");
                for write in writes {
                    let _gone = write.reply.send(Err(error.clone()));
                }
            }
        }
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the event store did not close cleanly");
    }
}

async fn commit(
    connection: &mut SqliteConnection,
    batch: &mut [Write],
    now: Timestamp,
) -> Result<Vec<Outcome>, StoreError> {
    let ts = format!("{now:.3}");
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for write in batch.iter_mut() {
        let changed = apply(&mut transaction, &write.change, now).await?;
        let mut events = Vec::with_capacity(write.events.len());
        if changed {
            for (event, data) in &mut write.events {
                events.push(Arc::new(insert(&mut transaction, event, data, &ts).await?));
            }
        }
        outcomes.push(Outcome { events, changed });
    }
    transaction.commit().await?;
    Ok(outcomes)
}

async fn insert(
    connection: &mut SqliteConnection,
    event: &mut NewEvent,
    data: &str,
    ts: &str,
) -> Result<Event, StoreError> {
    let seq = sqlx::query("INSERT INTO events (ts, kind, run_id, data) VALUES (?1, ?2, ?3, ?4)")
        .bind(ts)
        .bind(event.kind)
        .bind(event.run_id.map(|id| id.to_string()))
        .bind(data)
        .execute(&mut *connection)
        .await?
        .last_insert_rowid();
    let event = Event {
        seq,
        ts: ts.to_owned(),
        kind: event.kind.to_owned(),
        run_id: event.run_id,
        data: event.data.take(),
    };
    project(connection, &event).await?;
    Ok(event)
}

async fn apply(
    connection: &mut SqliteConnection,
    change: &Change,
    now: Timestamp,
) -> Result<bool, StoreError> {
    match change {
        Change::None => Ok(true),
        Change::Remember {
            id,
            text,
            tags,
            keep,
        } => {
            sqlx::query(
                "INSERT INTO memories (id, text, tags, created_ms) VALUES (?1, ?2, ?3, ?4)",
            )
            .bind(id)
            .bind(text)
            .bind(tags)
            .bind(now.as_millisecond())
            .execute(&mut *connection)
            .await?;
            // The oldest go when there are more than may be kept.
            sqlx::query(
                "DELETE FROM memories WHERE rowid IN \
                 (SELECT rowid FROM memories ORDER BY rowid DESC LIMIT -1 OFFSET ?1)",
            )
            .bind(keep)
            .execute(&mut *connection)
            .await?;
            Ok(true)
        }
        Change::Forget { id } => {
            let result = sqlx::query("DELETE FROM memories WHERE id = ?1")
                .bind(id)
                .execute(&mut *connection)
                .await?;
            Ok(result.rows_affected() > 0)
        }
    }
}

/// Keeps the table of runs equal to what their events add up to.
async fn project(connection: &mut SqliteConnection, event: &Event) -> Result<(), StoreError> {
    let Some(run_id) = event.run_id.map(|id| id.to_string()) else {
        return Ok(());
    };
    let text = |name: &str| event.data.get(name).and_then(Value::as_str);
    let number = |name: &str| {
        event
            .data
            .get(name)
            .and_then(Value::as_i64)
            .unwrap_or_default()
    };
    let query = match event.kind.as_str() {
        "run.started" => sqlx::query(
            "INSERT INTO runs (id, started_seq, prompt, status, model, started_at) \
             VALUES (?1, ?2, ?3, 'running', ?4, ?5)",
        )
        .bind(run_id)
        .bind(event.seq)
        .bind(text("prompt").unwrap_or_default())
        .bind(text("model").unwrap_or_default())
        .bind(&event.ts),
        "run.step" => sqlx::query("UPDATE runs SET steps = ?2 WHERE id = ?1")
            .bind(run_id)
            .bind(number("step")),
        "run.usage" => sqlx::query(
            "UPDATE runs SET input_tokens = input_tokens + ?2, \
             output_tokens = output_tokens + ?3 WHERE id = ?1",
        )
        .bind(run_id)
        .bind(number("input_tokens"))
        .bind(number("output_tokens")),
        "run.finished" => sqlx::query(
            "UPDATE runs SET status = ?2, ended_at = ?3, answer = ?4, error = ?5 WHERE id = ?1",
        )
        .bind(run_id)
        .bind(text("status").unwrap_or("failed"))
        .bind(&event.ts)
        .bind(text("answer"))
        .bind(text("error")),
        _ => return Ok(()),
    };
    query.execute(connection).await?;
    Ok(())
}

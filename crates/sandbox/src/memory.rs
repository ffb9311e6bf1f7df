//! Memory: symbolic retrieval without embeddings. SQLite FTS5 finds, BM25 ranks, age
//! discounts, tags filter.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use types::RunId;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::{Change, EventStore, NewEvent, StoreError};

/// Longest text of a memory, in bytes.
pub const MAX_TEXT: usize = 8 * 1024;
/// Most tags of a memory.
pub const MAX_TAGS: usize = 16;
/// Longest tag, in bytes.
pub const MAX_TAG: usize = 64;
/// Most memories kept; the oldest go first.
pub const MAX_MEMORIES: i64 = 10_000;
/// Most memories recalled at once.
pub const MAX_RECALLED: u32 = 100;
/// Words of a query that are looked for; the rest is left out.
const MAX_WORDS: usize = 32;
/// Candidates that are ranked by age as well, best match first.
const CANDIDATES: i64 = 200;
/// A match this old counts half as much as a new one.
const HALF_LIFE_DAYS: f64 = 30.0;
/// What remains of a match's weight however old it is: age never hides the only answer.
const FLOOR: f64 = 0.25;
/// Words that say nothing about what is looked for, left out where others remain.
const STOP_WORDS: &[&str] = &[
    "a", "about", "all", "an", "and", "any", "are", "as", "at", "be", "by", "can", "do", "does",
    "for", "from", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my",
    "no", "not", "of", "on", "or", "please", "so", "that", "the", "their", "them", "then", "there",
    "this", "to", "use", "was", "we", "what", "when", "where", "which", "who", "why", "will",
    "with", "you", "your",
];
const MILLISECONDS_PER_DAY: f64 = 86_400_000.0;

/// Something remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// What is remembered.
    pub text: String,
    /// Lower-case words to find it by.
    pub tags: Vec<String>,
    /// When it was remembered, RFC 3339.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// How well it matches and how recent it is; greater is better, 0 without a query.
    pub score: f64,
}

/// Why something was not remembered, recalled or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Nothing to remember.
    #[error("there is no text to remember")]
    Empty,
    /// Too long.
    #[error("a memory has at most {MAX_TEXT} bytes; this one has {0}")]
    TooLong(usize),
    /// Too many or too long tags, or an empty one.
    #[error("a memory has at most {MAX_TAGS} tags of 1 to {MAX_TAG} bytes")]
    Tags,
    /// There is no such memory.
    #[error("there is no such memory")]
    NotFound,
    /// The store failed.
    #[error("the memory cannot be reached")]
    Store(#[source] StoreError),
}

impl<E: Into<StoreError>> From<E> for MemoryError {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// Remembers a text. The event names the memory and not its text, so that forgetting it
/// does not leave it in the event log.
///
/// # Errors
/// When the text or a tag is out of bounds, or the store fails.
pub async fn remember(
    store: &EventStore,
    text: &str,
    tags: &[String],
    run_id: Option<RunId>,
) -> Result<Memory, MemoryError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(MemoryError::Empty);
    }
    if text.len() > MAX_TEXT {
        return Err(MemoryError::TooLong(text.len()));
    }
    let mut tags: Vec<String> = tags.iter().map(|tag| tag.trim().to_lowercase()).collect();
    tags.sort();
    tags.dedup();
    if tags.len() > MAX_TAGS || tags.iter().any(|tag| tag.is_empty() || tag.len() > MAX_TAG) {
        return Err(MemoryError::Tags);
    }
    let id = Uuid::now_v7().to_string();
    let change = Change::Remember {
        id: id.clone(),
        text: text.to_owned(),
        tags: json!(tags).to_string(),
        keep: MAX_MEMORIES,
    };
    let mut event = NewEvent::new("memory.remembered", json!({"id": id, "tags": tags}));
    event.run_id = run_id;
    let outcome = store.write(change, vec![event]).await?;
    let created_at = outcome
        .events
        .first()
        .map(|event| event.ts.clone())
        .unwrap_or_default();
    Ok(Memory {
        id,
        text: text.to_owned(),
        tags,
        created_at,
        score: 0.0,
    })
}

/// Forgets a memory.
///
/// # Errors
/// When there is no such memory, or the store fails.
pub async fn forget(store: &EventStore, id: &str) -> Result<(), MemoryError> {
    let event = NewEvent::new("memory.forgotten", json!({"id": id}));
    let outcome = store
        .write(Change::Forget { id: id.to_owned() }, vec![event])
        .await?;
    if outcome.changed {
        Ok(())
    } else {
        Err(MemoryError::NotFound)
    }
}

/// Recalls memories: those that hold any word of `query`, best first; the latest when the
/// query has no words. With `tag` only those that carry it.
///
/// # Errors
/// When the store fails.
pub async fn recall(
    store: &EventStore,
    query: &str,
    tag: Option<&str>,
    limit: u32,
) -> Result<Vec<Memory>, MemoryError> {
    let limit = limit.min(MAX_RECALLED) as usize;
    let tag = tag
        .map(|tag| tag.trim().to_lowercase())
        .filter(|tag| !tag.is_empty());
    let tagged = "(?2 IS NULL OR EXISTS \
                  (SELECT 1 FROM json_each(memories.tags) WHERE json_each.value = ?2))";
    let rows = match match_expression(query) {
        Some(expression) => {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "SELECT memories.id, memories.text, memories.tags, created_ms, \
                 -bm25(memories_text, 1.0, 2.0) AS relevance \
                 FROM memories_text JOIN memories ON memories.rowid = memories_text.rowid \
                 WHERE memories_text MATCH ?1 AND {tagged} ORDER BY relevance DESC LIMIT ?3"
            )))
            .bind(expression)
            .bind(tag)
            .bind(CANDIDATES)
            .fetch_all(store.readers())
            .await?
        }
        None => {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "SELECT id, text, tags, created_ms, 0.0 AS relevance FROM memories \
                 WHERE ?1 IS NULL AND {tagged} ORDER BY rowid DESC LIMIT ?3"
            )))
            .bind(None::<String>)
            .bind(tag)
            .bind(CANDIDATES)
            .fetch_all(store.readers())
            .await?
        }
    };
    let now = store.now();
    let mut memories = rows
        .iter()
        .map(|row| read(row, now))
        .collect::<Result<Vec<_>, _>>()?;
    // Stable: without a query all scores are 0 and the latest stay first.
    memories.sort_by(|one, other| other.score.total_cmp(&one.score));
    memories.truncate(limit);
    Ok(memories)
}

/// The memories with these ids that were not forgotten since, in this order.
///
/// # Errors
/// When the store fails.
pub(crate) async fn by_ids(store: &EventStore, ids: &[String]) -> Result<Vec<Memory>, MemoryError> {
    let rows = sqlx::query(
        "SELECT memories.id, memories.text, memories.tags, created_ms, 0.0 AS relevance \
         FROM json_each(?1) AS wanted JOIN memories ON memories.id = wanted.value \
         ORDER BY wanted.key",
    )
    .bind(json!(ids).to_string())
    .fetch_all(store.readers())
    .await?;
    let now = store.now();
    rows.iter().map(|row| read(row, now)).collect()
}

fn read(row: &SqliteRow, now: Timestamp) -> Result<Memory, MemoryError> {
    let created_ms: i64 = row.try_get("created_ms")?;
    let tags: String = row.try_get("tags")?;
    let relevance: f64 = row.try_get("relevance")?;
    Ok(Memory {
        id: row.try_get("id")?,
        text: row.try_get("text")?,
        tags: serde_json::from_str(&tags)
            .map_err(|_| StoreError::Corrupt("a memory's tags".to_owned()))?,
        created_at: Timestamp::from_millisecond(created_ms)
            .unwrap_or_default()
            .to_string(),
        score: relevance * weight(now, created_ms),
    })
}

/// How much a match of this age counts, from 1 down to [`FLOOR`].
fn weight(now: Timestamp, created_ms: i64) -> f64 {
    let age = now.as_millisecond().saturating_sub(created_ms).max(0);
    #[expect(
        clippy::cast_precision_loss,
        reason = "ages are far below 2^52 milliseconds"
    )]
    let days = age as f64 / MILLISECONDS_PER_DAY;
    FLOOR + (1.0 - FLOOR) * 0.5_f64.powf(days / HALF_LIFE_DAYS)
}

/// An FTS5 expression for any of the words of a text. Every word is a quoted string of
/// letters and digits, so nothing in the text has a meaning as an operator or a column.
fn match_expression(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let all = || {
        text.split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
    };
    let telling = all().any(|word| !STOP_WORDS.contains(&word));
    let mut words: Vec<String> = Vec::new();
    for word in all().filter(|word| !telling || !STOP_WORDS.contains(word)) {
        let quoted = format!("\"{word}\"");
        if words.len() < MAX_WORDS && !words.contains(&quoted) {
            words.push(quoted);
        }
    }
    (!words.is_empty()).then(|| words.join(" OR "))
}

#[cfg(test)]
mod tests;

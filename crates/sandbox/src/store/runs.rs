//! Runs as their events add up to.

use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use types::RunId;
use utoipa::ToSchema;

use super::{EventStore, MAX_PAGE, StoreError};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It works.
    Running,
    /// It came to an answer.
    Done,
    /// It could not go on; `error` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It met a bound of steps, time or tokens; `error` names the bound.
    Bounded,
}

impl RunStatus {
    const ALL: [Self; 5] = [
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
        Self::Bounded,
    ];

    /// The status as it stands in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Bounded => "bounded",
        }
    }
}

/// One run of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its id; later runs have greater ids.
    #[schema(value_type = String, format = "uuid")]
    pub id: RunId,
    /// What was asked.
    pub prompt: String,
    /// Where it stands.
    pub status: RunStatus,
    /// The model, as `provider/model`.
    pub model: String,
    /// When it began, RFC 3339.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ended_at: Option<String>,
    /// Model calls so far.
    pub steps: i64,
    /// Tokens read by the model so far.
    pub input_tokens: i64,
    /// Tokens written by the model so far.
    pub output_tokens: i64,
    /// The answer, when it came to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What went wrong and what to do, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

const COLUMNS: &str = "SELECT id, prompt, status, model, started_at, ended_at, steps, \
                       input_tokens, output_tokens, answer, error FROM runs ";

impl EventStore {
    /// Runs, the latest first, at most `limit` and [`MAX_PAGE`]; those that began before `before`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn runs(&self, limit: u32, before: Option<RunId>) -> Result<Vec<Run>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} WHERE ?1 IS NULL OR started_seq < \
             (SELECT started_seq FROM runs WHERE id = ?1) ORDER BY started_seq DESC LIMIT ?2"
        )))
        .bind(before.map(|id| id.to_string()))
        .bind(limit.min(MAX_PAGE))
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(read_run).collect()
    }

    /// One run.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE id = ?1")))
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await?;
        row.as_ref().map(read_run).transpose()
    }

    /// The runs that have not ended, as far as the store knows.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn unfinished_runs(&self) -> Result<Vec<RunId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM runs WHERE status = 'running'")
            .fetch_all(self.readers())
            .await?;
        ids.iter().map(|id| parse_id(id)).collect()
    }
}

fn parse_id(id: &str) -> Result<RunId, StoreError> {
    id.parse()
        .map_err(|_| StoreError::Corrupt("a run id".to_owned()))
}

fn read_run(row: &SqliteRow) -> Result<Run, StoreError> {
    let status: String = row.try_get("status")?;
    Ok(Run {
        id: parse_id(row.try_get("id")?)?,
        prompt: row.try_get("prompt")?,
        status: RunStatus::ALL
            .into_iter()
            .find(|known| known.as_str() == status)
            .ok_or_else(|| StoreError::Corrupt("a run's status".to_owned()))?,
        model: row.try_get("model")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
        steps: row.try_get("steps")?,
        input_tokens: row.try_get("input_tokens")?,
        output_tokens: row.try_get("output_tokens")?,
        answer: row.try_get("answer")?,
        error: row.try_get("error")?,
    })
}

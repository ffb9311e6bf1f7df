//! What model calls took: one by one, and by day.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};
use types::{RequestId, SandboxId, UserId};
use uuid::Uuid;

use super::{Store, StoreError, number};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Most rows of one answer.
const MAX_ROWS: i64 = 10_000;

/// One call that reached a provider.
#[derive(Debug, Clone)]
pub struct CallRow {
    /// The request that it was.
    pub request_id: RequestId,
    /// When it ended, Unix milliseconds.
    pub at: i64,
    /// Whose call.
    pub sandbox_id: SandboxId,
    /// The sandbox's owner.
    pub user_id: UserId,
    /// The provider that answered.
    pub provider: String,
    /// The model by its configured name, or `-`.
    pub model: String,
    /// The provider's status, or ours.
    pub status: u16,
    /// How the reply ended.
    pub outcome: &'static str,
    /// From the request to the end of the reply.
    pub latency_ms: u64,
    /// From the request to the first byte of the reply.
    pub first_byte_ms: Option<u64>,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of the tokens read, those from a cache.
    pub cached_tokens: u64,
    /// Whether the tokens are our estimate.
    pub estimated: bool,
    /// Billionths of a US dollar.
    pub cost: i64,
    /// Whether it ended whole and well.
    pub ok: bool,
}

/// What usage is added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageBy {
    /// Day (UTC).
    Day,
    /// User.
    User,
    /// Sandbox.
    Sandbox,
    /// Provider.
    Provider,
    /// Provider and model.
    Model,
}

impl UsageBy {
    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Day => &["day"],
            Self::User => &["user_id"],
            Self::Sandbox => &["sandbox_id", "user_id"],
            Self::Provider => &["provider"],
            Self::Model => &["provider", "model"],
        }
    }
}

/// Calls added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// Days since 1970-01-01, UTC.
    pub day: Option<i64>,
    /// The user's id.
    pub user_id: Option<String>,
    /// The user's name, while they are there.
    pub user_name: Option<String>,
    /// The sandbox's id.
    pub sandbox_id: Option<String>,
    /// The provider.
    pub provider: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// How many.
    pub calls: u64,
    /// Of these, those that did not end whole and well.
    pub failures: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of the tokens read, those from a cache.
    pub cached_tokens: u64,
    /// Billionths of a US dollar.
    pub cost: i64,
}

/// What somebody has spent on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentRow {
    /// Days since 1970-01-01, UTC.
    pub day: i64,
    /// The user's id.
    pub user_id: String,
    /// The sandbox's id.
    pub sandbox_id: String,
    /// The provider.
    pub provider: String,
    /// Billionths of a US dollar.
    pub cost: i64,
}

/// Rows of one statement.
const ROWS: usize = 64;

/// What a row of a single call consists of.
const COLUMNS: [&str; 15] = [
    "request_id",
    "at",
    "sandbox_id",
    "user_id",
    "provider",
    "model",
    "status",
    "outcome",
    "latency_ms",
    "first_byte_ms",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "estimated",
    "cost",
];

/// Writes so many calls. The texts are made once: making them costs more than the calls do.
static MANY: LazyLock<Arc<str>> = LazyLock::new(|| insert(ROWS));
static ONE: LazyLock<Arc<str>> = LazyLock::new(|| insert(1));

fn insert(rows: usize) -> Arc<str> {
    let row = |row: usize| {
        let first = row * COLUMNS.len() + 1;
        let places: Vec<String> = (first..first + COLUMNS.len())
            .map(|place| format!("${place}"))
            .collect();
        format!("({})", places.join(", "))
    };
    let rows: Vec<String> = (0..rows).map(row).collect();
    format!(
        "INSERT INTO provider_calls ({}) VALUES {}",
        COLUMNS.join(", "),
        rows.join(", ")
    )
    .into()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An id in 16 bytes.
fn id(id: &Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// Whose calls of which day.
#[derive(PartialEq, Eq, Hash)]
struct DayKey<'a> {
    day: i64,
    user: UserId,
    sandbox: SandboxId,
    provider: &'a str,
    model: &'a str,
}

/// Calls of a day added up.
#[derive(Default)]
struct DaySum {
    calls: i64,
    failures: i64,
    input: i64,
    output: i64,
    cached: i64,
    cost: i64,
}

fn by_day(calls: &[CallRow]) -> HashMap<DayKey<'_>, DaySum> {
    let mut days: HashMap<DayKey<'_>, DaySum> = HashMap::new();
    for call in calls {
        let key = DayKey {
            day: call.at.div_euclid(DAY_MS),
            user: call.user_id,
            sandbox: call.sandbox_id,
            provider: &call.provider,
            model: &call.model,
        };
        let sum = days.entry(key).or_default();
        sum.calls += 1;
        sum.failures += i64::from(!call.ok);
        for (to, tokens) in [
            (&mut sum.input, call.input_tokens),
            (&mut sum.output, call.output_tokens),
            (&mut sum.cached, call.cached_tokens),
        ] {
            *to = to.saturating_add(signed(tokens));
        }
        sum.cost = sum.cost.saturating_add(call.cost);
    }
    days
}

impl Store {
    /// Writes calls, all or none. `again`: after an attempt that failed, and that may have
    /// been written all the same.
    ///
    /// # Errors
    /// The database failed.
    pub async fn record_calls(&self, calls: &[CallRow], again: bool) -> Result<(), StoreError> {
        let Some(first) = calls.first() else {
            return Ok(());
        };
        let mut write = self.write.begin().await?;
        if again {
            let there = sqlx::query("SELECT 1 FROM provider_calls WHERE request_id = $1")
                .bind(id(first.request_id.as_uuid()))
                .fetch_optional(&mut *write)
                .await?;
            if there.is_some() {
                return Ok(());
            }
        }
        // A statement of one length is prepared once; what is left over goes one by one.
        let (whole, rest) = calls.split_at(calls.len() - calls.len() % ROWS);
        for rows in whole.chunks(ROWS).chain(rest.chunks(1)) {
            let sql = if rows.len() == ROWS { &*MANY } else { &*ONE };
            let mut insert = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
            for call in rows {
                insert = insert
                    .bind(id(call.request_id.as_uuid()))
                    .bind(call.at)
                    .bind(id(call.sandbox_id.as_uuid()))
                    .bind(id(call.user_id.as_uuid()))
                    .bind(&*call.provider)
                    .bind(&*call.model)
                    .bind(i64::from(call.status))
                    .bind(call.outcome)
                    .bind(signed(call.latency_ms))
                    .bind(call.first_byte_ms.map(signed))
                    .bind(signed(call.input_tokens))
                    .bind(signed(call.output_tokens))
                    .bind(signed(call.cached_tokens))
                    .bind(call.estimated)
                    .bind(call.cost);
            }
            insert.execute(&mut *write).await?;
        }
        for (key, sum) in by_day(calls) {
            sqlx::query(
                "INSERT INTO provider_days (day, user_id, sandbox_id, provider, model, calls, \
                 failures, input_tokens, output_tokens, cached_tokens, cost) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                 ON CONFLICT (day, user_id, sandbox_id, provider, model) DO UPDATE SET \
                 calls = provider_days.calls + excluded.calls, \
                 failures = provider_days.failures + excluded.failures, \
                 input_tokens = provider_days.input_tokens + excluded.input_tokens, \
                 output_tokens = provider_days.output_tokens + excluded.output_tokens, \
                 cached_tokens = provider_days.cached_tokens + excluded.cached_tokens, \
                 cost = provider_days.cost + excluded.cost",
            )
            .bind(key.day)
            .bind(key.user.to_string())
            .bind(key.sandbox.to_string())
            .bind(key.provider)
            .bind(key.model)
            .bind(sum.calls)
            .bind(sum.failures)
            .bind(sum.input)
            .bind(sum.output)
            .bind(sum.cached)
            .bind(sum.cost)
            .execute(&mut *write)
            .await?;
        }
        write.commit().await?;
        Ok(())
    }

    /// Forgets single calls that began before a moment; their days stay.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_calls(&self, before: i64) -> Result<u64, StoreError> {
        // The ids of requests are ordered by the time at which they began, and the table by them.
        let mut first = [0; 16];
        let at = u64::try_from(before).unwrap_or(0).to_be_bytes();
        for (to, from) in first.iter_mut().zip(at.iter().skip(2)) {
            *to = *from;
        }
        let done = sqlx::query("DELETE FROM provider_calls WHERE request_id < $1")
            .bind(id(&Uuid::from_bytes(first)))
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected())
    }

    /// Calls since a day, of one user or of all, added up. The dearest come first, days in
    /// their order; at most 10,000 rows.
    ///
    /// # Errors
    /// The database failed.
    pub async fn usage(
        &self,
        user: Option<UserId>,
        since_day: i64,
        by: UsageBy,
    ) -> Result<Vec<UsageRow>, StoreError> {
        let columns = by.columns().join(", ");
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(&columns);
        query.push(
            ", SUM(calls) AS calls, SUM(failures) AS failures, SUM(input_tokens) AS input_tokens, \
             SUM(output_tokens) AS output_tokens, SUM(cached_tokens) AS cached_tokens, \
             SUM(cost) AS cost",
        );
        if by.columns().contains(&"user_id") {
            query.push(
                ", (SELECT name FROM users WHERE users.id = provider_days.user_id) AS user_name",
            );
        }
        query.push(" FROM provider_days WHERE day >= ");
        query.push_bind(since_day);
        if let Some(user) = user {
            query.push(" AND user_id = ");
            query.push_bind(user.to_string());
        }
        query.push(" GROUP BY ");
        query.push(&columns);
        query.push(if by == UsageBy::Day {
            " ORDER BY day"
        } else {
            " ORDER BY SUM(cost) DESC, SUM(calls) DESC"
        });
        query.push(" LIMIT ");
        query.push_bind(MAX_ROWS);
        let rows = query.build().fetch_all(&self.read).await?;
        rows.iter().map(|row| UsageRow::read(row, by)).collect()
    }

    /// What everybody has spent since a day.
    ///
    /// # Errors
    /// The database failed.
    pub async fn spent_since(&self, day: i64) -> Result<Vec<SpentRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT day, user_id, sandbox_id, provider, SUM(cost) AS cost FROM provider_days \
             WHERE day >= $1 GROUP BY day, user_id, sandbox_id, provider",
        )
        .bind(day)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(SpentRow {
                    day: row.try_get("day")?,
                    user_id: row.try_get("user_id")?,
                    sandbox_id: row.try_get("sandbox_id")?,
                    provider: row.try_get("provider")?,
                    cost: row.try_get("cost")?,
                })
            })
            .collect()
    }
}

impl UsageRow {
    fn read(row: &SqliteRow, by: UsageBy) -> Result<Self, StoreError> {
        let has = |column: &str| by.columns().contains(&column);
        let text = |column: &str| -> Result<Option<String>, StoreError> {
            Ok(if has(column) {
                Some(row.try_get(column)?)
            } else {
                None
            })
        };
        let count = |column: &'static str| -> Result<u64, StoreError> {
            number(column, row.try_get::<i64, _>(column)?)
        };
        Ok(Self {
            day: if has("day") {
                Some(row.try_get("day")?)
            } else {
                None
            },
            user_id: text("user_id")?,
            user_name: if has("user_id") {
                row.try_get("user_name")?
            } else {
                None
            },
            sandbox_id: text("sandbox_id")?,
            provider: text("provider")?,
            model: text("model")?,
            calls: count("calls")?,
            failures: count("failures")?,
            input_tokens: count("input_tokens")?,
            output_tokens: count("output_tokens")?,
            cached_tokens: count("cached_tokens")?,
            cost: row.try_get("cost")?,
        })
    }
}

//! What model calls took: one by one, and by day.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection};
use types::{RequestId, SandboxId, UserId};

use super::{Store, StoreError, number};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Bits of the first half of an id that follow its time in milliseconds (RFC 9562 §5.7).
const ID_TIME: u32 = 16;

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

/// What is written of a call: numbers alone, where a text or an id would be copied again and
/// again. Whose call it was and of which model stands with the sums of its day.
const COLUMNS: [&str; 13] = [
    "id_high",
    "id_low",
    "day_id",
    "outcome_id",
    "at",
    "status",
    "latency_ms",
    "first_byte_ms",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "estimated",
    "cost",
];

/// Rows of one statement: of the longest as many as there are, and then of the next. A statement
/// is handed to SQLite's thread and waited for, which costs as much as some dozen rows do.
const ROWS: [usize; 4] = [512, 64, 8, 1];

/// What writes so many calls. Made once: making the text costs more than the calls do.
static STATEMENTS: LazyLock<[(usize, Arc<str>); ROWS.len()]> = LazyLock::new(|| {
    ROWS.map(|rows| {
        // The places have no numbers: SQLite would look each of them up by its name, in a list
        // of all.
        let row = format!("({})", ["?"; COLUMNS.len()].join(", "));
        let text = format!(
            "INSERT INTO provider_call_records ({}) VALUES {}",
            COLUMNS.join(", "),
            vec![row; rows].join(", ")
        );
        (rows, text.into())
    })
});

/// A call, and where what it has in common with others stands.
struct Record<'a> {
    id: (i64, i64),
    day: i64,
    outcome: i64,
    call: &'a CallRow,
}

impl Record<'_> {
    /// In the order of [`COLUMNS`].
    fn bind(&self, bound: &mut SqliteArguments) -> Result<(), BoxDynError> {
        bound.add(self.id.0)?;
        bound.add(self.id.1)?;
        bound.add(self.day)?;
        bound.add(self.outcome)?;
        bound.add(self.call.at)?;
        bound.add(i64::from(self.call.status))?;
        bound.add(signed(self.call.latency_ms))?;
        bound.add(self.call.first_byte_ms.map(signed))?;
        bound.add(signed(self.call.input_tokens))?;
        bound.add(signed(self.call.output_tokens))?;
        bound.add(signed(self.call.cached_tokens))?;
        bound.add(self.call.estimated)?;
        bound.add(self.call.cost)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The halves of an id. Of ids of version 7 they are in the order of these.
fn halves(id: RequestId) -> (i64, i64) {
    let (high, low) = id.as_uuid().as_u64_pair();
    (high.cast_signed(), low.cast_signed())
}

/// Whose calls of which day.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct DayKey<'a> {
    day: i64,
    user: UserId,
    sandbox: SandboxId,
    provider: &'a str,
    model: &'a str,
}

impl<'a> DayKey<'a> {
    fn of(call: &'a CallRow) -> Self {
        Self {
            day: call.at.div_euclid(DAY_MS),
            user: call.user_id,
            sandbox: call.sandbox_id,
            provider: &call.provider,
            model: &call.model,
        }
    }
}

fn by_day(calls: &[CallRow]) -> Vec<(DayKey<'_>, Vec<&CallRow>)> {
    let mut days: Vec<(DayKey<'_>, Vec<&CallRow>)> = Vec::new();
    let mut places = HashMap::new();
    let mut place = 0;
    for call in calls {
        let key = DayKey::of(call);
        // Mostly that of the call before.
        if days.get(place).is_none_or(|(last, _)| *last != key) {
            place = *places.entry(key).or_insert(days.len());
        }
        match days.get_mut(place) {
            Some((_, calls)) => calls.push(call),
            None => days.push((key, vec![call])),
        }
    }
    days
}

/// Calls added up.
#[derive(Default)]
struct Sum {
    calls: i64,
    failures: i64,
    input: i64,
    output: i64,
    cached: i64,
    cost: i64,
}

impl Sum {
    fn of(calls: &[&CallRow]) -> Self {
        let mut sum = Self::default();
        for call in calls {
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
        sum
    }
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
            let (high, low) = halves(first.request_id);
            let there = sqlx::query(
                "SELECT 1 FROM provider_call_records WHERE id_high = $1 AND id_low = $2",
            )
            .bind(high)
            .bind(low)
            .fetch_optional(&mut *write)
            .await?;
            if there.is_some() {
                return Ok(());
            }
        }
        let records = records(&mut write, calls).await?;
        let mut rest = &*records;
        for (rows, text) in &*STATEMENTS {
            let (whole, after) = rest.split_at(rest.len() - rest.len() % rows);
            for records in whole.chunks(*rows) {
                let mut bound = SqliteArguments::default();
                bound.reserve(records.len() * COLUMNS.len(), 0);
                records
                    .iter()
                    .try_for_each(|record| record.bind(&mut bound))
                    .map_err(sqlx::Error::Encode)?;
                sqlx::query_with(AssertSqlSafe(Arc::clone(text)), bound)
                    .execute(&mut *write)
                    .await?;
            }
            rest = after;
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
        let first = before.clamp(0, i64::MAX >> ID_TIME) << ID_TIME;
        let done = sqlx::query("DELETE FROM provider_call_records WHERE id_high < $1")
            .bind(first)
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

/// Adds calls to the sums of their days, and finds what they have in common with others. In the
/// order of their ids: SQLite then looks for the place of the first one alone.
async fn records<'a>(
    write: &mut SqliteConnection,
    calls: &'a [CallRow],
) -> Result<Vec<Record<'a>>, StoreError> {
    let mut records = Vec::with_capacity(calls.len());
    let mut outcomes: Vec<(&str, i64)> = Vec::new();
    for (key, calls) in by_day(calls) {
        let day = add_to_day(write, key, Sum::of(&calls)).await?;
        for call in calls {
            let known = outcomes.iter().find(|(known, _)| *known == call.outcome);
            let outcome = match known {
                Some((_, id)) => *id,
                None => {
                    let id = outcome_id(write, call.outcome).await?;
                    outcomes.push((call.outcome, id));
                    id
                }
            };
            records.push(Record {
                id: halves(call.request_id),
                day,
                outcome,
                call,
            });
        }
    }
    records.sort_unstable_by_key(|record| record.id);
    Ok(records)
}

/// Adds to the sums of a day; gives their id.
async fn add_to_day(
    write: &mut SqliteConnection,
    key: DayKey<'_>,
    sum: Sum,
) -> Result<i64, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO provider_days (day, user_id, sandbox_id, provider, model, calls, \
         failures, input_tokens, output_tokens, cached_tokens, cost) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (day, user_id, sandbox_id, provider, model) DO UPDATE SET \
         calls = provider_days.calls + excluded.calls, \
         failures = provider_days.failures + excluded.failures, \
         input_tokens = provider_days.input_tokens + excluded.input_tokens, \
         output_tokens = provider_days.output_tokens + excluded.output_tokens, \
         cached_tokens = provider_days.cached_tokens + excluded.cached_tokens, \
         cost = provider_days.cost + excluded.cost \
         RETURNING id",
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
    .fetch_one(write)
    .await?;
    Ok(id)
}

async fn outcome_id(write: &mut SqliteConnection, outcome: &str) -> Result<i64, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO provider_outcomes (outcome) VALUES ($1) \
         ON CONFLICT (outcome) DO UPDATE SET outcome = excluded.outcome RETURNING id",
    )
    .bind(outcome)
    .fetch_one(write)
    .await?;
    Ok(id)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of so many kinds in turn, no two of which have a number in common.
    fn calls(kinds: u64, number: u64) -> Vec<CallRow> {
        let sandboxes: Vec<_> = (0..kinds).map(|_| SandboxId::generate()).collect();
        let user = UserId::generate();
        (0..number)
            .zip(sandboxes.iter().cycle())
            .map(|(at, sandbox)| CallRow {
                request_id: RequestId::generate(),
                at: signed(at),
                sandbox_id: *sandbox,
                user_id: user,
                provider: format!("provider {}", at % kinds),
                model: format!("model {}", at % kinds),
                status: u16::try_from(100 + at % 500).unwrap(),
                outcome: if at % kinds == 1 { "cut" } else { "complete" },
                latency_ms: 1_000_000 + at,
                first_byte_ms: (at % 3 > 0).then_some(2_000_000 + at),
                input_tokens: 3_000_000 + at,
                output_tokens: 4_000_000 + at,
                cached_tokens: 5_000_000 + at,
                estimated: at % 2 == 0,
                cost: signed(6_000_000 + at),
                ok: true,
            })
            .collect()
    }

    #[tokio::test]
    async fn every_call_is_written_once_and_as_it_was_whatever_it_is_written_together_with() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("hypervisor.db"))
            .await
            .unwrap();
        for (kinds, number) in [(1, 1), (2, 9), (1, 512 + 64 + 8 + 1), (5, 700)] {
            let mut calls = calls(kinds, number);
            // They end in another order than they began.
            calls.reverse();
            store.record_calls(&calls, false).await.unwrap();
            let written = sqlx::query("SELECT * FROM provider_calls ORDER BY request_id")
                .fetch_all(&store.read)
                .await
                .unwrap();
            assert_eq!(written.len(), calls.len(), "of {kinds} kinds");
            for (row, call) in written.iter().zip(calls.iter().rev()) {
                let text = |column: &str| row.get::<String, _>(column);
                let number = |column: &str| row.get::<Option<i64>, _>(column);
                assert_eq!(text("request_id"), call.request_id.to_string());
                assert_eq!(text("sandbox_id"), call.sandbox_id.to_string());
                assert_eq!(text("user_id"), call.user_id.to_string());
                assert_eq!(text("provider"), call.provider);
                assert_eq!(text("model"), call.model);
                assert_eq!(text("outcome"), call.outcome);
                assert_eq!(number("at"), Some(call.at));
                assert_eq!(number("status"), Some(i64::from(call.status)));
                assert_eq!(number("latency_ms"), Some(signed(call.latency_ms)));
                assert_eq!(number("first_byte_ms"), call.first_byte_ms.map(signed));
                assert_eq!(number("input_tokens"), Some(signed(call.input_tokens)));
                assert_eq!(number("output_tokens"), Some(signed(call.output_tokens)));
                assert_eq!(number("cached_tokens"), Some(signed(call.cached_tokens)));
                assert_eq!(row.get::<bool, _>("estimated"), call.estimated);
                assert_eq!(number("cost"), Some(call.cost));
            }
            store.forget_calls(i64::MAX).await.unwrap();
        }
    }
}

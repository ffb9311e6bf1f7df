//! Swaps: the pointer's change and what became of it, in one transaction each.

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use types::{SwapOutcome, UserId};

use super::{RouteRow, Store, StoreError, number, parse};

/// A user's last swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapRow {
    /// The user.
    pub user_id: UserId,
    /// The generation that it made.
    pub generation: u64,
    /// When, Unix milliseconds.
    pub swapped_at: i64,
    /// End of the trial, Unix milliseconds.
    pub grace_until: Option<i64>,
    /// What became of it.
    pub outcome: SwapOutcome,
    /// A sentence for people.
    pub reason: Option<String>,
}

impl SwapRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            user_id: parse("swaps.user_id", row.try_get("user_id")?)?,
            generation: number("swaps.generation", row.try_get("generation")?)?,
            swapped_at: row.try_get("swapped_at")?,
            grace_until: row.try_get("grace_until")?,
            outcome: parse("swaps.outcome", row.try_get("outcome")?)?,
            reason: row.try_get("reason")?,
        })
    }
}

impl Store {
    /// Exchanges the roles if the route still has the generation that the caller saw, and
    /// returns the new route; it is on the disk then, and with it, when `grace_until` is
    /// given, that the new `live` is on trial. `None` when somebody else was first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn swap_route(
        &self,
        seen: &RouteRow,
        now: i64,
        grace_until: Option<i64>,
    ) -> Result<Option<RouteRow>, StoreError> {
        let mut transaction = self.write.begin().await?;
        let Some(route) = exchange(&mut transaction, seen, now).await? else {
            return Ok(None);
        };
        let outcome = if grace_until.is_some() {
            SwapOutcome::OnTrial
        } else {
            SwapOutcome::Kept
        };
        sqlx::query(
            "INSERT INTO swaps (user_id, generation, swapped_at, grace_until, outcome, reason)
             VALUES ($1, $2, $3, $4, $5, NULL)
             ON CONFLICT (user_id) DO UPDATE SET generation = excluded.generation,
                 swapped_at = excluded.swapped_at, grace_until = excluded.grace_until,
                 outcome = excluded.outcome, reason = NULL",
        )
        .bind(route.user_id.to_string())
        .bind(signed(route.generation)?)
        .bind(now)
        .bind(grace_until)
        .bind(outcome.as_str())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some(route))
    }

    /// Takes the swap that made this route back, once: exchanges the roles and notes why.
    /// `None` when the swap is no longer on trial, or somebody else swapped meanwhile.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_back_swap(
        &self,
        on_trial: &RouteRow,
        now: i64,
        reason: &str,
    ) -> Result<Option<RouteRow>, StoreError> {
        let mut transaction = self.write.begin().await?;
        if !settle(
            &mut transaction,
            on_trial,
            SwapOutcome::RolledBack,
            Some(reason),
        )
        .await?
        {
            return Ok(None);
        }
        let Some(route) = exchange(&mut transaction, on_trial, now).await? else {
            return Ok(None);
        };
        transaction.commit().await?;
        Ok(Some(route))
    }

    /// Ends the trial of the swap that made this route without a change of roles. False when
    /// it was not on trial any more.
    ///
    /// # Errors
    /// The database failed.
    pub async fn settle_swap(
        &self,
        on_trial: &RouteRow,
        outcome: SwapOutcome,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.write.begin().await?;
        let settled = settle(&mut transaction, on_trial, outcome, reason).await?;
        transaction.commit().await?;
        Ok(settled)
    }

    /// A user's last swap.
    ///
    /// # Errors
    /// The database failed.
    pub async fn swap(&self, user: UserId) -> Result<Option<SwapRow>, StoreError> {
        sqlx::query("SELECT * FROM swaps WHERE user_id = $1")
            .bind(user.to_string())
            .fetch_optional(&self.read)
            .await?
            .map(|row| SwapRow::read(&row))
            .transpose()
    }

    /// Every swap whose new `live` is on trial.
    ///
    /// # Errors
    /// The database failed.
    pub async fn swaps_on_trial(&self) -> Result<Vec<SwapRow>, StoreError> {
        sqlx::query("SELECT * FROM swaps WHERE outcome = 'on_trial' ORDER BY user_id")
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(SwapRow::read)
            .collect()
    }
}

async fn exchange(
    transaction: &mut Transaction<'_, Sqlite>,
    seen: &RouteRow,
    now: i64,
) -> Result<Option<RouteRow>, StoreError> {
    sqlx::query(
        "UPDATE routes
         SET live_sandbox_id = dev_sandbox_id, dev_sandbox_id = live_sandbox_id,
             generation = generation + 1, updated_at = $3
         WHERE user_id = $1 AND generation = $2
         RETURNING user_id, live_sandbox_id, dev_sandbox_id, generation",
    )
    .bind(seen.user_id.to_string())
    .bind(signed(seen.generation)?)
    .bind(now)
    .fetch_optional(&mut **transaction)
    .await?
    .map(|row| RouteRow::read(&row))
    .transpose()
}

async fn settle(
    transaction: &mut Transaction<'_, Sqlite>,
    on_trial: &RouteRow,
    outcome: SwapOutcome,
    reason: Option<&str>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE swaps SET outcome = $3, reason = $4
         WHERE user_id = $1 AND generation = $2 AND outcome = 'on_trial'",
    )
    .bind(on_trial.user_id.to_string())
    .bind(signed(on_trial.generation)?)
    .bind(outcome.as_str())
    .bind(reason)
    .execute(&mut **transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn signed(generation: u64) -> Result<i64, StoreError> {
    i64::try_from(generation).map_err(|_| StoreError::Corrupt {
        what: "routes.generation",
    })
}

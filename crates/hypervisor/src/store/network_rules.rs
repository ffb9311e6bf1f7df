//! Rules of the network allowlist that admins added.

use sqlx::{Row, sqlite::SqliteRow};
use types::{NetworkRuleId, UserId};

use super::{Store, StoreError, duplicate, parse};

/// A rule.
#[derive(Debug, Clone)]
pub struct NetworkRuleRow {
    /// Its id.
    pub id: NetworkRuleId,
    /// In its one spelling.
    pub rule: String,
    /// What it is for.
    pub note: String,
    /// The name of whoever added it, as long as there is such an account.
    pub created_by: Option<String>,
    /// When, Unix milliseconds.
    pub created_at: i64,
}

impl NetworkRuleRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("network_rules.id", row.try_get("id")?)?,
            rule: row.try_get("rule")?,
            note: row.try_get("note")?,
            created_by: row.try_get("created_by")?,
            created_at: row.try_get("created_at")?,
        })
    }
}

impl Store {
    /// All rules, in their order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn network_rules(&self) -> Result<Vec<NetworkRuleRow>, StoreError> {
        sqlx::query(
            "SELECT r.id, r.rule, r.note, u.name AS created_by, r.created_at
             FROM network_rules r LEFT JOIN users u ON u.id = r.created_by ORDER BY r.rule",
        )
        .fetch_all(&self.read)
        .await?
        .iter()
        .map(NetworkRuleRow::read)
        .collect()
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// There is the same one already, or the database failed.
    pub async fn add_network_rule(
        &self,
        id: NetworkRuleId,
        rule: &str,
        note: &str,
        by: UserId,
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO network_rules (id, rule, note, created_by, created_at)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.to_string())
        .bind(rule)
        .bind(note)
        .bind(by.to_string())
        .bind(now)
        .execute(&self.write)
        .await
        .map_err(duplicate("network rule"))?;
        Ok(())
    }

    /// Removes a rule. `false` when there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_network_rule(&self, id: NetworkRuleId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM network_rules WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

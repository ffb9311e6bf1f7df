//! What model calls took: for the caller, and for admins.

use serde::Deserialize;
use types::{UsageView, UserId};

use crate::actor::Actor;
use crate::app::App;
use crate::config::NANO_DOLLARS;
use crate::error::Error;
use crate::store::{UsageBy, UsageRow};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Days that are added up when nobody says how many, and the most.
const DAYS: u32 = 30;
const MAX_DAYS: u32 = 3660;

/// What is asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    /// `model` (the default), `day`, `sandbox`, `provider` or `user`.
    by: Option<String>,
    /// Days up to today, 1 to 3660; 30 when absent.
    days: Option<u32>,
}

/// The caller's own usage.
///
/// # Errors
/// Nobody is signed in, the question is malformed, or the database failed.
pub async fn own(app: &App, actor: &Actor, asked: &Asked) -> Result<Vec<UsageView>, Error> {
    let user = actor.user()?.id;
    read(app, Some(user), asked).await
}

/// Everybody's usage.
///
/// # Errors
/// The caller is no admin, the question is malformed, or the database failed.
pub async fn everybodys(app: &App, actor: &Actor, asked: &Asked) -> Result<Vec<UsageView>, Error> {
    actor.require_admin()?;
    read(app, None, asked).await
}

async fn read(app: &App, user: Option<UserId>, asked: &Asked) -> Result<Vec<UsageView>, Error> {
    let by = match asked.by.as_deref() {
        None | Some("model") => UsageBy::Model,
        Some("day") => UsageBy::Day,
        Some("sandbox") => UsageBy::Sandbox,
        Some("provider") => UsageBy::Provider,
        Some("user") if user.is_none() => UsageBy::User,
        Some(other) => {
            return Err(Error::bad_request(format!(
                "usage cannot be added up by {other:?}; valid are model, day, sandbox, provider, and user for admins"
            )));
        }
    };
    let days = asked.days.unwrap_or(DAYS);
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(Error::bad_request(format!(
            "days has to be 1 to {MAX_DAYS}"
        )));
    }
    // What has ended counts, although it is written behind.
    app.sandboxes.providers().flush().await;
    let today = app.clock.now_ms().div_euclid(DAY_MS);
    let rows = app
        .store
        .usage(user, today - i64::from(days) + 1, by)
        .await?;
    Ok(rows.into_iter().map(view).collect())
}

fn view(row: UsageRow) -> UsageView {
    #[expect(
        clippy::cast_precision_loss,
        reason = "dollars for people; the table counts in whole billionths"
    )]
    let cost_usd = row.cost as f64 / NANO_DOLLARS;
    UsageView {
        day: row.day.and_then(|day| {
            let time = jiff::Timestamp::from_millisecond(day * DAY_MS).ok()?;
            Some(time.strftime("%Y-%m-%d").to_string())
        }),
        user: row.user_name.or(row.user_id),
        sandbox: row.sandbox_id,
        provider: row.provider,
        model: row.model,
        calls: row.calls,
        failures: row.failures,
        input_tokens: row.input_tokens,
        output_tokens: row.output_tokens,
        cached_tokens: row.cached_tokens,
        cost_usd,
    }
}

//! Bounds of model calls.

use std::num::NonZeroU32;
use std::time::Duration;

use super::ConfigError;
use super::raw::{RawGateway, RawRates};
use super::values::{DAY, duration, within};

/// Largest request body unless the configuration says otherwise, in bytes.
const MAX_REQUEST: u64 = 32 << 20;

/// Request bodies held at the same time unless the configuration says otherwise, in bytes.
const MAX_HELD: u64 = 256 << 20;

/// A guest's token dies this long after its last renewal, or sooner (arch §5).
const TOKEN_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Calls of one sandbox that may be open, and that it may make in a minute, by default.
const SANDBOX_CONCURRENT: u32 = 32;
const SANDBOX_REQUESTS: u32 = 600;

/// A billionth of a US dollar, the unit in which money is counted: a single cheap token
/// costs about ten.
pub const NANO_DOLLARS: f64 = 1e9;

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Largest request body in bytes.
    pub max_request_bytes: u64,
    /// Request bodies held at the same time, in bytes.
    pub max_held_bytes: u64,
    /// Request bodies of one sandbox held at the same time, in bytes.
    pub sandbox_held_bytes: u64,
    /// How long a guest's token lives after its last renewal.
    pub token_lifetime: Duration,
    /// How long single calls stay in the usage table.
    pub usage_kept: Duration,
    /// Bounds of each sandbox.
    pub sandbox: Rates,
    /// Bounds of each user.
    pub user: Rates,
}

/// Bounds of one sandbox, user or provider. What is absent is unbounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Calls in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens in a minute, both ways.
    pub tokens_per_minute: Option<u64>,
    /// Calls open at the same time.
    pub concurrent: Option<u32>,
    /// Billionths of a US dollar in a day (UTC).
    pub daily_budget: Option<i64>,
    /// Billionths of a US dollar in a calendar month (UTC).
    pub monthly_budget: Option<i64>,
}

impl Gateway {
    pub(super) fn build(raw: &RawGateway) -> Result<Self, ConfigError> {
        let max_request_bytes = within(
            "gateway.max_request_bytes",
            raw.max_request_bytes.unwrap_or(MAX_REQUEST),
            1 << 10,
            1 << 30,
        )?;
        let max_held_bytes = within(
            "gateway.max_held_bytes",
            raw.max_held_bytes
                .unwrap_or(MAX_HELD.max(max_request_bytes)),
            max_request_bytes,
            1 << 36,
        )?;
        let sandbox_held_bytes = within(
            "gateway.sandbox_held_bytes",
            raw.sandbox_held_bytes
                .unwrap_or((max_held_bytes / 4).max(max_request_bytes)),
            max_request_bytes,
            max_held_bytes,
        )?;
        let token_lifetime = duration(
            "gateway.token_lifetime",
            raw.token_lifetime.as_deref(),
            TOKEN_LIFETIME,
        )?;
        if token_lifetime > TOKEN_LIFETIME {
            return Err(ConfigError::value(
                "gateway.token_lifetime",
                raw.token_lifetime.as_deref().unwrap_or_default(),
                "a token that nobody renews dies after 15 minutes at the latest",
                "a length of time up to 15m",
            ));
        }
        let mut sandbox = Rates::build("gateway.sandbox", &raw.sandbox)?;
        sandbox.concurrent.get_or_insert(SANDBOX_CONCURRENT);
        if raw.sandbox.requests_per_minute.is_none() {
            sandbox.requests_per_minute = NonZeroU32::new(SANDBOX_REQUESTS);
        }
        Ok(Self {
            max_request_bytes,
            max_held_bytes,
            sandbox_held_bytes,
            token_lifetime,
            usage_kept: duration("gateway.usage_kept", raw.usage_kept.as_deref(), 90 * DAY)?,
            sandbox,
            user: Rates::build("gateway.user", &raw.user)?,
        })
    }
}

impl Rates {
    pub(super) fn build(key: &str, raw: &RawRates) -> Result<Self, ConfigError> {
        let key = |name: &str| format!("{key}.{name}");
        let requests_per_minute = raw
            .requests_per_minute
            .map(|calls| within(&key("requests_per_minute"), calls, 1, 1_000_000))
            .transpose()?
            .and_then(NonZeroU32::new);
        let tokens_per_minute = raw
            .tokens_per_minute
            .map(|tokens| within(&key("tokens_per_minute"), tokens, 1, 1_000_000_000_000))
            .transpose()?;
        let concurrent = raw
            .concurrent
            .map(|calls| within(&key("concurrent"), calls, 1, 100_000))
            .transpose()?;
        let money = |name: &str, dollars: Option<f64>| {
            dollars
                .map(|dollars| nano_dollars(&key(name), dollars))
                .transpose()
        };
        Ok(Self {
            requests_per_minute,
            tokens_per_minute,
            concurrent,
            daily_budget: money("daily_budget", raw.daily_budget)?,
            monthly_budget: money("monthly_budget", raw.monthly_budget)?,
        })
    }
}

/// An amount of US dollars in billionths.
pub(super) fn nano_dollars(key: &str, dollars: f64) -> Result<i64, ConfigError> {
    let dollars = within(key, dollars, 0.0, 1e9)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a billion dollars is 1e18 billionths, which fits"
    )]
    let nanos = (dollars * NANO_DOLLARS).round() as i64;
    Ok(nanos)
}

//! What one sandbox, one user and one provider may use (issue: limits; arch §7).
//!
//! Tokens and money are reserved when a call is admitted and settled when it ends, so that
//! calls side by side cannot overrun a bound together. Everything is counted with atomics of
//! the one account it belongs to: no lock is shared between sandboxes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};
use jiff::tz::TimeZone;

use crate::config::Rates;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// Whose account it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// One sandbox.
    Sandbox,
    /// One user, with both sandboxes.
    User,
    /// One provider, with all callers.
    Provider,
}

impl Scope {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::User => "user",
            Self::Provider => "provider",
        }
    }
}

/// A bound that a call would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    /// Whose.
    pub(crate) scope: Scope,
    /// Which one, as it stands in the configuration.
    pub(crate) bound: &'static str,
    /// When it may fit again.
    pub(crate) retry_after: Duration,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scope, bound) = (self.scope.as_str(), self.bound);
        write!(
            f,
            "the limit {scope}.{bound} is reached; try again in {} s",
            self.retry_after.as_secs().max(1)
        )
    }
}

/// What a call is expected to take, or has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Tokens, both ways.
    pub(crate) tokens: u64,
    /// Billionths of a US dollar.
    pub(crate) money: i64,
}

/// What was spent before this process began, in billionths of a US dollar.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    /// Today (UTC).
    pub(crate) today: i64,
    /// In this calendar month (UTC).
    pub(crate) this_month: i64,
}

/// The account of one sandbox, user or provider.
#[derive(Debug)]
pub(crate) struct Account {
    scope: Scope,
    rates: Rates,
    requests: Option<DefaultDirectRateLimiter>,
    /// Thousandths of a millisecond at which the bucket of tokens is empty again.
    tokens_until: AtomicI64,
    open: AtomicU32,
    day: Spending,
    month: Spending,
}

#[derive(Debug, Default)]
struct Spending {
    /// The day or month that `spent` is of.
    period: AtomicI64,
    spent: AtomicI64,
}

impl Spending {
    fn new(period: i64, spent: i64) -> Self {
        Self {
            period: AtomicI64::new(period),
            spent: AtomicI64::new(spent),
        }
    }

    /// Adds, unless that passes `budget`.
    fn add(&self, period: i64, money: i64, budget: Option<i64>) -> bool {
        let before = self.period.load(Ordering::Acquire);
        if before != period
            && self
                .period
                .compare_exchange(before, period, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.spent.store(0, Ordering::Release);
        }
        let Some(budget) = budget else {
            self.spent.fetch_add(money, Ordering::AcqRel);
            return true;
        };
        self.spent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |spent| {
                let after = spent.saturating_add(money);
                // With nothing left, not even a call that is expected to be free.
                (after <= budget && spent < budget).then_some(after)
            })
            .is_ok()
    }

    /// Corrects what was reserved, unless its period is over.
    fn correct(&self, period: i64, by: i64) {
        if self.period.load(Ordering::Acquire) == period {
            self.spent.fetch_add(by, Ordering::AcqRel);
        }
    }
}

/// The day and the month of a moment, and what is left of them.
#[derive(Debug, Clone, Copy)]
struct Calendar {
    day: i64,
    month: i64,
    day_left: Duration,
    month_left: Duration,
}

impl Calendar {
    fn at(now_ms: i64) -> Self {
        let day = now_ms.div_euclid(DAY_MS);
        let left = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let day_left = left((day + 1) * DAY_MS - now_ms);
        let date = jiff::Timestamp::from_millisecond(now_ms)
            .unwrap_or_default()
            .to_zoned(TimeZone::UTC)
            .date();
        let days_left = i64::from(date.days_in_month()) - i64::from(date.day());
        Self {
            day,
            month: i64::from(date.year()) * 12 + i64::from(date.month()),
            day_left,
            month_left: day_left + left(days_left * DAY_MS),
        }
    }
}

impl Account {
    /// An account that has `spent` so much already.
    pub(crate) fn new(scope: Scope, rates: Rates, spent: Spent, now_ms: i64) -> Self {
        let calendar = Calendar::at(now_ms);
        Self {
            scope,
            rates,
            requests: rates
                .requests_per_minute
                .map(|calls| DefaultDirectRateLimiter::direct(Quota::per_minute(calls))),
            tokens_until: AtomicI64::new(0),
            open: AtomicU32::new(0),
            day: Spending::new(calendar.day, spent.today),
            month: Spending::new(calendar.month, spent.this_month),
        }
    }

    /// Calls open at the moment.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    fn limited(&self, bound: &'static str, retry_after: Duration) -> Limited {
        Limited {
            scope: self.scope,
            bound,
            retry_after,
        }
    }

    /// Admits a call that is expected to take `amount`.
    ///
    /// # Errors
    /// The first bound that it would pass; nothing is counted then but the attempt.
    pub(crate) fn admit(
        self: &Arc<Self>,
        amount: Amount,
        now_ms: i64,
    ) -> Result<Admission, Limited> {
        let second = Duration::from_secs(1);
        let fits = |open: u32| self.rates.concurrent.is_none_or(|most| open < most);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                fits(open).then_some(open + 1)
            })
            .map_err(|_| self.limited("concurrent", second))?;
        let calendar = Calendar::at(now_ms);
        // From here on what was taken is given back when this is dropped.
        let mut admission = Admission {
            account: Arc::clone(self),
            reserved: Amount::default(),
            day: calendar.day,
            month: calendar.month,
        };
        if let Some(requests) = &self.requests {
            requests.check().map_err(|not_until| {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                self.limited("requests_per_minute", wait)
            })?;
        }
        self.take_tokens(amount.tokens, now_ms)
            .map_err(|wait| self.limited("tokens_per_minute", wait))?;
        admission.reserved.tokens = amount.tokens;
        if !self
            .day
            .add(calendar.day, amount.money, self.rates.daily_budget)
        {
            return Err(self.limited("daily_budget", calendar.day_left));
        }
        if !self
            .month
            .add(calendar.month, amount.money, self.rates.monthly_budget)
        {
            self.day.correct(calendar.day, -amount.money);
            return Err(self.limited("monthly_budget", calendar.month_left));
        }
        admission.reserved.money = amount.money;
        Ok(admission)
    }

    /// The time that tokens take, in microseconds.
    fn time_of(&self, tokens: i128) -> i64 {
        let Some(per_minute) = self.rates.tokens_per_minute else {
            return 0;
        };
        let micros = tokens * i128::from(MINUTE_MS) * 1000 / i128::from(per_minute.max(1));
        i64::try_from(micros).unwrap_or(i64::MAX / 4)
    }

    /// GCRA with a burst of one minute's tokens. A call that is larger than the whole bound
    /// is let through when the bucket is full, and empties it.
    fn take_tokens(&self, tokens: u64, now_ms: i64) -> Result<(), Duration> {
        if self.rates.tokens_per_minute.is_none() {
            return Ok(());
        }
        let minute = MINUTE_MS * 1000;
        let now = now_ms.saturating_mul(1000);
        let cost = self.time_of(i128::from(tokens));
        let need = cost.min(minute);
        self.tokens_until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |until| {
                let from = until.max(now);
                (from - now + need <= minute).then_some(from.saturating_add(cost))
            })
            .map(drop)
            .map_err(|until| {
                let wait = until - now + need - minute;
                Duration::from_micros(u64::try_from(wait).unwrap_or(0))
            })
    }
}

/// A call that was admitted. Dropped without being settled it costs nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    account: Arc<Account>,
    reserved: Amount,
    day: i64,
    month: i64,
}

impl Admission {
    /// The call has taken `used` instead of what was reserved.
    pub(crate) fn settle(mut self, used: Amount) {
        self.correct(used);
        // Nothing is left to be given back when this is dropped.
        self.reserved = Amount::default();
    }

    fn correct(&self, used: Amount) {
        let account = &self.account;
        let tokens = i128::from(used.tokens) - i128::from(self.reserved.tokens);
        let time = account.time_of(tokens);
        account.tokens_until.fetch_add(time, Ordering::AcqRel);
        let money = used.money.saturating_sub(self.reserved.money);
        account.day.correct(self.day, money);
        account.month.correct(self.month, money);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.correct(Amount::default());
        self.account.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;

//! What one sandbox, one user and one provider may use (issue: limits; arch §7).
//!
//! Tokens and money are reserved when a call is admitted and settled when it ends, so that
//! calls side by side cannot overrun a bound together. Everything is counted with atomics of
//! the one account it belongs to: no lock is shared between sandboxes.
//!
//! A call counts in the day and the month in which it ends, as it does in the usage table; a
//! reservation that midnight overtakes is gone with the day that it was made in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use rustix::time::{ClockId, clock_gettime};

use super::spending::{Calendar, Spending, Taken, left};
use crate::config::Rates;

const MINUTE_MS: i64 = 60_000;

/// One minute's tokens, in the unit of [`Account::tokens_until`].
const BURST: i64 = MINUTE_MS * 1000;

/// The longest that tokens already taken keep further calls waiting, in microseconds: what a
/// reply says it took is believed, but locks nobody out for good.
const LONGEST_DEBT: i64 = 60 * BURST;

/// The time since the machine began, as of its last tick: ten milliseconds ago at most, which is
/// nothing to a minute. It costs a fifth of the exact time, and each call asks for it three times.
#[derive(Debug, Clone, Copy)]
struct Ticks;

impl governor::clock::Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        Duration::try_from(now).unwrap_or_default().into()
    }
}

/// Calls of a minute.
type Requests = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>;

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
    /// On the day (UTC) it was asked for.
    pub(crate) today: i64,
    /// In the calendar month (UTC) it was asked for.
    pub(crate) this_month: i64,
}

/// The account of one sandbox, user or provider.
#[derive(Debug)]
pub(crate) struct Account {
    scope: Scope,
    rates: Rates,
    requests: Option<Arc<Requests>>,
    /// Microseconds at which the bucket of tokens is empty again.
    tokens_until: AtomicI64,
    counts: Arc<Counts>,
}

/// What outlives other bounds.
#[derive(Debug)]
struct Counts {
    open: AtomicU32,
    begun: AtomicU64,
    day: Spending,
    month: Spending,
}

impl Account {
    /// An account of which so much was spent when it was `spent_at`.
    pub(crate) fn new(scope: Scope, rates: Rates, spent: Spent, spent_at: i64) -> Self {
        let calendar = Calendar::at(spent_at);
        Self {
            scope,
            rates,
            requests: requests(&rates),
            tokens_until: AtomicI64::new(0),
            counts: Arc::new(Counts {
                open: AtomicU32::new(0),
                begun: AtomicU64::new(0),
                day: Spending::new(calendar.day, spent.today),
                month: Spending::new(calendar.month, spent.this_month),
            }),
        }
    }

    /// The same account with other bounds. What is spent, now and by the calls that are open,
    /// counts in both; tokens taken so far are carried over.
    pub(crate) fn with_rates(&self, rates: Rates, now_ms: i64) -> Self {
        let requests = if rates.requests_per_minute == self.rates.requests_per_minute {
            self.requests.clone()
        } else {
            requests(&rates)
        };
        let now = now_ms.saturating_mul(1000);
        let debt = i128::from((self.tokens_until.load(Ordering::Acquire) - now).max(0));
        let debt = match (self.rates.tokens_per_minute, rates.tokens_per_minute) {
            (Some(before), Some(after)) => debt * i128::from(before) / i128::from(after.max(1)),
            _ => 0,
        };
        let debt = i64::try_from(debt).unwrap_or(LONGEST_DEBT);
        Self {
            scope: self.scope,
            rates,
            requests,
            tokens_until: AtomicI64::new(now.saturating_add(debt.min(LONGEST_DEBT))),
            counts: Arc::clone(&self.counts),
        }
    }

    /// Its bounds.
    pub(crate) const fn rates(&self) -> Rates {
        self.rates
    }

    /// Calls open at the moment.
    pub(crate) fn open(&self) -> u32 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Calls begun so far.
    pub(crate) fn begun(&self) -> u64 {
        self.counts.begun.load(Ordering::Relaxed)
    }

    /// Whether a new account in its place would allow more than it does.
    pub(crate) fn remembers(&self, now_ms: i64) -> bool {
        let calendar = Calendar::at(now_ms);
        let spent = |budget: Option<i64>, spending: &Spending, period| {
            budget.is_some() && spending.in_period(period) > 0
        };
        self.open() > 0
            || self.tokens_until.load(Ordering::Acquire) > now_ms.saturating_mul(1000)
            || spent(self.rates.daily_budget, &self.counts.day, calendar.day)
            || spent(
                self.rates.monthly_budget,
                &self.counts.month,
                calendar.month,
            )
            || self.has_called_of_late()
    }

    /// Takes all calls of a minute if they are there to be taken, so it has to be the last
    /// question.
    fn has_called_of_late(&self) -> bool {
        match (&self.requests, self.rates.requests_per_minute) {
            (Some(requests), Some(calls)) => !matches!(requests.check_n(calls), Ok(Ok(()))),
            _ => false,
        }
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
        self.counts
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                fits(open).then_some(open + 1)
            })
            .map_err(|_| self.limited("concurrent", second))?;
        // From here on what was taken is given back when this is dropped.
        let mut admission = Admission {
            account: Arc::clone(self),
            time: 0,
            until: 0,
            day: Taken::default(),
            month: Taken::default(),
        };
        if let Some(requests) = &self.requests {
            requests.check().map_err(|not_until| {
                let wait = not_until.wait_time_from(Ticks.now());
                self.limited("requests_per_minute", wait)
            })?;
        }
        let (time, until) = self
            .take_tokens(amount.tokens, now_ms)
            .map_err(|wait| self.limited("tokens_per_minute", wait))?;
        admission.time = time;
        admission.until = until;
        let calendar = Calendar::at(now_ms);
        let (day, month) = (&self.counts.day, &self.counts.month);
        admission.day = day
            .add(calendar.day, amount.money, self.rates.daily_budget)
            .ok_or_else(|| self.limited("daily_budget", left(now_ms).0))?;
        admission.month = month
            .add(calendar.month, amount.money, self.rates.monthly_budget)
            .ok_or_else(|| self.limited("monthly_budget", left(now_ms).1))?;
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        Ok(admission)
    }

    /// The time that tokens take, in microseconds, never more than the longest debt.
    fn time_of(&self, tokens: u64) -> i64 {
        let Some(per_minute) = self.rates.tokens_per_minute else {
            return 0;
        };
        let micros = (u128::from(tokens) * u128::from(BURST.cast_unsigned()))
            .div_ceil(u128::from(per_minute.max(1)));
        i64::try_from(micros).map_or(LONGEST_DEBT, |micros| micros.min(LONGEST_DEBT))
    }

    /// GCRA with a burst of one minute's tokens: how much time was taken, and until when. A
    /// call that is larger than the whole bound is let through when the bucket is full, and
    /// reserves all of it, not more: others wait for what it takes, not for what it might.
    fn take_tokens(&self, tokens: u64, now_ms: i64) -> Result<(i64, i64), Duration> {
        if self.rates.tokens_per_minute.is_none() {
            return Ok((0, 0));
        }
        let now = now_ms.saturating_mul(1000);
        let cost = self.time_of(tokens).min(BURST);
        let from = |until: i64| {
            // Further ahead than any debt: the clock was put back.
            let is_debt = until > now && until - now <= LONGEST_DEBT;
            if is_debt { until } else { now }
        };
        self.tokens_until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |until| {
                let until = from(until) + cost;
                (until - now <= BURST).then_some(until)
            })
            .map(|until| (cost, from(until) + cost))
            .map_err(|until| {
                let wait = from(until) + cost - now - BURST;
                Duration::from_micros(u64::try_from(wait).unwrap_or(0))
            })
    }

    fn move_bucket(&self, to: impl Fn(i64) -> i64) {
        if self.rates.tokens_per_minute.is_some() {
            // Nothing is ever refused here.
            let _ = self
                .tokens_until
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |until| Some(to(until)));
        }
    }
}

fn requests(rates: &Rates) -> Option<Arc<Requests>> {
    let calls = rates.requests_per_minute?;
    let requests = Requests::direct_with_clock(Quota::per_minute(calls), Ticks);
    Some(Arc::new(requests))
}

/// A call that was admitted. Dropped without being settled it costs nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    account: Arc<Account>,
    /// What the reserved tokens take of the bucket, in microseconds, and where that ends.
    time: i64,
    until: i64,
    day: Taken,
    month: Taken,
}

impl Admission {
    /// The call has ended and has taken `used` instead of what was reserved.
    pub(crate) fn settle(mut self, used: Amount, now_ms: i64) {
        let account = Arc::clone(&self.account);
        let now = now_ms.saturating_mul(1000);
        let mut change = account.time_of(used.tokens) - self.time;
        if change < 0 {
            // Of what was not used, that which has run out of the bucket by now is gone.
            let unspent = (self.until - now).clamp(0, self.time);
            change = change.max(-unspent);
        }
        account.move_bucket(|until| {
            let until = if change > 0 { until.max(now) } else { until };
            until
                .saturating_add(change)
                .min(now.saturating_add(LONGEST_DEBT))
        });
        let calendar = Calendar::at(now_ms);
        let counts = &account.counts;
        counts.day.settle(self.day, calendar.day, used.money);
        counts.month.settle(self.month, calendar.month, used.money);
        // Nothing is left to be given back when this is dropped.
        self.time = 0;
        self.day = Taken::default();
        self.month = Taken::default();
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Counts {
            open, day, month, ..
        } = &*self.account.counts;
        if self.time != 0 {
            self.account
                .move_bucket(|until| until.saturating_sub(self.time));
        }
        day.give_back(self.day);
        month.give_back(self.month);
        open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;

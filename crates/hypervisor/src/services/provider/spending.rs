//! What was spent in a day and in a month, and which these are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;

/// Milliseconds of a day.
pub(super) const DAY_MS: i64 = 86_400_000;

/// What was spent in the present day or month, and which that is, in one word, so that both
/// change together.
#[derive(Debug)]
pub(super) struct Spending(AtomicU64);

/// Bits of the amount, in billionths of a US dollar: 18 million dollars. What is spent beyond
/// is not counted, and no budget is larger. The other ten bits tell 1,024 days or months apart.
const AMOUNT_BITS: u32 = 54;
const MOST: i64 = (1 << AMOUNT_BITS) - 1;
const PERIODS: u64 = 1 << (u64::BITS - AMOUNT_BITS);

/// What was taken of a budget, and in which of its periods.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    period: u64,
    amount: i64,
}

impl Spending {
    pub(super) fn new(period: i64, spent: i64) -> Self {
        let taken = Taken {
            period: period.rem_euclid(PERIODS.cast_signed()).cast_unsigned(),
            amount: spent,
        };
        Self(AtomicU64::new(taken.packed()))
    }

    fn change<R>(&self, mut to: impl FnMut(Taken) -> Option<(Taken, R)>) -> Option<R> {
        let mut result = None;
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let (next, value) = to(Taken::unpacked(word))?;
                result = Some(value);
                Some(next.packed())
            })
            .ok()?;
        result
    }

    /// Adds, unless that passes `budget`; tells what was added.
    pub(super) fn add(&self, period: i64, money: i64, budget: Option<i64>) -> Option<Taken> {
        self.change(|spent| {
            let mut spent = spent.on(period);
            let after = spent.amount.saturating_add(money.max(0));
            if let Some(budget) = budget.map(|budget| budget.min(MOST))
                // With nothing left, not even a call that is expected to be free.
                && (after > budget || spent.amount >= budget)
            {
                return None;
            }
            let before = spent.amount;
            spent.amount = after.min(MOST);
            let added = Taken {
                amount: spent.amount - before,
                ..spent
            };
            Some((spent, added))
        })
    }

    /// What was added turned out to be `used`, which counts in `period`.
    pub(super) fn settle(&self, added: Taken, period: i64, used: i64) {
        self.change(|spent| Some((spent.on(period).without(added).plus(used), ())));
    }

    /// What was added is not used.
    pub(super) fn give_back(&self, added: Taken) {
        self.change(|spent| (added.amount != 0).then(|| (spent.without(added), ())));
    }

    pub(super) fn in_period(&self, period: i64) -> i64 {
        Taken::unpacked(self.0.load(Ordering::Acquire))
            .on(period)
            .amount
    }
}

impl Taken {
    const fn packed(self) -> u64 {
        let amount = if self.amount < 0 {
            0
        } else if self.amount > MOST {
            MOST
        } else {
            self.amount
        };
        (self.period << AMOUNT_BITS) | amount.cast_unsigned()
    }

    const fn unpacked(word: u64) -> Self {
        Self {
            period: word >> AMOUNT_BITS,
            amount: (word & MOST.cast_unsigned()).cast_signed(),
        }
    }

    /// As it is in `period`. A new period begins with nothing. A clock that is put back begins
    /// none: by one period, it is still in the later one (two threads may see midnight in
    /// either order); by more, what was spent is taken along.
    fn on(self, period: i64) -> Self {
        let period = period.rem_euclid(PERIODS.cast_signed()).cast_unsigned();
        let ahead = period.wrapping_sub(self.period) % PERIODS;
        if ahead == 0 || ahead == PERIODS - 1 {
            return self;
        }
        let amount = if ahead < PERIODS / 2 { 0 } else { self.amount };
        Self { period, amount }
    }

    fn without(mut self, added: Self) -> Self {
        if self.period == added.period {
            self.amount = (self.amount - added.amount).max(0);
        }
        self
    }

    fn plus(mut self, used: i64) -> Self {
        self.amount = self.amount.saturating_add(used.max(0)).min(MOST);
        self
    }
}

/// The day and the month of a moment (UTC), counted from 1970 and from the year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) day: i64,
    pub(super) month: i64,
}

impl Calendar {
    /// Howard Hinnant's `civil_from_days`; every call asks several times.
    pub(super) const fn at(now_ms: i64) -> Self {
        let day = now_ms.div_euclid(DAY_MS);
        // Years begin in March and eras of 400 years on 0000-03-01.
        let shifted = day + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        Self {
            day,
            month: (era * 400 + year) * 12 + from_march + 2,
        }
    }
}

/// What is left of the day and of the month.
pub(super) fn left(now_ms: i64) -> (Duration, Duration) {
    let left = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let of_day = left(DAY_MS - now_ms.rem_euclid(DAY_MS));
    let date = jiff::Timestamp::from_millisecond(now_ms)
        .unwrap_or_default()
        .to_zoned(TimeZone::UTC)
        .date();
    let days = i64::from(date.days_in_month()) - i64::from(date.day());
    (of_day, of_day + left(days * DAY_MS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_clock_that_is_put_back_forgets_nothing() {
        let spending = Spending::new(20_000, 70);
        // By one day: midnight, seen by two threads in either order.
        assert!(spending.add(20_001, 5, Some(100)).is_some());
        assert!(spending.add(20_000, 96, Some(100)).is_none());
        assert!(spending.add(20_000, 5, Some(100)).is_some());
        assert_eq!(spending.in_period(20_001), 10);
        // By months.
        assert!(spending.add(19_900, 91, Some(100)).is_none());
        assert!(spending.add(19_900, 90, Some(100)).is_some());
        assert_eq!(spending.in_period(19_900), 100);
        // And a new day is one again.
        assert!(spending.add(19_901, 100, Some(100)).is_some());
    }

    #[test]
    fn a_new_day_loses_nothing_of_those_who_begin_it_together() {
        let spending = Spending::new(0, 1_000_000);
        for day in 1..200 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..25 {
                            assert!(spending.add(day, 1, None).is_some());
                        }
                    });
                }
            });
            assert_eq!(spending.in_period(day), 100, "day {day}");
        }
    }

    #[test]
    fn more_than_can_be_counted_is_over_every_budget() {
        let spending = Spending::new(1, i64::MAX);
        assert_eq!(spending.in_period(1), MOST);
        assert!(spending.add(1, 0, Some(i64::MAX)).is_none());
        let added = spending.add(1, 10, None).unwrap();
        spending.give_back(added);
        spending.settle(added, 1, i64::MAX);
        assert_eq!(spending.in_period(1), MOST);
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        // 2026-11-22T12:00:00Z
        let (day, month) = left(1_795_348_800_000);
        assert_eq!(day, Duration::from_secs(12 * 3600));
        assert_eq!(month, day + Duration::from_secs(8 * 86_400));
    }

    proptest! {
        #[test]
        fn a_month_is_that_of_the_calendar(now_ms in -2_000_000_000_000_i64..9_000_000_000_000) {
            let date = jiff::Timestamp::from_millisecond(now_ms)
                .unwrap()
                .to_zoned(TimeZone::UTC)
                .date();
            let calendar = Calendar::at(now_ms);
            prop_assert_eq!(
                calendar.month,
                i64::from(date.year()) * 12 + i64::from(date.month()) - 1
            );
            prop_assert_eq!(calendar.day, now_ms.div_euclid(DAY_MS));
        }
    }
}

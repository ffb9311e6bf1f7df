use std::num::NonZeroU32;

use super::super::spending::DAY_MS;
use super::*;

const NOON: i64 = 1_795_348_800_000; // 2026-11-22T12:00:00Z

fn account(rates: Rates) -> Arc<Account> {
    Arc::new(Account::new(Scope::Sandbox, rates, Spent::default(), NOON))
}

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, money: 0 }
}

fn money(money: i64) -> Amount {
    Amount { tokens: 0, money }
}

#[test]
fn calls_side_by_side_cannot_overrun_the_tokens_together() {
    let account = account(Rates {
        tokens_per_minute: Some(1000),
        ..Rates::default()
    });
    let first = account.admit(tokens(600), NOON).unwrap();
    let refused = account.admit(tokens(600), NOON).unwrap_err();
    assert_eq!(refused.bound, "tokens_per_minute");
    assert_eq!(refused.retry_after, Duration::from_secs(12));
    // It took fewer than were reserved, which makes room.
    first.settle(tokens(100), NOON);
    let second = account.admit(tokens(600), NOON).unwrap();
    // Never settled: all of it comes back.
    drop(second);
    let third = account.admit(tokens(900), NOON).unwrap();
    // It took more: others wait for it.
    third.settle(tokens(1900), NOON);
    assert!(account.admit(tokens(1), NOON + MINUTE_MS - 1000).is_err());
    assert!(account.admit(tokens(1), NOON + MINUTE_MS + 1000).is_ok());
}

#[test]
fn a_call_larger_than_the_whole_bound_waits_for_a_full_bucket() {
    let account = account(Rates {
        tokens_per_minute: Some(100),
        ..Rates::default()
    });
    account
        .admit(tokens(1000), NOON)
        .unwrap()
        .settle(tokens(1000), NOON);
    assert!(account.admit(tokens(1), NOON + 8 * MINUTE_MS).is_err());
    assert!(account.admit(tokens(1), NOON + 10 * MINUTE_MS).is_ok());
}

#[test]
fn a_budget_is_reserved_settled_and_begins_anew() {
    let account = account(Rates {
        daily_budget: Some(100),
        monthly_budget: Some(250),
        ..Rates::default()
    });
    let first = account.admit(money(80), NOON).unwrap();
    let refused = account.admit(money(30), NOON).unwrap_err();
    assert_eq!(refused.bound, "daily_budget");
    assert_eq!(refused.retry_after, Duration::from_secs(12 * 3600));
    first.settle(money(100), NOON);
    // With nothing left, not even a call that is expected to be free.
    assert!(account.admit(money(0), NOON).is_err());
    let tomorrow = NOON + DAY_MS;
    account
        .admit(money(100), tomorrow)
        .unwrap()
        .settle(money(100), tomorrow);
    let after = tomorrow + DAY_MS;
    let refused = account.admit(money(60), after).unwrap_err();
    assert_eq!(refused.bound, "monthly_budget");
    // 24 November at noon until the end of the month.
    assert_eq!(
        refused.retry_after,
        Duration::from_secs(6 * 86_400 + 43_200)
    );
    // The refusal has taken nothing of the day's.
    account
        .admit(money(50), after)
        .unwrap()
        .settle(money(50), after);
    let december = NOON + 9 * DAY_MS;
    assert!(account.admit(money(100), december).is_ok());
}

#[test]
fn what_was_spent_before_counts() {
    let spent = Spent {
        today: 90,
        this_month: 90,
    };
    let rates = Rates {
        daily_budget: Some(100),
        ..Rates::default()
    };
    let account = Arc::new(Account::new(Scope::User, rates, spent, NOON));
    assert!(account.admit(money(11), NOON).is_err());
    assert!(account.admit(money(10), NOON).is_ok());
}

#[test]
fn open_calls_and_calls_in_a_minute_are_bounded() {
    let rates = Rates {
        concurrent: Some(1),
        requests_per_minute: NonZeroU32::new(2),
        ..Rates::default()
    };
    let account = account(rates);
    let first = account.admit(tokens(1), NOON).unwrap();
    assert_eq!(
        account.admit(tokens(1), NOON).unwrap_err().bound,
        "concurrent"
    );
    drop(first);
    drop(account.admit(tokens(1), NOON).unwrap());
    let refused = account.admit(tokens(1), NOON).unwrap_err();
    assert_eq!(refused.bound, "requests_per_minute");
    assert!(refused.to_string().contains("sandbox.requests_per_minute"));
    assert_eq!(account.open(), 0, "a refusal leaves nothing open");
}

#[test]
fn a_hundred_threads_do_not_overrun_a_budget() {
    let account = account(Rates {
        daily_budget: Some(1000),
        ..Rates::default()
    });
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let admissions: Vec<_> = (0..10)
                        .filter_map(|_| account.admit(money(7), NOON).ok())
                        .collect();
                    let count = admissions.len();
                    for admission in admissions {
                        admission.settle(money(7), NOON);
                    }
                    count
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(admitted, 142);
}

#[test]
fn a_bound_of_a_reply_that_is_no_bound_locks_nobody_out() {
    let account = account(Rates {
        tokens_per_minute: Some(1000),
        ..Rates::default()
    });
    let huge = Amount {
        tokens: u64::MAX,
        money: i64::MAX,
    };
    for _ in 0..10 {
        let open = account.admit(huge, NOON).unwrap();
        assert!(
            account.admit(tokens(1), NOON).is_err(),
            "it takes the minute"
        );
        let later = NOON + MINUTE_MS;
        assert!(account.admit(tokens(1), later).is_ok(), "and no more");
        drop(open);
        assert!(account.admit(tokens(1000), NOON).is_ok(), "all came back");
    }
    // Whatever a reply claims to have taken is waited for, but not for ever.
    for _ in 0..10 {
        let later = NOON + 120 * MINUTE_MS;
        account.admit(huge, later).unwrap().settle(huge, later);
        let Err(refused) = account.admit(tokens(1), later) else {
            panic!("what was used is counted");
        };
        assert!(refused.retry_after <= Duration::from_secs(3600));
        account.tokens_until.store(0, Ordering::Release);
    }
}

#[test]
fn what_was_reserved_and_has_run_off_is_not_given_back_again() {
    let account = account(Rates {
        tokens_per_minute: Some(1000),
        ..Rates::default()
    });
    let first = account.admit(tokens(1000), NOON).unwrap();
    let later = NOON + MINUTE_MS;
    let second = account.admit(tokens(1000), later).unwrap();
    // The minute in which the first took nothing is over.
    first.settle(tokens(0), later);
    assert!(account.admit(tokens(100), later).is_err());
    second.settle(tokens(0), later);
    assert!(account.admit(tokens(1000), later).is_ok());
}

#[test]
fn tokens_are_not_waited_for_when_the_clock_is_put_back() {
    let account = account(Rates {
        tokens_per_minute: Some(1000),
        ..Rates::default()
    });
    drop(account.admit(tokens(1000), NOON + 300 * DAY_MS).unwrap());
    let open = account.admit(tokens(1000), NOON + 300 * DAY_MS).unwrap();
    assert!(account.admit(tokens(1000), NOON).is_ok());
    drop(open);
}

#[test]
fn a_call_counts_on_the_day_on_which_it_ends() {
    let account = account(Rates {
        daily_budget: Some(100),
        monthly_budget: Some(1000),
        ..Rates::default()
    });
    let over_midnight = account.admit(money(60), NOON).unwrap();
    let dropped = account.admit(money(40), NOON).unwrap();
    let tomorrow = NOON + DAY_MS;
    // Reservations of yesterday are none of today's.
    let today = account.admit(money(50), tomorrow).unwrap();
    over_midnight.settle(money(30), tomorrow);
    drop(dropped);
    assert!(account.admit(money(21), tomorrow).is_err());
    let rest = account.admit(money(20), tomorrow).unwrap();
    drop(rest);
    today.settle(money(0), tomorrow);
    assert!(account.admit(money(71), tomorrow).is_err());
    drop(account.admit(money(70), tomorrow).unwrap());
    let (day, month) = (&account.counts.day, &account.counts.month);
    let Calendar { day: on, month: of } = Calendar::at(tomorrow);
    assert_eq!((day.in_period(on), month.in_period(of)), (30, 30));
}

#[test]
fn a_call_that_ends_first_on_a_new_day_counts_there() {
    let account = account(Rates {
        daily_budget: Some(100),
        ..Rates::default()
    });
    let open = account.admit(money(60), NOON).unwrap();
    open.settle(money(80), NOON + DAY_MS);
    assert!(account.admit(money(21), NOON + DAY_MS).is_err());
    assert!(account.admit(money(20), NOON + DAY_MS).is_ok());
}

#[test]
fn money_without_a_budget_is_counted_and_given_back_exactly() {
    let account = account(Rates::default());
    let ended = account.admit(money(10), NOON).unwrap();
    ended.settle(money(10), NOON);
    let huge = account.admit(money(i64::MAX), NOON).unwrap();
    let more = account.admit(money(5), NOON).unwrap();
    drop(huge);
    more.settle(money(5), NOON);
    let day = Calendar::at(NOON).day;
    assert_eq!(account.counts.day.in_period(day), 15);
}

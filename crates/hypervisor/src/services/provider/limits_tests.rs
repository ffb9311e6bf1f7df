use std::num::NonZeroU32;

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
    first.settle(tokens(100));
    let second = account.admit(tokens(600), NOON).unwrap();
    // Never settled: all of it comes back.
    drop(second);
    let third = account.admit(tokens(900), NOON).unwrap();
    // It took more: others wait for it.
    third.settle(tokens(1900));
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
        .settle(tokens(1000));
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
    first.settle(money(100));
    // With nothing left, not even a call that is expected to be free.
    assert!(account.admit(money(0), NOON).is_err());
    let tomorrow = NOON + DAY_MS;
    account
        .admit(money(100), tomorrow)
        .unwrap()
        .settle(money(100));
    let after = tomorrow + DAY_MS;
    let refused = account.admit(money(60), after).unwrap_err();
    assert_eq!(refused.bound, "monthly_budget");
    // 24 November at noon until the end of the month.
    assert_eq!(
        refused.retry_after,
        Duration::from_secs(6 * 86_400 + 43_200)
    );
    // The refusal has taken nothing of the day's.
    account.admit(money(50), after).unwrap().settle(money(50));
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
                        admission.settle(money(7));
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

//! The accounts of everybody: what was spent before this process began, and what is spent by
//! now, whatever is reloaded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::limits::{Account, Scope, Spent};
use super::spending::DAY_MS;
use crate::config::Rates;
use crate::error::Error;
use crate::store::Store;

/// From how many accounts on it is looked for some to forget.
const MANY: usize = 256;

/// Somebody's account, within the bounds of the present configuration.
#[derive(Debug)]
pub(super) struct Held(RwLock<Arc<Account>>);

impl Held {
    fn new(account: Account) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(account))))
    }

    /// As it is now. The lock is held for one copy, and written only by a reload.
    pub(super) fn account(&self) -> Arc<Account> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes other bounds for the calls to come; what was spent within those before counts.
    fn bound(&self, rates: Rates, now_ms: i64) {
        let mut account = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if account.rates() != rates {
            *account = Arc::new(account.with_rates(rates, now_ms));
        }
    }
}

/// All accounts, by scope and id.
#[derive(Debug)]
pub(super) struct Register {
    /// Held for one look-up, when a channel begins or providers are reloaded; never by calls.
    accounts: Mutex<Accounts>,
    /// As the usage table had it when it was `read_at`.
    spent: HashMap<(Scope, String), Spent>,
    read_at: i64,
}

#[derive(Debug)]
struct Accounts {
    by_id: HashMap<(Scope, String), Arc<Held>>,
    /// How many there may be before it is looked for some to forget.
    most: usize,
}

impl Register {
    /// Reads what everybody has spent today and in this month.
    pub(super) async fn read(store: &Store, now_ms: i64) -> Result<Self, Error> {
        let today = now_ms.div_euclid(DAY_MS);
        let date = jiff::Timestamp::from_millisecond(now_ms)
            .unwrap_or_default()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date();
        let first = today - i64::from(date.day()) + 1;
        let mut spent: HashMap<(Scope, String), Spent> = HashMap::new();
        for row in store.spent_since(first).await? {
            for key in [
                (Scope::Sandbox, row.sandbox_id),
                (Scope::User, row.user_id),
                (Scope::Provider, row.provider),
            ] {
                let sum = spent.entry(key).or_default();
                sum.this_month = sum.this_month.saturating_add(row.cost);
                if row.day == today {
                    sum.today = sum.today.saturating_add(row.cost);
                }
            }
        }
        Ok(Self::new(spent, now_ms))
    }

    fn new(spent: HashMap<(Scope, String), Spent>, read_at: i64) -> Self {
        Self {
            accounts: Mutex::new(Accounts {
                by_id: HashMap::new(),
                most: MANY,
            }),
            spent,
            read_at,
        }
    }

    /// The account of somebody, with these bounds; what was spent within others counts.
    pub(super) fn account(&self, scope: Scope, id: String, rates: Rates, now_ms: i64) -> Arc<Held> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (scope, id);
        if let Some(held) = accounts.by_id.get(&key) {
            held.bound(rates, now_ms);
            return Arc::clone(held);
        }
        if accounts.by_id.len() >= accounts.most {
            // Those of providers stay, whatever their bounds: they are as many as are configured.
            accounts.by_id.retain(|(scope, _), held| {
                *scope == Scope::Provider
                    || Arc::strong_count(held) > 1
                    || held.account().remembers(now_ms)
            });
            accounts.most = MANY.max(accounts.by_id.len() * 2);
        }
        let spent = self.spent.get(&key).copied().unwrap_or_default();
        let held = Held::new(Account::new(scope, rates, spent, self.read_at));
        accounts.by_id.insert(key, Arc::clone(&held));
        held
    }

    /// Gives other bounds to everybody of a scope.
    pub(super) fn bound(&self, scope: Scope, rates: Rates, now_ms: i64) {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        for ((of, _), held) in &accounts.by_id {
            if *of == scope {
                held.bound(rates, now_ms);
            }
        }
    }

    /// Calls that somebody has open.
    pub(super) fn open_calls(&self, scope: Scope, id: String) -> u32 {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts
            .by_id
            .get(&(scope, id))
            .map_or(0, |held| held.account().open())
    }

    /// Calls that somebody has begun since their account was made.
    pub(super) fn begun_calls(&self, scope: Scope, id: String) -> u64 {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts
            .by_id
            .get(&(scope, id))
            .map_or(0, |held| held.account().begun())
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Amount;
    use super::*;

    const NOON: i64 = 1_795_348_800_000; // 2026-11-22T12:00:00Z

    fn money(money: i64) -> Amount {
        Amount { tokens: 0, money }
    }

    fn daily(budget: i64) -> Rates {
        Rates {
            daily_budget: Some(budget),
            ..Rates::default()
        }
    }

    fn of_acme(register: &Register, rates: Rates, now_ms: i64) -> Arc<Account> {
        let held = register.account(Scope::Provider, "acme".into(), rates, now_ms);
        held.account()
    }

    #[test]
    fn other_bounds_forget_neither_what_is_spent_nor_what_is_open() {
        let spent = Spent {
            today: 10,
            this_month: 10,
        };
        let spent = HashMap::from([((Scope::Provider, "acme".into()), spent)]);
        let register = Register::new(spent, NOON);
        let before = of_acme(&register, daily(100), NOON);
        let open = before.admit(money(40), NOON).unwrap();
        let ended = before.admit(money(20), NOON).unwrap();
        ended.settle(money(20), NOON);
        let after = of_acme(&register, daily(90), NOON);
        assert_eq!(after.open(), 1);
        assert!(after.admit(money(21), NOON).is_err(), "70 of 90 are taken");
        // A call that began within the bounds before settles within those after.
        open.settle(money(50), NOON);
        assert!(after.admit(money(11), NOON).is_err());
        assert!(after.admit(money(10), NOON).is_ok());
        assert_eq!(after.open(), 0);
        assert!(Arc::ptr_eq(&after, &of_acme(&register, daily(90), NOON)));
    }

    #[test]
    fn other_bounds_carry_tokens_and_calls_of_the_minute_over() {
        let register = Register::new(HashMap::new(), NOON);
        let rates = |tokens, budget| Rates {
            tokens_per_minute: Some(tokens),
            requests_per_minute: std::num::NonZeroU32::new(3),
            ..daily(budget)
        };
        let tokens = |tokens| Amount { tokens, money: 0 };
        let before = of_acme(&register, rates(1000, 1), NOON);
        before
            .admit(tokens(900), NOON)
            .unwrap()
            .settle(tokens(900), NOON);
        let after = of_acme(&register, rates(2000, 1), NOON);
        assert!(after.admit(tokens(1200), NOON).is_err(), "900 are taken");
        assert!(after.admit(tokens(1100), NOON).is_ok());
        let refused = after.admit(tokens(1), NOON).unwrap_err();
        assert_eq!(refused.bound, "requests_per_minute", "three were made");
    }

    #[test]
    fn what_was_spent_on_the_day_of_the_start_is_not_spent_on_later_ones() {
        let spent = Spent {
            today: 90,
            this_month: 95,
        };
        let spent = HashMap::from([((Scope::Provider, "acme".into()), spent)]);
        let register = Register::new(spent, NOON);
        let rates = Rates {
            monthly_budget: Some(200),
            ..daily(100)
        };
        // Nobody asked for it on the first day.
        let account = of_acme(&register, rates, NOON + DAY_MS);
        assert!(account.admit(money(100), NOON + DAY_MS).is_ok());
        let refused = account.admit(money(106), NOON + DAY_MS).unwrap_err();
        assert_eq!(refused.bound, "daily_budget");
        let rates = Rates {
            daily_budget: None,
            ..rates
        };
        let account = of_acme(&register, rates, NOON + DAY_MS);
        let refused = account.admit(money(106), NOON + DAY_MS).unwrap_err();
        assert_eq!(refused.bound, "monthly_budget");
    }

    #[test]
    fn accounts_of_those_that_are_gone_are_forgotten_unless_they_have_spent() {
        let register = Register::new(HashMap::new(), NOON);
        let rates = daily(100);
        let of = |id: String, now| register.account(Scope::Sandbox, id, rates, now);
        for n in 0..10 {
            let account = of(format!("spender {n}"), NOON);
            account
                .account()
                .admit(money(60), NOON)
                .unwrap()
                .settle(money(60), NOON);
        }
        let kept = of("kept".to_owned(), NOON);
        for n in 0..100_000 {
            of(format!("gone {n}"), NOON);
        }
        let count = || register.accounts.lock().unwrap().by_id.len();
        assert!(count() <= MANY, "{} are left", count());
        assert!(Arc::ptr_eq(&kept, &of("kept".to_owned(), NOON)));
        let spender = of("spender 3".to_owned(), NOON);
        assert!(spender.account().admit(money(50), NOON).is_err());
        drop((spender, kept));
        // On another day there is nothing left to remember of them.
        for n in 0..=MANY {
            of(format!("later {n}"), NOON + DAY_MS);
        }
        let accounts = register.accounts.lock().unwrap();
        let left = |id: &str| {
            accounts
                .by_id
                .contains_key(&(Scope::Sandbox, id.to_owned()))
        };
        assert!(!left("spender 3") && !left("kept"));
    }
}

//! How many calls may be sent again: a share of those that are sent, so that a provider in
//! trouble does not get a multiple of its usual load from us.

use std::sync::atomic::{AtomicI64, Ordering};

/// What a retry costs; a call earns one tenth of it.
const RETRY: i64 = 10;

/// What can be saved up, in retries: enough for a provider that is called rarely.
const MOST: i64 = 20 * RETRY;

/// The budget of one provider.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(MOST))
    }
}

impl RetryBudget {
    /// A call is sent.
    pub(super) fn earn(&self) {
        self.change(|saved| Some((saved + 1).min(MOST)));
    }

    /// A call is to be sent again. `false`: it is not; too many are.
    pub(super) fn take(&self) -> bool {
        self.change(|saved| (saved >= RETRY).then(|| saved - RETRY))
    }

    fn change(&self, to: impl FnMut(i64) -> Option<i64>) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, to)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::RetryBudget;

    #[test]
    fn an_outage_gets_a_tenth_more_calls_at_most() {
        let budget = RetryBudget::default();
        let sent = 1000;
        let repeated = (0..sent)
            .filter(|_| {
                budget.earn();
                budget.take()
            })
            .count();
        let saved = 20;
        assert!(repeated <= saved + sent / 10, "{repeated}");
        assert!(repeated >= sent / 10, "{repeated}");
        assert!(!budget.take());
    }
}

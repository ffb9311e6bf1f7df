//! How many records of its connections a sandbox writes into the ledger. A program chooses
//! the names that it connects to, so without a bound one could fill the host's disk, and a
//! ledger that takes no more stops everybody.

use crate::clock::millis;
use std::time::Duration;

/// Records of connections that a sandbox writes at once.
const BURST: i64 = 512;

/// After that, one per this time: some 3 MB a day.
const EVERY: Duration = Duration::from_secs(10);

/// Connections beyond that share one record per this time.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How a connection is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// By a record of its own.
    Itself,
    /// By one record with all that were only counted so far.
    Together(Further),
    /// Counted, for the next such record.
    Counted,
}

/// Connections without a record of their own since the last one about such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Further {
    pub(super) allowed: u64,
    pub(super) refused: u64,
}

/// What one sandbox may still write.
#[derive(Debug, Default)]
pub(super) struct Ration {
    /// When every record written so far would have had its time, in ms.
    paid_until: i64,
    summarized_ms: Option<i64>,
    further: Further,
}

impl Ration {
    /// Decides about one connection. `own` is whether its command may still write records
    /// of its own.
    pub(super) fn take(&mut self, now_ms: i64, own: bool, allowed: bool) -> Told {
        let paid = match self.paid_until.max(now_ms) {
            // Further ahead than any burst: the clock was put back.
            paid if paid - now_ms > BURST * millis(EVERY) => now_ms,
            paid => paid,
        };
        if own && paid - now_ms <= (BURST - 1) * millis(EVERY) {
            self.paid_until = paid + millis(EVERY);
            return Told::Itself;
        }
        if allowed {
            self.further.allowed = self.further.allowed.saturating_add(1);
        } else {
            self.further.refused = self.further.refused.saturating_add(1);
        }
        let due = self
            .summarized_ms
            .is_none_or(|at| at > now_ms || now_ms.saturating_sub(at) >= millis(SUMMARY_EVERY));
        if !due {
            return Told::Counted;
        }
        self.summarized_ms = Some(now_ms);
        Told::Together(std::mem::take(&mut self.further))
    }

    /// What was counted and not told yet; none of it is kept.
    pub(super) fn rest(&mut self) -> Option<Further> {
        let further = std::mem::take(&mut self.further);
        (further != Further::default()).then_some(further)
    }

    /// A record of many could not be written: they are counted for the next one, which is
    /// due at once.
    pub(super) fn give_back(&mut self, further: Further) {
        self.further.allowed = self.further.allowed.saturating_add(further.allowed);
        self.further.refused = self.further.refused.saturating_add(further.refused);
        self.summarized_ms = None;
    }

    /// Whether it is as good as new, so that it need not be kept.
    pub(super) fn is_full(&self, now_ms: i64) -> bool {
        self.paid_until <= now_ms && self.further == Further::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, EVERY, Further, Ration, SUMMARY_EVERY, Told};
    use crate::clock::millis;

    #[test]
    fn a_sandbox_writes_a_burst_of_records_and_then_few_however_often_it_connects() {
        let mut ration = Ration::default();
        let (mut own, mut together, mut told) = (0, 0, 0);
        let day = 24 * 3600;
        // Ten connections a second, to a new name each, from new commands each.
        for tenth in 0..day * 10 {
            match ration.take(tenth * 100, true, true) {
                Told::Itself => own += 1,
                Told::Together(further) => {
                    together += 1;
                    told += further.allowed;
                }
                Told::Counted => {}
            }
        }
        let most = BURST + day * 1000 / millis(EVERY) + 1;
        assert!(own <= most && own > most - 10, "{own} of {most}");
        assert!(together <= day * 1000 / millis(SUMMARY_EVERY) + 1);
        let left = u64::try_from(day * 10 - own).unwrap() - told;
        assert_eq!(ration.further.allowed, left, "nothing is lost");
    }

    #[test]
    fn a_clock_that_is_put_back_keeps_no_connection_from_the_ledger() {
        let mut ration = Ration::default();
        let day = 24 * 3600 * 1000;
        assert_eq!(ration.take(day, true, true), Told::Itself);
        assert!(matches!(ration.take(day, false, true), Told::Together(_)));
        // A day earlier.
        assert_eq!(ration.take(0, true, true), Told::Itself);
        let one = Further {
            allowed: 1,
            refused: 0,
        };
        assert_eq!(ration.take(0, false, true), Told::Together(one));
        assert_eq!(ration.take(1, false, true), Told::Counted);
    }

    #[test]
    fn what_has_no_record_of_its_own_is_in_the_next_one_about_many() {
        let mut ration = Ration::default();
        let one = Further {
            allowed: 1,
            refused: 0,
        };
        assert_eq!(ration.take(0, true, true), Told::Itself);
        assert_eq!(
            ration.take(1, false, true),
            Told::Together(one),
            "the first one beyond is told before it is made"
        );
        assert_eq!(ration.take(2, false, true), Told::Counted);
        assert_eq!(ration.take(3, false, false), Told::Counted);
        let both = Further {
            allowed: 2,
            refused: 1,
        };
        let later = 1 + millis(SUMMARY_EVERY);
        assert_eq!(ration.take(later, false, true), Told::Together(both));
        ration.give_back(both);
        assert!(!ration.is_full(i64::MAX));
        let mut rest = Ration::default();
        assert_eq!(rest.rest(), None);
        rest.give_back(both);
        assert_eq!((rest.rest(), rest.rest()), (Some(both), None));
        let more = Further {
            allowed: 2,
            refused: 2,
        };
        assert_eq!(ration.take(later + 1, false, false), Told::Together(more));
        assert!(ration.is_full(later + 2 * millis(EVERY)));
    }
}

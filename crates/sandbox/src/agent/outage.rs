//! Waiting for a hypervisor that is away: a crash or a restart of it stops no sandbox
//! (arch §4), so what a run asked of it is asked again once it is back.

use std::time::Duration;

use tokio::time::Instant;

use super::model::RetryPolicy;

/// Longest pause between two tries: who comes back should not be kept waiting.
const LONGEST: Duration = Duration::from_secs(5);

/// One absence, from its first sign on.
#[derive(Debug)]
pub(crate) struct Outage {
    retries: RetryPolicy,
    since: Option<Instant>,
    pause: Duration,
}

impl Outage {
    pub(crate) const fn new(retries: RetryPolicy) -> Self {
        Self {
            retries,
            since: None,
            pause: retries.first,
        }
    }

    /// Whether the absence has only begun.
    pub(crate) const fn is_new(&self) -> bool {
        self.since.is_none()
    }

    /// It answered again.
    pub(crate) const fn over(&mut self) {
        self.since = None;
        self.pause = self.retries.first;
    }

    /// The pause before another try; `None` once patience is at its end.
    pub(crate) fn pause(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.retries.patience {
            return None;
        }
        let pause = self.pause.min(LONGEST);
        self.pause = self.pause.saturating_mul(2).min(LONGEST);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LONGEST, Outage};
    use crate::agent::RetryPolicy;

    #[tokio::test(start_paused = true)]
    async fn patience_has_an_end_and_begins_anew_after_an_answer() {
        let mut outage = Outage::new(RetryPolicy::default());
        let mut waited = Duration::ZERO;
        while let Some(pause) = outage.pause() {
            assert!(pause <= LONGEST);
            tokio::time::sleep(pause).await;
            waited += pause;
        }
        let patience = RetryPolicy::default().patience;
        assert!(waited >= patience && waited < patience + LONGEST);
        outage.over();
        assert_eq!(outage.pause(), Some(RetryPolicy::default().first));
    }
}

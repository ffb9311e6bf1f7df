//! What to do when `accept` fails: wait, and say so, but not each time.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

/// Pause after `accept` failed, for instance because no descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Failures are told this often at most: the log is not to grow with them.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The failures of one listener, and when they were last told.
#[derive(Debug)]
pub(super) struct Failures {
    listener: &'static str,
    told: Option<Instant>,
    since: u64,
}

impl Failures {
    /// None yet of a listener with this name.
    pub(super) fn of(listener: &'static str) -> Self {
        Self {
            listener,
            told: None,
            since: 0,
        }
    }

    /// Tells it, or counts it, and waits for as long as it takes to be worth another try.
    pub(super) async fn wait_after(&mut self, error: &io::Error) {
        self.note(error, Instant::now());
        tokio::time::sleep(PAUSE).await;
    }

    fn note(&mut self, error: &io::Error, now: Instant) {
        self.since += 1;
        let told_lately = |told| now.duration_since(told) < TELL_EVERY;
        if self.told.is_some_and(told_lately) {
            return;
        }
        let remedy = match Errno::from_io_error(error) {
            Some(Errno::MFILE) => {
                "raise the limit of open files (LimitNOFILE= of the service), or lower listen.max_connections"
            }
            Some(Errno::NFILE) => "raise fs.file-max of the host",
            _ => "the connections wait, and those that are open go on",
        };
        let (listener, failures) = (self.listener, self.since);
        tracing::warn!(%error, listener, failures, remedy, "cannot accept connections");
        self.told = Some(now);
        self.since = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_are_told_once_a_minute_with_their_number() {
        let mut failures = Failures::of("test");
        let none_left = io::Error::from(Errno::MFILE);
        let begun = Instant::now();
        let mut told = Vec::new();
        while begun.elapsed() < 2 * TELL_EVERY {
            failures.wait_after(&none_left).await;
            if failures.since == 0 {
                told.push(begun.elapsed().as_secs());
            }
        }
        assert_eq!(told, [0, TELL_EVERY.as_secs()]);
        assert!(failures.since > 500);
    }
}

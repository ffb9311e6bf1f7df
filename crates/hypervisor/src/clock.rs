//! Time as a parameter (style 11).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// A source of the present time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// The system's clocks; [`Clock::awake_ms`] counts from here.
    System(Instant),
    /// Set by tests.
    Fixed(Arc<Fixed>),
}

#[derive(Debug)]
struct Fixed {
    now: AtomicI64,
    awake: AtomicI64,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System(Instant::now()))
    }

    /// A clock that stands still until it is moved.
    #[must_use]
    pub fn fixed(unix_ms: i64) -> Self {
        Self(Source::Fixed(Arc::new(Fixed {
            now: AtomicI64::new(unix_ms),
            awake: AtomicI64::new(0),
        })))
    }

    /// Moves a fixed clock; the system's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Source::Fixed(fixed) = &self.0 {
            fixed.now.fetch_add(millis(by), Ordering::Relaxed);
            fixed.awake.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Moves a fixed clock as if the machine had been suspended for so long.
    pub fn suspend(&self, by: Duration) {
        if let Source::Fixed(fixed) = &self.0 {
            fixed.now.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Now, Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::Fixed(fixed) => fixed.now.load(Ordering::Relaxed),
            Source::System(_) => jiff::Timestamp::now().as_millisecond(),
        }
    }

    /// Milliseconds since some moment of this process, without the time that the machine was
    /// suspended and whatever is done to its date (`CLOCK_MONOTONIC`). Only for what nobody
    /// outside this process counts along.
    #[must_use]
    pub fn awake_ms(&self) -> i64 {
        match &self.0 {
            Source::Fixed(fixed) => fixed.awake.load(Ordering::Relaxed),
            Source::System(began) => millis(began.elapsed()),
        }
    }
}

/// A length of time in milliseconds, as the database counts them.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time of the database in RFC 3339, for JSON.
#[must_use]
pub fn rfc3339(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms)
        .map_or_else(|_| String::new(), |time| time.to_string())
}

//! Time as a parameter (style 11).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A source of the present time. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Set by tests; the system's clock otherwise.
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until it is moved.
    #[must_use]
    pub fn fixed(unix_ms: i64) -> Self {
        Self {
            fixed: Some(Arc::new(AtomicI64::new(unix_ms))),
        }
    }

    /// Moves a fixed clock; the system's clock stays as it is.
    pub fn advance(&self, by: std::time::Duration) {
        if let Some(fixed) = &self.fixed {
            fixed.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Now, Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &self.fixed {
            Some(fixed) => fixed.load(Ordering::Relaxed),
            None => jiff::Timestamp::now().as_millisecond(),
        }
    }
}

/// A length of time in milliseconds, as the database counts them.
#[must_use]
pub fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time of the database in RFC 3339, for JSON.
#[must_use]
pub fn rfc3339(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms)
        .map_or_else(|_| String::new(), |time| time.to_string())
}

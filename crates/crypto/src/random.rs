//! Randomness as a parameter (style 11).

use std::fmt;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

/// The random source failed. Nothing can be done safely without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the system's random source failed")]
pub struct RandomError;

/// A source of unpredictable bytes: the system's in the product, a chosen one in tests.
pub trait Random: Send + Sync {
    /// Fills the whole buffer.
    ///
    /// # Errors
    /// The source failed; the buffer's content must not be used.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError>;
}

/// The operating system's random source.
#[derive(Clone, Default)]
pub struct OsRandom(SystemRandom);

impl OsRandom {
    /// The source; opening it costs nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for OsRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OsRandom")
    }
}

impl Random for OsRandom {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        self.0.fill(buffer).map_err(|_| RandomError)
    }
}

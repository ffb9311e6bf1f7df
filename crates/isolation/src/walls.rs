//! The walls: how namespaces, root, Landlock, seccomp and capabilities are set up.

pub(crate) mod capabilities;
pub(crate) mod etc;
mod facts;
pub(crate) mod filter;
pub(crate) mod hints;
pub(crate) mod landlock;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod root;

use std::io;

use serde::{Deserialize, Serialize};

/// A wall, or a step towards one, that could not be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("cannot {step}: {reason}")]
pub(crate) struct WallError {
    /// What was tried, as an infinitive.
    pub(crate) step: String,
    /// What the kernel said.
    pub(crate) reason: String,
    /// The errno, when there was one.
    pub(crate) errno: Option<i32>,
}

/// Adds to an I/O error what was tried.
pub(crate) trait Step<T> {
    /// `step` completes the sentence "cannot …".
    fn step(self, step: impl FnOnce() -> String) -> Result<T, WallError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, WallError> {
        self.map_err(|error| {
            let error = error.into();
            WallError {
                step: step(),
                reason: error.to_string(),
                errno: error.raw_os_error(),
            }
        })
    }
}

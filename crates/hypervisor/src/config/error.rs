//! Why a configuration is refused.

use std::path::PathBuf;

/// Why a configuration is refused. Every text names the key, the value and what would be valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: give the path of a readable TOML file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, as the parser says it.
        message: String,
    },
    /// An unknown key, or a value of another type.
    #[error("the configuration is refused: {message}")]
    Shape {
        /// Which key, and what would be valid.
        message: String,
    },
    /// An environment variable that names no key.
    #[error("the environment variable {name} is refused: {message}")]
    Variable {
        /// The variable.
        name: String,
        /// What would be valid.
        message: String,
    },
    /// A value that cannot be.
    #[error("{key} = {value:?} is refused: {problem}; valid is {valid}")]
    Value {
        /// The key, with dots.
        key: String,
        /// The value as given.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What would be valid.
        valid: String,
    },
}

impl ConfigError {
    /// A refusal of one value.
    pub(crate) fn value(
        key: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
        valid: impl Into<String>,
    ) -> Self {
        Self::Value {
            key: key.into(),
            value: value.to_string(),
            problem: problem.into(),
            valid: valid.into(),
        }
    }
}

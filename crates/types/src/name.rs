//! User names. A user name is a DNS label because it is part of a host name (arch §2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name: a DNS label has 63 octets (RFC 1035 §2.3.4), and the longest prefix
/// that we put before a name, `65535--dev--`, takes 12 of them.
const MAX_LENGTH: usize = 51;

/// Names that would collide with hosts that an installation uses itself.
const RESERVED: &[&str] = &[
    "admin",
    "api",
    "app",
    "auth",
    "choir",
    "console",
    "control",
    "dev",
    "live",
    "localhost",
    "login",
    "run",
    "runtime",
    "static",
    "status",
    "system",
    "www",
];

/// A valid user name: a lower-case DNS label without `--`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

/// Why a text cannot be a user name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNameError {
    /// Nothing was given.
    Empty,
    /// Longer than 51 characters.
    TooLong,
    /// Something other than `a`–`z`, `0`–`9` and `-`.
    Character,
    /// Does not start with a letter, or ends with `-`.
    Edge,
    /// Contains `--`, which separates a name from its prefix in a host name.
    DoubleHyphen,
    /// Stands for a host of the installation itself.
    Reserved,
}

impl fmt::Display for UserNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a user name is needed",
            Self::TooLong => "a user name has at most 51 characters",
            Self::Character => "a user name has only the letters a-z, the digits 0-9 and hyphens",
            Self::Edge => "a user name starts with a letter and does not end with a hyphen",
            Self::DoubleHyphen => "a user name has no two hyphens in a row",
            Self::Reserved => "this name is reserved",
        })
    }
}

impl std::error::Error for UserNameError {}

impl UserName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = UserNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(UserNameError::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(UserNameError::TooLong);
        }
        if !text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return Err(UserNameError::Character);
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) || text.ends_with('-') {
            return Err(UserNameError::Edge);
        }
        if text.contains("--") {
            return Err(UserNameError::DoubleHyphen);
        }
        if RESERVED.contains(&text) {
            return Err(UserNameError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for UserName {
    type Error = UserNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{UserName, UserNameError};

    fn refusal(text: &str) -> UserNameError {
        text.parse::<UserName>().unwrap_err()
    }

    #[test]
    fn accepts_dns_labels() {
        for name in ["alice", "a", "bob-2", "x1"] {
            assert_eq!(name.parse::<UserName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_what_would_confuse_a_host_name() {
        assert_eq!(refusal(""), UserNameError::Empty);
        assert_eq!(refusal("Alice"), UserNameError::Character);
        assert_eq!(refusal("a.b"), UserNameError::Character);
        assert_eq!(refusal("1a"), UserNameError::Edge);
        assert_eq!(refusal("a-"), UserNameError::Edge);
        assert_eq!(refusal("dev--alice"), UserNameError::DoubleHyphen);
        assert_eq!(refusal("xn--a"), UserNameError::DoubleHyphen);
        assert_eq!(refusal("admin"), UserNameError::Reserved);
        assert_eq!(refusal(&"a".repeat(52)), UserNameError::TooLong);
    }
}

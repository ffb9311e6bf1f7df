//! Limits of commands, sandboxes and users, and what reaching one looks like.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedResource {
    /// Memory, in bytes; what lies in `/tmp` counts.
    Memory,
    /// Processes and threads.
    Processes,
    /// Bytes on disk.
    DiskBytes,
    /// Files, directories and links on disk.
    DiskEntries,
}

impl LimitedResource {
    /// As it stands in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::DiskBytes => "disk_bytes",
            Self::DiskEntries => "disk_entries",
        }
    }

    /// A value of this resource for people: `512 MiB`, or `64 processes`.
    #[must_use]
    pub fn describe(self, value: u64) -> String {
        match self {
            Self::Memory => format!("{} of memory", format_bytes(value)),
            Self::Processes => format!("{value} processes"),
            Self::DiskBytes => format!("{} on disk", format_bytes(value)),
            Self::DiskEntries => format!("{value} files"),
        }
    }
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    /// One command's.
    Command,
    /// A sandbox's: its guest and all its commands together.
    Sandbox,
    /// A user's: all their sandboxes together.
    User,
}

impl LimitScope {
    /// As it stands in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Sandbox => "sandbox",
            Self::User => "user",
        }
    }
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LimitReached {
    /// Of what.
    pub resource: LimitedResource,
    /// Whose.
    pub scope: LimitScope,
    /// The limit, in bytes or in number.
    pub limit: u64,
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.scope {
            LimitScope::Command => "the command's",
            LimitScope::Sandbox => "the sandbox's",
            LimitScope::User => "the user's",
        };
        write!(
            f,
            "it reached {whose} limit of {}",
            self.resource.describe(self.limit)
        )
    }
}

/// The largest size that [`parse_bytes`] takes.
const MAX_BYTES: u64 = 1 << 60;

/// Reads a size: a number of bytes, or one with `K`, `M`, `G` or `T`, each a power of 1024,
/// with or without `iB` or `B` behind it. `None` when it is no size, or above 1 EiB.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split)?;
    let number: u64 = number.parse().ok()?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= MAX_BYTES)
}

/// A size for people: the largest unit in which it is a whole number below 10,240, or one
/// with a decimal.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (size, unit) in UNITS {
        if bytes >= size {
            let tenths = u128::from(bytes) * 10 / u128::from(size);
            return if tenths.is_multiple_of(10) {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::{LimitReached, LimitScope, LimitedResource, format_bytes, parse_bytes};

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1 GiG", "99999999T", "é"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        assert_eq!(format_bytes(512 << 20), "512 MiB");
        assert_eq!(format_bytes(3 << 29), "1.5 GiB");
        assert_eq!(format_bytes(7), "7 bytes");
    }

    #[test]
    fn a_reached_limit_reads_as_a_sentence() {
        let reached = LimitReached {
            resource: LimitedResource::Memory,
            scope: LimitScope::Command,
            limit: 64 << 20,
        };
        assert_eq!(
            reached.to_string(),
            "it reached the command's limit of 64 MiB of memory"
        );
    }
}

//! What the two processes of the copier say to each other: the reader, which is the source's
//! user and can reach nothing else, and the writer, which is the target's.

use serde::{Deserialize, Serialize};

use crate::copying::Tally;
use crate::protocol::Refusal;

/// What the writer asks the reader to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Walk everything and count.
    Count,
    /// Walk everything and send what is new since the last pass. When `last`, the source
    /// stands still, and what changes all the same is an error.
    Pass {
        /// Whether no other pass follows.
        last: bool,
    },
}

/// One step of the copy. Names are bytes, written as the characters U+0000 to U+00FF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// Go into a directory of the present one, made if missing.
    Enter(String),
    /// These names are in the present directory; when it is left, all others go.
    Keep(Vec<String>),
    /// Leave the present directory. A memfd with its extended attributes rides along when
    /// it has any.
    Leave(Meta),
    /// A file of the present directory. The file, open for reading, rides along, and a memfd
    /// with its extended attributes when it has any.
    File {
        /// Its name.
        name: String,
        /// Its length in bytes; what is behind it is not copied.
        size: u64,
        /// The rest.
        meta: Meta,
    },
    /// A symbolic link.
    Link {
        /// Its name.
        name: String,
        /// Where it points to, as it stands there.
        to: String,
        /// Only the times count.
        meta: Meta,
    },
    /// The answer to [`Ask::Count`].
    Counted {
        /// What was found.
        tally: Tally,
        /// Whether a file's change time tells that it has changed.
        precise: bool,
    },
    /// The pass is over.
    Over(Tally),
    /// The reader gives up.
    Failed(Refusal),
}

/// What is kept of a file beside its bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Permission bits; set-id and sticky bits are dropped.
    pub(super) mode: u32,
    /// Modification time: seconds and nanoseconds.
    pub(super) mtime: (i64, i64),
}

/// Extended attributes, as they travel in a memfd.
pub(super) type Attributes = Vec<(String, String)>;

/// Bytes as text: each byte becomes the character with its number.
pub(super) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The bytes that [`to_text`] was given; `None` when there is another character.
pub(super) fn to_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{to_bytes, to_text};

    #[test]
    fn every_byte_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(to_bytes(&to_text(&bytes)), Some(bytes));
        assert_eq!(to_bytes("\u{100}"), None);
    }
}

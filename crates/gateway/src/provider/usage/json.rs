//! Finding usage objects in JSON text as it passes.

use std::sync::LazyLock;

use memchr::memchr2;
use memchr::memmem::Finder;

/// Longest usage object, in bytes; real ones have a few hundred.
pub(super) const MAX_USAGE: usize = 8 << 10;

/// Bytes that room is made for at once; most are no longer.
const USUAL: usize = 256;

/// Longest key that is compared, in bytes.
const MAX_KEY: usize = 40;

/// How the key of a usage object begins; looked for in every event of every stream.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage"));

/// Finds usage objects in JSON text at the first two levels, without keeping anything else.
#[derive(Debug, Default)]
pub(super) struct Json {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Of the first two levels: objects, not arrays.
    object: [bool; 2],
    /// Of the first two levels: the next string is a key.
    expects_key: [bool; 2],
    key: Vec<u8>,
    reads_key: bool,
    /// The last key of the first two levels.
    place: [Key; 2],
    captured: Vec<u8>,
    /// Depth at which the object being captured began.
    capturing: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Key {
    Usage,
    /// An object that may hold a usage object: of a reply that has ended,
    Response,
    /// and of one that begins.
    Message,
    #[default]
    Other,
}

/// Whether a whole JSON text may hold a usage object: the key with an object behind it. What
/// stands in a string has a `\` before its quotation marks.
pub(super) fn may_tell(text: &[u8]) -> bool {
    USAGE.find_iter(text).any(|at| {
        let after = text.get(at + 6..).unwrap_or_default();
        let after = after.strip_prefix(b"Metadata").unwrap_or(after);
        after
            .strip_prefix(b"\"")
            .and_then(|after| after.trim_ascii_start().strip_prefix(b":"))
            .is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
    })
}

impl Json {
    /// Takes the next bytes, and gives the usage objects that end in them to `found`, and
    /// whether each is of a message that only begins.
    pub(super) fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8], bool)) {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            if self.in_string {
                let (text, left) = rest.split_at(self.string(rest).min(rest.len()));
                self.capture(text);
                rest = left;
                continue;
            }
            rest = after;
            self.capture(std::slice::from_ref(byte));
            let mut is_whole = false;
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.key.clear();
                    self.reads_key = self
                        .depth
                        .checked_sub(1)
                        .and_then(|level| self.expects_key.get(level))
                        .copied()
                        .unwrap_or(false);
                }
                b'{' => self.open(true),
                b'[' => self.open(false),
                b'}' | b']' => is_whole = self.close(),
                b',' => self.next_item(),
                b':' => self.expect_key(self.depth, false),
                _ => {}
            }
            if is_whole {
                found(&self.captured, self.place[0] == Key::Message);
            }
        }
    }

    fn capture(&mut self, text: &[u8]) {
        if self.capturing.is_none() {
            return;
        }
        if self.captured.len() + text.len() <= MAX_USAGE {
            self.captured.extend_from_slice(text);
        } else {
            self.capturing = None;
            self.captured.clear();
        }
    }

    /// Reads on in a string, and tells how far; past one byte at least.
    fn string(&mut self, rest: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            return 1;
        }
        let plain = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        self.read_key(rest.get(..plain).unwrap_or_default());
        match rest.get(plain) {
            None => return plain,
            Some(b'\\') => {
                self.escaped = true;
                // No key that is looked for has one.
                self.read_key(b"\\");
                return plain + 1;
            }
            Some(_) => {}
        }
        self.in_string = false;
        if std::mem::take(&mut self.reads_key) {
            self.set_place(match self.key.as_slice() {
                b"usage" | b"usageMetadata" | b"amazon-bedrock-invocationMetrics" => Key::Usage,
                b"response" => Key::Response,
                b"message" => Key::Message,
                _ => Key::Other,
            });
        }
        plain + 1
    }

    fn read_key(&mut self, text: &[u8]) {
        if self.reads_key {
            self.key
                .reserve_exact(MAX_KEY.saturating_sub(self.key.len()));
            let room = MAX_KEY.saturating_sub(self.key.len());
            self.key.extend(text.iter().take(room));
        }
    }

    fn open(&mut self, object: bool) {
        let wanted = match self.depth {
            // A Gemini stream without SSE is an array of replies.
            1 => self.object[0] && self.place[0] == Key::Usage,
            2 if self.object[0] => {
                matches!(self.place, [Key::Response | Key::Message, Key::Usage])
            }
            2 => self.place[1] == Key::Usage,
            _ => false,
        };
        if object && wanted && self.capturing.is_none() {
            self.captured.clear();
            self.captured.reserve(USUAL);
            self.captured.push(b'{');
            self.capturing = Some(self.depth);
        }
        if let Some(is_object) = self.object.get_mut(self.depth) {
            *is_object = object;
        }
        self.depth += 1;
        self.set_place(Key::Other);
        self.expect_key(self.depth, object);
    }

    fn next_item(&mut self) {
        let object = self
            .depth
            .checked_sub(1)
            .and_then(|level| self.object.get(level))
            .copied()
            .unwrap_or(false);
        self.set_place(Key::Other);
        self.expect_key(self.depth, object);
    }

    fn set_place(&mut self, key: Key) {
        if let Some(place) = self
            .depth
            .checked_sub(1)
            .and_then(|level| self.place.get_mut(level))
        {
            *place = key;
        }
    }

    /// Whether what was captured is whole.
    fn close(&mut self) -> bool {
        self.depth = self.depth.saturating_sub(1);
        self.expect_key(self.depth, false);
        if self.capturing == Some(self.depth) {
            self.capturing = None;
            return true;
        }
        false
    }

    fn expect_key(&mut self, depth: usize, expected: bool) {
        if let Some(expects) = depth
            .checked_sub(1)
            .and_then(|level| self.expects_key.get_mut(level))
        {
            *expects = expected;
        }
    }
}

//! What a reply says it cost, read from the bytes as they pass.
//!
//! Nothing of a reply is kept but its usage object (OpenAI: `usage`, in the Responses API
//! `response.usage`; Anthropic: `usage`, `message.usage`; Gemini: `usageMetadata`). Events of
//! a stream may be split at any byte.

use serde::Deserialize;

/// Longest usage object, in bytes; real ones have a few hundred.
const MAX_USAGE: usize = 8 << 10;

/// Longest key that is compared, in bytes.
const MAX_KEY: usize = 24;

/// Tokens of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input: u64,
    /// Tokens written, hidden reasoning included.
    pub output: u64,
    /// Of `input`, those that came from a cache.
    pub cached: u64,
}

/// Follows a reply.
#[derive(Debug)]
pub struct UsageMeter {
    lines: Option<Lines>,
    json: Json,
    seen: Option<Usage>,
    /// Events that carried data; about one token of output each.
    events: u64,
}

impl UsageMeter {
    /// For a reply of this content type.
    #[must_use]
    pub fn new(event_stream: bool) -> Self {
        Self {
            lines: event_stream.then(Lines::default),
            json: Json::default(),
            seen: None,
            events: 0,
        }
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Some(lines) = &mut self.lines else {
            for byte in bytes {
                if let Some(object) = self.json.feed(*byte) {
                    take(&mut self.seen, object);
                }
            }
            return;
        };
        for byte in bytes {
            match lines.feed(*byte) {
                Line::Data(byte) => {
                    if let Some(object) = self.json.feed(byte) {
                        take(&mut self.seen, object);
                    }
                }
                Line::EventEnd => {
                    self.events += 1;
                    self.json = Json::default();
                }
                Line::Nothing => {}
            }
        }
    }

    /// What the reply said it cost, if it did.
    #[must_use]
    pub const fn reported(&self) -> Option<Usage> {
        self.seen
    }

    /// Events with data so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }
}

fn take(seen: &mut Option<Usage>, object: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<Raw>(object) else {
        return;
    };
    let usage = seen.get_or_insert_default();
    // A stream tells parts at different times, and totals that only grow.
    usage.input = usage.input.max(raw.input());
    usage.output = usage.output.max(raw.output());
    usage.cached = usage.cached.max(raw.cached());
}

/// The usage objects of all dialects in one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    #[serde(rename = "promptTokenCount")]
    prompt_token_count: Option<u64>,
    #[serde(rename = "candidatesTokenCount")]
    candidates_token_count: Option<u64>,
    #[serde(rename = "thoughtsTokenCount")]
    thoughts_token_count: Option<u64>,
    #[serde(rename = "cachedContentTokenCount")]
    cached_content_token_count: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Raw {
    fn input(&self) -> u64 {
        // Anthropic counts what was written to and read from its cache apart.
        let apart = self
            .cache_creation_input_tokens
            .unwrap_or(0)
            .saturating_add(self.cache_read_input_tokens.unwrap_or(0));
        self.prompt_tokens
            .or(self.prompt_token_count)
            .or(self.input_tokens)
            .unwrap_or(0)
            .saturating_add(apart)
    }

    fn output(&self) -> u64 {
        self.completion_tokens
            .or(self.output_tokens)
            .or(self.candidates_token_count)
            .unwrap_or(0)
            .saturating_add(self.thoughts_token_count.unwrap_or(0))
    }

    fn cached(&self) -> u64 {
        let details = self
            .prompt_tokens_details
            .as_ref()
            .or(self.input_tokens_details.as_ref());
        details
            .and_then(|details| details.cached_tokens)
            .or(self.cache_read_input_tokens)
            .or(self.cached_content_token_count)
            .unwrap_or(0)
    }
}

/// Takes an event stream apart (WHATWG HTML §9.2.6): lines end with CR, LF or both.
#[derive(Debug, Default)]
struct Lines {
    field: Field,
    after_cr: bool,
    line_has_bytes: bool,
    has_data: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name(usize),
    Space,
    Value,
    Other,
}

impl Default for Field {
    fn default() -> Self {
        Self::Name(0)
    }
}

enum Line {
    Data(u8),
    EventEnd,
    Nothing,
}

impl Lines {
    fn feed(&mut self, byte: u8) -> Line {
        if std::mem::take(&mut self.after_cr) && byte == b'\n' {
            return Line::Nothing;
        }
        if matches!(byte, b'\r' | b'\n') {
            self.after_cr = byte == b'\r';
            let empty = !std::mem::take(&mut self.line_has_bytes);
            self.field = Field::default();
            if empty && std::mem::take(&mut self.has_data) {
                return Line::EventEnd;
            }
            return Line::Nothing;
        }
        self.line_has_bytes = true;
        match self.field {
            Field::Name(matched) => {
                self.field = match b"data:".get(matched) {
                    Some(expected) if *expected == byte && matched == 4 => {
                        self.has_data = true;
                        Field::Space
                    }
                    Some(expected) if *expected == byte => Field::Name(matched + 1),
                    _ => Field::Other,
                };
                Line::Nothing
            }
            Field::Space => {
                self.field = Field::Value;
                if byte == b' ' {
                    Line::Nothing
                } else {
                    Line::Data(byte)
                }
            }
            Field::Value => Line::Data(byte),
            Field::Other => Line::Nothing,
        }
    }
}

/// Finds usage objects in JSON text at the first two levels, without keeping anything else.
#[derive(Debug, Default)]
struct Json {
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
    /// An object that may hold a usage object.
    Envelope,
    #[default]
    Other,
}

impl Json {
    /// The complete usage object that ends with this byte.
    fn feed(&mut self, byte: u8) -> Option<&[u8]> {
        if self.capturing.is_some() {
            if self.captured.len() < MAX_USAGE {
                self.captured.push(byte);
            } else {
                self.capturing = None;
                self.captured.clear();
            }
        }
        if self.in_string {
            self.string(byte);
            return None;
        }
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
            b'}' | b']' => return self.close(),
            b',' => self.next_item(),
            b':' => self.expect_key(self.depth, false),
            _ => {}
        }
        None
    }

    fn string(&mut self, byte: u8) {
        if std::mem::take(&mut self.escaped) {
            return;
        }
        match byte {
            b'\\' => self.escaped = true,
            b'"' => {
                self.in_string = false;
                if std::mem::take(&mut self.reads_key) {
                    self.set_place(match self.key.as_slice() {
                        b"usage" | b"usageMetadata" => Key::Usage,
                        b"response" | b"message" => Key::Envelope,
                        _ => Key::Other,
                    });
                }
            }
            _ if self.reads_key && self.key.len() < MAX_KEY => self.key.push(byte),
            _ => {}
        }
    }

    fn open(&mut self, object: bool) {
        let wanted = match self.depth {
            // A Gemini stream without SSE is an array of replies.
            1 => self.object[0] && self.place[0] == Key::Usage,
            2 if self.object[0] => self.place == [Key::Envelope, Key::Usage],
            2 => self.place[1] == Key::Usage,
            _ => false,
        };
        if object && wanted && self.capturing.is_none() {
            self.captured.clear();
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

    fn close(&mut self) -> Option<&[u8]> {
        self.depth = self.depth.saturating_sub(1);
        self.expect_key(self.depth, false);
        if self.capturing == Some(self.depth) {
            self.capturing = None;
            return Some(&self.captured);
        }
        None
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

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;

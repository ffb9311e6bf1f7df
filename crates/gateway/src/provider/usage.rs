//! What a reply says it cost, read from the bytes as they pass.
//!
//! Nothing of a reply is kept but its usage object (OpenAI: `usage`, in the Responses API
//! `response.usage`; Anthropic: `usage`, `message.usage`; Gemini: `usageMetadata`; Bedrock:
//! `usage`, in a model's own stream `amazon-bedrock-invocationMetrics` as well). Events of a
//! stream may be split at any byte. A usage object in which no count is known is none: what
//! was used is estimated then, not free.

mod frames;
mod json;

use memchr::memchr2;
use serde::Deserialize;

use frames::Frames;
use json::{Json, may_tell};

/// Bytes of a JSON text that make about one token.
const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input: u64,
    /// Tokens written, hidden reasoning included.
    pub output: u64,
    /// Of `input`, those that came from a cache.
    pub cached: u64,
    /// Of `input`, those that were put into a cache.
    pub stored: u64,
    /// Of `stored`, those that are kept there for an hour.
    pub stored_long: u64,
}

/// Follows a reply.
#[derive(Debug)]
pub struct UsageMeter {
    format: Format,
    json: Json,
    seen: Option<Usage>,
    /// What was seen is of a stream's beginning; how much was written is still to be told.
    begins: bool,
    /// Events that carried data; about one token of output each.
    events: u64,
}

#[derive(Debug)]
enum Format {
    Events(Lines),
    Frames(Frames),
    /// Nothing of it has come yet that tells.
    Unknown,
    /// One JSON text, of so many bytes.
    Text(u64),
    /// Neither: audio, say.
    Other,
}

impl UsageMeter {
    /// For a reply that is an event stream, or is not. One of Amazon's is known by its first
    /// byte, which no JSON text has.
    #[must_use]
    pub fn new(event_stream: bool) -> Self {
        Self {
            format: if event_stream {
                Format::Events(Lines::default())
            } else {
                Format::Unknown
            },
            json: Json::default(),
            seen: None,
            begins: false,
            events: 0,
        }
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.format, Format::Unknown) {
            self.format = match bytes.trim_ascii_start().first() {
                None => return,
                Some(b'{' | b'[') => Format::Text(0),
                Some(0) => Format::Frames(Frames::default()),
                Some(_) => Format::Other,
            };
        }
        let Self {
            format,
            json,
            seen,
            begins,
            events,
        } = self;
        let mut found = |object: &[u8], of_beginning: bool| {
            if take(seen, object) {
                *begins = of_beginning;
            }
        };
        match format {
            Format::Events(lines) => lines.feed(bytes, json, events, found),
            Format::Frames(frames) => frames.feed(bytes, |payload| {
                *events += 1;
                Json::default().feed(payload, &mut found);
            }),
            Format::Text(length) => {
                *length += bytes.len() as u64;
                json.feed(bytes, found);
            }
            Format::Unknown | Format::Other => {}
        }
    }

    /// What the reply said it cost, if it did. Of a stream that told what it read and not, by
    /// an error in the middle of it, what it wrote, the events are counted.
    #[must_use]
    pub fn reported(&self) -> Option<Usage> {
        let mut usage = self.seen?;
        if self.begins {
            usage.output = usage.output.max(self.events);
        }
        Some(usage)
    }

    /// Events with data so far, about a token of output each; of a JSON text that does not say
    /// what it cost, about how many tokens it has.
    #[must_use]
    pub const fn events(&self) -> u64 {
        match (&self.format, self.seen) {
            (Format::Text(length), None) => length.div_ceil(BYTES_PER_TOKEN),
            _ => self.events,
        }
    }
}

/// Whether it tells how much was written.
fn take(seen: &mut Option<Usage>, object: &[u8]) -> bool {
    let Ok(raw) = serde_json::from_slice::<Raw>(object) else {
        return false;
    };
    if raw.read().is_none() && raw.written().is_none() {
        return false;
    }
    let usage = seen.get_or_insert_default();
    // A stream tells parts at different times, and totals that only grow.
    usage.input = usage.input.max(raw.input());
    usage.output = usage.output.max(raw.output());
    usage.cached = usage.cached.max(raw.cached());
    usage.stored = usage.stored.max(raw.stored());
    usage.stored_long = usage.stored_long.max(raw.stored_long());
    raw.written().is_some()
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
    cache_creation: Option<Creation>,
    cache_read_input_tokens: Option<u64>,
    #[serde(rename = "promptTokenCount")]
    prompt_token_count: Option<u64>,
    #[serde(rename = "toolUsePromptTokenCount")]
    tool_use_prompt_token_count: Option<u64>,
    #[serde(rename = "candidatesTokenCount")]
    candidates_token_count: Option<u64>,
    #[serde(rename = "thoughtsTokenCount")]
    thoughts_token_count: Option<u64>,
    #[serde(rename = "cachedContentTokenCount")]
    cached_content_token_count: Option<u64>,
    #[serde(rename = "inputTokens")]
    bedrock_input: Option<u64>,
    #[serde(rename = "outputTokens")]
    bedrock_output: Option<u64>,
    #[serde(rename = "cacheReadInputTokens")]
    bedrock_cache_read: Option<u64>,
    #[serde(rename = "cacheWriteInputTokens")]
    bedrock_cache_write: Option<u64>,
    #[serde(rename = "cacheDetails")]
    bedrock_cache_details: Option<Vec<CacheDetail>>,
    #[serde(rename = "inputTokenCount")]
    invocation_input: Option<u64>,
    #[serde(rename = "outputTokenCount")]
    invocation_output: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

/// By how long it is kept, as Anthropic tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Creation {
    ephemeral_1h_input_tokens: Option<u64>,
}

/// The same as Bedrock tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CacheDetail {
    ttl: Option<String>,
    #[serde(rename = "inputTokens")]
    input: Option<u64>,
}

impl Raw {
    fn read(&self) -> Option<u64> {
        self.prompt_tokens
            .or(self.prompt_token_count)
            .or(self.input_tokens)
            .or(self.bedrock_input)
            .or(self.invocation_input)
    }

    fn written(&self) -> Option<u64> {
        self.completion_tokens
            .or(self.output_tokens)
            .or(self.candidates_token_count)
            .or(self.bedrock_output)
            .or(self.invocation_output)
            .or(self.thoughts_token_count.map(|_| 0))
    }

    fn input(&self) -> u64 {
        if let Some(all) = self.prompt_tokens {
            return all;
        }
        // Anthropic and Bedrock count what was written to and read from a cache apart, and
        // Gemini what its tools gave the model to read.
        [
            self.read(),
            self.cache_creation_input_tokens,
            self.cache_read_input_tokens,
            self.bedrock_cache_read,
            self.bedrock_cache_write,
            self.tool_use_prompt_token_count,
        ]
        .into_iter()
        .flatten()
        .fold(0, u64::saturating_add)
    }

    fn output(&self) -> u64 {
        // Gemini counts what was thought apart.
        self.written()
            .unwrap_or(0)
            .saturating_add(self.thoughts_token_count.unwrap_or(0))
    }

    fn details(&self) -> Option<&Details> {
        self.prompt_tokens_details
            .as_ref()
            .or(self.input_tokens_details.as_ref())
    }

    fn cached(&self) -> u64 {
        self.details()
            .and_then(|details| details.cached_tokens)
            .or(self.cache_read_input_tokens)
            .or(self.bedrock_cache_read)
            .or(self.cached_content_token_count)
            .unwrap_or(0)
    }

    fn stored(&self) -> u64 {
        self.details()
            .and_then(|details| details.cache_write_tokens)
            .or(self.cache_creation_input_tokens)
            .or(self.bedrock_cache_write)
            .unwrap_or(0)
    }

    fn stored_long(&self) -> u64 {
        let creation = self.cache_creation.as_ref();
        let anthropic = creation.and_then(|creation| creation.ephemeral_1h_input_tokens);
        let bedrock = self.bedrock_cache_details.iter().flatten();
        bedrock
            .filter(|detail| detail.ttl.as_deref() == Some("1h"))
            .filter_map(|detail| detail.input)
            .chain(anthropic)
            .fold(0, u64::saturating_add)
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

impl Lines {
    /// Takes the next bytes: counts the events that end in them, and reads what they carry
    /// with `json`.
    fn feed(
        &mut self,
        bytes: &[u8],
        json: &mut Json,
        events: &mut u64,
        mut found: impl FnMut(&[u8], bool),
    ) {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            if std::mem::take(&mut self.after_cr) && *byte == b'\n' {
                rest = after;
                continue;
            }
            if matches!(byte, b'\r' | b'\n') {
                self.after_cr = *byte == b'\r';
                self.field = Field::default();
                let empty = !std::mem::take(&mut self.line_has_bytes);
                if empty && std::mem::take(&mut self.has_data) {
                    *events += 1;
                    *json = Json::default();
                }
                rest = after;
                continue;
            }
            if !self.line_has_bytes
                && !self.has_data
                && let Some(left) = pass_over(rest)
            {
                *events += 1;
                rest = left;
                // Its last byte is the end of a line, and may be the first half of that.
                self.after_cr = bytes
                    .get(..bytes.len() - left.len())
                    .is_some_and(|passed| passed.last() == Some(&b'\r'));
                continue;
            }
            self.line_has_bytes = true;
            if self.field == Field::Space {
                self.field = Field::Value;
                if *byte == b' ' {
                    rest = after;
                    continue;
                }
            }
            if let Field::Name(matched) = self.field {
                self.field = match b"data:".get(matched) {
                    Some(expected) if expected == byte && matched == 4 => {
                        self.has_data = true;
                        Field::Space
                    }
                    Some(expected) if expected == byte => Field::Name(matched + 1),
                    _ => Field::Other,
                };
                rest = after;
                continue;
            }
            let (line, left) = rest.split_at(line_end(rest));
            if self.field == Field::Value {
                json.feed(line, &mut found);
            }
            rest = left;
        }
    }
}

fn line_end(rest: &[u8]) -> usize {
    memchr2(b'\r', b'\n', rest).unwrap_or(rest.len())
}

/// What follows an event of a single line that is here as a whole and tells no usage. Nearly
/// all events are such, and are not looked into any further.
fn pass_over(rest: &[u8]) -> Option<&[u8]> {
    let line = rest.strip_prefix(b"data:")?;
    let (data, after) = line.split_at(line_end(line));
    let after = match after.strip_prefix(b"\r\n") {
        Some(after) => after,
        // The other half of the line's end may be still to come.
        None if after.len() < 2 => return None,
        None => after.get(1..)?,
    };
    let after = after
        .strip_prefix(b"\n")
        .or_else(|| after.strip_prefix(b"\r"))?;
    (!may_tell(data)).then_some(after)
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;

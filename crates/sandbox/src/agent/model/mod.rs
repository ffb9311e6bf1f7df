//! The model client: one conversation, two wire formats.

mod anthropic;
mod client;
mod openai;
mod sse;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{MAX_ATTEMPTS, RetryPolicy};
pub(crate) use client::{ModelClient, ModelError};

/// One entry of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    User(String),
    Assistant(Reply),
    Results(Vec<ToolResult>),
}

impl Message {
    /// Bytes of text in it.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::User(text) => text.len(),
            Self::Assistant(reply) => {
                reply.text.len()
                    + reply
                        .calls
                        .iter()
                        .map(|call| call.arguments.len())
                        .sum::<usize>()
            }
            Self::Results(results) => results.iter().map(|result| result.output.len()).sum(),
        }
    }
}

/// What the model answered. As JSON it is what a run is resumed from, so it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) stop: Stop,
    /// An event of its own.
    #[serde(skip)]
    pub(crate) usage: Usage,
}

/// A tool that the model wants used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON as the model wrote it, which need not be valid.
    pub(crate) arguments: String,
    /// What its provider wants to be told again with it. Gemini refuses a conversation whose calls
    /// come back without the signatures of its thoughts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) extra_content: Option<Value>,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolResult {
    pub(crate) call_id: String,
    pub(crate) output: String,
    pub(crate) ok: bool,
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stop {
    /// It is done, or waits for its tools.
    #[default]
    Done,
    /// Its answer became too long.
    Length,
    /// It, or a filter of its provider, refused.
    Refused,
}

/// Tokens of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// The provider did not say; estimated from the length of the texts.
    pub(crate) estimated: bool,
}

/// A tool as it is described to the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolSpecification {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    /// JSON Schema of the arguments.
    pub(crate) parameters: Value,
}

/// What one event of a stream meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More to come; this text is new.
    Text(String),
    /// More to come.
    Nothing,
}

/// Why a stream could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamFault {
    /// The provider reported an error in the stream.
    Reported {
        message: String,
        /// Another try may succeed.
        transient: bool,
    },
    /// It is not the wire format.
    Malformed(&'static str),
}

/// Most tool calls of one reply.
const MAX_CALLS: usize = 64;
/// Longest text, or arguments of one call, of one reply.
const MAX_TEXT: usize = 1024 * 1024;

fn append(text: &mut String, more: &str) -> Result<(), StreamFault> {
    if text.len() + more.len() > MAX_TEXT {
        return Err(StreamFault::Malformed("an answer longer than 1 MiB"));
    }
    text.push_str(more);
    Ok(())
}

#[cfg(test)]
mod tests;

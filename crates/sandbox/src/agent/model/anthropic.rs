//! Anthropic messages: `POST v1/messages` with `stream: true`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    MAX_CALLS, Message, Progress, Reply, Stop, StreamFault, ToolCall, ToolResult,
    ToolSpecification, Usage, append,
};

pub(super) const PATH: &str = "v1/messages";
/// The version of the wire format, a header.
pub(super) const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");
/// Tokens that one answer may have; every current model allows as many.
const MAX_TOKENS: u32 = 8192;

pub(super) fn encode(
    model: &str,
    system: &str,
    messages: &[Message],
    tools: &[ToolSpecification],
) -> Value {
    let mut encoded: Vec<_> = messages
        .iter()
        .map(|message| {
            let (role, blocks) = match message {
                Message::User(text) => ("user", vec![json!({"type": "text", "text": text})]),
                Message::Assistant(reply) => ("assistant", blocks(reply)),
                Message::Results(results) => ("user", results.iter().map(result_block).collect()),
            };
            json!({"role": role, "content": blocks})
        })
        .collect();
    // The last is read again with the next step; where the one before ends, the provider has
    // everything already.
    let ours = encoded
        .iter_mut()
        .rev()
        .filter(|message| message["role"] == "user");
    for message in ours.take(2) {
        let last = message["content"]
            .as_array_mut()
            .and_then(|blocks| blocks.last_mut());
        if let Some(block) = last {
            keep(block);
        }
    }
    let mut system = json!({"type": "text", "text": system});
    keep(&mut system);
    let tools: Vec<_> = tools
        .iter()
        .map(|tool| {
            json!({"name": tool.name, "description": tool.description, "input_schema": tool.parameters})
        })
        .collect();
    json!({
        "model": model,
        "system": [system],
        "messages": encoded,
        "tools": tools,
        "max_tokens": MAX_TOKENS,
        "stream": true,
    })
}

/// Has the provider keep everything up to here: a run says it all again with each step, and what
/// is kept costs a tenth.
fn keep(block: &mut Value) {
    block["cache_control"] = json!({"type": "ephemeral"});
}

fn result_block(result: &ToolResult) -> Value {
    json!({"type": "tool_result", "tool_use_id": result.call_id,
           "content": result.output, "is_error": !result.ok})
}

fn blocks(reply: &Reply) -> Vec<Value> {
    let mut blocks = Vec::new();
    // The API refuses empty and blank text blocks.
    if !reply.text.trim().is_empty() {
        blocks.push(json!({"type": "text", "text": reply.text}));
    }
    for call in &reply.calls {
        // Arguments that were no object were answered with an error; the API takes objects.
        let input = serde_json::from_str::<Value>(&call.arguments)
            .ok()
            .filter(Value::is_object)
            .unwrap_or_else(|| json!({}));
        blocks.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    if blocks.is_empty() {
        blocks.push(json!({"type": "text", "text": "(no text)"}));
    }
    blocks
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: usize,
        content_block: Block,
    },
    ContentBlockDelta {
        index: usize,
        delta: Delta,
    },
    MessageDelta {
        delta: Ending,
        #[serde(default)]
        usage: BlockUsage,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: BlockUsage,
}

#[derive(Deserialize, Default)]
struct BlockUsage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
}

impl BlockUsage {
    fn input(&self) -> u64 {
        self.input_tokens.unwrap_or_default()
            + self.cache_creation_input_tokens.unwrap_or_default()
            + self.cache_read_input_tokens.unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Ending {
    stop_reason: Option<String>,
}

/// Puts a reply together from the events of a stream.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    text: String,
    /// Tool calls by the index of their block.
    calls: BTreeMap<usize, ToolCall>,
    stop: Stop,
    input: u64,
    output: u64,
    metered: bool,
    finished: bool,
}

impl Decoder {
    pub(super) fn push(&mut self, data: &str) -> Result<Progress, StreamFault> {
        let event: StreamEvent = serde_json::from_str(data)
            .map_err(|_| StreamFault::Malformed("an event that is no part of a message"))?;
        match event {
            StreamEvent::MessageStart { message } => {
                self.metered = message.usage.input_tokens.is_some();
                self.input = message.usage.input();
                self.output = message.usage.output_tokens.unwrap_or_default();
            }
            StreamEvent::ContentBlockStart {
                index,
                content_block,
            } => match content_block {
                Block::Text { text } => return self.text(text),
                Block::ToolUse { id, name } => {
                    if self.calls.len() >= MAX_CALLS {
                        return Err(StreamFault::Malformed("more than 64 tool calls at once"));
                    }
                    self.calls.insert(
                        index,
                        ToolCall {
                            id,
                            name,
                            arguments: String::new(),
                            extra_content: None,
                        },
                    );
                }
                Block::Other => {}
            },
            StreamEvent::ContentBlockDelta { index, delta } => match delta {
                Delta::Text { text } => return self.text(text),
                Delta::InputJson { partial_json } => {
                    if let Some(call) = self.calls.get_mut(&index) {
                        append(&mut call.arguments, &partial_json)?;
                    }
                }
                Delta::Other => {}
            },
            StreamEvent::MessageDelta { delta, usage } => {
                if let Some(output) = usage.output_tokens {
                    self.output = output;
                }
                self.stop = match delta.stop_reason.as_deref() {
                    Some("max_tokens" | "model_context_window_exceeded") => Stop::Length,
                    Some("refusal") => Stop::Refused,
                    _ => self.stop,
                };
                self.finished |= delta.stop_reason.is_some();
            }
            StreamEvent::MessageStop => self.finished = true,
            StreamEvent::Error { error } => return Err(super::openai::reported(&error)),
            StreamEvent::Other => {}
        }
        Ok(Progress::Nothing)
    }

    fn text(&mut self, text: String) -> Result<Progress, StreamFault> {
        if text.is_empty() {
            return Ok(Progress::Nothing);
        }
        append(&mut self.text, &text)?;
        Ok(Progress::Text(text))
    }

    /// The reply, unless the stream broke off.
    pub(super) fn finish(self) -> Option<(Reply, Option<Usage>)> {
        if !self.finished {
            return None;
        }
        let mut calls: Vec<_> = self.calls.into_values().collect();
        for call in &mut calls {
            if call.arguments.trim().is_empty() {
                "{}".clone_into(&mut call.arguments);
            }
        }
        let usage = Usage {
            input: self.input,
            output: self.output,
            estimated: false,
        };
        let reply = Reply {
            text: self.text,
            calls,
            stop: self.stop,
            usage: Usage::default(),
        };
        Some((reply, self.metered.then_some(usage)))
    }
}

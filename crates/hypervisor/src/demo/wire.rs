//! The OpenAI chat completions wire format, as far as the demo provider speaks it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Characters per delta of a stream: small enough that streaming shows.
const DELTA_CHARS: usize = 24;

/// A request; fields that the demo has no use for are ignored, as providers do.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    #[serde(default)]
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    #[serde(default)]
    pub(super) tools: Vec<Tool>,
    #[serde(default)]
    pub(super) stream: bool,
    #[serde(default)]
    pub(super) stream_options: StreamOptions,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// One message of the conversation.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    #[serde(default)]
    pub(super) content: Option<Content>,
    #[serde(default)]
    pub(super) tool_calls: Vec<ToolCall>,
    #[serde(default)]
    pub(super) tool_call_id: Option<String>,
}

/// Text, or parts of which only the text ones count.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub(super) struct Part {
    #[serde(default)]
    text: String,
}

/// A tool that the caller offers.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    pub(super) function: ToolFunction,
}

#[derive(Debug, Deserialize)]
pub(super) struct ToolFunction {
    pub(super) name: String,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ToolCall {
    pub(super) id: String,
    #[serde(rename = "type", default = "function")]
    pub(super) kind: String,
    pub(super) function: FunctionCall,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FunctionCall {
    pub(super) name: String,
    /// A JSON object, as text.
    pub(super) arguments: String,
}

fn function() -> String {
    "function".to_owned()
}

impl Message {
    /// All text of the message.
    pub(super) fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts
                .iter()
                .map(|part| part.text.as_str())
                .collect::<Vec<_>>()
                .join("\n"),
        }
    }
}

/// What the demo answers in one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) call: Option<ToolCall>,
}

/// What surrounds an answer on the wire.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    /// Seconds since the epoch.
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
}

/// The demo has no tokenizer; four characters a token is the usual estimate.
pub(super) fn estimate_tokens(text: &str) -> usize {
    text.len().div_ceil(4)
}

impl Envelope {
    fn usage(&self, answer: &Answer) -> Value {
        let arguments = answer
            .call
            .as_ref()
            .map_or("", |call| call.function.arguments.as_str());
        let completion = estimate_tokens(&answer.text) + estimate_tokens(arguments);
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        })
    }

    /// The whole answer as one document.
    pub(super) fn document(&self, answer: &Answer) -> Value {
        let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
        if let (Some(call), Some(fields)) = (&answer.call, message.as_object_mut()) {
            fields.insert("tool_calls".to_owned(), json!([call]));
        }
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": null,
                "finish_reason": finish_reason(answer),
            }],
            "usage": self.usage(answer),
        })
    }

    /// The answer as the events of a stream, `[DONE]` included.
    pub(super) fn events(&self, answer: &Answer, include_usage: bool) -> Vec<Bytes> {
        let mut events = vec![self.chunk(&json!({"role": "assistant", "content": ""}), None)];
        for piece in pieces(&answer.text) {
            events.push(self.chunk(&json!({"content": piece}), None));
        }
        if let Some(call) = &answer.call {
            let opening = json!({"tool_calls": [{
                "index": 0, "id": call.id, "type": call.kind,
                "function": {"name": call.function.name, "arguments": ""},
            }]});
            events.push(self.chunk(&opening, None));
            for piece in pieces(&call.function.arguments) {
                let delta = json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]});
                events.push(self.chunk(&delta, None));
            }
        }
        events.push(self.chunk(&json!({}), Some(finish_reason(answer))));
        if include_usage {
            events.push(event(&json!({
                "id": self.id, "object": "chat.completion.chunk", "created": self.created,
                "model": self.model, "choices": [], "usage": self.usage(answer),
            })));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        events
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Bytes {
        event(&json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        }))
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.call.is_some() {
        "tool_calls"
    } else {
        "stop"
    }
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = rest
            .char_indices()
            .nth(DELTA_CHARS)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, tail) = rest.split_at(cut);
        rest = tail;
        Some(piece)
    })
}

//! OpenAI chat completions: `POST chat/completions` with `stream: true`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    MAX_CALLS, Message, Progress, Reply, Stop, StreamFault, ToolCall, ToolSpecification, Usage,
    append,
};

pub(super) const PATH: &str = "chat/completions";

pub(super) fn encode(
    model: &str,
    system: &str,
    messages: &[Message],
    tools: &[ToolSpecification],
) -> Value {
    let mut encoded = vec![json!({"role": "system", "content": system})];
    for message in messages {
        match message {
            Message::User(text) => encoded.push(json!({"role": "user", "content": text})),
            Message::Assistant(reply) => encoded.push(assistant(reply)),
            Message::Results(results) => encoded.extend(results.iter().map(|result| {
                json!({"role": "tool", "tool_call_id": result.call_id, "content": result.output})
            })),
        }
    }
    let tools: Vec<_> = tools
        .iter()
        .map(|tool| {
            json!({"type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            }})
        })
        .collect();
    json!({
        "model": model,
        "messages": encoded,
        "tools": tools,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

fn assistant(reply: &Reply) -> Value {
    let mut message = json!({"role": "assistant", "content": reply.text});
    if !reply.calls.is_empty()
        && let Some(fields) = message.as_object_mut()
    {
        let calls: Vec<_> = reply
            .calls
            .iter()
            .map(|call| {
                let mut told = json!({"id": call.id, "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}});
                if let (Some(extra), Some(fields)) = (&call.extra_content, told.as_object_mut()) {
                    fields.insert("extra_content".to_owned(), extra.clone());
                }
                told
            })
            .collect();
        fields.insert("tool_calls".to_owned(), calls.into());
        if reply.text.is_empty() {
            // Some servers refuse an empty text next to calls.
            fields.insert("content".to_owned(), Value::Null);
        }
    }
    message
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    tool_calls: Vec<CallDelta>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<usize>,
    id: Option<String>,
    extra_content: Option<Value>,
    #[serde(default)]
    function: FunctionDelta,
}

#[derive(Deserialize, Default)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<CallDelta>, D::Error> {
    Option::<Vec<CallDelta>>::deserialize(value).map(Option::unwrap_or_default)
}

/// Puts a reply together from the chunks of a stream.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    reply: Reply,
    usage: Option<Usage>,
    finished: bool,
    done: bool,
}

impl Decoder {
    pub(super) fn push(&mut self, data: &str) -> Result<Progress, StreamFault> {
        if data.trim() == "[DONE]" {
            self.done = true;
            return Ok(Progress::Nothing);
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|_| StreamFault::Malformed("a chunk that is no chat completion"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(reported(&error));
        }
        if let Some(usage) = chunk.usage {
            // Sent once by most, with growing figures by some: the last one counts.
            self.usage = Some(Usage {
                input: usage.prompt_tokens,
                output: usage.completion_tokens,
                estimated: false,
            });
        }
        let Some(choice) = chunk.choices.into_iter().next() else {
            return Ok(Progress::Nothing);
        };
        for call in choice.delta.tool_calls {
            self.call(call)?;
        }
        if let Some(reason) = choice.finish_reason {
            self.finished = true;
            self.reply.stop = match reason.as_str() {
                "length" => Stop::Length,
                "content_filter" => Stop::Refused,
                _ => self.reply.stop,
            };
        }
        if choice.delta.refusal.is_some_and(|text| !text.is_empty()) {
            self.reply.stop = Stop::Refused;
        }
        match choice.delta.content {
            Some(text) if !text.is_empty() => {
                append(&mut self.reply.text, &text)?;
                Ok(Progress::Text(text))
            }
            _ => Ok(Progress::Nothing),
        }
    }

    fn call(&mut self, delta: CallDelta) -> Result<(), StreamFault> {
        let calls = &mut self.reply.calls;
        // Without an index, a piece with an id begins a call and one without goes on with it.
        let index = delta.index.unwrap_or(match &delta.id {
            Some(_) => calls.len(),
            None => calls.len().saturating_sub(1),
        });
        if index >= MAX_CALLS {
            return Err(StreamFault::Malformed("more than 64 tool calls at once"));
        }
        while calls.len() <= index {
            calls.push(ToolCall::default());
        }
        let Some(call) = calls.get_mut(index) else {
            return Err(StreamFault::Malformed("a tool call out of order"));
        };
        if let Some(id) = delta.id.filter(|id| !id.is_empty()) {
            call.id = id;
        }
        call.extra_content = delta.extra_content.or(call.extra_content.take());
        if let Some(name) = delta.function.name {
            // Sent whole with the first piece; some send it again with each.
            if call.name.is_empty() {
                call.name = name;
            }
        }
        append(
            &mut call.arguments,
            delta.function.arguments.as_deref().unwrap_or_default(),
        )
    }

    /// The reply, unless the stream broke off.
    pub(super) fn finish(self) -> Option<(Reply, Option<Usage>)> {
        let mut reply = self.reply;
        if !self.finished && !self.done {
            return None;
        }
        for (at, call) in reply.calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = format!("call_{at}");
            }
            if call.arguments.trim().is_empty() {
                "{}".clone_into(&mut call.arguments);
            }
        }
        Some((reply, self.usage))
    }
}

pub(super) fn reported(error: &Value) -> StreamFault {
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    let kind = text("type").or(text("code")).unwrap_or_default();
    let message = text("message")
        .or(error.as_str())
        .unwrap_or("no reason given");
    StreamFault::Reported {
        message: message.chars().take(500).collect(),
        transient: [
            "overloaded",
            "server_error",
            "rate_limit",
            "timeout",
            "api_error",
        ]
        .iter()
        .any(|word| kind.contains(word)),
    }
}

//! Replies in the providers' wire formats.

use serde_json::{Value, json};

use crate::double::Script;

/// A reply of a provider.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    text: &'static str,
    calls: Vec<(&'static str, Value)>,
    usage: (u64, u64),
}

pub(crate) fn text(text: &'static str) -> Reply {
    Reply {
        text,
        calls: Vec::new(),
        usage: (10, 5),
    }
}

pub(crate) fn call(name: &'static str, arguments: Value) -> Reply {
    text("I look.").and(name, arguments)
}

impl Reply {
    pub(crate) fn and(mut self, name: &'static str, arguments: Value) -> Self {
        self.calls.push((name, arguments));
        self
    }

    pub(crate) fn using(mut self, input: u64, output: u64) -> Self {
        self.usage = (input, output);
        self
    }

    /// As a stream of the wire format, in small pieces that respect nothing.
    pub(crate) fn script(&self, kind: &str) -> Script {
        let text = if kind == "openai" {
            self.openai()
        } else {
            self.anthropic()
        };
        Script::Stream(text, 7)
    }

    fn openai(&self) -> String {
        let chunk = |delta: Value, finish: Option<&str>| {
            json!({"object": "chat.completion.chunk",
                   "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        };
        let mut chunks = vec![chunk(json!({"role": "assistant", "content": ""}), None)];
        for piece in pieces(self.text) {
            chunks.push(chunk(json!({"content": piece}), None));
        }
        for (at, (name, arguments)) in self.calls.iter().enumerate() {
            chunks.push(chunk(
                json!({"tool_calls": [{"index": at, "id": format!("call_{at}"), "type": "function",
                       "function": {"name": name, "arguments": ""}}]}),
                None,
            ));
            for piece in pieces(&arguments.to_string()) {
                let delta =
                    json!({"tool_calls": [{"index": at, "function": {"arguments": piece}}]});
                chunks.push(chunk(delta, None));
            }
        }
        let reason = if self.calls.is_empty() {
            "stop"
        } else {
            "tool_calls"
        };
        chunks.push(chunk(json!({}), Some(reason)));
        let (input, output) = self.usage;
        chunks.push(
            json!({"choices": [], "usage": {"prompt_tokens": input, "completion_tokens": output}}),
        );
        let mut stream: String = chunks
            .iter()
            .map(|chunk| format!("data: {chunk}\n\n"))
            .collect();
        stream.push_str("data: [DONE]\n\n");
        stream
    }

    fn anthropic(&self) -> String {
        let (input, output) = self.usage;
        let mut events = vec![
            json!({"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [],
                   "usage": {"input_tokens": input, "output_tokens": 1}}}),
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        ];
        for piece in pieces(self.text) {
            let delta = json!({"type": "text_delta", "text": piece});
            events.push(json!({"type": "content_block_delta", "index": 0, "delta": delta}));
        }
        events.push(json!({"type": "content_block_stop", "index": 0}));
        for (at, (name, arguments)) in self.calls.iter().enumerate() {
            let index = at + 1;
            let block =
                json!({"type": "tool_use", "id": format!("call_{at}"), "name": name, "input": {}});
            events.push(
                json!({"type": "content_block_start", "index": index, "content_block": block}),
            );
            for piece in pieces(&arguments.to_string()) {
                let delta = json!({"type": "input_json_delta", "partial_json": piece});
                events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
            }
            events.push(json!({"type": "content_block_stop", "index": index}));
        }
        let reason = if self.calls.is_empty() {
            "end_turn"
        } else {
            "tool_use"
        };
        events.push(
            json!({"type": "message_delta", "delta": {"stop_reason": reason},
                           "usage": {"output_tokens": output}}),
        );
        events.push(json!({"type": "message_stop"}));
        events
            .iter()
            .map(|event| {
                format!(
                    "event: {}\ndata: {event}\n\n",
                    event["type"].as_str().unwrap()
                )
            })
            .collect()
    }
}

fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(5)
        .map(|piece| piece.iter().collect())
        .collect()
}

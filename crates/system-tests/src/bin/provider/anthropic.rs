//! Anthropic's formats: messages, models.

use serde_json::{Value, json};

use crate::plan::{Act, Ask};
use crate::wire::{CACHED, Events, INPUT, OUTPUT, pieces};

/// Reads a request. Agents put reminders of their own beside what the user said, so all
/// texts of the last message count.
pub(crate) fn ask(body: &Value, bytes: usize) -> Ask {
    let tools = body["tools"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let messages = body["messages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] == "user");
    let content = last
        .map(|message| &message["content"])
        .unwrap_or(&Value::Null);
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let result = blocks.iter().find(|block| block["type"] == "tool_result");
    Ask {
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        stream: body["stream"] == true,
        tools: tools
            .iter()
            .filter_map(|tool| Some(tool["name"].as_str()?.to_owned()))
            .collect(),
        text: text(content),
        result: result.map(|block| text(&block["content"])),
        bytes,
        ..Ask::default()
    }
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks
                .iter()
                .filter_map(|block| block["text"].as_str())
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

pub(crate) fn error(status: u16, message: &str) -> Value {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_double" })
}

fn usage() -> Value {
    json!({ "input_tokens": INPUT - CACHED, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED, "output_tokens": OUTPUT })
}

fn block(act: &Act) -> (Value, &'static str) {
    match act {
        Act::Call { tool, arguments } => (
            json!({ "type": "tool_use", "id": "toolu_1", "name": tool, "input": arguments }),
            "tool_use",
        ),
        act => (json!({ "type": "text", "text": said(act) }), "end_turn"),
    }
}

fn said(act: &Act) -> &str {
    match act {
        Act::Say(text) => text,
        _ => "on and on ",
    }
}

pub(crate) fn message(ask: &Ask, act: &Act) -> Value {
    let (block, reason) = block(act);
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": ask.model,
        "content": [block], "stop_reason": reason, "stop_sequence": null, "usage": usage(),
    })
}

pub(crate) fn stream(ask: &Ask, act: &Act) -> Events {
    let mut events = Events::default();
    let (mut block, reason) = block(act);
    let mut begun = message(ask, act);
    begun["content"] = json!([]);
    begun["stop_reason"] = Value::Null;
    begun["usage"]["output_tokens"] = 1.into();
    events.typed(&json!({ "type": "message_start", "message": begun }));
    let deltas: Vec<Value> = match act {
        Act::Call { arguments, .. } => {
            block["input"] = json!({});
            let arguments = arguments.to_string();
            let delta = |piece: &&str| json!({ "type": "input_json_delta", "partial_json": piece });
            pieces(&arguments).iter().map(delta).collect()
        }
        act => {
            block["text"] = "".into();
            let delta = |piece: &&str| json!({ "type": "text_delta", "text": piece });
            pieces(said(act)).iter().map(delta).collect()
        }
    };
    events.typed(&json!({ "type": "content_block_start", "index": 0, "content_block": block }));
    events.typed(&json!({ "type": "ping" }));
    for delta in deltas {
        events.typed(&json!({ "type": "content_block_delta", "index": 0, "delta": delta }));
    }
    if events.go_on(act) {
        events.typed(&json!({ "type": "content_block_stop", "index": 0 }));
        events.typed(&json!({
            "type": "message_delta", "delta": { "stop_reason": reason, "stop_sequence": null },
            "usage": { "output_tokens": OUTPUT } }));
        events.typed(&json!({ "type": "message_stop" }));
    }
    events
}

pub(crate) fn models() -> Value {
    json!({ "data": [{ "type": "model", "id": "claude-double", "display_name": "Double",
                       "created_at": "2026-01-01T00:00:00Z" }],
            "first_id": "claude-double", "last_id": "claude-double", "has_more": false })
}

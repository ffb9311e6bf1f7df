//! OpenAI's formats: chat completions, Responses, embeddings, models.

use serde_json::{Value, json};

use crate::plan::{Act, Ask};
use crate::wire::{CACHED, Events, INPUT, OUTPUT, pieces};

const CREATED: u64 = 1_700_000_000;

/// Reads a request of either API.
pub(crate) fn ask(body: &Value, bytes: usize) -> Ask {
    let tools = body["tools"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let name = |tool: &Value| {
        let name = tool["function"]["name"].as_str().or(tool["name"].as_str());
        name.map(str::to_owned)
    };
    let mut ask = Ask {
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        stream: body["stream"] == true,
        with_usage: body["stream_options"]["include_usage"] == true,
        tools: tools.iter().filter_map(name).collect(),
        bytes,
        ..Ask::default()
    };
    match &body["input"] {
        Value::String(text) => ask.text.clone_from(text),
        Value::Array(items) => {
            let user = |item: &&Value| item["role"] == "user";
            ask.text = items
                .iter()
                .rev()
                .find(user)
                .map(|item| text(&item["content"]))
                .unwrap_or_default();
            let last = items
                .last()
                .filter(|item| item["type"] == "function_call_output");
            ask.result = last.map(|item| text(&item["output"]));
        }
        _ => {}
    }
    if let Some(messages) = body["messages"].as_array() {
        let user = |message: &&Value| message["role"] == "user";
        ask.text = messages
            .iter()
            .rev()
            .find(user)
            .map(|message| text(&message["content"]))
            .unwrap_or_default();
        let last = messages.last().filter(|message| message["role"] == "tool");
        ask.result = last.map(|message| text(&message["content"]));
    }
    ask
}

/// A text, or the texts of its parts.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

pub(crate) fn error(status: u16, message: &str) -> Value {
    let (kind, code) = match status {
        400 => ("invalid_request_error", "invalid_value"),
        401 => ("invalid_request_error", "invalid_api_key"),
        404 => ("invalid_request_error", "model_not_found"),
        429 => ("requests", "rate_limit_exceeded"),
        _ => ("server_error", "server_error"),
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

fn chat_usage() -> Value {
    json!({
        "prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT,
        "prompt_tokens_details": { "cached_tokens": CACHED },
        "completion_tokens_details": { "reasoning_tokens": 0 },
    })
}

pub(crate) fn chat(ask: &Ask, act: &Act) -> Value {
    let (message, reason) = match act {
        Act::Call { tool, arguments } => (
            json!({ "role": "assistant", "content": null, "tool_calls": [{
                "id": "call_1", "type": "function",
                "function": { "name": tool, "arguments": arguments.to_string() } }] }),
            "tool_calls",
        ),
        Act::Say(text) => (
            json!({ "role": "assistant", "content": text, "refusal": null }),
            "stop",
        ),
        _ => (
            json!({ "role": "assistant", "content": "", "refusal": null }),
            "stop",
        ),
    };
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": CREATED, "model": ask.model,
        "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": reason }],
        "usage": chat_usage(), "system_fingerprint": "fp_double",
    })
}

pub(crate) fn chat_stream(ask: &Ask, act: &Act) -> Events {
    let mut events = Events::default();
    let chunk = |choices: Value, usage: Value| {
        json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED,
                "model": ask.model, "choices": choices, "usage": usage })
        .to_string()
    };
    let delta = |delta: Value, reason: Value| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason }]);
    events.data(&chunk(
        delta(json!({ "role": "assistant", "content": "" }), Value::Null),
        Value::Null,
    ));
    let reason = match act {
        Act::Call { tool, arguments } => {
            let head = json!({ "tool_calls": [{ "index": 0, "id": "call_1", "type": "function",
                               "function": { "name": tool, "arguments": "" } }] });
            events.data(&chunk(delta(head, Value::Null), Value::Null));
            for piece in pieces(&arguments.to_string()) {
                let more =
                    json!({ "tool_calls": [{ "index": 0, "function": { "arguments": piece } }] });
                events.data(&chunk(delta(more, Value::Null), Value::Null));
            }
            "tool_calls"
        }
        act => {
            for piece in pieces(said(act)) {
                events.data(&chunk(
                    delta(json!({ "content": piece }), Value::Null),
                    Value::Null,
                ));
            }
            "stop"
        }
    };
    if events.go_on(act) {
        events.data(&chunk(delta(json!({}), reason.into()), Value::Null));
        if ask.with_usage {
            events.data(&chunk(json!([]), chat_usage()));
        }
        events.data("[DONE]");
    }
    events
}

fn said(act: &Act) -> &str {
    match act {
        Act::Say(text) => text,
        _ => "on and on ",
    }
}

fn item(act: &Act) -> Value {
    match act {
        Act::Call { tool, arguments } => json!({
            "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": tool,
            "arguments": arguments.to_string(), "status": "completed" }),
        act => json!({
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{ "type": "output_text", "text": said(act), "annotations": [] }] }),
    }
}

fn response(ask: &Ask, status: &str, output: Value, usage: Value) -> Value {
    json!({
        "id": "resp_1", "object": "response", "created_at": CREATED, "status": status,
        "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
        "model": ask.model, "output": output, "parallel_tool_calls": false,
        "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
        "usage": usage,
    })
}

fn responses_usage() -> Value {
    json!({
        "input_tokens": INPUT, "input_tokens_details": { "cached_tokens": CACHED },
        "output_tokens": OUTPUT, "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": INPUT + OUTPUT,
    })
}

pub(crate) fn responses(ask: &Ask, act: &Act) -> Value {
    response(ask, "completed", json!([item(act)]), responses_usage())
}

pub(crate) fn responses_stream(ask: &Ask, act: &Act) -> Events {
    let mut events = Events::default();
    let mut number = 0;
    let mut event = |events: &mut Events, kind: &str, mut fields: Value| {
        fields["type"] = kind.into();
        fields["sequence_number"] = number.into();
        number += 1;
        events.typed(&fields);
    };
    let begun = response(ask, "in_progress", json!([]), Value::Null);
    event(
        &mut events,
        "response.created",
        json!({ "response": begun }),
    );
    event(
        &mut events,
        "response.in_progress",
        json!({ "response": begun }),
    );
    let done = item(act);
    let mut empty = done.clone();
    empty["status"] = "in_progress".into();
    match act {
        Act::Call { arguments, .. } => {
            empty["arguments"] = "".into();
            event(
                &mut events,
                "response.output_item.added",
                json!({ "output_index": 0, "item": empty }),
            );
            let arguments = arguments.to_string();
            let of = json!({ "item_id": "fc_1", "output_index": 0 });
            for piece in pieces(&arguments) {
                let mut delta = of.clone();
                delta["delta"] = piece.into();
                event(&mut events, "response.function_call_arguments.delta", delta);
            }
            let mut all = of;
            all["arguments"] = arguments.as_str().into();
            all["name"] = done["name"].clone();
            event(&mut events, "response.function_call_arguments.done", all);
        }
        act => {
            empty["content"] = json!([]);
            event(
                &mut events,
                "response.output_item.added",
                json!({ "output_index": 0, "item": empty }),
            );
            let of = json!({ "item_id": "msg_1", "output_index": 0, "content_index": 0 });
            let part =
                |text: &str| json!({ "type": "output_text", "text": text, "annotations": [] });
            let mut added = of.clone();
            added["part"] = part("");
            event(&mut events, "response.content_part.added", added);
            for piece in pieces(said(act)) {
                let mut delta = of.clone();
                delta["delta"] = piece.into();
                delta["logprobs"] = json!([]);
                event(&mut events, "response.output_text.delta", delta);
            }
            if !events.go_on(act) {
                return events;
            }
            let mut all = of.clone();
            all["text"] = said(act).into();
            all["logprobs"] = json!([]);
            event(&mut events, "response.output_text.done", all);
            let mut ended = of;
            ended["part"] = part(said(act));
            event(&mut events, "response.content_part.done", ended);
        }
    }
    event(
        &mut events,
        "response.output_item.done",
        json!({ "output_index": 0, "item": done }),
    );
    let whole = response(ask, "completed", json!([done]), responses_usage());
    event(
        &mut events,
        "response.completed",
        json!({ "response": whole }),
    );
    events
}

pub(crate) fn embeddings(ask: &Ask) -> Value {
    // The SDKs ask for base64: four little-endian floats, 0.25 each.
    json!({
        "object": "list", "model": ask.model,
        "data": [{ "object": "embedding", "index": 0, "embedding": "AACAPgAAgD4AAIA+AACAPg==" }],
        "usage": { "prompt_tokens": INPUT, "total_tokens": INPUT },
    })
}

pub(crate) fn models() -> Value {
    json!({ "object": "list", "data": [
        { "id": "gpt-double", "object": "model", "created": CREATED, "owned_by": "double" }] })
}

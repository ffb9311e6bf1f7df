use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Message, Progress, Reply, Stop, StreamFault, ToolCall, ToolResult, Usage, anthropic, openai,
};

fn openai_chunk(delta: Value, finish: Option<&str>) -> String {
    json!({"choices": [{"delta": delta, "finish_reason": finish}]}).to_string()
}

#[test]
fn openai_calls_come_together_from_interleaved_pieces() {
    let piece = |index: usize, id: Option<&str>, name: Option<&str>, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        openai_chunk(
            json!({"tool_calls": [{"index": index, "id": id, "function": function}]}),
            None,
        )
    };
    let mut decoder = openai::Decoder::default();
    for data in [
        openai_chunk(json!({"content": null, "tool_calls": null}), None),
        piece(0, Some("a"), Some("one"), ""),
        piece(1, Some("b"), Some("two"), "{\"x\""),
        piece(0, None, None, "{}"),
        piece(1, None, None, ":1}"),
        openai_chunk(json!({}), Some("tool_calls")),
        json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).to_string(),
        "[DONE]".to_owned(),
    ] {
        assert_eq!(decoder.push(&data), Ok(Progress::Nothing));
    }
    let (reply, usage) = decoder.finish().unwrap();
    let calls: Vec<_> = reply
        .calls
        .iter()
        .map(|c| (c.id.as_str(), c.name.as_str(), c.arguments.as_str()))
        .collect();
    assert_eq!(calls, [("a", "one", "{}"), ("b", "two", "{\"x\":1}")]);
    assert_eq!(
        usage,
        Some(Usage {
            input: 7,
            output: 3,
            estimated: false
        })
    );
}

#[test]
fn what_a_provider_wants_back_with_a_call_is_told_again() {
    let signed = json!({"google": {"thought_signature": "c2lnbmVk"}});
    let call = |extra: &Value, arguments: &str| {
        let function = json!({"name": "one", "arguments": arguments});
        let call = json!({"index": 0, "id": "a", "function": function, "extra_content": extra});
        openai_chunk(json!({"tool_calls": [call]}), None)
    };
    let mut decoder = openai::Decoder::default();
    for data in [
        call(&signed, "{"),
        call(&Value::Null, "}"),
        openai_chunk(json!({}), Some("tool_calls")),
    ] {
        assert_eq!(decoder.push(&data), Ok(Progress::Nothing));
    }
    let (reply, _) = decoder.finish().unwrap();
    let told = |reply| openai::encode("m", "", &[Message::Assistant(reply)], &[]);
    let call = |request: &Value| request["messages"][1]["tool_calls"][0].clone();
    let again = call(&told(reply.clone()));
    assert_eq!(again["extra_content"], signed, "{again:#}");
    assert_eq!(again["function"]["arguments"], "{}");
    // Through the event store, too; other servers are told nothing that they did not say.
    let mut kept: Reply = serde_json::from_value(json!(reply)).unwrap();
    assert_eq!(
        kept,
        Reply {
            usage: kept.usage,
            ..reply
        }
    );
    kept.calls[0].extra_content = None;
    assert_eq!(call(&told(kept)).get("extra_content"), None);
}

/// What of a request is kept, as the text or the call that it ends with, in order.
fn kept(request: &Value) -> Vec<String> {
    let blocks = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let mut all = blocks(&request["system"]);
    for message in blocks(&request["messages"]) {
        all.extend(blocks(&message["content"]));
    }
    all.iter()
        .filter(|block| block["cache_control"] == json!({"type": "ephemeral"}))
        .map(|block| {
            let end = block["text"].as_str().or(block["tool_use_id"].as_str());
            end.unwrap().to_owned()
        })
        .collect()
}

#[test]
fn what_anthropic_has_read_already_is_not_read_again() {
    let step = |id: &str| {
        let call = ToolCall {
            id: id.to_owned(),
            name: "one".to_owned(),
            arguments: "{}".to_owned(),
            extra_content: None,
        };
        let result = ToolResult {
            call_id: id.to_owned(),
            output: "done".to_owned(),
            ok: true,
        };
        let reply = Reply {
            calls: vec![call],
            ..Reply::default()
        };
        [Message::Assistant(reply), Message::Results(vec![result])]
    };
    let mut conversation = vec![Message::User("task".to_owned())];
    let told = |messages: &[Message]| anthropic::encode("m", "rules", messages, &[]);
    assert_eq!(kept(&told(&conversation)), ["rules", "task"]);
    conversation.extend(step("a"));
    assert_eq!(kept(&told(&conversation)), ["rules", "task", "a"]);
    conversation.extend(step("b"));
    // Where a request ends, the next one begins; four are the most that the API takes.
    assert_eq!(kept(&told(&conversation)), ["rules", "a", "b"]);
}

#[test]
fn openai_calls_without_index_or_id_are_understood() {
    let mut decoder = openai::Decoder::default();
    let call = |id: Option<&str>, function: Value| {
        openai_chunk(
            json!({"tool_calls": [{"id": id, "function": function}]}),
            None,
        )
    };
    for data in [
        call(Some("x"), json!({"name": "one", "arguments": "{\"a\""})),
        call(None, json!({"arguments": ":1}"})),
        call(Some("y"), json!({"name": "two"})),
        openai_chunk(json!({}), Some("stop")),
    ] {
        decoder.push(&data).unwrap();
    }
    let calls = decoder.finish().unwrap().0.calls;
    assert_eq!(
        (calls[0].arguments.as_str(), calls[1].arguments.as_str()),
        ("{\"a\":1}", "{}")
    );
}

#[test]
fn a_stream_that_breaks_off_is_no_reply() {
    let mut decoder = openai::Decoder::default();
    decoder
        .push(&openai_chunk(json!({"content": "half"}), None))
        .unwrap();
    assert!(decoder.finish().is_none());
    let mut decoder = anthropic::Decoder::default();
    decoder
        .push(&json!({"type": "message_start", "message": {}}).to_string())
        .unwrap();
    assert!(decoder.finish().is_none());
}

#[test]
fn reasons_to_stop_are_told_apart() {
    for (reason, wanted) in [
        ("stop", Stop::Done),
        ("length", Stop::Length),
        ("content_filter", Stop::Refused),
    ] {
        let mut decoder = openai::Decoder::default();
        decoder
            .push(&openai_chunk(json!({}), Some(reason)))
            .unwrap();
        assert_eq!(decoder.finish().unwrap().0.stop, wanted);
    }
    for (reason, wanted) in [
        ("end_turn", Stop::Done),
        ("max_tokens", Stop::Length),
        ("refusal", Stop::Refused),
    ] {
        let mut decoder = anthropic::Decoder::default();
        let event = json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}});
        decoder.push(&event.to_string()).unwrap();
        assert_eq!(decoder.finish().unwrap().0.stop, wanted);
    }
}

#[test]
fn errors_in_a_stream_say_whether_another_try_may_help() {
    let overloaded =
        json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    assert_eq!(
        anthropic::Decoder::default().push(&overloaded.to_string()),
        Err(StreamFault::Reported {
            message: "Overloaded".into(),
            transient: true
        })
    );
    let invalid = json!({"error": {"type": "invalid_request_error", "message": "no"}});
    assert_eq!(
        openai::Decoder::default().push(&invalid.to_string()),
        Err(StreamFault::Reported {
            message: "no".into(),
            transient: false
        })
    );
}

#[test]
fn a_reply_is_bounded() {
    let mut decoder = openai::Decoder::default();
    let far = openai_chunk(json!({"tool_calls": [{"index": 100_000_000}]}), None);
    assert!(matches!(decoder.push(&far), Err(StreamFault::Malformed(_))));
    let long = openai_chunk(json!({"content": "x".repeat(600_000)}), None);
    decoder.push(&long).unwrap();
    assert!(matches!(
        decoder.push(&long),
        Err(StreamFault::Malformed(_))
    ));
}

proptest! {
    #[test]
    fn arbitrary_data_is_no_panic(data in "\\PC{0,200}") {
        let _either = openai::Decoder::default().push(&data);
        let _either = anthropic::Decoder::default().push(&data);
    }

    #[test]
    fn anthropic_text_and_arguments_come_together(pieces in proptest::collection::vec("[a-z\\\\\"{}é]{0,8}", 0..20)) {
        let mut decoder = anthropic::Decoder::default();
        let mut relayed = String::new();
        let mut push = |event: Value| match decoder.push(&event.to_string()).unwrap() {
            Progress::Text(text) => relayed.push_str(&text),
            Progress::Nothing => {}
        };
        push(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}));
        let block = json!({"type": "tool_use", "id": "t", "name": "n", "input": {}});
        push(json!({"type": "content_block_start", "index": 1, "content_block": block}));
        for piece in &pieces {
            let text = json!({"type": "text_delta", "text": piece});
            push(json!({"type": "content_block_delta", "index": 2, "delta": text}));
            let arguments = json!({"type": "input_json_delta", "partial_json": piece});
            push(json!({"type": "content_block_delta", "index": 1, "delta": arguments}));
        }
        push(json!({"type": "something_new"}));
        push(json!({"type": "message_stop"}));
        let whole = pieces.concat();
        let (reply, usage) = decoder.finish().unwrap();
        prop_assert_eq!(&reply.text, &whole);
        prop_assert_eq!(&relayed, &whole);
        prop_assert_eq!(&reply.calls[0].arguments, if whole.is_empty() { "{}" } else { &whole });
        prop_assert_eq!(usage, None);
    }
}

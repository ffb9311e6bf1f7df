use proptest::prelude::*;

use super::json::MAX_USAGE;
use super::*;

const CHAT: &str = r#"{"id":"x","choices":[{"message":{"usage":{"prompt_tokens":999}}}],"usage":{"prompt_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;

const CHAT_STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9}\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

const RESPONSES_STREAM: &str = "event: response.output_text.delta\r\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\r\n\r\nevent: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"usage\":{\"input_tokens\":999}}],\"usage\":{\"input_tokens\":20,\"input_tokens_details\":{\"cached_tokens\":5},\"output_tokens\":6}}}\r\n\r\n";

const MESSAGES_STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":2,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n: ping\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n";

const GEMINI: &str = r#"[{"candidates":[],"usageMetadata":{"promptTokenCount":8}},{"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":4,"thoughtsTokenCount":2,"cachedContentTokenCount":1}}]"#;

const CONVERSE: &str = r#"{"metrics":{"latencyMs":9},"output":{"message":{"content":[{"text":"hi"}],"role":"assistant"}},"stopReason":"end_turn","usage":{"inputTokens":30,"outputTokens":7,"totalTokens":50,"cacheReadInputTokens":10,"cacheWriteInputTokens":3}}"#;

/// Frames as Bedrock sends them, with one header each; nobody checks the checksums.
fn frames(payloads: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for payload in payloads {
        let headers = b"\x0b:event-type\x07\x00\x05chunk";
        let length = u32::try_from(16 + headers.len() + payload.len()).unwrap();
        bytes.extend(length.to_be_bytes());
        bytes.extend(u32::try_from(headers.len()).unwrap().to_be_bytes());
        bytes.extend([0xde, 0xad, 0xbe, 0xef]);
        bytes.extend(headers);
        bytes.extend(payload.as_bytes());
        bytes.extend([0xca, 0xfe, 0xba, 0xbe]);
    }
    bytes
}

fn chunk(event: &str) -> String {
    use base64::Engine as _;
    let event = base64::engine::general_purpose::STANDARD.encode(event);
    format!(r#"{{"bytes":"{event}","p":"abcdefgh"}}"#)
}

fn read_bytes(bytes: &[u8], event_stream: bool, chunk: usize) -> (Option<Usage>, u64) {
    let mut meter = UsageMeter::new(event_stream);
    for piece in bytes.chunks(chunk) {
        meter.feed(piece);
    }
    (meter.reported(), meter.events())
}

fn read(text: &str, event_stream: bool, chunk: usize) -> (Option<Usage>, u64) {
    read_bytes(text.as_bytes(), event_stream, chunk)
}

#[test]
fn every_dialect_is_read_however_it_is_cut() {
    for (text, stream, usage, events) in [
        (CHAT, false, (12, 3, 4), 0),
        (CHAT_STREAM, true, (12, 3, 0), 3),
        (RESPONSES_STREAM, true, (20, 6, 5), 2),
        (MESSAGES_STREAM, true, (17, 15, 5), 2),
        (GEMINI, false, (8, 6, 1), 0),
        (CONVERSE, false, (43, 7, 10), 0),
    ] {
        for chunk in 1..40 {
            let (seen, counted) = read(text, stream, chunk);
            let seen = seen.map(|usage| (usage.input, usage.output, usage.cached));
            assert_eq!((seen, counted), (Some(usage), events), "{text} in {chunk}");
        }
    }
}

#[test]
fn a_frame_that_is_too_long_is_not_read_in_parts() {
    let (begin, end) = (r#"{"usage":{"inputTokens":1"#, "9}}");
    let middle = " ".repeat(70_000) + r#","outputTokens":"#;
    let stream = frames(&[&format!("{begin}{middle}{end}")]);
    let mut meter = UsageMeter::new(false);
    let middle = stream.len() - 4 - end.len() - middle.len()..stream.len() - 4 - end.len();
    meter.feed(&stream[..middle.start]);
    meter.feed(&stream[middle.clone()]);
    meter.feed(&stream[middle.end..]);
    assert_eq!((meter.reported(), meter.events()), (None, 1));
}

#[test]
fn frames_of_bedrock_are_read_however_they_are_cut() {
    let converse = frames(&[
        r#"{"p":"abc","role":"assistant"}"#,
        r#"{"contentBlockIndex":0,"delta":{"text":"\"usage\":{\"inputTokens\":999}"},"p":"a"}"#,
        r#"{"contentBlockIndex":0,"p":"ab"}"#,
        r#"{"p":"abcd","stopReason":"end_turn"}"#,
        r#"{"metrics":{"latencyMs":5},"p":"ab","usage":{"inputTokens":30,"outputTokens":7,"totalTokens":37}}"#,
    ]);
    let invoke = frames(&[
        &chunk(
            r#"{"type":"message_start","message":{"usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":1}}}"#,
        ),
        &chunk(r#"{"type":"content_block_delta","delta":{"text":"hi"}}"#),
        &chunk(
            r#"{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":10,"outputTokenCount":12,"invocationLatency":9}}"#,
        ),
    ]);
    for size in 1..60 {
        let usage = |input, output, cached| {
            Some(Usage {
                input,
                output,
                cached,
                ..Usage::default()
            })
        };
        assert_eq!(read_bytes(&converse, false, size), (usage(30, 7, 0), 5));
        assert_eq!(read_bytes(&invoke, false, size), (usage(15, 12, 5), 3));
    }
    // One that breaks off, and one that is none.
    assert_eq!(read_bytes(&converse[..200], false, 7), (None, 2));
    let other = [&[0, 0, 0, 3][..], &[0xff; 200]].concat();
    assert_eq!(read_bytes(&other, false, 7), (None, 0));
}

#[test]
fn a_usage_object_without_a_known_count_is_none() {
    for text in [
        r#"{"usage":{}}"#,
        r#"{"usage":{"units":3}}"#,
        r#"{"usage":{"total_tokens":3}}"#,
        r#"{"usage":{"prompt_tokens":null}}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":"1"}}"#,
    ] {
        let tokens = (text.len() as u64).div_ceil(4);
        assert_eq!(read(text, false, 5), (None, tokens), "{text}");
        let event = format!("data: {text}\n\n");
        assert_eq!(read(&event, true, 5), (None, 1), "{text}");
    }
    assert_eq!(read("ID3 not text at all", false, 5), (None, 0));
}

#[test]
fn a_stream_that_ends_in_an_error_is_counted_not_believed_at_its_beginning() {
    let start = MESSAGES_STREAM.split_once(": ping").unwrap().0;
    let delta = "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n";
    let error =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    let text = format!("{start}{}{error}", delta.repeat(30));
    for size in [1, 17, 10_000] {
        let usage = read(&text, true, size).0.unwrap();
        assert_eq!((usage.input, usage.output, usage.cached), (17, 32, 5));
    }
    // What is told at the end counts, be it less.
    let whole = format!("{text}{}", MESSAGES_STREAM.split_once("ping").unwrap().1);
    assert_eq!(read(&whole, true, 17).0.unwrap().output, 15);
}

#[test]
fn what_a_cache_gave_is_part_of_what_was_read_in_every_dialect() {
    let usage = |object: &str| {
        read(&format!(r#"{{"usage":{object}}}"#), false, 9)
            .0
            .unwrap()
    };
    // OpenAI's total holds it already, whatever stands beside.
    let one = usage(r#"{"prompt_tokens":10,"completion_tokens":1,"cache_read_input_tokens":4}"#);
    assert_eq!((one.input, one.cached), (10, 4));
    let other = usage(r#"{"input_tokens":10,"output_tokens":1,"cache_read_input_tokens":4}"#);
    assert_eq!((other.input, other.cached), (14, 4));
    let gemini = r#"{"usageMetadata":{"promptTokenCount":8,"toolUsePromptTokenCount":3,"thoughtsTokenCount":2}}"#;
    let gemini = read(gemini, false, 9).0.unwrap();
    assert_eq!((gemini.input, gemini.output), (11, 2));
}

#[test]
fn what_was_put_into_a_cache_is_told_apart() {
    let usage = |object: &str| {
        let usage = read(&format!(r#"{{"usage":{object}}}"#), false, 9)
            .0
            .unwrap();
        (usage.input, usage.cached, usage.stored, usage.stored_long)
    };
    let messages = r#"{"input_tokens":10,"cache_creation_input_tokens":7,"cache_read_input_tokens":4,"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":2},"output_tokens":1}"#;
    assert_eq!(usage(messages), (21, 4, 7, 2));
    let older = r#"{"input_tokens":10,"cache_creation_input_tokens":7,"cache_creation":null,"output_tokens":1}"#;
    assert_eq!(usage(older), (17, 0, 7, 0));
    let converse = r#"{"inputTokens":10,"cacheWriteInputTokens":3,"cacheReadInputTokens":2,"outputTokens":1,"cacheDetails":[{"ttl":"1h","inputTokens":1},{"ttl":"5m","inputTokens":2}]}"#;
    assert_eq!(usage(converse), (15, 2, 3, 1));
    for (total, details) in [
        ("prompt_tokens", "prompt_tokens_details"),
        ("input_tokens", "input_tokens_details"),
    ] {
        let openai = format!(
            r#"{{"{total}":20,"{details}":{{"cached_tokens":4,"cache_write_tokens":7}},"output_tokens":1}}"#
        );
        assert_eq!(usage(&openai), (20, 4, 7, 0), "part of the total");
    }
    // What it was is told at the beginning, the rest of it later.
    let begins = format!(r#"{{"type":"message_start","message":{{"usage":{messages}}}}}"#);
    let stream = format!("data: {begins}\n\ndata: {{\"usage\":{{\"output_tokens\":9}}}}\n\n");
    let seen = read(&stream, true, 5).0.unwrap();
    assert_eq!((seen.stored, seen.stored_long, seen.output), (7, 2, 9));
}

#[test]
fn line_ends_of_every_kind_separate_events() {
    for end in ["\n", "\r\n", "\r"] {
        let text = CHAT_STREAM.replace('\n', end);
        assert_eq!(read(&text, true, 1).1, 3, "{end:?}");
        assert_eq!(read(&text, true, 7).0.unwrap().input, 12, "{end:?}");
    }
}

#[test]
fn data_in_several_lines_is_one_text() {
    let text = "data: {\"usage\":{\"prompt_tokens\":\ndata: 12,\"completion_tokens\":3}}\n\n";
    assert_eq!(read(text, true, 5).0.unwrap().input, 12);
}

#[test]
fn what_only_looks_like_usage_is_none() {
    for text in [
        r#"{"choices":[{"usage":{"prompt_tokens":1}}]}"#,
        r#"{"text":"\"usage\":{\"prompt_tokens\":1}"}"#,
        r#"["x","usage",{"prompt_tokens":1}]"#,
        r#"{"usage":null}"#,
        r#"{"usage":[{"prompt_tokens":1}]}"#,
        r#"{"message":"usage"}"#,
        "",
    ] {
        assert_eq!(read(text, false, 3).0, None, "{text}");
    }
    let huge = format!(r#"{{"usage":{{"x":"{}"}}}}"#, "y".repeat(MAX_USAGE));
    assert_eq!(read(&huge, false, 100).0, None);
}

#[test]
fn totals_never_shrink_and_never_overflow() {
    let text = "data: {\"usage\":{\"input_tokens\":18446744073709551615,\"cache_read_input_tokens\":9}}\n\ndata: {\"usage\":{\"input_tokens\":1}}\n\n";
    assert_eq!(read(text, true, 9).0.unwrap().input, u64::MAX);
}

/// What the WHATWG's text says, on the whole stream at once and with a parser of JSON.
fn reference(text: &str) -> (Option<Usage>, u64) {
    let mut seen = None;
    let mut begins = false;
    let mut events = 0;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut data: Vec<&str> = Vec::new();
    let mut whole: Vec<&str> = text.split('\n').collect();
    whole.pop();
    for line in whole {
        if let Some(value) = line.strip_prefix("data:") {
            data.push(value.strip_prefix(' ').unwrap_or(value));
        } else if line.is_empty() && !data.is_empty() {
            events += 1;
            let event = std::mem::take(&mut data).join("\n");
            let Ok(value) = serde_json::from_str::<serde_json::Value>(&event) else {
                continue;
            };
            for pointer in [
                "/usage",
                "/usageMetadata",
                "/response/usage",
                "/message/usage",
            ] {
                if let Some(usage) = value.pointer(pointer).filter(|usage| usage.is_object())
                    && take(&mut seen, usage.to_string().as_bytes())
                {
                    begins = pointer == "/message/usage";
                }
            }
        }
    }
    let seen = seen.map(|usage: Usage| Usage {
        output: usage.output.max(if begins { events } else { 0 }),
        ..usage
    });
    (seen, events)
}

/// A stream: events of every kind, whole and odd, and what stands between them.
fn streams() -> impl Strategy<Value = String> {
    let other = prop_oneof![
        Just(""),
        Just(": ping"),
        Just("event: x"),
        Just("dat"),
        Just("dat: {\"usage\":{\"prompt_tokens\":99}}"),
    ];
    let data = prop_oneof![
        Just("[DONE]".to_owned()),
        Just(r#"{"usage":null,"x":[{"usage":{"prompt_tokens":99}}]}"#.to_owned()),
        Just(r#"{"x":"\"usage\":{\"prompt_tokens\":99}"}"#.to_owned()),
        (0_u64..1000).prop_map(|n| format!(r#"{{"usage" : {{"prompt_tokens":{n}}} }}"#)),
        (0_u64..1000).prop_map(|n| format!(
            r#"{{"a":[1,{{}}],"message":{{"b":"}}","usage":{{"output_tokens":{n}}}}}}}"#
        )),
        (0_u64..1000).prop_map(|n| format!(
            r#"{{"usageMetadata":{{"promptTokenCount":{n},"thoughtsTokenCount":1}}}}"#
        )),
    ];
    let end = || prop_oneof![Just("\n"), Just("\n"), Just("\r\n"), Just("\r")];
    let event = (
        other,
        end(),
        prop_oneof![Just("data:"), Just("data: ")],
        data,
        end(),
        end(),
    );
    proptest::collection::vec(event, 0..12).prop_map(|events| {
        let mut text = String::new();
        for (other, first, field, data, second, third) in events {
            text += other;
            text += first;
            text += field;
            // An event in two lines, now and then.
            match data.split_once(' ').filter(|_| first == "\n") {
                Some((one, two)) => text += &format!("{one}{second}data: {two}"),
                None => text += &data,
            }
            text += second;
            // Not the other half of the same end.
            text += if second == "\r" { second } else { third };
        }
        text + "\n\n"
    })
}

/// What is read of a text in pieces of these lengths, over and over.
fn in_pieces(text: &str, event_stream: bool, cuts: &[usize]) -> (Option<Usage>, u64) {
    let mut meter = UsageMeter::new(event_stream);
    let mut rest = text.as_bytes();
    for cut in cuts.iter().cycle() {
        let (piece, tail) = rest.split_at((*cut).min(rest.len()));
        meter.feed(piece);
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    (meter.reported(), meter.events())
}

proptest! {
    #[test]
    fn a_stream_in_pieces_is_read_like_the_whole(
        text in streams(),
        cuts in proptest::collection::vec(1_usize..80, 1..20),
    ) {
        prop_assert_eq!(in_pieces(&text, true, &cuts), reference(&text));
        prop_assert_eq!(read(&text, true, text.len().max(1)), reference(&text));
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), stream: bool) {
        let mut meter = UsageMeter::new(stream);
        meter.feed(&bytes);
        prop_assert!(meter.events() <= 200);
    }

    #[test]
    fn cuts_change_nothing(cuts in proptest::collection::vec(1_usize..50, 1..20)) {
        for (text, stream) in [(RESPONSES_STREAM, true), (MESSAGES_STREAM, true), (CHAT, false)] {
            let whole = read(text, stream, text.len());
            prop_assert_eq!(in_pieces(text, stream, &cuts), whole);
        }
    }
}

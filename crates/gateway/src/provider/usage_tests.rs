use proptest::prelude::*;

use super::*;

const CHAT: &str = r#"{"id":"x","choices":[{"message":{"usage":{"prompt_tokens":999}}}],"usage":{"prompt_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;

const CHAT_STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9}\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

const RESPONSES_STREAM: &str = "event: response.output_text.delta\r\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\r\n\r\nevent: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"usage\":{\"input_tokens\":999}}],\"usage\":{\"input_tokens\":20,\"input_tokens_details\":{\"cached_tokens\":5},\"output_tokens\":6}}}\r\n\r\n";

const MESSAGES_STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":2,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n: ping\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n";

const GEMINI: &str = r#"[{"candidates":[],"usageMetadata":{"promptTokenCount":8}},{"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":4,"thoughtsTokenCount":2,"cachedContentTokenCount":1}}]"#;

fn read(text: &str, event_stream: bool, chunk: usize) -> (Option<Usage>, u64) {
    let mut meter = UsageMeter::new(event_stream);
    for piece in text.as_bytes().chunks(chunk) {
        meter.feed(piece);
    }
    (meter.reported(), meter.events())
}

#[test]
fn every_dialect_is_read_however_it_is_cut() {
    for (text, stream, usage, events) in [
        (CHAT, false, (12, 3, 4), 0),
        (CHAT_STREAM, true, (12, 3, 0), 3),
        (RESPONSES_STREAM, true, (20, 6, 5), 2),
        (MESSAGES_STREAM, true, (17, 15, 5), 2),
        (GEMINI, false, (8, 6, 1), 0),
    ] {
        for chunk in 1..40 {
            let (seen, counted) = read(text, stream, chunk);
            let seen = seen.map(|usage| (usage.input, usage.output, usage.cached));
            assert_eq!((seen, counted), (Some(usage), events), "{text} in {chunk}");
        }
    }
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

proptest! {
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
            let mut meter = UsageMeter::new(stream);
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                meter.feed(piece);
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!((meter.reported(), meter.events()), whole);
        }
    }
}

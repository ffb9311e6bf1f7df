use proptest::prelude::*;
use serde_json::{Value, json};
use types::RunId;

use super::{Message, Reader, Reply, ToolCall, ToolResult, Unreadable, reply_events, shorten};
use crate::store::{Event, MAX_DATA_BYTES, NewEvent};

#[test]
fn a_long_conversation_loses_its_oldest_results_first() {
    let result = |n: usize| {
        Message::Results(vec![ToolResult {
            call_id: n.to_string(),
            output: "x".repeat(super::MAX_CONVERSATION / 4),
            ok: true,
        }])
    };
    let mut messages: Vec<_> = (0..6).map(result).collect();
    shorten(&mut messages);
    let lengths: Vec<_> = messages.iter().map(Message::length).collect();
    assert!(
        lengths[0] < 100 && lengths[5] == super::MAX_CONVERSATION / 4,
        "{lengths:?}"
    );
    assert!(lengths.iter().sum::<usize>() <= super::MAX_CONVERSATION);
}

fn started() -> NewEvent {
    let data = json!({
        "prompt": "p", "model": "a/b", "max_steps": 9, "max_seconds": 60, "max_tokens": 1000,
    });
    NewEvent::of_run(RunId::generate(), "run.started", data)
}

fn new(kind: &'static str, data: Value) -> NewEvent {
    NewEvent::of_run(RunId::generate(), kind, data)
}

/// Reads events that were committed a second apart.
fn read(events: Vec<NewEvent>) -> Result<super::History, Unreadable> {
    let mut reader = Reader::default();
    for (seq, event) in (1..).zip(events) {
        reader.push(Event {
            seq,
            ts: format!("2026-01-01T00:{:02}:{:02}Z", seq / 60, seq % 60),
            kind: event.kind.to_owned(),
            run_id: event.run_id,
            data: event.data,
        })?;
    }
    reader.finish()
}

fn usage(tokens: u64) -> NewEvent {
    new(
        "run.usage",
        json!({"input_tokens": tokens, "output_tokens": 1}),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a model writes, however long, comes back as it was, in events that the
    /// store takes.
    #[test]
    fn a_reply_comes_back_whole(
        text in "\\PC{0,40}",
        hard in proptest::collection::vec(any::<char>(), 0..64),
        times in 1usize..9000,
        calls in proptest::collection::vec(("[a-z]{1,8}", "\\PC{0,30}"), 0..4),
    ) {
        let hard: String = hard.into_iter().collect();
        let reply = Reply {
            text,
            calls: calls.into_iter().enumerate().map(|(at, (name, arguments))| ToolCall {
                id: format!("call_{at}"),
                name,
                arguments: format!("{arguments}\"{}\\", hard.repeat(times)),
                extra_content: (at == 0).then(|| json!({"google": {"thought_signature": hard}})),
            }).collect(),
            ..Reply::default()
        };
        let events = reply_events(RunId::generate(), 1, &reply);
        let mut all = vec![started(), new("run.step", json!({"step": 1}))];
        for event in events {
            prop_assert!(event.data.to_string().len() <= MAX_DATA_BYTES);
            all.push(event);
        }
        all.push(usage(4));
        let history = read(all).unwrap();
        prop_assert_eq!(history.conversation.messages().last(), Some(&Message::Assistant(reply)));
        prop_assert_eq!(history.conversation.tokens, 5);
    }
}

#[test]
fn a_call_without_a_result_is_known_as_begun() {
    let reply = Reply {
        calls: ["one", "two", "three"]
            .map(|id| ToolCall {
                id: id.into(),
                name: "write_file".into(),
                arguments: "{}".into(),
                extra_content: None,
            })
            .into(),
        ..Reply::default()
    };
    let command = types::CommandId::generate();
    let mut events = vec![started(), new("run.step", json!({"step": 1}))];
    events.extend(reply_events(RunId::generate(), 1, &reply));
    events.extend([
        usage(1),
        new("run.tool_call", json!({"call_id": "one"})),
        new(
            "run.tool_result",
            json!({"call_id": "one", "ok": true, "output": "x"}),
        ),
        new(
            "run.tool_call",
            json!({"call_id": "two", "command_id": command}),
        ),
    ]);
    let open = |events: &[NewEvent]| read(events.to_vec()).unwrap().conversation.open.unwrap();
    let found = open(&events);
    let result = ToolResult {
        call_id: "one".into(),
        output: "x".into(),
        ok: true,
    };
    assert_eq!(found.results, [result]);
    assert_eq!(found.begun.unwrap().command, Some(command));
    // What was committed on the way is what happened.
    events.push(new("file.changed", json!({"path": "a", "op": "created"})));
    assert_eq!(
        open(&events).begun.unwrap().effect.as_deref(),
        Some("created a")
    );
}

#[test]
fn time_counts_while_it_worked_and_resumptions_until_something_is_finished() {
    let resumed = || new("run.resumed", json!({}));
    // Started in second 1, last seen in second 2; resumed in 3 and 4; last seen in 5.
    let mut events = vec![
        started(),
        new("run.step", json!({"step": 1})),
        resumed(),
        resumed(),
        new("run.retry", json!({})),
    ];
    let history = read(events.clone()).unwrap();
    assert_eq!(history.worked.as_secs(), 2);
    assert_eq!((history.resumptions, history.fruitless), (2, 2));
    assert!(history.conversation.unanswered && history.conversation.step == 1);
    events.extend(reply_events(RunId::generate(), 1, &Reply::default()));
    events.push(usage(1));
    let history = read(events).unwrap();
    assert_eq!((history.resumptions, history.fruitless), (2, 0));
    assert!(history.conversation.ended().is_some());
}

#[test]
fn what_an_older_version_or_somebody_else_wrote_is_refused() {
    let old = new("run.started", json!({"prompt": "p", "model": "a/b"}));
    assert!(
        read(vec![old])
            .unwrap_err()
            .to_string()
            .contains("older version")
    );
    // A reply that left no record but its usage.
    assert!(
        read(vec![
            started(),
            new("run.step", json!({"step": 1})),
            usage(1)
        ])
        .is_err()
    );
    let piece = json!({"step": 1, "part": 1, "parts": 2, "piece": "{"});
    assert!(read(vec![started(), new("run.reply", piece), usage(1)]).is_err());
    assert!(read(vec![new("run.step", json!({"step": 1}))]).is_err());
}

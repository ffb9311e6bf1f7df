//! The agent, on both wire formats.

use std::fs;

use serde_json::{Value, json};

use crate::double::Script;
use crate::harness::Guest;
use crate::wire::{Reply, call, text};

const KINDS: [&str; 2] = ["openai", "anthropic"];

async fn guest(kind: &'static str, replies: impl IntoIterator<Item = Reply>) -> Guest {
    let guest = Guest::start(kind).await;
    guest
        .double
        .script(replies.into_iter().map(|reply| reply.script(kind)));
    guest
}

fn of_kind<'event>(events: &'event [Value], kind: &str) -> Vec<&'event Value> {
    events
        .iter()
        .filter(|event| event["kind"] == kind)
        .map(|event| &event["data"])
        .collect()
}

#[tokio::test]
async fn works_with_tools_until_it_is_done() {
    for kind in KINDS {
        let guest = guest(
            kind,
            [
                call(
                    "write_file",
                    json!({"path": "src/greet.sh", "content": "echo hallo é\n"}),
                ),
                call(
                    "patch_file",
                    json!({"path": "src/greet.sh", "old": "hallo", "new": "hello"}),
                )
                .and(
                    "run_command",
                    json!({"command": "sh greet.sh; exit 3", "cwd": "src"}),
                ),
                call("read_file", json!({"path": "./src/greet.sh"}))
                    .and("list_files", json!({"recursive": true}))
                    .and(
                        "search_files",
                        json!({"query": "HELLO", "ignore_case": true}),
                    ),
                text("It says hello now."),
            ],
        )
        .await;
        let (run, events) = guest.run(json!({"prompt": "make it say hello"})).await;
        assert_eq!(run["status"], "done", "{run}");
        assert_eq!(run["answer"], "It says hello now.");
        assert_eq!(run["model"], "test/m");
        assert_eq!(
            (&run["steps"], &run["input_tokens"], &run["output_tokens"]),
            (&json!(4), &json!(40), &json!(20))
        );
        assert_eq!(
            fs::read_to_string(guest.workspace().join("src/greet.sh")).unwrap(),
            "echo hello é\n"
        );
        let outputs: Vec<_> = of_kind(&events, "run.tool_result")
            .iter()
            .map(|result| {
                (
                    result["ok"].as_bool().unwrap(),
                    result["output"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        assert_eq!(outputs[2], (false, "exit code: 3\nhello é\n".to_owned()));
        assert_eq!(outputs[3], (true, "echo hello é\n".to_owned()));
        assert!(
            outputs[4].1.contains("src/greet.sh (14 bytes)"),
            "{outputs:?}"
        );
        assert!(
            outputs[5].1.contains("src/greet.sh:1: echo hello é"),
            "{outputs:?}"
        );
        // Every step stands in the transcript, in order.
        let kinds: Vec<_> = events
            .iter()
            .map(|event| event["kind"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds[..4],
            ["run.started", "run.step", "run.reply", "run.usage"]
        );
        assert_eq!(kinds.last(), Some(&"run.finished"));
        let state = guest.double.state.lock().unwrap();
        assert_eq!(state.commands[0].label.as_deref(), Some("agent"));
        assert!(state.commands[0].capabilities.is_empty() && !state.commands[0].detach);
        // What the tools answered went back to the model.
        let last = state.asked.last().unwrap().1.to_string();
        assert!(
            last.contains("exit code: 3") && last.contains("make it say hello"),
            "{last}"
        );
    }
}

#[tokio::test]
async fn speaks_each_wire_format_as_it_is_written() {
    for (kind, path) in [("openai", "chat/completions"), ("anthropic", "v1/messages")] {
        let guest = guest(kind, [call("list_files", json!({})), text("done")]).await;
        guest
            .run(json!({"prompt": "look", "model": "test/other"}))
            .await;
        let state = guest.double.state.lock().unwrap();
        let (asked_path, body) = &state.asked[1];
        assert_eq!(asked_path, path);
        assert_eq!(
            (&body["model"], &body["stream"]),
            (&json!("other"), &json!(true))
        );
        // These texts may change freely; the rest is the wire format.
        let mut body = body.clone();
        body["tools"] = "[tools]".into();
        match kind {
            "openai" => body["messages"][0]["content"] = "[system]".into(),
            _ => body["system"] = "[system]".into(),
        }
        insta::assert_json_snapshot!(format!("second_request_{kind}"), body);
    }
}

#[tokio::test]
async fn a_tool_that_fails_is_told_and_does_not_end_the_run() {
    for kind in KINDS {
        let guest = guest(
            kind,
            [
                call("read_file", json!({"path": "nowhere"}))
                    .and("read_file", json!({"path": "../../etc/passwd"}))
                    .and("write_file", json!({"path": "x"}))
                    .and("patch_file", json!({"path": "x", "old": "a", "new": "b"}))
                    .and("run_command", json!({"command": "forbidden"}))
                    .and("fly", json!({})),
                text("I could not."),
            ],
        )
        .await;
        let (run, events) = guest.run(json!({"prompt": "fail"})).await;
        assert_eq!(run["status"], "done");
        for (result, wanted) in of_kind(&events, "run.tool_result").iter().zip([
            "no such file",
            "leads out of the workspace",
            "missing field `content`",
            "no such file",
            "policy forbids",
            "there is no tool",
        ]) {
            let output = result["output"].as_str().unwrap();
            assert!(result["ok"] == false && output.contains(wanted), "{output}");
        }
    }
}

#[tokio::test]
async fn meets_its_bounds() {
    for kind in KINDS {
        let more = || call("list_files", json!({}));
        let guest = guest(kind, [more(), more(), more().using(900, 200)]).await;
        let (run, _) = guest.run(json!({"prompt": "go on", "max_steps": 2})).await;
        assert_eq!(
            (&run["status"], &run["steps"]),
            (&json!("bounded"), &json!(2))
        );
        assert!(run["error"].as_str().unwrap().contains("2 steps"), "{run}");
        let (run, _) = guest
            .run(json!({"prompt": "go on", "max_tokens": 1000}))
            .await;
        assert_eq!(run["status"], "bounded");
        assert!(
            run["error"].as_str().unwrap().contains("max_tokens"),
            "{run}"
        );

        guest
            .double
            .script([call("run_command", json!({"command": "sleep 600"})).script(kind)]);
        let (run, _) = guest.run(json!({"prompt": "wait", "max_seconds": 1})).await;
        assert_eq!(run["status"], "bounded");
        guest
            .double
            .until("the command's end", |state| {
                state.killed.len() == 1 && state.jobs.values().all(|job| job.exit.is_some())
            })
            .await;
    }
}

#[tokio::test]
async fn cancelling_ends_the_command() {
    for kind in KINDS {
        let guest = guest(
            kind,
            [call(
                "run_command",
                json!({"command": "echo up; sleep 600"}),
            )],
        )
        .await;
        let (_, started) = guest
            .client
            .post("/conductor/execute", json!({"prompt": "wait"}))
            .await;
        let id = started["run_id"].as_str().unwrap();
        guest.event(id, "run.tool_call").await;
        guest
            .double
            .until("the command", |state| !state.commands.is_empty())
            .await;
        let (status, _) = guest
            .client
            .post(&format!("/conductor/runs/{id}/cancel"), json!({}))
            .await;
        assert_eq!(status, 202);
        let (run, _) = guest.finished(id).await;
        assert_eq!(run["status"], "cancelled");
        guest
            .double
            .until("the command's end", |state| {
                state.killed.len() == 1 && state.jobs.values().all(|job| job.exit.is_some())
            })
            .await;
        let (status, _) = guest
            .client
            .post(&format!("/conductor/runs/{id}/cancel"), json!({}))
            .await;
        assert_eq!(status, 409);
    }
}

#[tokio::test]
async fn cancelling_drops_the_model_stream() {
    let guest = Guest::start("openai").await;
    let beginning = json!({"choices": [{"delta": {"content": "thinking"}}]});
    guest
        .double
        .script([Script::Hang(format!("data: {beginning}\n\n"))]);
    let mut live = guest.client.live(0).await;
    let (_, started) = guest
        .client
        .post("/conductor/execute", json!({"prompt": "think"}))
        .await;
    let id = started["run_id"].as_str().unwrap();
    // The text is seen while it comes.
    while live.next().await != json!({"type": "delta", "run_id": id, "text": "thinking"}) {}
    guest
        .client
        .post(&format!("/conductor/runs/{id}/cancel"), json!({}))
        .await;
    assert_eq!(guest.finished(id).await.0["status"], "cancelled");
    guest
        .double
        .until("the stream's end", |state| state.dropped == 1)
        .await;
}

#[tokio::test]
async fn tries_again_when_that_may_help() {
    for kind in KINDS {
        let guest = Guest::start(kind).await;
        let overloaded =
            json!({"error": {"message": "slow down", "type": "rate_limit_error"}}).to_string();
        guest.double.script([
            Script::Refuse(429, Some("0"), overloaded),
            Script::Refuse(503, None, "<html>".into()),
            // A stream that breaks off.
            Script::Stream("data: {\"type\":\"ping\",\"choices\":[]}\n\n".into(), 9),
            text("there").script(kind),
        ]);
        let (run, events) = guest.run(json!({"prompt": "try"})).await;
        assert_eq!(
            (&run["status"], &run["answer"]),
            (&json!("done"), &json!("there"))
        );
        let retries = of_kind(&events, "run.retry");
        assert_eq!(retries.len(), 3);
        assert!(retries[0]["reason"].as_str().unwrap().contains("slow down"));
    }
}

#[tokio::test]
async fn gives_up_with_plain_words_when_it_does_not_help() {
    let guest = Guest::start("anthropic").await;
    let refusal = json!({"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}});
    guest
        .double
        .script([Script::Refuse(401, None, refusal.to_string())]);
    let (run, events) = guest.run(json!({"prompt": "try"})).await;
    assert_eq!(run["status"], "failed");
    let error = run["error"].as_str().unwrap();
    assert!(
        error.contains("invalid x-api-key") && error.contains("operator"),
        "{error}"
    );
    assert!(of_kind(&events, "run.retry").is_empty());

    // Asked to wait longer than it is worth.
    guest
        .double
        .script([Script::Refuse(429, Some("3600"), "{}".into())]);
    let (run, events) = guest.run(json!({"prompt": "try"})).await;
    assert_eq!(
        (&run["status"], of_kind(&events, "run.retry").len()),
        (&json!("failed"), 0)
    );

    guest
        .double
        .script((0..5).map(|_| Script::Refuse(500, None, "{}".into())));
    let (run, events) = guest.run(json!({"prompt": "try"})).await;
    assert_eq!(
        (&run["status"], of_kind(&events, "run.retry").len()),
        (&json!("failed"), 4)
    );
}

#[tokio::test]
async fn remembers_across_runs() {
    for kind in KINDS {
        let note = json!({"text": "The deploy password is kept by Bob", "tags": ["Deploy"]});
        let guest = guest(
            kind,
            [
                call("remember", note),
                text("noted"),
                call("recall", json!({"query": "who keeps it? deploy"})),
                text("Bob"),
            ],
        )
        .await;
        guest.run(json!({"prompt": "remember this"})).await;
        let (_, events) = guest
            .run(json!({"prompt": "Who do I ask about \"deploy\" OR 1=1 --?"}))
            .await;
        let recalled = of_kind(&events, "run.tool_result")[0]["output"]
            .as_str()
            .unwrap();
        assert!(recalled.contains("kept by Bob"), "{recalled}");
        assert_eq!(of_kind(&events, "run.recalled").len(), 1);
        {
            let state = guest.double.state.lock().unwrap();
            let first = &state.asked[0].1.to_string();
            let second = &state.asked[2].1.to_string();
            assert!(
                !first.contains("kept by Bob") && second.contains("kept by Bob [deploy]"),
                "{second}"
            );
        }
        let (_, found) = guest.client.get("/api/memory?q=deploying").await;
        let id = found["memories"][0]["id"].as_str().unwrap();
        assert_eq!(
            guest
                .client
                .json("DELETE", &format!("/api/memory/{id}"), None)
                .await
                .0,
            204
        );
        assert_eq!(
            guest.client.get("/api/memory?q=deploy").await.1["memories"],
            json!([])
        );
        assert_eq!(
            guest
                .client
                .json("DELETE", &format!("/api/memory/{id}"), None)
                .await
                .0,
            404
        );
    }
}

#[tokio::test]
async fn only_so_many_runs_work_at_a_time() {
    let guest = Guest::start("openai").await;
    let hang = || Script::Hang(": waiting\n\n".into());
    guest
        .double
        .script((0..sandbox::agent::MAX_RUNS).map(|_| hang()));
    let mut runs = Vec::new();
    for _ in 0..sandbox::agent::MAX_RUNS {
        let (status, started) = guest
            .client
            .post("/conductor/execute", json!({"prompt": "x"}))
            .await;
        assert_eq!(status, 202);
        runs.push(started["run_id"].as_str().unwrap().to_owned());
    }
    let (status, refusal) = guest
        .client
        .post("/conductor/execute", json!({"prompt": "x"}))
        .await;
    assert_eq!((status, &refusal["code"]), (429, &json!("rate_limited")));
    guest
        .client
        .post(&format!("/conductor/runs/{}/cancel", runs[0]), json!({}))
        .await;
    guest.finished(&runs[0]).await;
    let (_, listed) = guest.client.get("/conductor/runs?limit=2").await;
    assert_eq!(listed["runs"][1]["id"], runs[2].as_str());
    let (_, listed) = guest
        .client
        .get(&format!("/conductor/runs?before={}", runs[1]))
        .await;
    assert_eq!(listed["runs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn refuses_tasks_that_are_not_acceptable() {
    let guest = Guest::start("openai").await;
    for (task, wanted) in [
        (json!({"prompt": "  "}), "empty"),
        (json!({"prompt": "x".repeat(64 * 1024 + 1)}), "65536"),
        (json!({"prompt": "x", "max_steps": 0}), "max_steps"),
        (
            json!({"prompt": "x", "max_seconds": 1_000_000}),
            "max_seconds",
        ),
        (json!({"prompt": "x", "model": "nobody/m"}), "test/m"),
        (json!({"prompt": "x", "surprise": 1}), "surprise"),
    ] {
        let (status, problem) = guest.client.post("/conductor/execute", task).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == 400 && detail.contains(wanted),
            "{status} {detail}"
        );
    }
    let (status, _) = guest.client.get("/conductor/runs/not-an-id").await;
    assert_eq!(status, 404);
}

//! Runs that are cut off go on, and nothing that was finished is done twice.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use proptest::prelude::*;
use sandbox::agent::MAX_FRUITLESS;
use sandbox::store::{Event, NewEvent};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use types::{CommandId, RunId};

use crate::binary::{free_port, serving};
use crate::double::{Double, Script};
use crate::harness::{Client, Guest, PATIENCE, token};
use crate::wire::{Reply, call, text};

const KINDS: [&str; 2] = ["openai", "anthropic"];

/// A task whose every step leaves a trace: each command a line in a file of its own, the
/// patch a letter more.
fn replies() -> Vec<Reply> {
    vec![
        call("write_file", json!({"path": "word", "content": "a!"})),
        call(
            "patch_file",
            json!({"path": "word", "old": "a!", "new": "ab!"}),
        )
        .and(
            "run_command",
            json!({"command": "echo x >> first; echo said"}),
        ),
        call("read_file", json!({"path": "word"})).and(
            "run_command",
            json!({"command": "echo x >> second; exit 3"}),
        ),
        call("run_command", json!({"command": "echo x >> third"})),
        text("All is done."),
    ]
}

fn plan(double: &Double, kind: &str, replies: &[Reply]) {
    double.plan(replies.iter().map(|reply| reply.script(kind)));
}

fn lines(workspace: &Path, name: &str) -> usize {
    fs::read_to_string(workspace.join(name)).map_or(0, |text| text.lines().count())
}

/// What has to hold however often the run was cut off: no command ran twice, and one that
/// did not run is one of which the model was told that nobody knows.
fn demand_no_repetition(workspace: &Path, events: &[Value]) {
    let interrupted = events
        .iter()
        .filter(|event| event["kind"] == "run.tool_result")
        .filter(|event| {
            event["data"]["output"]
                .as_str()
                .unwrap()
                .contains("interrupted")
        })
        .count();
    let ran: Vec<usize> = ["first", "second", "third"]
        .map(|name| lines(workspace, name))
        .into();
    assert!(ran.iter().all(|times| *times <= 1), "{ran:?}");
    let missing = ran.iter().filter(|times| **times == 0).count();
    assert!(missing <= interrupted, "{ran:?}, {interrupted} interrupted");
    let word = fs::read_to_string(workspace.join("word")).unwrap_or_default();
    assert!(
        word == "ab!" || interrupted > 0,
        "{word:?}, {interrupted} interrupted"
    );
}

/// The guest's real program, which can be killed.
struct Program {
    dir: tempfile::TempDir,
    double: Double,
    client: Client,
    child: Option<Child>,
}

impl Program {
    async fn start(kind: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("workspace")).unwrap();
        let double = Double::start(
            &dir.path().join("channel.sock"),
            &dir.path().join("workspace"),
            &token(),
            kind,
        );
        let client = Client::new(&dir.path().join("app.sock"));
        let mut program = Self {
            dir,
            double,
            client,
            child: None,
        };
        program.spawn().await;
        program
    }

    async fn spawn(&mut self) {
        let dir = self.dir.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox"));
        let port = free_port().await;
        command
            .env_clear()
            .env(
                "CHOIR_PROVIDER_GATEWAY_BASE_URL",
                format!("http://127.0.0.1:{port}/provider/v1"),
            )
            .env("CHOIR_PROVIDER_GATEWAY_TOKEN", token())
            .env("CHOIR_SANDBOX_ID", "s1")
            .env(
                "DATABASE_URL",
                format!("sqlite://{}", dir.join("events.db").display()),
            )
            .arg("--app-socket")
            .arg(dir.join("app.sock"))
            .arg("--channel-socket")
            .arg(dir.join("channel.sock"))
            .arg("--workspace")
            .arg(self.workspace())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        self.child = Some(serving(command).await);
    }

    async fn kill(&mut self) {
        self.child.take().unwrap().kill().await.unwrap();
    }

    fn workspace(&self) -> std::path::PathBuf {
        self.dir.path().join("workspace")
    }

    async fn execute(&self) -> String {
        let (status, started) = self
            .client
            .post("/conductor/execute", json!({"prompt": "work"}))
            .await;
        assert_eq!(status, 202, "{started}");
        started["run_id"].as_str().unwrap().to_owned()
    }

    /// Waits for the run's event number `wanted`, or for its end.
    async fn event(&self, run: &str, wanted: usize) -> bool {
        let mut live = self.client.live(0).await;
        let mut seen = 0;
        loop {
            let message = live.next().await;
            if message["event"]["run_id"] != run {
                continue;
            }
            seen += 1;
            let finished = message["event"]["kind"] == "run.finished";
            if seen >= wanted || finished {
                return finished;
            }
        }
    }

    async fn finished(&self, run: &str) -> (Value, Vec<Value>) {
        while !self.event(run, usize::MAX).await {}
        let (_, detail) = self.client.get(&format!("/conductor/runs/{run}")).await;
        (
            detail["run"].clone(),
            detail["events"].as_array().unwrap().clone(),
        )
    }
}

async fn is_cut_everywhere(kind: &'static str) {
    let mut cut = 1;
    loop {
        let mut program = Program::start(kind).await;
        plan(&program.double, kind, &replies());
        let run = program.execute().await;
        if program.event(&run, cut).await {
            assert!(cut > 20, "it ended after {cut} events already");
            return;
        }
        program.kill().await;
        program.spawn().await;
        let (ended, events) = program.finished(&run).await;
        assert_eq!(ended["status"], "done", "cut at {cut}: {ended}");
        assert_eq!(
            (&ended["answer"], &ended["steps"]),
            (&json!("All is done."), &json!(5))
        );
        demand_no_repetition(&program.workspace(), &events);
        // A step whose reply is committed is neither asked for nor counted again.
        let (tokens, replies) = (
            ended["input_tokens"].as_u64(),
            of_kind(&events, "run.reply"),
        );
        assert_eq!((tokens, replies), (Some(50), 5), "cut at {cut}");
        cut += 1;
    }
}

fn of_kind(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

#[tokio::test]
async fn a_run_goes_on_wherever_the_guest_was_killed_with_openai() {
    is_cut_everywhere("openai").await;
}

#[tokio::test]
async fn a_run_goes_on_wherever_the_guest_was_killed_with_anthropic() {
    is_cut_everywhere("anthropic").await;
}

#[tokio::test]
async fn a_command_that_outlived_the_guest_is_followed_to_its_end() {
    for kind in KINDS {
        let mut program = Program::start(kind).await;
        let command =
            "echo x >> first; echo before; until [ -e go ]; do sleep 0.01; done; echo after";
        plan(
            &program.double,
            kind,
            &[
                call("run_command", json!({ "command": command })),
                text("There."),
            ],
        );
        let run = program.execute().await;
        let workspace = program.workspace();
        program
            .double
            .until("the command", |_| lines(&workspace, "first") == 1)
            .await;
        program.kill().await;
        program.spawn().await;
        program.event(&run, 6).await;
        fs::write(workspace.join("go"), "").unwrap();
        let (ended, events) = program.finished(&run).await;
        assert_eq!(ended["status"], "done", "{ended}");
        let result = events
            .iter()
            .find(|event| event["kind"] == "run.tool_result")
            .unwrap();
        assert_eq!(result["data"]["output"], "exit code: 0\nbefore\nafter\n");
        assert_eq!(lines(&workspace, "first"), 1);
        assert_eq!(of_kind(&events, "run.resumed"), 1);
        // Only then is it let go of.
        program
            .double
            .until("the command to be let go of", |state| {
                state.forgotten.len() == 1 && state.jobs.is_empty()
            })
            .await;
        assert_eq!(program.double.state.lock().unwrap().commands.len(), 1);
    }
}

#[tokio::test]
async fn a_model_call_that_was_cut_is_made_again_with_the_same_conversation() {
    for kind in KINDS {
        let mut program = Program::start(kind).await;
        plan(&program.double, kind, &replies());
        let first = replies()[0].script(kind);
        program
            .double
            .script([first, Script::Hang(": thinking\n\n".into())]);
        let run = program.execute().await;
        program
            .double
            .until("the second call", |state| state.asked.len() == 2)
            .await;
        program.kill().await;
        program
            .double
            .until("the stream's end", |state| state.dropped == 1)
            .await;
        program.spawn().await;
        let (ended, _) = program.finished(&run).await;
        assert_eq!(
            (&ended["status"], &ended["steps"]),
            (&json!("done"), &json!(5))
        );
        let state = program.double.state.lock().unwrap();
        assert_eq!(state.asked[1], state.asked[2]);
    }
}

#[tokio::test]
async fn a_run_outlives_the_hypervisor_in_a_command_and_in_a_model_call() {
    for kind in KINDS {
        let guest = Guest::start(kind).await;
        let command =
            "echo x >> first; echo before; until [ -e go ]; do sleep 0.01; done; echo after";
        let replies = [
            call("run_command", json!({ "command": command })),
            text("There."),
        ];
        plan(&guest.double, kind, &replies);
        let (_, started) = guest
            .client
            .post("/conductor/execute", json!({"prompt": "work"}))
            .await;
        let id = started["run_id"].as_str().unwrap();
        let workspace = guest.workspace();
        guest
            .double
            .until("the command", |_| lines(&workspace, "first") == 1)
            .await;
        guest.double.leave();
        fs::write(workspace.join("go"), "").unwrap();
        guest
            .double
            .until("the command's end", |state| {
                state.jobs.values().all(|job| job.exit.is_some())
            })
            .await;
        // The next model call is cut as well.
        guest.double.script([Script::Hang(": thinking\n\n".into())]);
        guest.double.come_back();
        guest
            .double
            .until("the second call", |state| state.asked.len() == 2)
            .await;
        guest.double.leave();
        guest.event(id, "run.retry").await;
        guest.double.come_back();
        let (run, events) = guest.finished(id).await;
        assert_eq!(run["status"], "done", "{run}");
        let result = events
            .iter()
            .find(|event| event["kind"] == "run.tool_result")
            .unwrap();
        assert_eq!(result["data"]["output"], "exit code: 0\nbefore\nafter\n");
        assert_eq!(lines(&workspace, "first"), 1);
        assert_eq!(of_kind(&events, "run.resumed"), 0);
    }
}

/// What a whole run left, to be cut anywhere.
async fn whole(kind: &'static str) -> Vec<Event> {
    let guest = Guest::start(kind).await;
    plan(&guest.double, kind, &replies());
    let (run, _) = guest
        .run(json!({"prompt": "work", "max_steps": 7, "max_seconds": 600}))
        .await;
    let id: RunId = run["id"].as_str().unwrap().parse().unwrap();
    guest.app.store.page(0, 1000, None, Some(id)).await.unwrap()
}

/// Commits events of a run as if an earlier process had.
async fn commit(guest: &Guest, events: &[Event]) -> String {
    let known = [
        "run.started",
        "run.step",
        "run.reply",
        "run.usage",
        "run.text",
        "run.tool_call",
        "run.tool_result",
        "file.changed",
        "run.resumed",
    ];
    let mut id = None;
    for event in events {
        let kind = known.iter().find(|kind| **kind == event.kind).unwrap();
        id = event.run_id;
        guest
            .app
            .store
            .append(NewEvent::of_run(id.unwrap(), kind, event.data.clone()))
            .await
            .unwrap();
    }
    id.unwrap().to_string()
}

fn made_up(run: RunId, kind: &str, data: Value) -> Event {
    Event {
        seq: 0,
        ts: String::new(),
        kind: kind.into(),
        run_id: Some(run),
        data,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Cut anywhere, several times: it comes to the same answer in the same number of
    /// steps, asks the model for nothing whose answer is committed, and does nothing that
    /// may have been done before.
    #[test]
    fn any_sequence_of_cuts_leads_to_the_same_end(
        anthropic in any::<bool>(),
        cuts in proptest::collection::vec(0.0f64..1.0, 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let kind = KINDS[usize::from(anthropic)];
            let mut events = whole(kind).await;
            for cut in cuts {
                events.retain(|event| event.kind != "run.finished");
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a few dozen")]
                let at = 1 + (cut * (events.len() - 1) as f64) as usize;
                // A reply and its usage are one commit.
                let at = if events[at - 1].kind == "run.reply" { at + 1 } else { at };
                events.truncate(at);
                let replies_before = events.iter().filter(|event| event.kind == "run.reply").count();
                let results_before = events.iter().filter(|event| event.kind == "run.tool_result").count();
                let guest = Guest::start(kind).await;
                plan(&guest.double, kind, &replies());
                let id = commit(&guest, &events).await;
                guest.app.conductor.resume_interrupted().await.unwrap();
                let (run, _) = guest.finished(&id).await;
                assert_eq!((&run["status"], &run["steps"]), (&json!("done"), &json!(5)), "{run}");
                let run_id: RunId = id.parse().unwrap();
                events = guest.app.store.page(0, 1000, None, Some(run_id)).await.unwrap();
                let state = guest.double.state.lock().unwrap();
                assert_eq!(state.asked.len(), replies().len() - replies_before);
                // Commands that were begun are known by nobody here: none is started anew.
                let begun = events.iter().filter(|event| event.kind == "run.tool_call").count();
                assert_eq!(begun, 6);
                let commands = events[at..].iter().filter(|event| {
                    event.kind == "run.tool_call" && event.data["name"] == "run_command"
                }).count();
                assert_eq!(state.commands.len(), commands);
                let results = events.iter().filter(|event| event.kind == "run.tool_result").count();
                assert_eq!(results, 6, "{results_before} before");
            }
        });
    }
}

/// The events of a run up to and with its first call of a tool.
async fn up_to_call(kind: &'static str, name: &str) -> Vec<Event> {
    let mut events = whole(kind).await;
    let at = events
        .iter()
        .position(|event| event.kind == "run.tool_call" && event.data["name"] == name)
        .unwrap();
    events.truncate(at + 1);
    events
}

async fn resumed(events: &[Event]) -> (Guest, Value, Vec<Value>) {
    let guest = Guest::start("openai").await;
    plan(&guest.double, "openai", &replies());
    let id = commit(&guest, events).await;
    guest.app.conductor.resume_interrupted().await.unwrap();
    let (run, events) = guest.finished(&id).await;
    (guest, run, events)
}

fn result_of(events: &[Value], call: usize) -> String {
    events
        .iter()
        .filter(|event| event["kind"] == "run.tool_result")
        .nth(call)
        .unwrap()["data"]["output"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_change_that_was_begun_is_not_made_again_and_the_model_is_told() {
    let mut events = up_to_call("openai", "write_file").await;
    let (guest, _, after) = resumed(&events).await;
    assert!(result_of(&after, 0).contains("look before doing it again"));
    assert!(!guest.workspace().join("word").exists());
    let told = guest.double.state.lock().unwrap().asked[0].1.to_string();
    assert!(told.contains("look before doing it again"), "{told}");

    // Committed on the way: then it is known.
    let run = events[0].run_id.unwrap();
    let changed = json!({"path": "word", "op": "created"});
    events.push(made_up(run, "file.changed", changed));
    let (_, _, after) = resumed(&events).await;
    assert_eq!(result_of(&after, 0), "created word");
}

#[tokio::test]
async fn what_only_looks_is_done_again() {
    let events = up_to_call("openai", "read_file").await;
    let guest = Guest::start("openai").await;
    plan(&guest.double, "openai", &replies());
    fs::write(guest.workspace().join("word"), "as it is now").unwrap();
    let id = commit(&guest, &events).await;
    guest.app.conductor.resume_interrupted().await.unwrap();
    let (_, after) = guest.finished(&id).await;
    assert_eq!(result_of(&after, 3), "as it is now");
}

#[tokio::test]
async fn bounds_count_across_the_cut() {
    let events = up_to_call("openai", "read_file").await;
    for (bound, value, wanted) in [
        ("max_steps", 3, "its bound of 3 steps"),
        ("max_tokens", 45, "used 45 tokens"),
        ("max_seconds", 0, "its bound of 0 seconds"),
    ] {
        let mut events = events.clone();
        events[0].data[bound] = json!(value);
        let (_, run, _) = resumed(&events).await;
        assert_eq!(run["status"], "bounded", "{run}");
        let error = run["error"].as_str().unwrap();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn a_run_that_finishes_nothing_is_not_resumed_for_ever() {
    let mut events = up_to_call("openai", "run_command").await;
    let run = events[0].run_id.unwrap();
    let command: CommandId = events.last().unwrap().data["command_id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    for attempt in 1..=MAX_FRUITLESS {
        events.push(made_up(run, "run.resumed", json!({"attempt": attempt})));
    }
    let (guest, ended, after) = resumed(&events).await;
    assert_eq!(ended["status"], "failed");
    let error = ended["error"].as_str().unwrap();
    assert!(error.contains("4 times in a row"), "{error}");
    assert_eq!(of_kind(&after, "run.resumed"), MAX_FRUITLESS as usize);
    let state = guest.double.state.lock().unwrap();
    assert!(state.asked.is_empty() && state.commands.is_empty());
    // Nor does its command go on without it.
    assert_eq!(state.killed, [command]);
}

#[tokio::test]
async fn a_run_of_an_older_version_is_failed_with_a_word() {
    let run = RunId::generate();
    let started = json!({"prompt": "p", "model": "test/m"});
    let (_, ended, _) = resumed(&[made_up(run, "run.started", started)]).await;
    assert_eq!(ended["status"], "failed");
    assert!(ended["error"].as_str().unwrap().contains("older version"));
}

#[tokio::test]
async fn a_resumed_run_can_be_cancelled_while_nobody_answers_and_while_it_works() {
    let events = up_to_call("openai", "read_file").await;
    let guest = Guest::start("openai").await;
    guest.double.leave();
    let id = commit(&guest, &events).await;
    guest.app.conductor.resume_interrupted().await.unwrap();
    guest.event(&id, "run.resumed").await;
    let cancel = format!("/conductor/runs/{id}/cancel");
    assert_eq!(guest.client.post(&cancel, json!({})).await.0, 202);
    assert_eq!(guest.finished(&id).await.0["status"], "cancelled");

    let guest = Guest::start("openai").await;
    guest.double.script([Script::Hang(": thinking\n\n".into())]);
    let id = commit(&guest, &events).await;
    guest.app.conductor.resume_interrupted().await.unwrap();
    guest
        .double
        .until("the model call", |state| !state.asked.is_empty())
        .await;
    assert_eq!(
        guest
            .client
            .post(&format!("/conductor/runs/{id}/cancel"), json!({}))
            .await
            .0,
        202
    );
    assert_eq!(guest.finished(&id).await.0["status"], "cancelled");
    // It may be that the double is still told of it.
    tokio::time::timeout(
        PATIENCE,
        guest
            .double
            .until("the stream's end", |state| state.dropped == 1),
    )
    .await
    .unwrap();
}

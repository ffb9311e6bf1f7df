use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::StatusCode;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use types::TerminalSize;

use super::server::{Plane, problem};
use super::{Person, Terminal};

const ID: &str = "018f0000-0000-7000-8000-0000000000c1";
const LIVE: &str = "POST /me/sandboxes/live/commands";

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

fn started() -> Bytes {
    line(&json!({"type": "started", "id": ID}))
}

fn output(stream: &str, bytes: &[u8]) -> Bytes {
    line(&json!({"type": "output", "stream": stream, "data": STANDARD.encode(bytes)}))
}

fn exited(more: Value) -> Bytes {
    let mut event = json!({"type": "exited", "code": null, "signal": null});
    event
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    line(&event)
}

fn whole(pieces: &[Bytes]) -> String {
    pieces
        .iter()
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect()
}

#[tokio::test]
async fn run_passes_on_output_and_exit_code() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let answer = [
        started(),
        output("stdout", b"out \xff\n"),
        output("stderr", b"err\n"),
        exited(json!({"code": 42, "wall_ms": 5})),
    ];
    plane.answer_text("POST /me/sandboxes/dev/commands", &whole(&answer));
    let arguments = "run --role dev --cwd app --timeout 60 --env A=b=c --grant provider:call -- cargo test --all";
    let ended = person.run(&plane, arguments).await;
    assert_eq!(ended.code, 42);
    assert_eq!(*person.stdout.0.lock().unwrap(), b"out \xff\n");
    assert_eq!(ended.stderr, "err\n");
    let expected = json!({
        "argv": ["cargo", "test", "--all"], "cwd": "app", "env": [["A", "b=c"]],
        "capabilities": ["provider:call"], "limits": {"wall_ms": 60_000}, "label": "cli", "detach": false,
    });
    assert_eq!(plane.last().body, expected);
}

#[tokio::test]
async fn what_is_piped_in_is_the_commands_input() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer_text(LIVE, &whole(&[started(), exited(json!({"code": 0}))]));
    person.stdin = Some(b"print(6 * 7)\n".to_vec());
    assert_eq!(person.run(&plane, "run -- python3 -").await.code, 0);
    assert_eq!(plane.last().body["stdin"], "print(6 * 7)\n");
    assert_eq!(person.run(&plane, "run -n -- python3 -").await.code, 0);
    assert_eq!(plane.last().body.get("stdin"), None);
}

#[tokio::test]
async fn input_that_cannot_be_passed_on_is_refused_before_anything_runs() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let before = plane.asked().len();
    person.stdin = Some(vec![b'x'; 1024 * 1024 + 1]);
    assert_snapshot!(person.run(&plane, "run -- cat").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: standard input cannot be passed on: it is longer than 1 MiB
    hint: give it none with -n, or put the data into a file in the workspace
    ");
    person.stdin = Some(vec![0xff]);
    assert_snapshot!(person.run(&plane, "run -- cat").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: standard input cannot be passed on: it is not UTF-8 text
    hint: give it none with -n, or put the data into a file in the workspace
    ");
    assert_eq!(plane.asked().len(), before);
}

#[tokio::test]
async fn the_ways_a_command_can_end_have_their_exit_codes() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    for (end, code) in [
        (json!({"code": 0}), 0),
        (json!({"signal": 9}), 137),
        (
            json!({"signal": 9, "timed_out": true, "wall_ms": 1000}),
            124,
        ),
        (json!({"error": "no such program: nope"}), 127),
        (json!({"code": 3, "dropped_bytes": 77}), 3),
    ] {
        let answer = plane.answer_stream(LIVE);
        answer.send(started()).await.unwrap();
        answer.send(exited(end.clone())).await.unwrap();
        drop(answer);
        let ended = person.run(&plane, "run -- x").await;
        assert_eq!(ended.code, code, "{end}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer_text(
        LIVE,
        &whole(&[started(), exited(json!({"error": "no such program: nope"}))]),
    );
    assert_snapshot!(person.run(&plane, "run -- nope").await.show(&plane), @r"
    exit code 127
    --- stdout
    --- stderr
    error: the command could not be started: no such program: nope
    ");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_a_failure() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer_text(LIVE, &whole(&[started(), output("stdout", b"half\n")]));
    assert_snapshot!(person.run(&plane, "run -- x").await.show(&plane), @r"
    exit code 1
    --- stdout
    half
    --- stderr
    error: the connection to http://localhost:PORT ended before the command did
    hint: it was killed with the connection; look at `choir sandbox list`
    ");
}

#[tokio::test]
async fn a_sandbox_that_does_not_run_says_how_to_start_it() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let refusal = problem(503, "sandbox_not_running", "live does not run");
    plane.refuse(LIVE, StatusCode::SERVICE_UNAVAILABLE, refusal);
    assert_snapshot!(person.run(&plane, "run -- x").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: live does not run
    hint: start it with `choir sandbox start`
    ");
}

#[tokio::test]
async fn output_appears_as_it_comes_and_ctrl_c_interrupts_then_kills() {
    let mut plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let answer = plane.answer_stream(LIVE);
    let signals = format!("{LIVE}/{ID}/signal");
    plane.answer(&signals, json!({}));
    let (press, presses) = mpsc::channel(4);
    person.presses = Some(presses);
    let (stdout, url) = (person.stdout.clone(), plane.url());
    let run = tokio::spawn(async move { person.run_at(&url, "run -- sleep 100").await });
    answer.send(started()).await.unwrap();
    answer.send(output("stdout", b"tick\n")).await.unwrap();
    while stdout.text() != "tick\n" {
        tokio::task::yield_now().await;
    }
    for signal in ["int", "kill"] {
        press.send(()).await.unwrap();
        let asked = loop {
            let asked = plane.arrivals.recv().await.unwrap();
            if asked.line == signals {
                break asked;
            }
        };
        assert_eq!(asked.body, json!({"signal": signal}));
    }
    answer.send(exited(json!({"signal": 9}))).await.unwrap();
    drop(answer);
    let ended = run.await.unwrap();
    assert_eq!((ended.code, ended.stdout.as_str()), (137, "tick\n"));
}

#[tokio::test]
async fn ctrl_c_before_the_command_runs_ends_the_call() {
    let mut plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let _silent = plane.answer_stream(LIVE);
    let (press, presses) = mpsc::channel(4);
    person.presses = Some(presses);
    let url = plane.url();
    let run = tokio::spawn(async move { person.run_at(&url, "run -- sleep 100").await });
    while plane.arrivals.recv().await.unwrap().line != LIVE {}
    press.send(()).await.unwrap();
    assert_eq!(run.await.unwrap().code, 130);
}

#[tokio::test]
async fn a_line_in_many_pieces_is_one_event() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let answer = plane.answer_stream(LIVE);
    let url = plane.url();
    let run = tokio::spawn(async move { person.run_at(&url, "run -- x").await });
    for byte in whole(&[
        started(),
        output("stdout", b"tick\n"),
        exited(json!({"code": 0})),
    ])
    .bytes()
    {
        answer.send(Bytes::copy_from_slice(&[byte])).await.unwrap();
    }
    drop(answer);
    let ended = run.await.unwrap();
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "tick\n"));
}

fn view() -> Value {
    json!({"id": ID, "argv": ["bash"], "terminal": true, "detach": false, "state": "running"})
}

#[tokio::test]
async fn a_terminal_is_handed_over_until_the_command_ends() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(LIVE, view());
    let socket = plane.answer_socket(&format!(
        "GET /me/sandboxes/live/commands/{ID}/stream?from=0"
    ));
    let (keys, input) = mpsc::channel(4);
    let (sizes, resizes) = mpsc::channel(4);
    let size = TerminalSize {
        cols: 100,
        rows: 30,
    };
    let restored = std::sync::Arc::new(());
    let restore = Box::new(std::sync::Arc::clone(&restored));
    person.terminal = Some(Terminal {
        size,
        input,
        resizes,
        restore,
    });
    let url = plane.url();
    let run = tokio::spawn(async move { person.run_at(&url, "run --tty -- bash").await });
    let mut socket = socket.await.unwrap();
    let sent = plane
        .asked()
        .into_iter()
        .find(|asked| asked.line == LIVE)
        .unwrap();
    assert_eq!(sent.body["terminal"], json!({"cols": 100, "rows": 30}));
    socket
        .send(Message::Text(r#"{"type":"attached","offset":0}"#.into()))
        .await
        .unwrap();
    socket
        .send(Message::Binary(Bytes::from_static(b"\x1b[1m$ ")))
        .await
        .unwrap();
    keys.send(b"\x03ls\r".to_vec()).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Binary(Bytes::from_static(b"\x03ls\r"))
    );
    sizes
        .send(TerminalSize {
            cols: 120,
            rows: 40,
        })
        .await
        .unwrap();
    let resized = Message::Text(r#"{"type":"resize","cols":120,"rows":40}"#.into());
    assert_eq!(socket.next().await.unwrap().unwrap(), resized);
    let end = r#"{"type":"exited","code":3,"signal":null}"#;
    socket.send(Message::Text(end.into())).await.unwrap();
    let ended = run.await.unwrap();
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (3, "\u{1b}[1m$ "),
        "{}",
        ended.stderr
    );
    assert_eq!(
        std::sync::Arc::strong_count(&restored),
        1,
        "the terminal's mode is restored"
    );
}

#[tokio::test]
async fn how_a_command_ended_is_read_also_by_somebody_who_types_on() {
    let plane = Plane::start().await;
    // Which of the two comes first, the end or the key that nobody takes, is chance.
    for round in 0..20 {
        let mut person = Person::signed_in(&plane).await;
        plane.answer(LIVE, view());
        let socket = plane.answer_socket(&format!(
            "GET /me/sandboxes/live/commands/{ID}/stream?from=0"
        ));
        let (keys, input) = mpsc::channel(4);
        person.terminal = Some(Terminal {
            size: TerminalSize { cols: 80, rows: 24 },
            input,
            resizes: mpsc::channel(1).1,
            restore: Box::new(()),
        });
        let url = plane.url();
        let run = tokio::spawn(async move { person.run_at(&url, "run -t -- bash").await });
        let mut socket = socket.await.unwrap();
        keys.send(b"unread".to_vec()).await.unwrap();
        let end = r#"{"type":"exited","code":3,"signal":null}"#;
        socket.send(Message::Text(end.into())).await.unwrap();
        drop(socket);
        keys.send(b"x".to_vec()).await.unwrap();
        let ended = run.await.unwrap();
        assert_eq!(ended.code, 3, "in round {round}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_terminal_whose_connection_breaks_is_killed_and_told() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(LIVE, view());
    plane.answer(&format!("{LIVE}/{ID}/signal"), json!({}));
    let socket = plane.answer_socket(&format!(
        "GET /me/sandboxes/live/commands/{ID}/stream?from=0"
    ));
    let size = TerminalSize { cols: 80, rows: 24 };
    let (input, resizes) = (mpsc::channel(1).1, mpsc::channel(1).1);
    person.terminal = Some(Terminal {
        size,
        input,
        resizes,
        restore: Box::new(()),
    });
    let url = plane.url();
    let run = tokio::spawn(async move { person.run_at(&url, "run -t -- bash").await });
    drop(socket.await.unwrap());
    assert_eq!(run.await.unwrap().code, 1);
    assert_eq!(plane.last().body, json!({"signal": "kill"}));
}

#[tokio::test]
async fn without_a_terminal_there_is_none_to_hand_over() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    assert_snapshot!(person.run(&plane, "run --tty -- bash").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: there is no terminal to hand over
    hint: run it without --tty, or from a terminal
    ");
}

//! The real binary: what it refuses, what it serves, how it ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sandbox::channel::{Channel, keep_token};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::double::{Double, Script};
use crate::harness::{Client, PATIENCE, token};
use crate::wire::text;

fn command(dir: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox"));
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
        .arg(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Starts it and waits until it serves.
pub(crate) async fn serving(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let wait = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("\"serving\"") {
                return;
            }
        }
        panic!("it ended without serving");
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    // Its log goes on; somebody has to read it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

async fn end(child: &mut Child) -> std::process::ExitStatus {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    tokio::time::timeout(Duration::from_secs(10), child.wait())
        .await
        .unwrap()
        .unwrap()
}

/// Runs it to its end, which has to come by itself.
async fn refused(command: &mut Command) -> std::process::Output {
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn refuses_a_provider_credential_by_name_and_by_shape() {
    let dir = tempfile::tempdir().unwrap();
    let shaped = format!("sk-{}", "9".repeat(40));
    for (name, value) in [
        ("OPENAI_API_KEY", "canary-8842"),
        ("HARMLESS", shaped.as_str()),
    ] {
        let output = refused(command(dir.path(), 1).env(name, value)).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(name) && !text.contains(value), "{text}");
        assert!(!dir.path().join("events.db").exists() && !dir.path().join("app.sock").exists());
    }
    let output =
        refused(command(dir.path(), 1).env("CHOIR_PROVIDER_GATEWAY_TOKEN", "canary-1")).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(78)
            && text.contains("GATEWAY_TOKEN")
            && !text.contains("canary-1")
    );
    // The token's shape is exempt under any name.
    let port = free_port().await;
    let mut child = serving({
        let mut command = command(dir.path(), port);
        command.env("OPENAI_API_KEY", token());
        command
    })
    .await;
    assert!(end(&mut child).await.success());
}

#[tokio::test]
async fn serves_relays_renews_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let double = Double::start(
        &dir.path().join("channel.sock"),
        dir.path(),
        &token(),
        "openai",
    );
    let port = free_port().await;
    let app_port = free_port().await;
    let mut child = serving({
        let mut command = command(dir.path(), port);
        command.env("PORT", app_port.to_string());
        command
    })
    .await;
    let client = Client::new(&dir.path().join("app.sock"));
    let (status, health) = client.get("/health").await;
    assert_eq!(
        (status, &health["status"], &health["sandbox_id"]),
        (200, &json!("ok"), &json!("s1"))
    );
    double.until("a renewal", |state| state.renewals > 0).await;

    // What a program in the sandbox sends to the gateway's address arrives as it was sent.
    for (bearer, wanted) in [(token(), "200 OK"), ("wrong".to_owned(), "401")] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!(
            "GET /provider/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {wanted}")),
            "{answer}"
        );
    }
    let mut stream = TcpStream::connect(("127.0.0.1", app_port)).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Watchers are told before it goes.
    let mut live = client.live(0).await;
    assert_eq!(live.next().await["event"]["kind"], "runtime.started");
    assert_eq!(live.next().await["type"], "caught_up");
    // It waits for the answer: a pong to a guest that is gone would fail before this is read.
    let (status, last) = tokio::join!(end(&mut child), live.closed());
    assert!(status.success());
    assert_eq!(u16::from(last.unwrap().code), 1001);
}

#[tokio::test]
async fn a_transcript_survives_a_kill_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let double = Double::start(
        &dir.path().join("channel.sock"),
        dir.path(),
        &token(),
        "openai",
    );
    double.script([Script::Hang(": thinking\n\n".into())]);
    let mut child = serving(command(dir.path(), free_port().await)).await;
    let client = Client::new(&dir.path().join("app.sock"));
    let (_, started) = client
        .post("/conductor/execute", json!({"prompt": "think"}))
        .await;
    let path = format!("/conductor/runs/{}", started["run_id"].as_str().unwrap());
    double
        .until("the model call", |state| state.asked.len() == 1)
        .await;
    child.kill().await.unwrap();
    double
        .until("the stream's end", |state| state.dropped == 1)
        .await;

    double.script([text("thought").script("openai")]);
    let mut child = serving(command(dir.path(), free_port().await)).await;
    let mut live = client.live(0).await;
    while live.next().await["event"]["kind"] != "run.finished" {}
    let (_, detail) = client.get(&path).await;
    assert_eq!(
        (&detail["run"]["status"], &detail["run"]["prompt"]),
        (&json!("done"), &json!("think"))
    );
    let kinds: Vec<_> = detail["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["kind"].clone())
        .collect();
    let wanted = "run.started run.step run.resumed run.reply run.usage run.text run.finished";
    assert_eq!(kinds, wanted.split(' ').collect::<Vec<_>>());

    // Told to end while a run works, it records that and ends in time.
    double.script([Script::Hang(": thinking\n\n".into())]);
    client
        .post("/conductor/execute", json!({"prompt": "again"}))
        .await;
    double
        .until("the model call", |state| state.asked.len() == 3)
        .await;
    assert!(end(&mut child).await.success());
    let mut child = serving(command(dir.path(), free_port().await)).await;
    let (_, listed) = client.get("/conductor/runs").await;
    let error = listed["runs"][0]["error"].as_str().unwrap();
    assert!(error.contains("the sandbox was stopped"), "{error}");
    assert!(end(&mut child).await.success());
}

#[tokio::test]
async fn prints_its_openapi_document_without_any_configuration() {
    let output = Command::new(env!("CARGO_BIN_EXE_sandbox"))
        .env_clear()
        .arg("openapi")
        .output()
        .await
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && document["openapi"].is_string());
}

#[tokio::test]
async fn the_token_is_renewed_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("channel.sock");
    let channel = Channel::new(&socket, &token().into(), "/provider/v1");
    let cancelled = CancellationToken::new();
    // It begins while nobody listens, as during a restart of the hypervisor.
    let every = Duration::from_millis(5);
    let renewing = tokio::spawn(keep_token(channel, every, cancelled.clone()));
    let double = Double::start(&socket, dir.path(), &token(), "openai");
    double.until("renewals", |state| state.renewals >= 3).await;
    cancelled.cancel();
    renewing.await.unwrap();
}

//! Attacks on the crossing between the trust zones: sockets, paths and starts.

use std::os::unix::fs::FileTypeExt as _;

use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::wait::until;
use system_tests::{Account, Installation, Setup};
use types::Role;

const LIVE: &str = "alice.localhost";

/// More idle connections than this are kept to no sandbox in these tests.
const MAX_POOLED: usize = 16;

async fn entered(installation: &Installation) -> Account {
    let alice = Account::admin(installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    alice
}

async fn ask(account: &Account, target: &str) -> system_tests::Response {
    account.client.send(Ask::new("GET", LIVE, target)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_app_socket_leads_nowhere() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    bob.start(Role::Live).await;
    let victim = bob
        .start_dir(&installation, Role::Live)
        .await
        .join("app/app.sock");
    assert!(victim.symlink_metadata().unwrap().file_type().is_socket());
    // A socket of the host that would answer anybody.
    let bait = installation.scratch().join("engine.sock");
    let engine = tokio::net::UnixListener::bind(&bait).unwrap();

    let own = alice
        .start_dir(&installation, Role::Live)
        .await
        .join("app/app.sock");
    let alice_id = alice.sandbox(Role::Live).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for what in [
        format!("symlink={}", victim.display()),
        format!("symlink={}", bait.display()),
        "symlink=/run/choir/channel/channel.sock".to_owned(),
        "fifo".to_owned(),
        "directory".to_owned(),
        "file".to_owned(),
        "nothing".to_owned(),
    ] {
        // Done from the host, as the guest could: once the name is wrong, nobody could ask it.
        replace(&own, &what);
        // Connections that were made before are the guest's own, and end with their answer.
        let mut answer = ask(&alice, "/hostile/close").await;
        for _ in 0..MAX_POOLED {
            if answer.status != 200 {
                break;
            }
            assert_eq!(answer.text(), alice_id, "{what}");
            answer = ask(&alice, "/hostile/close").await;
        }
        assert!(
            matches!(answer.status, 502..=504),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let visited =
        tokio::time::timeout(std::time::Duration::from_millis(200), engine.accept()).await;
    assert!(visited.is_err(), "the host's socket was connected to");
}

/// Does what `hostile/socket.rs` does, in the sandbox's own directory.
fn replace(path: &std::path::Path, what: &str) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_dir(path);
    match what.split_once('=').unwrap_or((what, "")) {
        ("symlink", target) => std::os::unix::fs::symlink(target, path).unwrap(),
        ("fifo", _) => rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap(),
        ("directory", _) => std::fs::create_dir(path).unwrap(),
        ("file", _) => std::fs::write(path, "no socket").unwrap(),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_cannot_change_its_channel_directory() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let done: Value = ask(&alice, "/hostile/listing?write-channel")
        .await
        .expect(200)
        .json();
    for (what, outcome) in done.as_object().unwrap() {
        assert_ne!(outcome, "done", "{what}");
    }
    // Its own directory is its own: the same attempts work there, so they can work at all.
    let own = ask(&alice, "/hostile/listing?connect=/run/choir/app/app.sock")
        .await
        .expect(200)
        .json();
    assert_eq!(own["connect"], "done");
    for path in [
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/systemd/private",
    ] {
        let seen = ask(&alice, &format!("/hostile/listing?connect={path}"))
            .await
            .expect(200)
            .json();
        assert_ne!(seen["connect"], "done", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_hostile_guest_do_no_harm() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    for behaviour in [
        "unasked-upgrade",
        "two-lengths",
        "length-and-chunks",
        "huge-header",
        "informational-flood",
    ] {
        let answer = ask(&alice, &format!("/hostile/{behaviour}")).await;
        assert!(
            matches!(answer.status, 502 | 504),
            "{behaviour}: {} {}",
            answer.status,
            answer.text()
        );
        // Whatever came after the first answer belongs to nobody.
        for _ in 0..3 {
            let next = ask(&alice, "/echo").await.expect(200).json();
            assert_eq!(next["target"], "/echo", "after {behaviour}");
        }
    }
    assert_eq!(ask(&alice, "/hostile/two-answers").await.text(), "first");
    for _ in 0..3 {
        assert_eq!(
            ask(&alice, "/echo").await.expect(200).json()["target"],
            "/echo"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_old_start_reaches_the_new_one() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let old = alice.start_dir(&installation, Role::Live).await;
    let token = alice.hostile_token(Role::Live).await;
    // An open WebSocket and a keep-alive connection of the old start.
    let own = installation.runtime("alice");
    let mut socket = alice
        .client
        .websocket(LIVE, "/ws", Some(&own))
        .await
        .unwrap();
    alice
        .control("POST", "/me/sandboxes/live/restart", None)
        .await;
    let new = until("another start", async || {
        let view = alice.sandbox(Role::Live).await;
        let dir = installation
            .data_dir()
            .join("run")
            .join(view["start_id"].as_str()?);
        (view["state"] == "running" && dir != old).then_some(dir)
    })
    .await;
    assert!(!old.exists(), "what is left of a start is a way in");
    let ended = system_tests::wait::within("the end of the old WebSocket", async {
        use futures_util::StreamExt as _;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() {
                return true;
            }
        }
        true
    })
    .await;
    assert!(ended);
    assert_eq!(
        ask(&alice, "/echo").await.expect(200).json()["role"],
        "live"
    );
    let second = alice.hostile_token(Role::Live).await;
    assert_ne!(token, second, "a token belongs to one start");
    // The old token on the new start's channel.
    let channel = new.join("channel/channel.sock");
    assert_eq!(
        system_tests::channel::get(&channel, "/provider/v1", Some(&token))
            .await
            .status,
        401
    );
    assert_eq!(
        system_tests::channel::get(&channel, "/provider/v1", Some(&second))
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_serves_its_own_routes_to_its_own_start_only() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    bob.start(Role::Live).await;
    bob.enter(Role::Live).await;
    let token = alice.hostile_token(Role::Live).await;
    let of_alice = alice
        .start_dir(&installation, Role::Live)
        .await
        .join("channel/channel.sock");
    let of_bob = bob
        .start_dir(&installation, Role::Live)
        .await
        .join("channel/channel.sock");
    assert_eq!(
        system_tests::channel::get(&of_alice, "/provider/v1", Some(&token))
            .await
            .status,
        200
    );

    // A token is good on one channel.
    assert_eq!(
        system_tests::channel::get(&of_bob, "/provider/v1", Some(&token))
            .await
            .status,
        401
    );
    let mut cut = token.clone();
    cut.pop();
    for wrong in [None, Some(""), Some("choirgw_"), Some(cut.as_str())] {
        assert_eq!(
            system_tests::channel::get(&of_alice, "/provider/v1", wrong)
                .await
                .status,
            401,
            "{wrong:?}"
        );
    }

    // However the path is written, the control plane is not here.
    let port = installation.port();
    for target in [
        "/me/sandboxes",
        "/admin/users",
        "/auth/me",
        "/login",
        "//me/sandboxes",
        "/./me/sandboxes",
        "/provider/v1/../../me/sandboxes",
        "/provider/v1/demo/..%2f..%2f..%2fme/sandboxes",
        "/%6de/sandboxes",
        "/provider%2fv1/../me",
        "/me%2fsandboxes",
        "/commands/../admin/users",
        "/metrics",
        "/healthz",
    ] {
        let answer = system_tests::channel::get(&of_alice, target, Some(&token)).await;
        assert!(
            matches!(answer.status, 400 | 404),
            "{target}: {} {}",
            answer.status,
            answer.text()
        );
    }
    for request in [
        format!("GET http://localhost:{port}/me/sandboxes HTTP/1.1\r\nHost: localhost:{port}\r\n"),
        format!(
            "GET /me/sandboxes HTTP/1.1\r\nHost: localhost:{port}\r\nX-Forwarded-Host: localhost\r\n"
        ),
        format!("CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n".to_owned(),
    ] {
        let whole = format!("{request}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n");
        let answer = system_tests::channel::raw(&of_alice, whole.as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{request}: {answer}");
        assert!(!answer.contains("generation"), "{request}: {answer}");
    }

    // And the channel's routes are not on the public listener.
    for host in ["localhost", LIVE] {
        for target in ["/provider/v1", "/commands", "/token/renew"] {
            let answer = installation
                .client()
                .send(Ask::new("GET", host, target).bearer(&token))
                .await;
            assert!(
                matches!(answer.status, 401 | 404),
                "{host}{target}: {}",
                answer.status
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hypervisor_on_the_same_data_is_refused() {
    let installation = Setup::default().start().await;
    let output = std::process::Command::new(installation.binaries().program("hypervisor"))
        .arg("--data-dir")
        .arg(installation.data_dir())
        .args(["--port", "0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("lock") || said.contains("already") || said.contains("another"),
        "{said}"
    );
}

/// Opens its own channel and hands the connection to whoever comes to a socket in the workspace.
const HAND_OVER: &str = r#"
import os, socket
channel = socket.socket(socket.AF_UNIX)
channel.connect("/run/choir/channel/channel.sock")
door = socket.socket(socket.AF_UNIX)
door.bind("/workspace/door.sock")
door.listen(1)
os.rename("/workspace/door.sock", "/workspace/door")
guest, _ = door.accept()
socket.send_fds(guest, [b"x"], [channel.fileno()])
guest.recv(1)
"#;

/// Takes that connection and asks for models: without a token, and with a false one.
const TAKE: &str = r#"
import socket, time
door = socket.socket(socket.AF_UNIX)
while True:
    try:
        door.connect("/workspace/door")
        break
    except FileNotFoundError:
        time.sleep(0.01)
_, fds, _, _ = socket.recv_fds(door, 1, 1)
channel = socket.socket(fileno=fds[0])
for token in ("", "Authorization: Bearer choirgw_" + "A" * 43 + "\r\n"):
    channel.sendall(("GET /provider/v1 HTTP/1.1\r\nHost: channel\r\n" + token + "\r\n").encode())
    print(channel.recv(65536).split(b"\r\n")[0].decode())
"#;

/// Whatever shares a workspace can pass descriptors through it. A channel's is not enough: each
/// request on it has to show the token, which the granted command has to give away as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_handed_to_an_ungranted_runner_opens_nothing_by_itself() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let hand_over =
        json!({ "argv": ["python3", "-c", HAND_OVER], "capabilities": ["provider:call"] });
    let take = json!({ "argv": ["python3", "-c", TAKE] });
    let ((handed, _), (taken, output)) = tokio::join!(
        alice.command(Role::Live, &hand_over),
        alice.command(Role::Live, &take)
    );
    assert_eq!((handed, taken), (Some(0), Some(0)), "{output}");
    let answers: Vec<&str> = output.lines().collect();
    assert_eq!(answers.len(), 2, "{output}");
    assert!(
        answers
            .iter()
            .all(|answer| answer.starts_with("HTTP/1.1 401")),
        "{output}"
    );
}

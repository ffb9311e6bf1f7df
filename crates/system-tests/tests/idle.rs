//! Stopping what nobody uses, and what does not count as using.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::json;
use system_tests::http::Ask;
use system_tests::wait::until;
use system_tests::{Account, Setup};
use tokio_tungstenite::tungstenite::Message;
use types::Role;

/// Pages that nobody looks at: their sockets are open, ping, say the same again and again, come
/// back when they are closed. None of it keeps a sandbox awake, and none of it wakes one.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_pages_neither_keep_a_sandbox_awake_nor_wake_it() {
    let installation = Setup::default()
        .config("sandbox.idle_stop = \"8s\"")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let host = alice.host(Role::Live);
    let origin = alice.origin(Role::Live);
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let abandoned = futures_util::future::join_all((0..20).map(|number| {
        let (host, origin, alice, refused) = (&host, &origin, &alice, &refused);
        async move {
            loop {
                let opened = alice.client.websocket(host, "/ws", Some(origin)).await;
                let Ok(mut socket) = opened else {
                    refused.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    continue;
                };
                let hello = json!({ "type": "hello", "since_seq": 0 }).to_string();
                let _ = socket.send(Message::text(hello)).await;
                // Half of them come back every two seconds, as after a lost connection.
                let lasts = if number % 2 == 0 { 2 } else { 600 };
                let end = Instant::now() + Duration::from_secs(lasts);
                while Instant::now() < end {
                    let said = [Message::Ping("x".into()), Message::Pong("x".into())];
                    let sent = socket
                        .send_all(&mut futures_util::stream::iter(said.map(Ok)))
                        .await;
                    let next = tokio::time::timeout(Duration::from_millis(200), socket.next());
                    if sent.is_err() || matches!(next.await, Ok(None | Some(Err(_)))) {
                        break;
                    }
                }
            }
        }
    }));
    tokio::select! {
        _ = abandoned => {}
        () = stopped_for_idleness(&alice) => {}
    }
    assert_eq!(installation.supervisors(), []);
    // They go on trying; it stays as it is.
    for _ in 0..5 {
        let again = alice.client.websocket(&host, "/ws", Some(&origin)).await;
        assert_eq!(again.err(), Some(503));
    }
    assert_eq!(alice.sandbox(Role::Live).await["state"], "stopped");
    let records = alice
        .control("GET", "/admin/audit?tail=50", None)
        .await
        .expect(200)
        .text();
    assert!(records.contains("sandbox.idle_stop"), "{records}");
    // Somebody comes.
    until("the woken sandbox", async || {
        let page = Ask::new("GET", &host, "/").navigation();
        (alice.client.send(page).await.status == 200).then_some(())
    })
    .await;
}

async fn stopped_for_idleness(alice: &Account) {
    until("the stop", async || {
        let view = alice.sandbox(Role::Live).await;
        if view["state"] != "stopped" {
            return None;
        }
        // The reason follows the state by a moment.
        let reason = view["reason"].as_str()?;
        assert!(reason.contains("without activity"), "{view}");
        Some(())
    })
    .await;
}

/// Work keeps it awake though nobody watches: a command, and a job in a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn work_keeps_a_sandbox_awake() {
    let installation = Setup::default()
        .config("sandbox.idle_stop = \"1s\"")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    let target = "/me/sandboxes/live/commands";
    let service = json!({ "argv": ["sleep", "4"], "detach": true });
    let job = json!({
        "argv": ["sh", "-ic", "sh -ic 'sleep 4'; exec sh"],
        "terminal": { "cols": 80, "rows": 24 },
    });
    for work in [service, job] {
        alice.start(Role::Live).await;
        let began = Instant::now();
        alice
            .control("POST", target, Some(work.clone()))
            .await
            .expect(201);
        stopped_for_idleness(&alice).await;
        assert!(
            began.elapsed() >= Duration::from_secs(4),
            "{work} was cut off after {:?}",
            began.elapsed()
        );
    }
}

/// Rounds of [`an_idle_stop_takes_nothing_from_whoever_comes_meanwhile`]; each order comes once
/// in three.
const ROUNDS: u64 = 18;

/// A stop for idleness meets an order, a request or a command at any moment of it. Whoever was
/// told that it runs, or that their command does, was told the truth; who comes too late is
/// told that it does not run.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stop_takes_nothing_from_whoever_comes_meanwhile() {
    let installation = Setup::default()
        .hostile_guest()
        .config("sandbox.idle_stop = \"1s\"")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let target = "/me/sandboxes/live/commands";
    for round in 0..ROUNDS {
        alice.start(Role::Live).await;
        if round % 2 == 0 {
            // It is due after a second, and looked for eight times in one.
            tokio::time::sleep(Duration::from_millis(990 + 15 * round)).await;
        } else {
            until("the beginning of the stop", async || {
                let view = alice.sandbox(Role::Live).await;
                (view["state"] != "running").then_some(())
            })
            .await;
        }
        match round / 2 % 3 {
            0 => {
                let started = alice.control("POST", "/me/sandboxes/live/start", None);
                let started = started.await.expect(200).json();
                let view = alice.sandbox(Role::Live).await;
                assert_eq!(started["state"], "running", "{started}");
                assert_eq!(view["state"], "running", "{view}");
                assert_eq!(view["start_id"], started["start_id"], "{view}");
            }
            1 => {
                let answer = alice.runtime(Role::Live, "GET", "/bench", None).await;
                let refused = answer.status == 503 && answer.code() == "sandbox_not_running";
                assert!(answer.status == 200 || refused, "{}", answer.text());
            }
            _ => {
                let service = json!({ "argv": ["sleep", "600"], "detach": true });
                let answer = alice.control("POST", target, Some(service)).await;
                if answer.status == 201 {
                    let id = answer.json()["id"].clone();
                    let listing = alice.control("GET", target, None).await;
                    let listing = listing.expect(200).json();
                    let mut commands = listing["commands"].as_array().unwrap().iter();
                    let ours = commands.find(|command| command["id"] == id);
                    assert_eq!(ours.expect("it is listed")["state"], "running");
                    alice.stop(Role::Live).await;
                } else {
                    let code = answer.code();
                    assert_eq!((answer.status, code.as_str()), (503, "sandbox_not_running"));
                }
            }
        }
        assert!(installation.supervisors().len() <= 1);
    }
}

/// Its guest does not end when it is told to, so the stop takes as long as it may, and the
/// hypervisor is killed in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stop_that_the_hypervisor_did_not_live_to_see_is_seen_through() {
    let mut installation = Setup::default()
        .hostile_guest()
        .config("sandbox.idle_stop = \"1s\"")
        .leave_running()
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    // The first start makes its directories.
    alice.start(Role::Live).await;
    alice.stop(Role::Live).await;
    let id = alice.sandbox(Role::Live).await["id"].clone();
    let sandbox = installation.data_dir().join("sandboxes");
    let workspace = sandbox.join(id.as_str().unwrap()).join("state/workspace");
    std::fs::write(workspace.join("deaf"), "").unwrap();
    alice.start(Role::Live).await;
    let guests = installation.guests();
    assert_eq!(guests.len(), 1);
    until("the beginning of the stop", async || {
        let state = alice.sandbox(Role::Live).await["state"].clone();
        assert_ne!(state, "stopped", "it is not deaf");
        (state == "stopping").then_some(())
    })
    .await;
    installation.end(Signal::KILL);
    assert!(guests[0].is_alive(), "it is not deaf");
    installation.spawn().await;
    until("the end of what was being stopped", async || {
        let state = alice.sandbox(Role::Live).await["state"].clone();
        let left = std::fs::read_dir(installation.data_dir().join("run")).unwrap();
        (state == "stopped" && left.count() == 0 && !guests[0].is_alive()).then_some(())
    })
    .await;
    assert_eq!(installation.supervisors(), []);
    std::fs::remove_file(workspace.join("deaf")).unwrap();
    alice.start(Role::Live).await;
    assert_eq!(installation.guests().len(), 1);
}

use bytes::Bytes;
use hyper::StatusCode;
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::Person;
use super::server::{Plane, problem};

fn view(user: &str, role: &str, state: &str) -> Value {
    let id = if role == "live" {
        "018f0000-0000-7000-8000-000000000011"
    } else {
        "018f0000-0000-7000-8000-000000000012"
    };
    json!({
        "id": id, "user": user, "role": role, "state": state, "generation": 3,
        "url": format!("http://{user}.localhost:9090/"),
    })
}

fn listing() -> Value {
    let mut live = view("alice", "live", "running");
    live["started_at"] = "2027-01-15T05:00:00Z".into();
    let mut dev = view("alice", "dev", "failed");
    dev["url"] = "http://dev--alice.localhost:9090/".into();
    dev["reason"] = "the guest died five times in a minute".into();
    dev["hint"] = "look at its log".into();
    json!({"sandboxes": [dev, live]})
}

#[tokio::test]
async fn sandboxes_are_listed_with_live_first() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes", listing());
    let ended = person.run(&plane, "sandbox list").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    ROLE  STATE    STARTED  NETWORK  URL
    live  running  3h ago   none     http://alice.localhost:9090/
    dev   failed   -        none     http://dev--alice.localhost:9090/

    dev of alice failed: the guest died five times in a minute
    hint: look at its log
    --- stderr
    ");
    let ended = person.run(&plane, "sandbox list --json").await;
    assert_snapshot!(ended.show(&plane), @r#"
    exit code 0
    --- stdout
    {
      "sandboxes": [
        {
          "id": "018f0000-0000-7000-8000-000000000011",
          "user": "alice",
          "role": "live",
          "state": "running",
          "started_at": "2027-01-15T05:00:00Z",
          "generation": 3,
          "network": "none",
          "url": "http://alice.localhost:9090/"
        },
        {
          "id": "018f0000-0000-7000-8000-000000000012",
          "user": "alice",
          "role": "dev",
          "state": "failed",
          "reason": "the guest died five times in a minute",
          "hint": "look at its log",
          "generation": 3,
          "network": "none",
          "url": "http://dev--alice.localhost:9090/"
        }
      ]
    }
    --- stderr
    "#);
}

#[tokio::test]
async fn an_admin_lists_everybodys() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let both =
        json!({"sandboxes": [view("bob", "live", "stopped"), view("alice", "live", "running")]});
    plane.answer("GET /admin/sandboxes", both);
    assert_snapshot!(person.run(&plane, "sandbox list --all").await.show(&plane), @r"
    exit code 0
    --- stdout
    USER   ROLE  STATE    STARTED  NETWORK  URL
    alice  live  running  -        none     http://alice.localhost:9090/
    bob    live  stopped  -        none     http://bob.localhost:9090/
    --- stderr
    ");
}

#[tokio::test]
async fn start_stop_and_restart_act_on_one_sandbox() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(
        "POST /me/sandboxes/live/start",
        view("alice", "live", "running"),
    );
    plane.answer(
        "POST /me/sandboxes/dev/restart",
        view("alice", "dev", "running"),
    );
    plane.answer(
        "POST /admin/sandboxes/bob/live/stop",
        view("bob", "live", "stopped"),
    );
    assert_snapshot!(person.run(&plane, "sandbox start").await.show(&plane), @r"
    exit code 0
    --- stdout
    live of alice is running: http://alice.localhost:9090/
    --- stderr
    ");
    assert_snapshot!(person.run(&plane, "sandbox restart dev").await.show(&plane), @r"
    exit code 0
    --- stdout
    dev of alice is running: http://alice.localhost:9090/
    --- stderr
    ");
    let same = person.run(&plane, "sandbox restart --role dev").await;
    assert_eq!(
        (same.code, plane.last().line.as_str()),
        (0, "POST /me/sandboxes/dev/restart")
    );
    assert_eq!(
        person
            .run(&plane, "sandbox restart live --role dev")
            .await
            .code,
        2
    );
    assert_snapshot!(person.run(&plane, "sandbox stop --user bob").await.show(&plane), @r"
    exit code 0
    --- stdout
    live of bob is stopped
    --- stderr
    ");
    assert_eq!(plane.last().body, json!({}));
    let json = person
        .run(&plane, "sandbox stop live --user bob --json")
        .await;
    assert_eq!(
        serde_json::from_str::<Value>(&json.stdout).unwrap()["state"],
        "stopped"
    );
}

#[tokio::test]
async fn swap_tells_what_is_live_now() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let swapped = json!({
        "generation": 4, "took_ms": 812,
        "live": "018f0000-0000-7000-8000-000000000012", "dev": "018f0000-0000-7000-8000-000000000011",
    });
    plane.answer("POST /me/sandboxes/swap", swapped);
    assert_snapshot!(person.run(&plane, "sandbox swap").await.show(&plane), @r"
    exit code 0
    --- stdout
    Swapped in 812 ms: what was dev is live now (generation 4).
    --- stderr
    ");
    let json = person.run(&plane, "sandbox swap --json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&json.stdout).unwrap()["generation"],
        4
    );
}

#[tokio::test]
async fn a_swap_that_was_taken_back_is_told_and_fails() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let swapped = json!({
        "generation": 4, "took_ms": 12, "grace_until": "2027-01-15T08:00:30Z",
        "live": "018f0000-0000-7000-8000-000000000012", "dev": "018f0000-0000-7000-8000-000000000011",
    });
    plane.answer("POST /me/sandboxes/swap", swapped);
    let status = json!({
        "generation": 4, "swapped_at": "2027-01-15T08:00:00Z", "outcome": "rolled_back",
        "reason": "3 s after the swap live crashed",
    });
    plane.answer("GET /me/sandboxes/swap", json!({ "swap": status }));
    let ended = person.run(&plane, "sandbox swap --wait").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    Swapped in 12 ms: what was dev is live now (generation 4).
    If it fails within the next 30 s it is taken back by itself.
    The swap was taken back: 3 s after the swap live crashed.
    It is dev again: choir sandbox logs dev
    --- stderr
    ");
    person.run(&plane, "sandbox swap --no-rollback").await;
    assert_eq!(plane.last().body, json!({ "rollback": false }));
}

#[tokio::test]
async fn a_refused_swap_gives_the_reason_and_a_hint() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let refusal = problem(409, "unhealthy_target", "dev does not answer its root page");
    plane.refuse("POST /me/sandboxes/swap", StatusCode::CONFLICT, refusal);
    assert_snapshot!(person.run(&plane, "sandbox swap").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: dev does not answer its root page
    hint: look at `choir sandbox logs dev`
    ");
}

#[tokio::test]
async fn a_fault_of_the_server_names_the_request() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let mut fault = problem(500, "internal", "something failed here");
    fault["request_id"] = "018f0000-0000-7000-8000-0000000000ff".into();
    plane.refuse(
        "POST /me/sandboxes/swap",
        StatusCode::INTERNAL_SERVER_ERROR,
        fault,
    );
    assert_snapshot!(person.run(&plane, "sandbox swap").await.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: something failed here
    request: 018f0000-0000-7000-8000-0000000000ff
    ");
}

#[tokio::test]
async fn logs_are_passed_on_and_disarmed_on_a_terminal() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer_text("GET /me/sandboxes/dev/logs", "one\n\u{1b}[31mtwo\n");
    assert_eq!(
        person.run(&plane, "sandbox logs dev").await.stdout,
        "one\n\u{1b}[31mtwo\n"
    );
    person.stdout_is_terminal = true;
    assert_eq!(
        person.run(&plane, "sandbox logs dev").await.stdout,
        "one\n\u{fffd}[31mtwo\n"
    );
}

#[tokio::test]
async fn followed_logs_appear_as_they_come() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let log = plane.answer_stream("GET /me/sandboxes/live/logs?follow=true");
    let stdout = person.stdout.clone();
    let url = plane.url();
    let run = tokio::spawn(async move { person.run_at(&url, "sandbox logs --follow").await });
    for line in ["one\n", "two\n"] {
        log.send(Bytes::from(line)).await.unwrap();
        // Seen before the answer has ended.
        while !stdout.text().ends_with(line) {
            tokio::task::yield_now().await;
        }
    }
    drop(log);
    assert_eq!(run.await.unwrap().stdout, "one\ntwo\n");
}

#[tokio::test]
async fn open_prints_the_address_and_opens_it() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes", listing());
    let ended = person.run(&plane, "open dev").await;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (0, "http://dev--alice.localhost:9090/\n")
    );
    let ended = person.run(&plane, "open --print").await;
    assert_eq!(ended.stdout, "http://alice.localhost:9090/\n");
    assert_eq!(
        *person.browsed.lock().unwrap(),
        ["http://dev--alice.localhost:9090/"]
    );
}

#[tokio::test]
async fn open_starts_nothing_but_a_browser() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let mut file = view("alice", "live", "running");
    file["url"] = "file:///etc/passwd".into();
    plane.answer("GET /me/sandboxes", json!({"sandboxes": [file]}));
    let ended = person.run(&plane, "open").await;
    assert_eq!(ended.code, 1);
    assert!(person.browsed.lock().unwrap().is_empty());
}

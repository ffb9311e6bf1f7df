use insta::assert_snapshot;
use serde_json::json;

use super::Person;
use super::server::Plane;

fn service(last: &str, label: &str, exit: Option<serde_json::Value>) -> serde_json::Value {
    let mut view = json!({
        "id": format!("018f0000-0000-7000-8000-0000{last}"), "argv": ["npm", "run", "dev"], "label": label,
        "terminal": false, "detach": true, "network": "none", "state": if exit.is_some() { "exited" } else { "running" },
        "started_at": "2027-01-15T05:00:00Z",
    });
    if let Some(exit) = exit {
        view["exit"] = exit;
    }
    view
}

fn commands() -> serde_json::Value {
    let mut terminal = service("aaaaaaaa", "terminal", None);
    terminal["terminal"] = true.into();
    json!({"commands": [
        service("00000001", "old", Some(json!({"code": 3, "signal": null}))),
        service("00000002", "web", None),
        service("00000003", "web", None),
        terminal,
    ]})
}

fn ports() -> serde_json::Value {
    json!({"ports": [
        {"port": 3000, "address": "127.0.0.1", "command_id": "018f0000-0000-7000-8000-000000000002",
         "command": "web\u{1b}[31m", "url": "http://3000--alice.localhost:9090/"},
        {"port": 9999, "address": "0.0.0.0"},
    ]})
}

#[tokio::test]
async fn services_and_ports_are_listed() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes/live/commands", commands());
    plane.answer("GET /me/sandboxes/live/ports", ports());
    assert_snapshot!(person.run(&plane, "service list").await.show(&plane));
    assert_snapshot!(person.run(&plane, "port list").await.show(&plane));
}

#[tokio::test]
async fn a_name_that_means_two_is_refused_and_an_id_is_not() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes/live/commands", commands());
    assert_snapshot!(person.run(&plane, "service stop web").await.show(&plane));
    assert_snapshot!(
        person
            .run(&plane, "service stop 00000001")
            .await
            .show(&plane)
    );
    assert_snapshot!(person.run(&plane, "service logs none").await.show(&plane));
}

#[tokio::test]
async fn an_explanation_reads_like_one() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(
        "GET /me/sandboxes/dev/explain",
        json!({
            "role": "dev", "state": "running", "network": "none",
            "topics": [{"topic": "files", "title": "Files", "points": [
                {"verdict": "may", "text": "read this"},
                {"verdict": "may_not", "text": "read that"},
                {"verdict": "fact", "text": "so it is"},
                {"verdict": "warning", "text": "a wall is missing"},
            ]}],
            "denied": [{"kind": "syscall_denied", "role": "dev", "message": "strace asked for ptrace", "hint": "it needs no tracing",
                        "count": 7, "first_at": "2027-01-15T05:00:00Z", "last_at": "2027-01-15T07:59:00Z"}],
        }),
    );
    assert_snapshot!(person.run(&plane, "sandbox explain dev").await.show(&plane));
}

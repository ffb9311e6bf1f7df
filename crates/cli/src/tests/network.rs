use insta::assert_snapshot;
use serde_json::{Value, json};

use super::Person;
use super::server::Plane;

fn overview(rules: Value) -> Value {
    json!({ "default": "none", "max": "allowlist", "rules": rules })
}

fn rules() -> Value {
    json!([
        { "rule": "crates.io", "source": "config" },
        {
            "id": "018f0000-0000-7000-8000-000000000021", "rule": "*.crates.io:443", "source": "admin",
            "note": "cargo\u{1b}[2J", "created_by": "alice", "created_at": "2027-01-15T05:00:00Z",
        },
    ])
}

#[tokio::test]
async fn rules_are_listed_with_the_modes() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/network", overview(rules()));
    let shown = person.run(&plane, "network rules").await.show(&plane);
    for line in [
        "A command that names no network mode gets none; the widest that it may ask for is allowlist.",
        "crates.io        config  -",
        "*.crates.io:443  admin   alice",
    ] {
        assert!(shown.contains(line), "{line} in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/network", overview(json!([])));
    let shown = person.run(&plane, "network rules").await.show(&plane);
    assert!(shown.contains("The allowlist is empty."), "{shown}");
}

#[tokio::test]
async fn a_rule_is_added_and_taken_off_by_what_it_says() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(
        "POST /admin/network/rules",
        json!({ "id": "018f0000-0000-7000-8000-000000000022", "rule": "crates.io", "source": "admin" }),
    );
    assert_snapshot!(person.run(&plane, "network allow Crates.IO --note cargo").await.show(&plane), @r"
    exit code 0
    --- stdout
    Commands with the network mode allowlist reach crates.io from now on.
    --- stderr
    ");
    let wish = json!({ "rule": "Crates.IO", "note": "cargo" });
    assert!(plane.asked().iter().any(|asked| asked.body == wish));
    plane.answer("GET /me/network", overview(rules()));
    plane.answer(
        "DELETE /admin/network/rules/018f0000-0000-7000-8000-000000000021",
        json!({}),
    );
    assert_snapshot!(person.run(&plane, "network deny *.Crates.io:443").await.show(&plane), @r"
    exit code 0
    --- stdout
    *.crates.io:443 is off the allowlist; connections that only it allowed are closed.
    --- stderr
    ");
    let shown = person
        .run(&plane, "network deny crates.io")
        .await
        .show(&plane);
    assert!(
        shown.contains("stands in the hypervisor's configuration"),
        "{shown}"
    );
    let shown = person
        .run(&plane, "network deny npmjs.org")
        .await
        .show(&plane);
    assert!(shown.contains("has no rule npmjs.org"), "{shown}");
}

#[tokio::test]
async fn denials_are_told_with_what_would_allow_them() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let notices = json!({ "notices": [
        {
            "kind": "network_denied", "role": "live", "count": 3,
            "message": "no rule of the network allowlist allows crates.io:443",
            "hint": "to allow: choir network allow crates.io:443",
            "first_at": "2027-01-15T05:00:00Z", "last_at": "2027-01-15T06:00:00Z",
        },
        {
            "kind": "crash", "role": "live", "count": 1, "message": "the guest ended",
            "first_at": "2027-01-15T05:00:00Z", "last_at": "2027-01-15T06:00:00Z",
        },
    ] });
    plane.answer("GET /me/sandboxes/live/notices", notices);
    assert_snapshot!(person.run(&plane, "network denials --role live").await.show(&plane), @r"
    exit code 0
    --- stdout
    2027-01-15T06:00:00Z  live  3 times  no rule of the network allowlist allows crates.io:443
      to allow: choir network allow crates.io:443
    --- stderr
    ");
}

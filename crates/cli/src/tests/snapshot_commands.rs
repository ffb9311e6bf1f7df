use hyper::StatusCode;
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::Person;
use super::server::{Plane, problem};

const GOOD: &str = "018f0000-0000-7000-8000-0000000000a1";
const ASIDE: &str = "018f0000-0000-7000-8000-0000000000b2";

fn snapshot(id: &str, reason: &str) -> Value {
    json!({
        "id": id, "created_at": "2027-01-15T05:00:00Z", "reason": reason, "known_good": id == GOOD,
        "bytes": 1_610_612_736_u64, "files": 20_000, "generation": 3, "version": "0.1.0",
    })
}

fn listing() -> Value {
    let mut good = snapshot(GOOD, "manual");
    good["name"] = "before the upgrade".into();
    json!({
        "snapshots": [snapshot(ASIDE, "before_restore"), good],
        "used_bytes": 3_221_225_472_u64, "max_count": 16, "max_bytes": 21_474_836_480_u64,
    })
}

fn done(kind: &str, id: &str) -> Value {
    json!({
        "event": "done", "kind": kind, "snapshot": snapshot(id, "manual"), "took_ms": 2412,
        "frozen_ms": if kind == "restore" { 0 } else { 38 }, "down_ms": 640, "files": 20_000, "bytes": 1_610_612_736_u64,
        "skipped": 0, "reflinked": false,
    })
}

#[tokio::test]
async fn snapshots_are_listed_with_their_sizes() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes/live/snapshots", listing());
    let ended = person.run(&plane, "sandbox snapshots list").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    ID            NAME                TAKEN   SIZE     FILES  KNOWN GOOD
    0000000000b2  (before a restore)  3h ago  1.5 GiB  20000  -
    0000000000a1  before the upgrade  3h ago  1.5 GiB  20000  yes

    2 of 16 snapshots, 3.0 GiB of 20.0 GiB
    --- stderr
    ");
    plane.answer(
        "GET /me/sandboxes/dev/snapshots",
        json!({ "snapshots": [], "used_bytes": 0, "max_count": 16, "max_bytes": 1024 }),
    );
    let none = person.run(&plane, "sandbox snapshots list dev").await;
    assert_snapshot!(none.show(&plane), @r"
    exit code 0
    --- stdout
    No snapshots. Take one: choir sandbox snapshot

    0 of 16 snapshots, 0 B of 1.0 KiB
    --- stderr
    ");
    let json = person.run(&plane, "sandbox snapshots list --json").await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["snapshots"][1]["id"], GOOD);
}

#[tokio::test]
async fn taking_a_snapshot_tells_how_long_the_sandbox_stood_still() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("POST /me/sandboxes/dev/snapshots", done("snapshot", ASIDE));
    plane.answer(
        &format!("PATCH /me/sandboxes/dev/snapshots/{ASIDE}"),
        snapshot(GOOD, "manual"),
    );
    let ended = person
        .run(&plane, "sandbox snapshot dev --name first")
        .await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    took snapshot 018f0000-0000-7000-8000-0000000000b2 of dev: 1.5 GiB, 20000 files, in 2.4 s; dev stood still for 38 ms
    --- stderr
    ");
    assert_eq!(plane.last().body, json!({ "name": "first" }));
    let json = person
        .run(&plane, "sandbox snapshot dev --known-good --json")
        .await;
    assert_eq!(plane.last().body, json!({ "known_good": true }));
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["snapshot"]["known_good"], true);
}

#[tokio::test]
async fn the_latest_known_good_one_is_restored_by_one_command() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("GET /me/sandboxes/live/snapshots", listing());
    let target = format!("POST /me/sandboxes/live/snapshots/{GOOD}/restore");
    plane.answer(&target, done("restore", ASIDE));
    let ended = person.run(&plane, "sandbox restore --yes").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    live is what it was in snapshot 0000000000a1 (before the upgrade): 1.5 GiB, 20000 files, in 2.4 s, live down for 0.6 s
    what was there before: choir sandbox restore 018f0000-0000-7000-8000-0000000000b2
    --- stderr
    ");
    assert_eq!(plane.last().line, target);
    // By the end of its id as well; and not without being asked where nobody can be.
    assert_eq!(
        person
            .run(&plane, "sandbox restore 0000000000a1 -y")
            .await
            .code,
        0
    );
    let asked = person.run(&plane, "sandbox restore").await;
    assert_snapshot!(asked.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    Put snapshot 0000000000a1 (before the upgrade) in the place of what is in live? What is there now is kept as a snapshot. [y/N] nothing was done
    ");
    let unknown = person.run(&plane, "sandbox restore nothing --yes").await;
    assert_snapshot!(unknown.show(&plane), @r"
    exit code 2
    --- stdout
    --- stderr
    error: there is no snapshot nothing; see: choir sandbox snapshots list
    ");
}

#[tokio::test]
async fn a_failed_clone_gives_the_reason() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer("POST /me/sandboxes/clone", done("clone", ASIDE));
    let ended = person.run(&plane, "sandbox clone --yes").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    dev is a copy of live: 1.5 GiB, 20000 files, in 2.4 s, dev down for 0.6 s; live stood still for 38 ms
    what was there before: choir sandbox restore --role dev 018f0000-0000-7000-8000-0000000000b2
    --- stderr
    ");
    let mut failed = problem(503, "sandbox_failed", "the disk is full");
    failed["event"] = "failed".into();
    failed["hint"] = "delete snapshots that are not needed".into();
    plane.answer("POST /me/sandboxes/clone", failed);
    let ended = person.run(&plane, "sandbox clone --yes").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    dev is a copy of live: 1.5 GiB, 20000 files, in 2.4 s, dev down for 0.6 s; live stood still for 38 ms
    what was there before: choir sandbox restore --role dev 018f0000-0000-7000-8000-0000000000b2
    --- stderr
    ");
    let busy = problem(409, "conflict", "a restore of this sandbox is under way");
    plane.refuse("POST /me/sandboxes/clone", StatusCode::CONFLICT, busy);
    assert_eq!(person.run(&plane, "sandbox clone --yes").await.code, 1);
}

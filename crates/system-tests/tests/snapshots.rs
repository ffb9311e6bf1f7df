//! Snapshot, restore and clone with the real programs: databases in use are whole, nothing is
//! lost or half done whoever dies in the middle, and nobody reaches what is not theirs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::account::parameter;
use system_tests::http::Ask;
use system_tests::wait::until;
use system_tests::{Account, Installation, Setup, browser};
use types::Role;

/// Commits one row after the other, and notes each number once it is committed.
const WRITER: &str = r"
import sqlite3, os
db = sqlite3.connect('/workspace/rows.db', isolation_level=None)
db.execute('pragma journal_mode = wal')
db.execute('create table if not exists rows (n integer primary key, padding blob)')
n = db.execute('select coalesce(max(n), 0) from rows').fetchone()[0]
acked = open('/workspace/acked', 'w')
while True:
    n += 1
    db.execute('insert into rows values (?, randomblob(300))', (n,))
    os.pwrite(acked.fileno(), b'%020d' % n, 0)
";

/// Prints what `pragma integrity_check` says and the highest row.
const CHECK: &str = r"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute('pragma integrity_check').fetchone()[0])
print(db.execute(sys.argv[2]).fetchone()[0])
";

async fn copying(alice: &Account, target: &str, body: Value) -> Value {
    let answer = alice.control("POST", target, Some(body)).await.expect(200);
    let text = answer.text();
    let last = text.lines().last().expect("a line");
    serde_json::from_str(last).expect("JSON")
}

async fn done(alice: &Account, target: &str, body: Value) -> Value {
    let last = copying(alice, target, body).await;
    assert_eq!(last["event"], "done", "{last:#}");
    last
}

async fn listed(alice: &Account, role: Role) -> Value {
    alice
        .control("GET", &format!("/me/sandboxes/{role}/snapshots"), None)
        .await
        .expect(200)
        .json()
}

async fn sh(alice: &Account, role: Role, script: &str) -> String {
    let (code, output) = alice
        .command(role, &json!({ "argv": ["/bin/sh", "-c", script] }))
        .await;
    assert_eq!(code, Some(0), "{output}");
    output
}

async fn files(installation: &Installation, alice: &Account, role: Role) -> PathBuf {
    let id = alice.sandbox(role).await["id"].as_str().unwrap().to_owned();
    installation.data_dir().join("sandboxes").join(id)
}

/// Checks a copy of a database: looking into it must not change the original.
fn check(database: &Path, query: &str) -> (String, u64) {
    let scratch = tempfile::tempdir().unwrap();
    for end in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{end}", database.display()));
        if from.exists() {
            std::fs::copy(&from, scratch.path().join(format!("db{end}"))).unwrap();
        }
    }
    let output = Command::new("python3")
        .args(["-c", CHECK])
        .arg(scratch.path().join("db"))
        .arg(query)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let verdict = lines.next().unwrap_or_default().to_owned();
    let number = lines.next().and_then(|line| line.parse().ok());
    (verdict, number.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_in_use_are_whole_in_a_snapshot_and_come_back_with_a_restore() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let service = json!({ "argv": ["python3", "-c", WRITER], "detach": true });
    alice
        .control("POST", "/me/sandboxes/live/commands", Some(service))
        .await
        .expect(201);
    let dir = files(&installation, &alice, Role::Live).await;
    let acked = dir.join("state/workspace/acked");
    until("the writer", async || acked.exists().then_some(())).await;
    let mut first = None;
    for round in 0..4 {
        // The guest writes too while the copy is made.
        let memory = json!({ "text": format!("round {round}"), "tags": [] });
        let remember = alice.runtime(Role::Live, "POST", "/api/memory", Some(memory));
        let name = json!({ "name": format!("round {round}") });
        let (remembered, taken) =
            tokio::join!(remember, done(&alice, "/me/sandboxes/live/snapshots", name));
        remembered.expect(201);
        let id = taken["snapshot"]["id"].as_str().unwrap().to_owned();
        let state = dir.join("snapshots").join(&id).join("state");
        let (verdict, rows) = check(&state.join("workspace/rows.db"), "select max(n) from rows");
        let noted: u64 = std::fs::read_to_string(state.join("workspace/acked"))
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(verdict, "ok");
        assert!(
            rows >= noted && rows <= noted + 1,
            "{rows} rows, {noted} noted"
        );
        let (verdict, events) = check(&state.join("data/events.db"), "select count(*) from events");
        assert_eq!(verdict, "ok");
        assert!(events > 0);
        assert!(taken["frozen_ms"].as_u64().unwrap() < 5_000, "{taken:#}");
        first.get_or_insert((id, rows));
    }
    assert_eq!(alice.sandbox(Role::Live).await["state"], "running");
    let (first, rows) = first.unwrap();
    let target = format!("/me/sandboxes/live/snapshots/{first}/restore");
    let restored = done(&alice, &target, json!({})).await;
    assert_eq!(restored["sandbox"]["state"], "running");
    assert!(restored["down_ms"].as_u64().unwrap() > 0, "{restored:#}");
    let (verdict, now) = check(
        &dir.join("state/workspace/rows.db"),
        "select max(n) from rows",
    );
    assert_eq!((verdict.as_str(), now), ("ok", rows));
    // What was there before is a snapshot now, and the one restored is there still.
    let listing = listed(&alice, Role::Live).await;
    let snapshots = listing["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 5);
    assert_eq!(snapshots[0]["reason"], "before_restore");
    assert!(snapshots[0]["bytes"].as_u64().unwrap() > 0);
    let before = snapshots[0]["id"].as_str().unwrap();
    let state = dir.join("snapshots").join(before).join("state");
    let (verdict, later) = check(&state.join("workspace/rows.db"), "select max(n) from rows");
    assert!(verdict == "ok" && later > rows);
    // A restart of everything leaves it all as it is.
    sh(&alice, Role::Live, "echo still here > /workspace/still").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_makes_dev_what_live_is_and_keeps_what_dev_was() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    for role in [Role::Live, Role::Dev] {
        alice.start(role).await;
        let script = format!("echo {role} > /workspace/who; echo {role} > ~/who; chmod 600 ~/who");
        sh(&alice, role, &script).await;
    }
    let before = alice.sandbox(Role::Live).await["start_id"].clone();
    let cloned = done(&alice, "/me/sandboxes/clone", json!({})).await;
    assert_eq!(cloned["sandbox"]["role"], "dev");
    assert_eq!(
        sh(&alice, Role::Dev, "cat /workspace/who ~/who").await,
        "live\nlive\n"
    );
    // It is dev's own: it can be changed, and live does not notice.
    sh(&alice, Role::Dev, "echo changed > /workspace/who; rm ~/who").await;
    assert_eq!(
        sh(&alice, Role::Live, "cat /workspace/who ~/who").await,
        "live\nlive\n"
    );
    assert_eq!(
        alice.sandbox(Role::Live).await["start_id"],
        before,
        "live went on"
    );
    let listing = listed(&alice, Role::Dev).await;
    assert_eq!(listing["snapshots"][0]["reason"], "before_clone");
    let aside = listing["snapshots"][0]["id"].as_str().unwrap();
    let target = format!("/me/sandboxes/dev/snapshots/{aside}/restore");
    done(&alice, &target, json!({})).await;
    assert_eq!(
        sh(&alice, Role::Dev, "cat /workspace/who ~/who").await,
        "dev\ndev\n"
    );
    // Both work when nothing runs, and start nothing then.
    alice.stop(Role::Live).await;
    alice.stop(Role::Dev).await;
    let cloned = done(&alice, "/me/sandboxes/clone", json!({})).await;
    assert_eq!(cloned["sandbox"]["state"], "stopped");
    alice.start(Role::Dev).await;
    assert_eq!(sh(&alice, Role::Dev, "cat /workspace/who").await, "live\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_bounded_and_nobody_elses() {
    let installation = Setup::default()
        .config("[sandbox.snapshots]\nmax_count = 3\nmax_bytes = 4194304\nmax_files = 1000")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    alice.start(Role::Live).await;
    let take = "/me/sandboxes/live/snapshots";
    let first = done(&alice, take, json!({ "name": "first" })).await;
    let id = first["snapshot"]["id"].as_str().unwrap().to_owned();
    let one = format!("{take}/{id}");

    // Somebody else's id names nothing, whichever way it is used.
    for (method, target, body) in [
        ("POST", format!("{one}/restore"), json!({})),
        ("PATCH", one.clone(), json!({ "name": "mine" })),
        ("DELETE", one.clone(), json!({})),
        (
            "POST",
            format!("/me/sandboxes/dev/snapshots/{id}/restore"),
            json!({}),
        ),
    ] {
        let answer = bob.control(method, &target, Some(body)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{target}"
        );
    }
    let foreign = bob
        .control("GET", "/admin/sandboxes/alice/live/snapshots", None)
        .await;
    assert_eq!(foreign.status, 403);
    let wrong = alice
        .control(
            "POST",
            &format!("/me/sandboxes/dev/snapshots/{id}/restore"),
            Some(json!({})),
        )
        .await;
    assert_eq!(wrong.status, 404, "it is live's, not dev's");

    let known_good = json!({ "known_good": true, "name": "works" });
    let changed = alice
        .control("PATCH", &one, Some(known_good))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["known_good"], &changed["name"]),
        (&json!(true), &json!("works"))
    );
    // States that are put aside go by themselves; what somebody took or marked stays.
    for _ in 0..4 {
        done(&alice, &format!("{one}/restore"), json!({})).await;
    }
    let listing = listed(&alice, Role::Live).await;
    let snapshots = listing["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 3, "{listing:#}");
    assert_eq!(snapshots[2]["id"], json!(id));
    done(&alice, take, json!({ "name": "second" })).await;
    done(&alice, take, json!({ "name": "third" })).await;
    let full = alice.control("POST", take, Some(json!({}))).await;
    assert_eq!(full.status, 409);
    assert!(full.text().contains("3 snapshots"), "{}", full.text());
    let (taken, again) = (alice.control("DELETE", &one, None).await, &one);
    assert_eq!(taken.status, 204);
    assert_eq!(alice.control("DELETE", again, None).await.status, 404);

    // More than may be kept is refused while it is copied, and leaves nothing.
    sh(
        &alice,
        Role::Live,
        "head -c 5000000 /dev/urandom > /workspace/big",
    )
    .await;
    let last = copying(&alice, take, json!({})).await;
    assert_eq!(
        (&last["event"], &last["code"]),
        (&json!("failed"), &json!("too_large"))
    );
    sh(
        &alice,
        Role::Live,
        "rm /workspace/big; mkdir /workspace/many; for i in $(seq 1100); do : > /workspace/many/$i; done",
    )
    .await;
    let last = copying(&alice, take, json!({})).await;
    assert!(
        last["detail"].as_str().unwrap().contains("1000 files"),
        "{last:#}"
    );
    let dir = files(&installation, &alice, Role::Live)
        .await
        .join("snapshots");
    let kept = listed(&alice, Role::Live).await["snapshots"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), kept);
}

/// Kills the hypervisor at one moment of a restore after the other. Each part of the state
/// has a mark, and whatever happens they agree, the sandbox runs again, and nothing is left
/// over.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_finished_or_undone_whenever_the_hypervisor_dies() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    sh(
        &alice,
        Role::Live,
        "mkdir /workspace/many; for i in $(seq 300); do echo $i > /workspace/many/$i; done; \
         echo old > /workspace/mark; echo old > ~/mark",
    )
    .await;
    let taken = done(&alice, "/me/sandboxes/live/snapshots", json!({})).await;
    let id = taken["snapshot"]["id"].as_str().unwrap().to_owned();
    let dir = files(&installation, &alice, Role::Live).await;
    let mut outcomes = Vec::new();
    for round in 0..10 {
        sh(
            &alice,
            Role::Live,
            "echo new > /workspace/mark; echo new > ~/mark",
        )
        .await;
        let target = format!("/me/sandboxes/live/snapshots/{id}/restore");
        let restore = alice.control("POST", &target, Some(json!({})));
        // From the first copied files to the start of the restored sandbox.
        let moment = tokio::time::sleep(Duration::from_millis(60 * round));
        tokio::select! {
            _ = restore => {}
            () = moment => {}
        }
        installation.end(Signal::KILL);
        installation.spawn().await;
        let view = until("the sandbox", async || {
            let view = alice.sandbox(Role::Live).await;
            (view["state"] == "running").then_some(view)
        })
        .await;
        let marks = sh(
            &alice,
            Role::Live,
            "cat /workspace/mark ~/mark; ls /workspace/many | wc -l",
        )
        .await;
        assert!(
            marks == "new\nnew\n300\n" || marks == "old\nold\n300\n",
            "round {round}: {marks:?} {view:#}"
        );
        outcomes.push(marks.starts_with("old"));
        // Removing goes on in the background; then only what is listed is there.
        until("what was left to be removed", async || {
            let listing = listed(&alice, Role::Live).await;
            let listed = listing["snapshots"].as_array().unwrap().len();
            let there = std::fs::read_dir(dir.join("snapshots")).unwrap().count();
            (listing.get("under_way").is_none() && listed == there).then_some(())
        })
        .await;
    }
    assert!(
        outcomes.contains(&false),
        "no restore was undone: {outcomes:?}"
    );
    assert_eq!(installation.supervisors().len(), 1);
    // The snapshot is as good as before.
    done(
        &alice,
        &format!("/me/sandboxes/live/snapshots/{id}/restore"),
        json!({}),
    )
    .await;
    assert_eq!(sh(&alice, Role::Live, "cat /workspace/mark").await, "old\n");
    alice.stop(Role::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_in_the_middle_of_a_snapshot_leaves_no_half_of_it() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    sh(
        &alice,
        Role::Live,
        "mkdir /workspace/many; for i in $(seq 3000); do echo $i > /workspace/many/$i; done",
    )
    .await;
    let dir = files(&installation, &alice, Role::Live)
        .await
        .join("snapshots");
    // The copier: both of its halves go by the name they were given.
    let taking = alice.control("POST", "/me/sandboxes/live/snapshots", Some(json!({})));
    let killing = until("a copier to kill", async || {
        let copiers: Vec<_> = installation
            .process()
            .descendants()
            .into_iter()
            .filter(|process| process.command_line().starts_with("copier"))
            .collect();
        copiers.first().map(|copier| copier.signal(Signal::KILL))
    });
    let (answer, ()) = tokio::join!(taking, killing);
    let answer = answer.text();
    assert!(
        answer.lines().last().unwrap().contains("\"failed\""),
        "{answer}"
    );
    assert_eq!(alice.sandbox(Role::Live).await["state"], "running");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(
        sh(&alice, Role::Live, "ls /workspace/many | wc -l").await,
        "3000\n"
    );
    done(&alice, "/me/sandboxes/live/snapshots", json!({})).await;
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

/// A page that is opened while files are copied says so and starts nothing; an order to start is
/// answered at once. Once the copy is done the page wakes the sandbox by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_copied_is_not_started_and_says_so() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    sh(
        &alice,
        Role::Live,
        "mkdir /workspace/many; for i in $(seq 8000); do echo $i > /workspace/many/$i; done",
    )
    .await;
    alice.stop(Role::Live).await;
    let host = alice.host(Role::Live);
    let visit = || alice.client.send(Ask::new("GET", &host, "/").navigation());
    let taking = done(&alice, "/me/sandboxes/live/snapshots", json!({}));
    let watching = async {
        until("the copy", async || {
            let listing = listed(&alice, Role::Live).await;
            // From here on its files are held.
            (listing["under_way"]["phase"] == "copying").then_some(())
        })
        .await;
        let page = visit().await;
        let status = alice
            .runtime(Role::Live, "GET", "/.choir/status?role=live", None)
            .await;
        let state = alice.sandbox(Role::Live).await["state"].clone();
        let still = listed(&alice, Role::Live).await.get("under_way").is_some();
        let start = alice
            .control("POST", "/me/sandboxes/live/start", None)
            .await;
        (page, start, status, still, state)
    };
    let (taken, (page, start, status, still, state)) = tokio::join!(taking, watching);
    assert_eq!(taken["frozen_ms"], 0, "nothing ran: {taken:#}");
    assert!(still, "the copy ended too early to show anything");
    let page = page.text();
    assert!(
        page.contains("a snapshot of this sandbox is under way"),
        "{page}"
    );
    assert_eq!(state, "stopped", "it was started while it was copied");
    let status = status.json();
    assert!(status["copied"].as_str().is_some(), "{status:#}");
    // The order waits for a moment, in which a copy may end.
    if start.status != 200 {
        assert_eq!(start.status, 503, "{}", start.text());
        assert!(start.text().contains("a snapshot of this sandbox"));
        start.header("retry-after").parse::<u32>().unwrap();
    }
    until("the woken sandbox", async || {
        (visit().await.status == 200).then_some(())
    })
    .await;
}

/// The desktops of what is replaced load their page again, and each of these loads is a visit that
/// wakes. None may start the sandbox on the files that are put aside.
#[tokio::test(flavor = "multi_thread")]
async fn visits_in_the_middle_of_a_restore_get_the_restored_files() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    sh(&alice, Role::Live, "echo old > /workspace/mark").await;
    let taken = done(&alice, "/me/sandboxes/live/snapshots", json!({})).await;
    let id = taken["snapshot"]["id"].as_str().unwrap().to_owned();
    let host = alice.host(Role::Live);
    for round in 0..4 {
        sh(&alice, Role::Live, "echo new > /workspace/mark").await;
        let target = format!("/me/sandboxes/live/snapshots/{id}/restore");
        let visitors = futures_util::future::join_all((0..12).map(|_| async {
            loop {
                let page = Ask::new("GET", &host, "/").navigation();
                let _ = alice.client.try_send(page).await;
            }
        }));
        let restored = tokio::select! {
            _ = visitors => unreachable!("they never stop"),
            restored = done(&alice, &target, json!({})) => restored,
        };
        let aside = restored["snapshot"]["id"].as_str().unwrap();
        let dir = files(&installation, &alice, Role::Live).await;
        let aside = dir.join("snapshots").join(aside).join("state/workspace");
        let seen = sh(
            &alice,
            Role::Live,
            &format!("cat /workspace/mark; echo > /workspace/mine{round}"),
        )
        .await;
        assert_eq!(seen, "old\n", "round {round}");
        assert!(
            !aside.join(format!("mine{round}")).exists(),
            "it runs on what was put aside"
        );
        assert_eq!(installation.supervisors().len(), 1);
    }
}

/// One button on the sandbox's card, and what it says before it does anything.
#[tokio::test(flavor = "multi_thread")]
async fn one_button_brings_the_last_known_good_state_back() {
    let installation = Setup::default().start().await;
    let input = json!({
        "control": installation.control(),
        "live": installation.runtime("alice"),
        "setup": parameter(installation.link(), "setup"),
        "user": "alice",
        "pictures": std::env::var("CHOIR_PICTURES").ok(),
    });
    let seen = browser::run("snapshots.mjs", &input).await;
    // Output comes in base64.
    let (works, mine, broken) = ("d29ya3MK", "bWluZQo=", "YnJva2VuCg==");
    let text = |of: &Value| of["text"].as_str().unwrap_or_default().to_owned();
    assert!(
        seen["advice"].as_str().unwrap().contains("known good"),
        "{seen:#}"
    );
    for asked in [&seen["asked"], &seen["described"]] {
        let asked = asked.as_str().unwrap();
        assert!(
            asked.contains("Lost from live") && asked.contains("Kept:"),
            "{asked}"
        );
    }
    assert!(text(&seen["broken"]).contains(broken), "{seen:#}");
    assert!(text(&seen["untouched"]).contains(broken), "{seen:#}");
    let back = text(&seen["back"]);
    assert!(back.contains(works) && back.contains(mine), "{seen:#}");
    let snapshots = seen["snapshots"].as_array().unwrap();
    assert_eq!(snapshots[0]["reason"], "before_restore", "{seen:#}");
    assert_eq!(snapshots.len(), 2, "{seen:#}");
}

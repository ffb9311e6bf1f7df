//! A sandbox stands still when it is asked to, and never for longer than that.

use std::path::Path;
use std::time::{Duration, Instant};

use isolation::protocol::{Message, Reply, Request};
use types::CommandId;

use crate::harness::{Client, Sandbox, runner};

/// A guest that never stops writing.
const WRITER: &[&str] = &[
    "/bin/sh",
    "-c",
    "while :; do echo x >> /workspace/guest; done",
];

/// Commands that come and go as fast as they can, in the foreground and the background, so
/// that a freeze meets forks and vforks under way.
const STORM: &str = "i=0; while :; do /bin/true; (echo y >> /workspace/storm; /bin/true) & \
                     i=$((i+1)); [ $((i % 20)) = 0 ] && wait; done";

/// How long something is watched to see that it does not change.
const WATCHED_FOR: Duration = Duration::from_millis(300);

const PATIENCE: Duration = Duration::from_secs(10);

fn freeze(client: &mut Client, limit_ms: u64) -> u32 {
    match client.ask(&Request::Freeze { limit_ms }) {
        Message::Reply(Reply::Frozen { processes }) => processes,
        other => panic!("{other:?}"),
    }
}

fn thaw(client: &mut Client) -> bool {
    match client.ask(&Request::Thaw {}) {
        Message::Reply(Reply::Thawed { held, .. }) => held,
        other => panic!("{other:?}"),
    }
}

/// Sizes of the files in a directory.
fn sizes(dir: &Path) -> Vec<(std::ffi::OsString, u64)> {
    let mut sizes: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
        .collect();
    sizes.sort();
    sizes
}

fn stands_still(dir: &Path) {
    let before = sizes(dir);
    let begin = Instant::now();
    while begin.elapsed() < WATCHED_FOR {
        assert_eq!(sizes(dir), before, "something was written");
    }
}

fn await_change(dir: &Path) {
    let before = sizes(dir);
    let begin = Instant::now();
    while sizes(dir) == before {
        assert!(begin.elapsed() < PATIENCE, "nothing goes on");
    }
}

fn service(client: &mut Client, script: &str) -> CommandId {
    client.spawn(runner(&["/bin/sh", "-c", script]))
}

#[test]
fn nothing_writes_while_a_sandbox_stands_still() {
    let sandbox = Sandbox::start(WRITER);
    let workspace = sandbox.spec.workspace.clone();
    let mut client = sandbox.connect();
    for _ in 0..3 {
        service(&mut client, STORM);
    }
    for _ in 0..5 {
        await_change(&workspace);
        assert!(freeze(&mut client, 20_000) >= 4);
        stands_still(&workspace);
        assert!(thaw(&mut client));
    }
    await_change(&workspace);
}

#[test]
fn what_a_user_had_stopped_stays_stopped_and_everything_else_goes_on() {
    let sandbox = Sandbox::start(WRITER);
    let mut client = sandbox.connect();
    let mut spec = runner(&[
        "/bin/sh",
        "-c",
        "sleep 600 & one=$!; sleep 600 & two=$!; kill -STOP $one; \
         state() { sed 's/.*) //' /proc/$1/stat | cut -c1; }; \
         until [ $(state $one) = T ]; do :; done; echo stopped; \
         read line; echo $(state $one) $(state $two); kill -CONT $one; \
         until [ $(state $one) = S ]; do :; done; echo goes on",
    ]);
    // The script waits for a line.
    spec.stdin_open = true;
    let id = client.spawn(spec);
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    follower.await_output("stopped");
    freeze(&mut client, 20_000);
    assert!(thaw(&mut client));
    follower.input(b"go\n");
    follower.await_output("T S");
    follower.await_output("goes on");
}

#[test]
fn a_sandbox_goes_on_when_whoever_froze_it_is_gone() {
    let sandbox = Sandbox::start(WRITER);
    let workspace = sandbox.spec.workspace.clone();
    await_change(&workspace);
    let mut client = sandbox.connect();
    freeze(&mut client, 30_000);
    stands_still(&workspace);
    drop(client);
    await_change(&workspace);
}

#[test]
fn a_sandbox_goes_on_by_itself_when_its_time_is_up() {
    let sandbox = Sandbox::start(WRITER);
    let workspace = sandbox.spec.workspace.clone();
    await_change(&workspace);
    let mut client = sandbox.connect();
    freeze(&mut client, 100);
    await_change(&workspace);
    assert!(
        !thaw(&mut client),
        "whoever asked is told that it did not hold"
    );
    freeze(&mut client, 30_000);
    assert!(thaw(&mut client));
}

#[test]
fn a_second_freeze_is_refused_and_anothers_thaw_does_nothing() {
    let sandbox = Sandbox::start(WRITER);
    let workspace = sandbox.spec.workspace.clone();
    let mut first = sandbox.connect();
    let mut second = sandbox.connect();
    freeze(&mut first, 30_000);
    let refused = second.ask(&Request::Freeze { limit_ms: 1 });
    assert!(
        matches!(&refused, Message::Refusal(refusal) if refusal.code == "conflict"),
        "{refused:?}"
    );
    assert!(!thaw(&mut second));
    stands_still(&workspace);
    assert!(thaw(&mut first));
}

#[test]
fn a_command_waits_until_the_sandbox_goes_on() {
    let sandbox = Sandbox::start(WRITER);
    let mut client = sandbox.connect();
    freeze(&mut client, 30_000);
    let mut other = sandbox.connect();
    let spec = runner(&["/bin/sh", "-c", "echo late > /home/choir/late"]);
    let id = spec.command_id;
    other.send(&Request::Spawn {
        spec: Box::new(spec),
    });
    stands_still(&sandbox.spec.home);
    assert!(thaw(&mut client));
    assert_eq!(
        other.message(),
        Message::Reply(Reply::Spawned { command_id: id })
    );
    assert_eq!(other.follow(id).exit.code, Some(0));
    assert_eq!(
        std::fs::read_to_string(sandbox.spec.home.join("late")).unwrap(),
        "late\n"
    );
}

#[test]
fn a_frozen_sandbox_can_be_stopped_in_good_order() {
    // Not dash: it loses a signal that arrives while a child of its vfork(2) has not begun yet.
    let mut sandbox = Sandbox::start(&[
        "/bin/bash",
        "-c",
        "trap 'echo bye > /workspace/bye; exit 0' TERM; : > /workspace/up; while :; do sleep 0.05; done",
    ]);
    let bye = sandbox.spec.workspace.join("bye");
    let begin = Instant::now();
    while !sandbox.spec.workspace.join("up").exists() {
        assert!(begin.elapsed() < PATIENCE);
    }
    let mut client = sandbox.connect();
    freeze(&mut client, 30_000);
    sandbox.stop(10_000);
    assert_eq!(std::fs::read_to_string(bye).unwrap(), "bye\n");
}

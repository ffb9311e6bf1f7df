//! A guest whose program ends is started again, next to the same runners.

use isolation::protocol::{Event, Message, Reply, Request};
use types::CommandState;

use crate::harness::{Sandbox, runner};

/// Says how often it ran and what it was given, leaves something behind, and ends when told.
const MORTAL: &str = "echo run >> /var/lib/choir/runs
    set -- /proc/[0-9]*; echo \"started with $HOME as $$, beside $#\"
    sleep 1000 &
    until [ -e /run/choir/app/die ]; do sleep 0.01; done
    rm /run/choir/app/die
    exit 3";

fn refused(message: &Message) -> bool {
    matches!(message, Message::Refusal(refusal) if refusal.code == "conflict")
}

fn runs(sandbox: &Sandbox) -> usize {
    std::fs::read_to_string(sandbox.dir.path().join("data/runs"))
        .map_or(0, |text| text.lines().count())
}

fn until(what: &str, met: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !met() {
        assert!(std::time::Instant::now() < deadline, "waited for {what}");
        std::thread::yield_now();
    }
}

fn guest_state(sandbox: &Sandbox) -> CommandState {
    let mut client = sandbox.connect_raw();
    let hello = client.ask(&Request::Hello {
        nonce: sandbox.spec.nonce.clone(),
    });
    match hello {
        Message::Reply(Reply::Hello { guest, .. }) => guest.state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_ended_starts_again_and_its_runners_go_on() {
    let sandbox = Sandbox::start(&["/bin/sh", "-c", MORTAL]);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&[
        "/bin/sh",
        "-c",
        "echo before; until [ -e /workspace/go ]; do sleep 0.01; done; echo after",
    ]));
    until("the first run", || runs(&sandbox) == 1);
    assert!(refused(&client.ask(&Request::RestartGuest {})), "it runs");
    for again in 2..4 {
        let mut watcher = sandbox.connect();
        watcher.send(&Request::Watch {});
        std::fs::write(sandbox.spec.run_dir.join("app/die"), "").unwrap();
        let Message::Event(Event::GuestExited { exit }) = watcher.message() else {
            panic!("no end");
        };
        assert_eq!(exit.code, Some(3));
        assert_eq!(guest_state(&sandbox), CommandState::Exited);
        assert_eq!(
            client.ask(&Request::RestartGuest {}),
            Message::Reply(Reply::Done)
        );
        until("the next run", || runs(&sandbox) == again);
        assert_eq!(guest_state(&sandbox), CommandState::Running);
    }
    std::fs::write(sandbox.dir.path().join("workspace/go"), "").unwrap();
    assert_eq!(sandbox.connect().follow(id).stdout, "before\nafter\n");
    std::fs::write(sandbox.spec.run_dir.join("app/die"), "").unwrap();
    let log = sandbox.guest_output();
    // The same environment, and nothing left of the earlier run: itself and its first process.
    assert_eq!(
        log.matches("started with /home/choir as").count(),
        3,
        "{log}"
    );
    let counts: Vec<_> = log
        .lines()
        .filter_map(|line| line.split_once("beside ").map(|(_, count)| count))
        .collect();
    assert!(counts.iter().all(|count| *count == counts[0]), "{log}");
}

#[test]
fn a_guest_whose_first_process_died_needs_a_new_sandbox() {
    let sandbox = Sandbox::start(&["/bin/sh", "-c", MORTAL]);
    until("the first run", || runs(&sandbox) == 1);
    let supervisor = sandbox.supervisor_pid();
    let children =
        std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let first = children
        .split_whitespace()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .unwrap()
                .trim()
                == "choir-guest"
        })
        .unwrap();
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    let pid = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(
        watcher.message(),
        Message::Event(Event::GuestExited { .. })
    ));
    let mut client = sandbox.connect();
    assert!(refused(&client.ask(&Request::RestartGuest {})));
}

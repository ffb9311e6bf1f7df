//! The control socket: who may speak, what is refused, and the end of a sandbox.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use isolation::protocol::{Event, Frame, Message, Reply, Request};
use isolation::spec::Nonce;
use types::{CommandId, CommandState};

use crate::harness::{Sandbox, runner};

const STUBBORN: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap '' TERM; echo up; while :; do sleep 1000; done",
];

fn refused(message: &Message, code: &str) {
    assert!(
        matches!(message, Message::Refusal(refusal) if refusal.code == code),
        "{message:?}"
    );
}

#[test]
fn only_who_knows_the_nonce_may_speak() {
    let sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect_raw();
    refused(&client.ask(&Request::Runners {}), "bad_request");
    assert!(client.frame().is_none(), "the connection is closed");
    let mut client = sandbox.connect_raw();
    refused(
        &client.ask(&Request::Hello {
            nonce: Nonce::new("00".repeat(16)),
        }),
        "unauthenticated",
    );
    assert!(client.frame().is_none());
    // More than a hello may have, before one: dropped without an answer.
    let mut client = sandbox.connect_raw();
    client.raw(&[[0, 0, 0xff, 0xff, b'J'].as_slice(), &[b' '; 8000]].concat());
    assert!(client.is_cut_off());
    let mode = std::fs::metadata(sandbox.spec.run_dir.join("control.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_client_is_told_who_and_what_is_there() {
    let sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&["sleep", "1000"]));
    let mut second = sandbox.connect_raw();
    let Message::Reply(Reply::Hello {
        pid,
        sandbox_id,
        start_id,
        guest,
        runners,
        ..
    }) = second.ask(&Request::Hello {
        nonce: sandbox.spec.nonce.clone(),
    })
    else {
        panic!("no hello");
    };
    assert_eq!(pid, sandbox.supervisor_pid());
    assert_eq!(
        (sandbox_id, start_id),
        (sandbox.spec.sandbox_id, sandbox.spec.start_id)
    );
    assert_eq!(guest.state, CommandState::Running);
    assert_eq!(
        runners
            .iter()
            .map(|runner| runner.view.id)
            .collect::<Vec<_>>(),
        [id]
    );
    refused(
        &second.ask(&Request::Attach {
            command_id: CommandId::generate(),
            from: 0,
        }),
        "not_found",
    );
    refused(
        &second.ask(&Request::RunnerChannel { command_id: id }),
        "not_found",
    );
    let mut again = runner(&["true"]);
    again.command_id = id;
    refused(
        &second.ask(&Request::Spawn {
            spec: Box::new(again),
        }),
        "conflict",
    );
    refused(
        &second.ask(&Request::Spawn {
            spec: Box::new(runner(&[])),
        }),
        "bad_request",
    );
}

#[test]
fn the_guests_channel_is_handed_out_and_cannot_be_replaced() {
    let script = "until [ -e /run/choir/app/go ]; do sleep 0.01; done
        python3 -c \"import socket;s=socket.socket(socket.AF_UNIX);s.connect('/run/choir/channel/channel.sock');print(s.recv(9).decode())\"
        rm /run/choir/channel/channel.sock || echo kept";
    let sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    let mut client = sandbox.connect();
    assert_eq!(
        client.ask(&Request::Channel {}),
        Message::Reply(Reply::Channel)
    );
    let listener = UnixListener::from(client.rider());
    listener.set_nonblocking(false).unwrap();
    std::fs::write(sandbox.spec.run_dir.join("app/go"), "").unwrap();
    let (stream, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut &stream, b"hello").unwrap();
    drop(stream);
    let output = sandbox.guest_output();
    assert!(
        output.contains("hello\n") && output.contains("kept\n"),
        "{output}"
    );
}

#[test]
fn exited_runners_are_kept_until_forgotten() {
    let sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&["echo", "kept"]));
    assert_eq!(sandbox.connect().follow(id).stdout, "kept\n");
    assert_eq!(sandbox.connect().follow(id).stdout, "kept\n", "and again");
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    assert!(
        matches!(watcher.message(), Message::Event(Event::RunnerExited { command_id, .. }) if command_id == id)
    );
    assert_eq!(
        client.ask(&Request::Forget { command_id: id }),
        Message::Reply(Reply::Done)
    );
    assert_eq!(
        client.ask(&Request::Runners {}),
        Message::Reply(Reply::Runners {
            runners: Vec::new()
        })
    );
}

#[test]
fn a_slow_reader_holds_nobody_up() {
    let sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect();
    let mut loud = runner(&["/bin/sh", "-c", "head -c 30000000 /dev/zero; echo over"]);
    loud.limits.output_bytes = Some(200_000);
    let id = client.spawn(loud);
    let mut slow = sandbox.connect();
    slow.attach(id, 0);
    let outcome = client.follow(id);
    assert!(outcome.stdout.ends_with("over\n"));
    assert!(outcome.exit.dropped_bytes > 0);
    // It reads now, misses what was dropped, learns it from the offsets, and sees the end.
    let (mut next, mut gaps) = (0, 0);
    while let Some(frame) = slow.frame() {
        if let Frame::Data { offset, bytes, .. } = frame {
            gaps += u64::from(offset > next);
            next = offset + bytes.len() as u64;
        }
    }
    assert_eq!(next, 30_000_005);
    assert!(gaps > 0);
}

#[test]
fn stopping_ends_everything_within_its_grace() {
    let mut sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect();
    client.spawn(runner(&["sleep", "1000"]));
    let mut log = sandbox.connect();
    log.ask(&Request::GuestLog { from: 0 });
    log.await_output("up");
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    let begin = Instant::now();
    sandbox.stop(300);
    assert!(
        begin.elapsed() >= Duration::from_millis(300) && begin.elapsed() < Duration::from_secs(5)
    );
    let mut guest_exit = None;
    while let Some(frame) = watcher.frame() {
        if let Frame::Json(body) = frame
            && let Message::Event(Event::GuestExited { exit }) = Message::parse(&body).unwrap()
        {
            guest_exit = Some(exit);
        }
    }
    assert_eq!(guest_exit.unwrap().signal, Some(9));
    assert!(UnixStream::connect(sandbox.spec.run_dir.join("control.sock")).is_err());
}

/// Also one that is behind, and whoever else is.
#[test]
fn a_follower_learns_how_a_command_ended_that_was_stopped_with_everything() {
    let mut sandbox = Sandbox::start(STUBBORN);
    let mut client = sandbox.connect();
    let script = "head -c 3000000 /dev/zero; echo over; sleep 1000";
    let mut loud = runner(&["/bin/sh", "-c", script]);
    loud.limits.output_bytes = Some(4 << 20);
    let id = client.spawn(loud);
    let mut behind: Vec<_> = (0..2).map(|_| sandbox.connect()).collect();
    for follower in &mut behind {
        follower.attach(id, 0);
    }
    client.attach(id, 0);
    client.await_output("over");
    // They read on when nothing of the sandbox is left, at the same time: nobody waits for
    // the other.
    let over = Arc::new(Barrier::new(behind.len() + 1));
    let readers: Vec<_> = behind
        .into_iter()
        .map(|mut follower| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                over.wait();
                follower.collect()
            })
        })
        .collect();
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    std::thread::spawn(move || {
        while !matches!(watcher.message(), Message::Event(Event::GuestExited { .. })) {}
        over.wait();
    });
    sandbox.stop(100);
    for reader in readers {
        let seen = reader.join().unwrap();
        assert_eq!(seen.stdout.len(), 3_000_005);
        assert_eq!(seen.exit.signal, Some(9));
    }
}

#[test]
fn a_guest_that_obeys_ends_in_good_order() {
    let mut sandbox = Sandbox::start(&[
        "/bin/sh",
        "-c",
        "trap 'exit 4' TERM; echo up; while :; do sleep 1000 & wait; done",
    ]);
    let mut log = sandbox.connect();
    log.ask(&Request::GuestLog { from: 0 });
    log.await_output("up");
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    let begin = Instant::now();
    sandbox.stop(10_000);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(watcher.message(), Message::Event(Event::GuestExited { exit }) if exit.code == Some(4))
    );
}

#[test]
fn nothing_outlives_its_supervisor() {
    let mut sandbox = Sandbox::start(&["/bin/sh", "-c", "sleep 5813"]);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&["/bin/sh", "-c", "echo up; sleep 5813"]));
    client.attach(id, 0);
    client.await_output("up");
    sandbox.kill_supervisor();
    let begin = Instant::now();
    while sleepers() > 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "a process outlived its supervisor"
        );
        std::thread::yield_now();
    }
}

/// Nobody could reach it again: neither to stop it nor to take it over.
#[test]
fn a_supervisor_whose_directory_was_removed_takes_its_sandbox_down() {
    let mut sandbox = Sandbox::start(&["/bin/sleep", "5814"]);
    std::fs::remove_dir_all(&sandbox.spec.run_dir).unwrap();
    sandbox.await_end();
}

#[test]
fn a_sandbox_that_is_being_stopped_says_so_to_whoever_comes_back() {
    let script = "trap '' TERM; while :; do sleep 1; done";
    let sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    let mut first = sandbox.connect();
    first.send(&Request::Stop { grace_ms: 3000 });
    let stopping = |sandbox: &Sandbox| {
        let hello = sandbox.connect_raw().ask(&Request::Hello {
            nonce: sandbox.spec.nonce.clone(),
        });
        matches!(hello, Message::Reply(Reply::Hello { stopping: true, .. }))
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    while !stopping(&sandbox) {
        assert!(Instant::now() < deadline);
    }
}

/// Processes of this machine that sleep for the time that only the test above uses.
fn sleepers() -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line == b"sleep\x005813\x00")
        .count()
}

#[test]
fn a_spec_without_sense_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let good = crate::harness::spec(dir.path(), &["/bin/true"]);
    let refusal = |change: &dyn Fn(&mut isolation::spec::SandboxSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        crate::harness::launch(&spec).unwrap_err()
    };
    assert_eq!(
        refusal(&|spec| spec.nonce = Nonce::new("short".into())).code,
        "bad_spec"
    );
    assert_eq!(refusal(&|spec| spec.guest.argv.clear()).code, "bad_spec");
    assert_eq!(
        refusal(&|spec| spec.workspace = "relative".into()).code,
        "bad_spec"
    );
    let missing = refusal(&|spec| spec.guest_binary = "/no/such/binary".into());
    assert_eq!(missing.code, "wall_missing");
    assert!(missing.message.contains("/no/such/binary") && missing.hint.is_some());
    let overlapping = refusal(&|spec| {
        spec.extra_mounts = vec![isolation::spec::Bind {
            source: "/usr".into(),
            target: "/usr/lib".into(),
        }];
    });
    assert!(overlapping.message.contains("/usr/lib"), "{overlapping:?}");
}

/// The first process of a workbench, as the host sees it.
fn workbench_of(sandbox: &Sandbox) -> i32 {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let parent = format!("PPid:\t{}\n", sandbox.supervisor_pid());
            let is_it = status.starts_with("Name:\tchoir-workbench\n") && status.contains(&parent);
            is_it.then(|| entry.file_name().to_string_lossy().parse().unwrap())
        })
        .expect("a workbench")
}

/// A sandbox that can run no commands ends with the reason, so that it is started anew.
#[test]
fn a_guest_does_not_outlive_its_workbench() {
    let sandbox = Sandbox::start(&["/bin/sleep", "1000"]);
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    let bench = rustix::process::Pid::from_raw(workbench_of(&sandbox)).unwrap();
    rustix::process::kill_process(bench, rustix::process::Signal::KILL).unwrap();
    let Message::Event(Event::GuestExited { exit }) = watcher.message() else {
        panic!("no exit");
    };
    assert!(exit.error.unwrap().contains("workbench"));
}

#[test]
fn a_supervisor_locks_itself_in() {
    let sandbox = Sandbox::start(&["/bin/sleep", "1000"]);
    // It answers once it serves, and by then it has.
    drop(sandbox.connect());
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", sandbox.supervisor_pid())).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use isolation::protocol::{Message, Reply, Request, Signal};
use types::{CommandId, CommandLimits, TerminalSize};

use crate::harness::{Sandbox, runner, terminal};

/// A guest that does nothing until it is stopped.
const IDLE: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
];

#[test]
fn a_runner_works_in_the_workspace() {
    let sandbox = Sandbox::start(IDLE);
    let outcome =
        sandbox.sh("echo out; echo err >&2; pwd; id -u; echo hi > note; cat note; exit 7");
    assert_eq!(outcome.stdout, "out\n/workspace\n1000\nhi\n");
    assert_eq!(outcome.stderr, "err\n");
    assert_eq!(outcome.exit.code, Some(7));
    assert_eq!(
        std::fs::read_to_string(sandbox.dir.path().join("workspace/note")).unwrap(),
        "hi\n"
    );
}

#[test]
fn a_runner_sees_neither_the_guest_nor_another_runner() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    client.spawn(runner(&["/bin/sh", "-c", "sleep 1000"]));
    let outcome = sandbox.sh(
        "cat /proc/[0-9]*/comm; ls /var/lib/choir /run/choir/app 2>&1; ls -A /run/choir/channel /run/choir/runners
         grep Cap /proc/self/status; ls -l /proc/1/fd /proc/1/root 2>&1",
    );
    println!("{outcome:?}");
    assert!(
        outcome.stdout.starts_with("choir-runner\nsh\n"),
        "its own first process and itself"
    );
    assert!(
        !outcome.stdout.contains("sleep"),
        "another runner's process"
    );
    assert_eq!(outcome.stdout.matches("No such file").count(), 2);
    assert_eq!(outcome.stdout.matches("0000000000000000").count(), 5);
    assert_eq!(outcome.stdout.matches("Permission denied").count(), 2);
    assert!(!outcome.stdout.contains(".sock"));
}

#[test]
fn runners_share_loopback_and_tmp() {
    let sandbox = Sandbox::start(IDLE);
    assert_eq!(sandbox.sh("echo shared > /tmp/x").exit.code, Some(0));
    assert_eq!(sandbox.sh("cat /tmp/x").stdout, "shared\n");
    let server = "import socket\ns=socket.create_server(('127.0.0.1',7777))\nprint('up',flush=True)\nc,_=s.accept()\nc.sendall(b'served')\nc.close()";
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&["python3", "-c", server]));
    client.attach(id, 0);
    client.await_output("up");
    let ask = "import socket;print(socket.create_connection(('localhost',7777)).recv(99).decode())";
    assert_eq!(
        sandbox.run(runner(&["python3", "-c", ask])).stdout,
        "served\n"
    );
    assert_eq!(client.collect().exit.code, Some(0));
}

#[test]
fn what_cannot_be_executed_ends_like_in_a_shell() {
    let sandbox = Sandbox::start(IDLE);
    let missing = sandbox.run(runner(&["no-such-program"])).exit;
    assert_eq!(missing.code, Some(127));
    assert!(missing.error.unwrap().contains("command not found"));
    let directory = sandbox.run(runner(&["/usr"])).exit;
    assert_eq!(directory.code, Some(126));
    assert_eq!(sandbox.run(runner(&["/etc/passwd"])).exit.code, Some(126));
    let mut elsewhere = runner(&["true"]);
    elsewhere.cwd = Some("/no/where".into());
    let elsewhere = sandbox.run(elsewhere).exit;
    assert!(elsewhere.error.unwrap().contains("/no/where"));
}

#[test]
fn a_runner_dies_with_its_whole_tree() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&[
        "/bin/sh",
        "-c",
        "(setsid sleep 4711 &) ; (trap '' TERM; echo ready; sleep 4711)",
    ]));
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    follower.await_output("ready");
    let begin = Instant::now();
    while sleepers() < 2 {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the tree did not start"
        );
        std::thread::yield_now();
    }
    assert_eq!(
        client.ask(&Request::Signal {
            command_id: id,
            signal: Signal::Kill
        }),
        Message::Reply(Reply::Done)
    );
    assert_eq!(follower.collect().exit.signal, Some(9));
    assert_eq!(sleepers(), 0, "the exit is told only when nothing is left");
}

/// Processes of this machine that sleep for the time that only the test above uses.
fn sleepers() -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line == b"sleep\x004711\x00")
        .count()
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let sandbox = Sandbox::start(IDLE);
    let begin = Instant::now();
    let outcome = sandbox.sh("sleep 600 & echo done");
    assert_eq!(
        (outcome.stdout.as_str(), outcome.exit.code),
        ("done\n", Some(0))
    );
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn signals_reach_every_process_of_a_runner() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let id = client.spawn(runner(&[
        "/bin/sh",
        "-c",
        "trap 'echo got int; exit 3' INT; echo ready; while :; do sleep 0.05; done",
    ]));
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    follower.await_output("ready");
    client.ask(&Request::Signal {
        command_id: id,
        signal: Signal::Int,
    });
    let outcome = follower.collect();
    assert_eq!(
        (outcome.stdout.as_str(), outcome.exit.code),
        ("got int\n", Some(3))
    );
}

#[test]
fn time_output_and_processes_are_bounded() {
    let sandbox = Sandbox::start(IDLE);
    let mut slow = runner(&["sleep", "600"]);
    slow.limits = CommandLimits {
        wall_ms: Some(300),
        ..CommandLimits::default()
    };
    let exit = sandbox.run(slow).exit;
    assert!(
        exit.timed_out && exit.wall_ms >= 300 && exit.signal == Some(9),
        "{exit:?}"
    );

    let mut loud = runner(&[
        "/bin/sh",
        "-c",
        "head -c 3000000 /dev/zero | tr '\\0' x; echo end",
    ]);
    loud.limits.output_bytes = Some(100_000);
    let mut client = sandbox.connect();
    let id = client.spawn(loud);
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    watcher.message();
    watcher.message();
    let kept = client.follow(id);
    assert!(kept.stdout.len() <= 100_000 && kept.stdout.ends_with("end\n"));
    assert_eq!(
        kept.exit.dropped_bytes,
        3_000_004 - kept.stdout.len() as u64
    );

    let mut bomb = runner(&[
        "/bin/sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait",
    ]);
    bomb.limits.processes = Some(4);
    let outcome = sandbox.run(bomb);
    assert!(outcome.stderr.contains("fork"), "{outcome:?}");
    assert_eq!(
        sandbox
            .sh("for i in 1 2 3 4 5 6 7 8; do true & done; wait; echo ok")
            .stdout,
        "ok\n"
    );
}

/// However fast it reads: what a flood costs is bounded, and its end is not lost.
#[test]
fn a_follower_gets_the_beginning_and_the_end_of_a_flood() {
    const BOUND: usize = 100_000;
    let sandbox = Sandbox::start(IDLE);
    let flood = "read go; for n in 1 2 3 4 5 6 7 8 9 10; do head -c 300000 /dev/zero | tr '\\0' x; sleep 0.05; done; echo end";
    let mut loud = runner(&["/bin/sh", "-c", flood]);
    loud.limits.output_bytes = Some(BOUND as u64);
    loud.stdin_open = true;
    let mut client = sandbox.connect();
    let id = client.spawn(loud.clone());
    client.attach(id, 0);
    client.input(b"go\n");
    let seen = client.collect();
    assert!(
        (BOUND..=2 * BOUND).contains(&seen.stdout.len()),
        "{}",
        seen.stdout.len()
    );
    assert!(seen.stdout.ends_with("xend\n"));

    // A service is followed for as long as it goes on.
    loud.detach = true;
    loud.command_id = CommandId::generate();
    let mut client = sandbox.connect();
    let id = client.spawn(loud);
    client.attach(id, 0);
    client.input(b"go\n");
    assert!(client.collect().stdout.len() > 2 * BOUND);
}

#[test]
fn standard_input_is_what_was_sent() {
    let sandbox = Sandbox::start(IDLE);
    let mut given = runner(&["cat"]);
    given.stdin = Some("x".repeat(300_000));
    assert_eq!(sandbox.run(given).stdout.len(), 300_000);
    assert_eq!(sandbox.run(runner(&["cat"])).stdout, "");
    let mut open = runner(&["cat"]);
    open.stdin_open = true;
    let mut client = sandbox.connect();
    let id = client.spawn(open);
    client.attach(id, 0);
    client.input(b"ping");
    client.await_output("ping");
    client.send(&Request::CloseStdin {});
    assert_eq!(client.collect().exit.code, Some(0));
}

#[test]
fn a_terminal_is_controlling_can_be_resized_and_scrolled_back() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let script = "tty; stty size; trap 'stty size' WINCH; echo ready; while read line; do echo \"got $line\"; [ $line = bye ] && exit 5; done";
    let id = client.spawn(terminal(&["/bin/bash", "-c", script]));
    client.attach(id, 0);
    let seen = client.await_output("ready");
    assert!(
        seen.contains("/dev/pts/0") && seen.contains("24 80"),
        "{seen}"
    );
    client.input(b"hello\n");
    client.await_output("got hello");
    client.send(&Request::Resize(TerminalSize {
        cols: 100,
        rows: 30,
    }));
    client.input(b"again\n");
    client.await_output("30 100");

    let mut second = sandbox.connect();
    second.attach(id, 0);
    let scrolled = second.await_output("30 100");
    assert!(scrolled.contains("ready") && scrolled.contains("got hello"));
    second.input(b"bye\n");
    assert_eq!(second.collect().exit.code, Some(5));
    assert_eq!(client.collect().exit.code, Some(5));
}

#[test]
fn an_interactive_shell_has_job_control_and_takes_control_c() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let id = client.spawn(terminal(&["/bin/bash", "--norc", "-i"]));
    client.attach(id, 0);
    client.input(b"PS1='prompt-'$((6*7))'>'\n");
    let seen = client.await_output("prompt-42>");
    assert!(!seen.contains("no job control"), "{seen}");
    client.input(b"sh -c \"echo slee''ping; exec sleep 1000\"\n");
    client.await_output("sleeping");
    client.input(b"\x03");
    client.await_output("prompt-42>");
    client.input(b"echo status-$?; exit 0\n");
    client.await_output("status-130");
    assert_eq!(client.collect().exit.code, Some(0));
}

#[test]
fn a_channel_is_the_runners_own_and_reached_over_loopback() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let script = "import os,socket,sys\ns=socket.create_connection(('127.0.0.1',int(os.environ['RELAY'].rsplit(':',1)[1])))\ns.sendall(b'question');s.shutdown(1)\nprint(s.recv(99).decode(), os.listdir('/run/choir/channel'), os.listdir('/run/choir/runners'))\ntry:\n open('/run/choir/channel/mine','w')\nexcept OSError as e: print(e.strerror)";
    let mut spec = runner(&["python3", "-c", script]);
    spec.channel = true;
    spec.relay_env = vec![("RELAY".into(), "http://127.0.0.1:{port}".into())];
    let id = client.spawn(spec);
    let listener = UnixListener::from(client.rider());
    listener.set_nonblocking(false).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    stream.write_all(b"answer").unwrap();
    drop(stream);
    let outcome = client.follow(id);
    assert_eq!(
        outcome.stdout, "answer ['channel.sock'] []\nRead-only file system\n",
        "{outcome:?}"
    );
}

#[test]
fn many_runners_at_once_do_not_mix() {
    let sandbox = Sandbox::start(IDLE);
    let mut clients: Vec<_> = (0..30)
        .map(|number| {
            let mut client = sandbox.connect();
            let id = client.spawn(runner(&["/bin/echo", &number.to_string()]));
            (number, client, id)
        })
        .collect();
    for (number, client, id) in &mut clients {
        assert_eq!(client.follow(*id).stdout, format!("{number}\n"));
    }
}

#[test]
fn a_short_command_is_fast() {
    let sandbox = Sandbox::start(IDLE);
    let mut took: Vec<_> = (0..20)
        .map(|_| {
            let mut client = sandbox.connect();
            let begin = Instant::now();
            let id = client.spawn(runner(&["/bin/true"]));
            assert_eq!(client.follow(id).exit.code, Some(0));
            begin.elapsed()
        })
        .collect();
    took.sort();
    println!("median {:?}, slowest {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
}

#[test]
fn a_terminal_can_be_let_go_of_and_opened_again() {
    let sandbox = Sandbox::start(IDLE);
    let script = "echo before; exec 3>&1; exec </dev/null >/dev/null 2>&1 3>&-; sleep 0.2; echo after >/dev/tty";
    let outcome = sandbox.run(terminal(&["/bin/sh", "-c", script]));
    assert_eq!(outcome.stdout, "before\r\nafter\r\n");
}

#[test]
fn descriptors_can_be_opened_by_name() {
    let sandbox = Sandbox::start(IDLE);
    let script = "echo one > /dev/stdout; echo two > /dev/fd/1; echo three > >(cat); cat <(echo four); wait; echo five >/dev/stderr";
    let outcome = sandbox.run(runner(&["/bin/bash", "-c", script]));
    for word in ["one", "two", "three", "four"] {
        assert!(outcome.stdout.contains(word), "{outcome:?}");
    }
    assert_eq!(outcome.stderr, "five\n");
}

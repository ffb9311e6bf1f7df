//! Bombs: what one sandbox does to exhaust the machine stops at its own limits, and its
//! neighbour goes on answering. Each is bounded by limits of its own, so that a broken wall
//! fails a test and not the machine.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::identity::caller_is_root;
use system_tests::{Account, Identity, Installation, Setup};
use types::{CommandEvent, CommandExit, LimitScope, LimitedResource, Role};

/// Small enough that every bomb meets them soon, large enough for what runs inside.
const LIMITS: &str = r#"
[sandbox.limits]
processes = 64
memory = "96 MiB"
sandbox_memory = "512 MiB"
open_files = 256
output_bytes = 65536
inotify_instances = 40
"#;

/// The slowest answer of a neighbour that still counts as one. Far above what is measured
/// (`cargo xtask bench isolation`), because other tests share the machine.
const NEIGHBOUR: Duration = Duration::from_secs(5);

/// Runs a command in live to its end; what it wrote and how it ended.
async fn run(account: &Account, request: Value) -> (String, CommandExit) {
    run_in(account, Role::Live, request).await
}

async fn run_in(account: &Account, role: Role, request: Value) -> (String, CommandExit) {
    let target = format!("/me/sandboxes/{role}/commands");
    let answer = account.control("POST", &target, Some(request)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut output = String::new();
    let mut exit = None;
    for line in answer.text().lines() {
        match serde_json::from_str(line).expect("an event") {
            CommandEvent::Output { data, .. } => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(data);
                output.push_str(&String::from_utf8_lossy(&bytes.expect("base64")));
            }
            CommandEvent::Exited(how) => exit = Some(how),
            CommandEvent::Started { .. } => {}
        }
    }
    (output, exit.expect("an end"))
}

/// Has a Python program run as a service that holds what it took; returns once it says so. The
/// service's view, afterwards, tells whether it was ended.
async fn hold(account: &Account, role: Role, program: &str) -> String {
    let script = format!("import os, time\n{program}\nprint('held', flush=True)\ntime.sleep(600)");
    let request = json!({ "argv": ["python3", "-c", script], "detach": true });
    let target = format!("/me/sandboxes/{role}/commands");
    let begun = account.control("POST", &target, Some(request)).await;
    let begun = begun.expect(201).json();
    let view = format!("{target}/{}", begun["id"].as_str().expect("an id"));
    system_tests::wait::until("what is held", async || {
        let said = account
            .control("GET", &format!("{view}/output"), None)
            .await;
        said.text().contains("held").then_some(())
    })
    .await;
    view
}

/// Asks the neighbour's sandbox for its health over and over while `bomb` goes on.
async fn with_neighbour<T>(neighbour: &Account, bomb: impl Future<Output = T>) -> T {
    let mut bomb = std::pin::pin!(bomb);
    let mut answers = 0;
    loop {
        let began = Instant::now();
        tokio::select! {
            done = &mut bomb => {
                assert!(answers > 0, "the neighbour was never asked");
                return done;
            }
            answer = neighbour.runtime(Role::Live, "GET", "/health", None) => {
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(began.elapsed() < NEIGHBOUR, "{:?}", began.elapsed());
                answers += 1;
            }
        }
    }
}

async fn neighbours(setup: Setup) -> (Installation, Account, Account) {
    started(setup.config(LIMITS)).await
}

async fn started(setup: Setup) -> (Installation, Account, Account) {
    let installation = setup.start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    for account in [&alice, &bob] {
        account.start(Role::Live).await;
        account.enter(Role::Live).await;
    }
    (installation, alice, bob)
}

/// Whether limits of whole trees are kept here; says loudly when not.
fn has_groups() -> bool {
    if !caller_is_root() {
        eprintln!("SKIPPED: no cgroups without root, so no limits of whole trees to test");
    }
    caller_is_root()
}

fn demand_limit(exit: &CommandExit, resource: LimitedResource, limit: u64) {
    // Where the tests run without root there may be no cgroups, and nobody to tell.
    if caller_is_root() {
        let reached = exit.limit.unwrap_or_else(|| panic!("no limit: {exit:?}"));
        assert_eq!(reached.resource, resource, "{exit:?}");
        assert_eq!(reached.scope, LimitScope::Command, "{exit:?}");
        assert_eq!(reached.limit, limit, "{exit:?}");
    }
}

async fn demand_notice(account: &Account, words: &str) {
    if caller_is_root() {
        let notices = account
            .control("GET", "/me/sandboxes/live/notices", None)
            .await;
        let text = notices.text();
        assert!(text.contains("\"quota\""), "{text}");
        assert!(
            text.contains(words) && text.contains("sandbox.limits."),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stops_at_its_command_and_is_named() {
    let (_installation, alice, bob) = neighbours(Setup::default()).await;
    let bomb = json!({
        "argv": ["bash", "-c", "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 3"],
        "limits": { "wall_ms": 20_000 },
    });
    let (_, exit) = with_neighbour(&bob, run(&alice, bomb)).await;
    demand_limit(&exit, LimitedResource::Processes, 64);
    demand_notice(&alice, "64 processes").await;
    // The whole tree went with it, and there is room again.
    let (output, exit) = run(
        &alice,
        json!({ "argv": ["sh", "-c", "ls /proc | grep -c '^[0-9]'"] }),
    )
    .await;
    assert_eq!(exit.limit, None);
    assert!(output.trim().parse::<u32>().unwrap() < 10, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_bomb_stops_at_its_command_and_is_named() {
    if !caller_is_root() {
        // Without cgroups nothing bounds memory, and the configuration had to say so.
        eprintln!("SKIPPED: no cgroups without root, so no bound of memory to test");
        return;
    }
    let (_installation, alice, bob) = neighbours(Setup::default()).await;
    let bombs = [
        "x = bytearray(300 << 20)",
        // What lies in /tmp is memory as well.
        "f = open('/tmp/big', 'wb')\nfor _ in range(300): f.write(bytes(1 << 20)); f.flush()",
        // Many small ones make a large one.
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n        x = bytearray(25 << 20); time.sleep(5); os._exit(0)\nos.wait()",
    ];
    for bomb in bombs {
        let request = json!({ "argv": ["python3", "-c", bomb], "limits": { "wall_ms": 20_000 } });
        let (output, exit) = with_neighbour(&bob, run(&alice, request)).await;
        demand_limit(&exit, LimitedResource::Memory, 96 << 20);
        assert!(!exit.timed_out, "{output} {exit:?}");
        let _ = run(&alice, json!({ "argv": ["rm", "-f", "/tmp/big"] })).await;
    }
    demand_notice(&alice, "96 MiB of memory").await;
    // A command that asks for less is held to less.
    let small = json!({ "argv": ["python3", "-c", "x = bytearray(60 << 20)"], "limits": { "memory_bytes": 48 << 20 } });
    let (_, exit) = run(&alice, small).await;
    demand_limit(&exit, LimitedResource::Memory, 48 << 20);
    // The guest and the runners beside it were left alone.
    let (output, exit) = run(&alice, json!({ "argv": ["echo", "well"] })).await;
    assert_eq!((output.as_str(), exit.code), ("well\n", Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_descriptors_and_a_flood_of_output_stay_inside() {
    let (installation, alice, bob) = neighbours(Setup::default()).await;
    let open = "import os\nn = 0\ntry:\n    while n < 5000: os.open('/dev/null', 0); n += 1\nexcept OSError as e: print(n, e.errno)";
    let request = json!({ "argv": ["python3", "-c", open] });
    let (output, _) = with_neighbour(&bob, run(&alice, request)).await;
    let (opened, errno) = output.trim().split_once(' ').expect("a refusal");
    assert!(opened.parse::<u32>().unwrap() < 256, "{output}");
    assert_eq!(errno, "24");

    let flood = json!({ "argv": ["yes", "a line of a flood"], "limits": { "wall_ms": 2000 } });
    let began = installation.log().len();
    let (output, exit) = with_neighbour(&bob, run(&alice, flood)).await;
    assert!(exit.timed_out, "{exit:?}");
    // As much as is passed on at once and as much of the end, however fast both sides are.
    assert!((1..=2 * 65536).contains(&output.len()), "{}", output.len());
    assert!(exit.dropped_bytes > output.len() as u64, "{exit:?}");
    assert!(output.starts_with("a line of a flood\n"));
    let log = installation.log();
    assert!(!log.contains("a line of a flood"));
    // The neighbour's own requests are as many as the machine is quick.
    let about: Vec<_> = log[began..]
        .lines()
        .filter(|line| !line.contains(r#""target":"hypervisor::http""#))
        .collect();
    assert!(about.len() < 40, "{about:#?}");
}

/// Processor time against wall time, as the program itself sees them.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_command_gets_its_quota_of_the_processor_and_no_more() {
    if !has_groups() {
        return;
    }
    let quota = "[sandbox.limits]\ncpu = 0.2";
    let (_installation, alice, bob) = neighbours(Setup::default().config(quota)).await;
    let busy = "import os, time\nbegan = time.monotonic()\nchildren = [os.fork() for _ in range(1)]\nwhile time.monotonic() - began < 4: pass\nif children[0]: os.wait(); t = os.times(); print((t.user + t.system + t.children_user + t.children_system) / (time.monotonic() - began))";
    let request = json!({ "argv": ["python3", "-c", busy], "limits": { "wall_ms": 30_000 } });
    let (output, exit) = with_neighbour(&bob, run(&alice, request)).await;
    let share: f64 = output
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{output} {exit:?}"));
    // Two busy processes without the quota take nearly a core and more, even on a busy machine
    // with two; with it a fifth, and a period at either end.
    assert!(share < 0.4, "{share} of a core");
}

/// What no command reaches alone, several together do.
#[tokio::test(flavor = "multi_thread")]
async fn commands_together_stop_at_their_sandbox() {
    if !has_groups() {
        return;
    }
    let (_installation, alice, bob) = neighbours(Setup::default()).await;
    // Each within its own 96 MiB, all of them over the sandbox's 512 MiB.
    let eat = || {
        let eat = "import time\nx = bytearray(70 << 20)\ntime.sleep(6)";
        json!({ "argv": ["python3", "-c", eat], "limits": { "wall_ms": 30_000 } })
    };
    let one = || run(&alice, eat());
    let all = async { tokio::join!(one(), one(), one(), one(), one(), one(), one(), one()) };
    let (a, b, c, d, e, f, g, h) = with_neighbour(&bob, all).await;
    let exits = [a, b, c, d, e, f, g, h].map(|(_, exit)| exit);
    let of_sandbox = |exit: &CommandExit| {
        exit.limit.is_some_and(|reached| {
            (reached.resource, reached.scope, reached.limit)
                == (LimitedResource::Memory, LimitScope::Sandbox, 512 << 20)
        })
    };
    assert!(exits.iter().any(of_sandbox), "{exits:?}");
    demand_notice(&alice, "512 MiB of memory").await;
}

fn is(exit: &CommandExit, resource: LimitedResource, scope: LimitScope, limit: u64) -> bool {
    exit.limit
        .is_some_and(|met| (met.resource, met.scope, met.limit) == (resource, scope, limit))
}

/// Takes 60 processes, or as many as there are, and says how many.
const FORK: &str = "n = 0\ntry:\n    while n < 60:\n        if os.fork() == 0: time.sleep(600); os._exit(0)\n        n += 1\nexcept OSError: pass";

/// Each command stays within its own 64 processes; the second one meets what both may have.
async fn forks_stop_at(setup: Setup, second: Role, scope: LimitScope, limit: u64, words: &str) {
    let (_installation, alice, bob) = neighbours(setup).await;
    if second == Role::Dev {
        alice.start(Role::Dev).await;
    }
    let held = hold(&alice, Role::Live, FORK).await;
    let forks = format!("import os, time\n{FORK}\nprint(n)");
    let request = json!({ "argv": ["python3", "-c", forks] });
    let (output, exit) = with_neighbour(&bob, run_in(&alice, second, request)).await;
    assert!(
        is(&exit, LimitedResource::Processes, scope, limit),
        "{output} {exit:?}"
    );
    let notices = format!("/me/sandboxes/{second}/notices");
    let said = alice.control("GET", &notices, None).await.text();
    assert!(said.contains(words), "{said}");
    // The one that came first keeps what it has.
    let view = alice.control("GET", &held, None).await.json();
    assert_eq!(view["state"], "running", "{view}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_fork_stop_at_their_sandbox() {
    if !has_groups() {
        return;
    }
    let setup = Setup::default().config("[sandbox.limits]\nsandbox_processes = 100");
    let words = "sandbox.limits.sandbox_processes";
    forks_stop_at(setup, Role::Live, LimitScope::Sandbox, 100, words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_and_dev_that_fork_stop_at_their_user() {
    if !has_groups() {
        return;
    }
    let setup = Setup::default().config("[sandbox.limits]\nuser_processes = 130");
    let words = "sandbox.limits.user_processes";
    forks_stop_at(setup, Role::Dev, LimitScope::User, 130, words).await;
}

/// What neither live nor dev reaches alone, both together do; whoever has to go is told why.
#[tokio::test(flavor = "multi_thread")]
async fn live_and_dev_that_eat_memory_stop_at_their_user() {
    if !has_groups() {
        return;
    }
    // Each within its own 96 MiB.
    const EAT: &str = "x = bytearray(80 << 20)";
    let small = "[sandbox.limits]\nuser_memory = \"300 MiB\"";
    let (_installation, alice, bob) = neighbours(Setup::default().config(small)).await;
    alice.start(Role::Dev).await;
    let held = [
        hold(&alice, Role::Live, EAT).await,
        hold(&alice, Role::Live, EAT).await,
    ];
    let eat = format!("import time\n{EAT}\ntime.sleep(1)");
    let one = || run_in(&alice, Role::Dev, json!({ "argv": ["python3", "-c", eat] }));
    let both = async { tokio::join!(one(), one()) };
    let ((_, third), (_, fourth)) = with_neighbour(&bob, both).await;
    let mut exits = vec![third, fourth];
    for view in held {
        let view = alice.control("GET", &view, None).await.json();
        exits.extend(serde_json::from_value(view["exit"].clone()));
    }
    let of_user = |exit| is(exit, LimitedResource::Memory, LimitScope::User, 300 << 20);
    assert!(exits.iter().any(of_user), "{exits:?}");
    let mut said = String::new();
    for role in [Role::Live, Role::Dev] {
        let notices = format!("/me/sandboxes/{role}/notices");
        said += &alice.control("GET", &notices, None).await.text();
    }
    assert!(said.contains("sandbox.limits.user_memory"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_fills_the_disk_with_entries_is_stopped() {
    let small = "[sandbox.limits]\nsandbox_files = 3000";
    let (_installation, alice, bob) = neighbours(Setup::default().config(small)).await;
    let fill = "import os\nfor n in range(1_000_000): os.mkdir(f'/workspace/d{n}')";
    let request = json!({ "argv": ["python3", "-c", fill], "limits": { "wall_ms": 120_000 } });
    let (_, exit) = with_neighbour(&bob, run(&alice, request)).await;
    let reached = exit.limit.unwrap_or_else(|| panic!("{exit:?}"));
    assert_eq!(
        (reached.resource, reached.scope, reached.limit),
        (LimitedResource::DiskEntries, LimitScope::Sandbox, 3000)
    );
}

/// The part of a user's share binds, and the key that is named is the one that raises it.
#[tokio::test(flavor = "multi_thread")]
async fn a_users_share_of_the_disk_is_named_when_it_binds() {
    let small = "[sandbox.limits]\nsandbox_disk = \"1 GiB\"\nuser_disk = \"96 MiB\"";
    let (_installation, alice, bob) = neighbours(Setup::default().config(small)).await;
    let fill = "f = open('/workspace/fill', 'wb')\nfor _ in range(2000): f.write(bytes(1 << 20)); f.flush()";
    let request = json!({ "argv": ["python3", "-c", fill], "limits": { "wall_ms": 120_000 } });
    let (_, exit) = with_neighbour(&bob, run(&alice, request)).await;
    let reached = exit.limit.unwrap_or_else(|| panic!("{exit:?}"));
    assert_eq!((reached.scope, reached.limit), (LimitScope::User, 48 << 20));
    let said = alice
        .control("GET", "/me/sandboxes/live/notices", None)
        .await
        .text();
    assert!(said.contains("sandbox.limits.user_disk"), "{said}");
}

/// All sandboxes of an ordinary user's hypervisor are one user of the host, whose inotify
/// instances the kernel counts together.
#[tokio::test(flavor = "multi_thread")]
async fn exhausted_inotify_leaves_a_neighbour_its_own() {
    let (_installation, alice, bob) =
        neighbours(Setup::default().identity(Identity::Ordinary)).await;
    // Whoever holds them goes on trying: other tests are the same user of the host, and may have
    // had what was missing at first.
    let take = "import ctypes, time, sys\nlibc = ctypes.CDLL(None)\nn = 0\nend = time.monotonic() + float(sys.argv[1])\nwhile True:\n    while n < 200 and libc.inotify_init() >= 0: n += 1\n    if time.monotonic() >= end: break\n    time.sleep(0.05)\nprint(n, flush=True)";
    let hold = json!({ "argv": ["python3", "-c", take, "600"], "detach": true });
    let held = alice
        .control("POST", "/me/sandboxes/live/commands", Some(hold))
        .await;
    assert_eq!(held.status, 201, "{}", held.text());
    // A second one finds nothing left, which tells that the first one has all it can get.
    system_tests::wait::until("the instances to be taken", async || {
        let (output, _) = run(&alice, json!({ "argv": ["python3", "-c", take, "0"] })).await;
        (output.trim() == "0").then_some(())
    })
    .await;
    let (output, _) = run(&bob, json!({ "argv": ["python3", "-c", take, "0"] })).await;
    assert_eq!(output.trim(), "40");
}

/// With the limits that stand when nobody sets any: a user with live and dev takes every
/// instance and every watch, and a neighbour gets as many as ever.
#[tokio::test(flavor = "multi_thread")]
async fn inotify_taken_by_live_and_dev_leaves_a_neighbour_what_is_its_own() {
    if !caller_is_root() {
        eprintln!("SKIPPED: without root all sandboxes are one user of the host, see doctor");
        return;
    }
    let (_installation, alice, bob) = started(Setup::default()).await;
    alice.start(Role::Dev).await;
    // As few files as do with that many instances.
    let take = "import ctypes, os\nlibc = ctypes.CDLL(None)\nos.makedirs('/tmp/w', exist_ok=True)\nnames = [f'/tmp/w/{n}'.encode() for n in range(1500)]\nfor name in names: open(name, 'w').close()\nfds, watches = [], 0\nwhile len(fds) < 500 and (fd := libc.inotify_init()) >= 0: fds.append(fd)\nfor fd in fds:\n    for name in names:\n        if libc.inotify_add_watch(fd, name, 2) < 0: break\n        watches += 1";
    for role in [Role::Live, Role::Dev] {
        hold(&alice, role, take).await;
    }
    let count = format!("{take}\nprint(len(fds), watches)");
    let request = |script: &str| json!({ "argv": ["python3", "-c", script] });
    for role in [Role::Live, Role::Dev] {
        let (left, _) = run_in(&alice, role, request(&count)).await;
        assert_eq!(left.trim(), "0 0", "{role}");
    }
    let (output, _) = with_neighbour(&bob, run(&bob, request(&count))).await;
    assert_eq!(output.trim(), "48 65536");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_fills_the_disk_is_stopped_and_can_tidy_up() {
    let small = "[sandbox.limits]\nsandbox_disk = \"48 MiB\"";
    let (_installation, alice, bob) = neighbours(Setup::default().config(small)).await;
    let fill = "f = open('/workspace/fill', 'wb')\nfor _ in range(2000): f.write(bytes(1 << 20)); f.flush()";
    let request = json!({ "argv": ["python3", "-c", fill], "limits": { "wall_ms": 120_000 } });
    let (_, exit) = with_neighbour(&bob, run(&alice, request)).await;
    let reached = exit.limit.unwrap_or_else(|| panic!("{exit:?}"));
    assert_eq!(reached.resource, LimitedResource::DiskBytes);
    assert_eq!(
        (reached.scope, reached.limit),
        (LimitScope::Sandbox, 48 << 20)
    );
    assert!(!exit.timed_out, "{exit:?}");
    let notices = alice
        .control("GET", "/me/sandboxes/live/notices", None)
        .await
        .text();
    assert!(notices.contains("48 MiB on disk"), "{notices}");

    let refused = system_tests::wait::until("commands to be refused", async || {
        let request = json!({ "argv": ["true"] });
        let answer = alice
            .control("POST", "/me/sandboxes/live/commands", Some(request))
            .await;
        (answer.status != 200).then(|| answer.text())
    })
    .await;
    assert!(!refused.contains("internal"), "{refused}");
    // The owner's files are served by the guest. Where the sandbox grew far over its limit
    // before it was measured the guest was stopped as well, and can be started to tidy up.
    system_tests::wait::until("the file to be deleted", async || {
        let start = "/me/sandboxes/live/start";
        alice.control("POST", start, Some(json!({}))).await;
        let deleted = alice
            .runtime(Role::Live, "DELETE", "/api/files?path=fill", None)
            .await;
        matches!(deleted.status, 200 | 204).then_some(())
    })
    .await;
    system_tests::wait::until("commands to run again", async || {
        let request = json!({ "argv": ["true"] });
        let answer = alice
            .control("POST", "/me/sandboxes/live/commands", Some(request))
            .await;
        (answer.status == 200).then_some(())
    })
    .await;
}

//! Starting, waking, administering, and going on after the hypervisor has gone.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use system_tests::http::Ask;
use system_tests::wait::until;
use system_tests::{Account, Identity, Setup, channel};
use types::Role;

#[tokio::test(flavor = "multi_thread")]
async fn only_a_navigation_wakes_a_sandbox() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    alice.stop(Role::Live).await;
    let host = alice.host(Role::Live);
    let origin = alice.origin(Role::Live);

    let call = alice.runtime(Role::Live, "GET", "/echo", None).await;
    assert_eq!(
        (call.status, call.code().as_str()),
        (503, "sandbox_not_running")
    );
    assert!(
        call.header("retry-after").parse::<u32>().is_ok(),
        "{:?}",
        call.headers
    );
    let socket = alice.client.websocket(&host, "/ws", Some(&origin)).await;
    assert_eq!(socket.err(), Some(503));
    assert_eq!(alice.sandbox(Role::Live).await["state"], "stopped");

    let page = alice
        .client
        .send(Ask::new("GET", &host, "/").navigation())
        .await;
    assert!(
        page.header("content-type").starts_with("text/html"),
        "{:?}",
        page.headers
    );
    until("the woken sandbox", async || {
        let answer = alice
            .client
            .send(Ask::new("GET", &host, "/").navigation())
            .await;
        answer.text().contains("attack.js").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_that_come_together_are_one() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let start = || alice.control("POST", "/me/sandboxes/live/start", None);
    let answers = futures_util::future::join_all((0..16).map(|_| start())).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{answers:?}"
    );
    let starts = std::fs::read_dir(installation.data_dir().join("run"))
        .unwrap()
        .count();
    assert_eq!(starts, 1);
    assert_eq!(installation.supervisors().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_manages_what_is_somebody_elses_and_nobody_else_does() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    alice
        .control("POST", "/admin/sandboxes/bob/live/start", None)
        .await
        .expect(200);
    assert_eq!(bob.sandbox(Role::Live).await["state"], "running");
    let listing = alice
        .control("GET", "/admin/sandboxes", None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        listing["sandboxes"].as_array().map(Vec::len),
        Some(4),
        "{listing:#}"
    );
    for target in [
        "/admin/sandboxes/alice/live/start",
        "/admin/sandboxes/alice/live/stop",
        "/admin/sandboxes/bob/live/stop",
        "/admin/sandboxes/bob/swap",
        "/admin/sandboxes/nobody/live/start",
    ] {
        assert_eq!(
            bob.control("POST", target, None).await.status,
            403,
            "{target}"
        );
    }
    assert_eq!(bob.sandbox(Role::Live).await["state"], "running");
    let own = bob
        .control("GET", "/me/sandboxes", None)
        .await
        .expect(200)
        .text();
    assert!(!own.contains("alice"), "{own}");
    let missing = alice
        .control("POST", "/admin/sandboxes/nobody/live/start", None)
        .await;
    assert_eq!(missing.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_and_its_commands_outlive_the_hypervisor() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let before = alice.sandbox(Role::Live).await["start_id"].clone();
    let service = json!({ "argv": ["sleep", "600"], "detach": true });
    let made = alice
        .control("POST", "/me/sandboxes/live/commands", Some(service))
        .await
        .expect(201)
        .json();
    let supervisors = installation.supervisors();
    assert_eq!(supervisors.len(), 1);
    installation.end(Signal::KILL);
    assert!(
        supervisors[0].is_alive(),
        "the sandbox died with the hypervisor"
    );
    installation.spawn().await;
    assert_eq!(alice.sandbox(Role::Live).await["start_id"], before);
    assert_eq!(installation.supervisors(), supervisors);
    // Commands are known again, and new ones run; the agent's channel works too.
    let listing = alice
        .control("GET", "/me/sandboxes/live/commands", None)
        .await
        .expect(200)
        .text();
    assert!(listing.contains(made["id"].as_str().unwrap()), "{listing}");
    assert_eq!(
        alice
            .command(Role::Live, &json!({ "argv": ["echo", "back"] }))
            .await
            .1,
        "back\n"
    );
    alice.enter(Role::Live).await;
    alice
        .runtime(Role::Live, "GET", "/api/info", None)
        .await
        .expect(200);
    let body = json!({ "prompt": "run: echo again" });
    let begun = alice
        .runtime(Role::Live, "POST", "/conductor/execute", Some(body))
        .await
        .expect(202)
        .json();
    let run = format!("/conductor/runs/{}", begun["run_id"].as_str().unwrap());
    let run = until("the end of the run", async || {
        let seen = alice
            .runtime(Role::Live, "GET", &run, None)
            .await
            .expect(200)
            .json();
        (seen["run"]["status"] != "running").then_some(seen["run"].clone())
    })
    .await;
    assert_eq!(run["status"], "done", "{run:#}");
    alice.stop(Role::Live).await;
    assert!(!supervisors[0].is_alive());
}

/// No root is needed for any of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_can_run_an_installation() {
    let installation = Setup::default().identity(Identity::Ordinary).start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    let look = json!({ "argv": ["sh", "-c", "id -u; touch here && ls; touch /usr/x 2>/dev/null || echo refused"] });
    let (code, output) = alice.command(Role::Live, &look).await;
    assert_eq!((code, output.as_str()), (Some(0), "1000\nhere\nrefused\n"));
    alice
        .control("POST", "/me/sandboxes/swap", None)
        .await
        .expect(200);
    alice.stop(Role::Live).await;
    alice.stop(Role::Dev).await;
    assert_eq!(installation.supervisors(), []);
}

/// What `cargo xtask up` sets up: the toolchain that built all this, shown inside.
#[tokio::test(flavor = "multi_thread")]
async fn a_toolchain_of_the_host_can_be_shown_inside() {
    let output = std::process::Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    let sysroot = String::from_utf8(output.stdout).unwrap();
    let installation = Setup::default()
        .config(&format!(
            "[sandbox]\npath = \"/choir/bin:/opt/rust/bin:/usr/bin:/bin\"\n\
             mounts = [{{ source = {:?}, target = \"/opt/rust\" }}]",
            sysroot.trim()
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let (code, output) = alice
        .command(Role::Live, &json!({ "argv": ["cargo", "--version"] }))
        .await;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.starts_with("cargo 1."), "{output}");
    let write = json!({ "argv": ["touch", "/opt/rust/mine"] });
    assert_eq!(alice.command(Role::Live, &write).await.0, Some(1));
}

/// What a token was lost for does not come back with the hypervisor, nor with a guest that is
/// started again: that one gets a start, and a token, of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_lapsed_stays_dead_under_the_next_hypervisor() {
    let mut installation = Setup::default()
        .hostile_guest()
        .config("[gateway]\ntoken_lifetime = \"3s\"")
        .leave_running()
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let first = alice.hostile_token(Role::Live).await;
    let dir = alice.start_dir(&installation, Role::Live).await;
    let socket = dir.join("channel/channel.sock");
    let asked = async || channel::attempt(&socket, "GET", "/provider/v1", Some(&first), None).await;
    assert_eq!(asked().await.unwrap().status, 200);
    until("the end of the token", async || {
        // Whoever asks at that very moment is cut.
        let refused = asked().await.is_ok_and(|answer| answer.status == 401);
        (refused && dir.join("lapsed").exists()).then_some(())
    })
    .await;
    let notices = alice.control("GET", "/me/sandboxes/live/notices", None);
    let notices = notices.await.expect(200).text();
    assert!(
        notices.contains("did not renew its gateway token"),
        "{notices}"
    );

    installation.end(Signal::KILL);
    installation.spawn().await;
    let answer = asked().await.unwrap();
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(answer.text().contains("has expired"), "{}", answer.text());

    installation.guests()[0].signal(Signal::KILL);
    until("a new start", async || {
        let sandbox = alice.sandbox(Role::Live).await;
        let start = sandbox["start_id"].as_str()?;
        (sandbox["state"] == "running" && !dir.ends_with(start)).then_some(())
    })
    .await;
    assert_ne!(alice.hostile_token(Role::Live).await, first);
}

/// A guest that dies before its first health is tried again, with a pause that doubles, and then
/// given up. Its last words are there for its owner, also after a restart of the hypervisor.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_dies_at_its_start_is_given_up_with_its_last_words() {
    let mut installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    // The first start makes its directories.
    alice.start(Role::Live).await;
    alice.stop(Role::Live).await;
    let id = alice.sandbox(Role::Live).await["id"].clone();
    let dir = installation.data_dir().join("sandboxes");
    let workspace = dir.join(id.as_str().unwrap()).join("state/workspace");
    std::fs::write(workspace.join("stillborn"), "").unwrap();
    let began = Instant::now();
    let refused = alice
        .control("POST", "/me/sandboxes/live/start", None)
        .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.text().contains("5 times in a row"),
        "{}",
        refused.text()
    );
    // 0.5, 1, 2 and 4 seconds.
    assert!(began.elapsed() >= Duration::from_millis(7_500));
    let last = |view: &serde_json::Value| view["log"].as_array().unwrap().last().cloned();
    let said = Some(json!("line 3 of the settings makes no sense"));
    let view = alice.sandbox(Role::Live).await;
    assert_eq!(
        (&view["state"], last(&view)),
        (&json!("failed"), said.clone()),
        "{view:#}"
    );
    let notices = alice
        .control("GET", "/me/sandboxes/live/notices", None)
        .await
        .expect(200)
        .text();
    assert!(
        notices.contains("crash 4 in a row") || notices.contains("5 times"),
        "{notices}"
    );
    installation.end(Signal::KILL);
    installation.spawn().await;
    let view = alice.sandbox(Role::Live).await;
    assert_eq!(
        (&view["state"], last(&view)),
        (&json!("failed"), said),
        "{view:#}"
    );
    assert_eq!(installation.supervisors(), []);
    // Mended, an order starts it.
    std::fs::remove_file(workspace.join("stillborn")).unwrap();
    alice.start(Role::Live).await;
}

/// Who waits for a command is gone with the hypervisor that answered; the command ends as it
/// would have. What is meant to last does.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_caller_went_with_the_hypervisor_ends() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let target = "/me/sandboxes/live/commands";
    let service = json!({ "argv": ["sleep", "601"], "detach": true });
    alice
        .control("POST", target, Some(service))
        .await
        .expect(201);
    let terminal = json!({ "argv": ["sh"], "terminal": { "cols": 80, "rows": 24 } });
    alice
        .control("POST", target, Some(terminal))
        .await
        .expect(201);
    let running = async || {
        let listing = alice.control("GET", target, None).await.expect(200).json();
        let commands = listing["commands"].as_array().unwrap().clone();
        let running = commands.iter().filter(|view| view["state"] == "running");
        let programs = running.map(|view| view["argv"].to_string());
        programs.collect::<std::collections::BTreeSet<_>>()
    };
    let waited = json!({ "argv": ["sleep", "602"] });
    let mut waiting = std::pin::pin!(alice.control("POST", target, Some(waited)));
    tokio::select! {
        answer = &mut waiting => panic!("{}", answer.text()),
        () = until("all three", async || (running().await.len() == 3).then_some(())) => {}
    }
    // The caller is still there when the hypervisor dies.
    installation.end(Signal::KILL);
    installation.spawn().await;
    until("the end of what nobody waits for", async || {
        let left = running().await;
        assert!(left.len() >= 2, "{left:?}");
        (left.len() == 2).then_some(())
    })
    .await;
    let left = running().await;
    assert!(!left.contains("[\"sleep\",\"602\"]"), "{left:?}");
    alice.stop(Role::Live).await;
}

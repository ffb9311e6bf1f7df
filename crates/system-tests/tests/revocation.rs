//! Rights that end: what goes on in their name ends with them, at the provider too.

use std::fs;
use std::time::Duration;

use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::wait::{until, within};
use system_tests::{Account, Binaries, Installation, Provider, Setup};
use types::Role;

/// Calls a model with its first argument as the text, as a stream, and prints what comes.
const CALL: &str = r"
import json, os, sys, urllib.request
body = {'model': sys.argv[2] if len(sys.argv) > 2 else 'gpt-double', 'stream': True, 'messages': [{'role': 'user', 'content': sys.argv[1]}]}
head = {'authorization': 'Bearer ' + os.environ['OPENAI_API_KEY'], 'content-type': 'application/json'}
request = urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', json.dumps(body).encode(), head)
for line in urllib.request.urlopen(request): print(line.decode().strip(), flush=True)
";

fn call(text: &str) -> Value {
    json!({ "argv": ["/usr/bin/python3", "-c", CALL, text], "capabilities": ["provider:call"] })
}

/// Leaves a call going on that never ends, and returns the command that makes it.
async fn call_without_end(account: &Account, provider: &Provider, text: &str) -> String {
    let mut request = call(text);
    request["detach"] = json!(true);
    let begun = account
        .control("POST", "/me/sandboxes/live/commands", Some(request))
        .await
        .expect(201)
        .json();
    provider.wait(text, None).await;
    begun["id"].as_str().unwrap().to_owned()
}

/// Calls that the log says were cut.
fn cut(installation: &Installation) -> usize {
    let log = installation.log();
    let cut = |line: &&str| line.contains("\"model call\"") && line.contains(r#""outcome":"cut""#);
    log.lines().filter(cut).count()
}

async fn with_models(leave_running: bool) -> (Provider, Installation, Account) {
    let provider = Provider::start(&Binaries::find());
    let setup = if leave_running {
        Setup::default().leave_running()
    } else {
        Setup::default()
    };
    let installation = setup
        .config("[sandbox]\nsdk_env = true\n")
        .config(&provider.config())
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    (provider, installation, alice)
}

async fn enter(account: &Account) {
    account.start(Role::Live).await;
    account.enter(Role::Live).await;
}

/// Whole calls that the table of usage has, of everybody.
async fn recorded(admin: &Account) -> u64 {
    let answer = admin.control("GET", "/admin/usage?by=model", None).await;
    let rows = answer.expect(200).json();
    let rows = rows["usage"].as_array().unwrap().clone();
    rows.iter().filter_map(|row| row["calls"].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn disabling_an_account_cuts_whatever_goes_on_in_its_name() {
    let (provider, installation, alice) = with_models(false).await;
    let mut bob = Account::invited(&installation, &alice, "bob").await;
    enter(&alice).await;
    enter(&bob).await;
    let token = json!({ "name": "script", "scopes": ["sandboxes"] });
    let token = bob.control("POST", "/me/tokens", Some(token)).await;
    let token = token.expect(201).json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let with_token = async || {
        let ask = Ask::new("GET", "localhost", "/me/sandboxes").bearer(&token);
        installation.client().send(ask).await.status
    };
    assert_eq!(with_token().await, 200);
    let (host, origin) = (bob.host(Role::Live), bob.origin(Role::Live));
    let socket = bob.client.websocket(&host, "/ws", Some(&origin));
    let mut socket = socket.await.expect("a socket");
    call_without_end(&bob, &provider, "slow runner").await;
    call_without_end(&bob, &provider, "silent runner").await;
    let run = json!({ "prompt": "slow guest", "model": "openai/gpt-double" });
    bob.runtime(Role::Live, "POST", "/conductor/execute", Some(run))
        .await
        .expect(202);
    provider.wait("slow guest", None).await;
    call_without_end(&alice, &provider, "slow neighbour").await;

    let path = "/admin/users/bob/disable";
    let note = json!({ "note": "laptop stolen" });
    assert_eq!(bob.control("POST", path, None).await.status, 403);
    let view = alice.control("POST", path, Some(note)).await.expect(200);
    assert_eq!(view.json()["disabled"]["note"], "laptop stolen");

    for text in ["slow runner", "silent runner", "slow guest"] {
        provider.wait(text, Some("cut")).await;
    }
    within("the end of the socket", async {
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    })
    .await;
    assert_eq!(with_token().await, 401);
    assert_eq!(bob.control("GET", "/me/sandboxes", None).await.status, 401);
    let page = bob.runtime(Role::Live, "GET", "/api/info", None).await;
    assert_eq!(page.status, 401, "{}", page.text());
    let refused = bob.sign_in().await;
    assert_eq!(refused.status, 401);
    assert!(refused.text().contains("disabled"), "{}", refused.text());
    let code = bob.registered["recovery_codes"][0].clone();
    let recovery = json!({ "name": "bob", "code": code });
    let recovery = bob.control("POST", "/auth/recovery", Some(recovery)).await;
    assert!(recovery.text().contains("disabled"), "{}", recovery.text());
    let start = alice
        .control("POST", "/admin/sandboxes/bob/live/start", None)
        .await;
    assert_eq!(start.status, 409, "{}", start.text());
    let again = alice.control("POST", path, None).await;
    assert_eq!(again.status, 409, "{}", again.text());
    let own = alice
        .control("POST", "/admin/users/alice/disable", None)
        .await;
    assert_eq!(own.status, 409, "{}", own.text());
    // The neighbour's call went on all the while, and each end is in the log as what it was.
    provider.wait("slow neighbour", None).await;
    assert_eq!(cut(&installation), 3);

    let path = "/admin/users/bob/enable";
    let view = alice.control("POST", path, None).await.expect(200).json();
    assert_eq!(view["disabled"], Value::Null);
    assert_eq!(with_token().await, 401, "it does not come back");
    assert_eq!(bob.sign_in().await.status, 200);
    let sandbox = bob.sandbox(Role::Live).await;
    assert_eq!(sandbox["state"], "stopped", "nothing was started");
    enter(&bob).await;
    let (code, said) = bob.command(Role::Live, &call("hello")).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_end_with_the_runner_or_the_start_that_made_them() {
    let (provider, _installation, alice) = with_models(false).await;
    for (by, target) in [
        ("signal", ""),
        ("restart", "/me/sandboxes/live/restart"),
        ("stop", "/me/sandboxes/live/stop"),
        ("admin-restart", "/admin/sandboxes/alice/live/restart"),
        ("admin-stop", "/admin/sandboxes/alice/live/stop"),
    ] {
        enter(&alice).await;
        let texts = ["slow", "silent"].map(|kind| format!("{kind} {by}"));
        let mut commands = Vec::new();
        for text in &texts {
            commands.push(call_without_end(&alice, &provider, text).await);
        }
        if target.is_empty() {
            for command in commands {
                let signal = format!("/me/sandboxes/live/commands/{command}/signal");
                let kill = json!({ "signal": "kill" });
                alice.control("POST", &signal, Some(kill)).await.expect(204);
            }
        } else {
            alice.control("POST", target, None).await.expect(200);
        }
        for text in &texts {
            provider.wait(text, Some("cut")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_exchanged_under_a_stream_that_goes_on() {
    let (provider, installation, alice) = with_models(false).await;
    enter(&alice).await;
    let command = call_without_end(&alice, &provider, "slow stream").await;
    let config = installation.scratch().join("hypervisor.toml");
    let before = fs::read_to_string(&config).unwrap();
    let models = async || {
        let answer = alice.control("GET", "/admin/providers", None).await;
        answer.expect(200).text()
    };
    assert!(!models().await.contains("gpt-next"));
    let printed = async || {
        let path = format!("/me/sandboxes/live/commands/{command}/output");
        let output = alice.control("GET", &path, None).await.expect(200);
        output.text().lines().count()
    };

    // A configuration that cannot be: it is refused, and the one before stays.
    fs::write(&config, before.replace("gpt-double", "")).unwrap();
    installation.process().signal(Signal::HUP);
    until("the refusal", async || {
        installation
            .log()
            .contains("the configuration was not taken")
            .then_some(())
    })
    .await;
    let (code, said) = alice.command(Role::Live, &call("still there")).await;
    assert_eq!(code, Some(0), "{said}");

    fs::write(&config, before.replace("gpt-double", "gpt-next")).unwrap();
    installation.process().signal(Signal::HUP);
    until("the new providers", async || {
        models().await.contains("gpt-next").then_some(())
    })
    .await;
    let seen = printed().await;
    until("more of the stream", async || {
        (printed().await > seen + 3).then_some(())
    })
    .await;
    provider.wait("slow stream", None).await;
    let (code, said) = alice.command(Role::Live, &call("old name")).await;
    assert_ne!(code, Some(0), "{said}");
    let mut next = call("new name");
    next["argv"].as_array_mut().unwrap().push("gpt-next".into());
    let (code, said) = alice.command(Role::Live, &next).await;
    assert_eq!(code, Some(0), "{said}");
}

/// What a call took is written behind: nothing is lost when the process is told to end, and
/// when it is killed no more than the last second.
#[tokio::test(flavor = "multi_thread")]
async fn usage_outlives_the_hypervisor() {
    let (_provider, mut installation, alice) = with_models(false).await;
    enter(&alice).await;
    let three = async || {
        for text in ["one", "two", "three"] {
            let (code, said) = alice.command(Role::Live, &call(text)).await;
            assert_eq!(code, Some(0), "{said}");
        }
    };
    three().await;
    installation.end(Signal::TERM);
    installation.spawn().await;
    assert_eq!(recorded(&alice).await, 3, "told to end");
    enter(&alice).await;
    three().await;
    // The subject is this second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    installation.end(Signal::KILL);
    installation.spawn().await;
    assert_eq!(recorded(&alice).await, 6, "killed");
}

/// A process that ends cuts the calls that go on, and writes down what they used.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_open_at_the_end_are_cut_and_recorded() {
    let (provider, mut installation, alice) = with_models(true).await;
    enter(&alice).await;
    for text in ["slow runner", "silent runner"] {
        call_without_end(&alice, &provider, text).await;
    }
    let run = json!({ "prompt": "slow guest", "model": "openai/gpt-double" });
    alice
        .runtime(Role::Live, "POST", "/conductor/execute", Some(run))
        .await
        .expect(202);
    provider.wait("slow guest", None).await;
    assert!(installation.end(Signal::TERM).success());
    for text in ["slow runner", "silent runner", "slow guest"] {
        provider.wait(text, Some("cut")).await;
    }
    assert_eq!(cut(&installation), 3);
    installation.spawn().await;
    assert!(recorded(&alice).await >= 3, "the agent may try again");
}

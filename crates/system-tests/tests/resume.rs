//! Runs of the agent outlive what runs them: the guest, and the hypervisor.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::wait::until;
use system_tests::{Account, Binaries, Installation, Provider, Setup};
use types::Role;

/// Leaves a trace, waits, and says when it began and ended.
const TASK: &str =
    "run: echo x >> counter; echo before; until [ -e go ]; do sleep 0.05; done; echo after";

async fn entered(installation: &Installation) -> (Account, PathBuf) {
    let alice = Account::admin(installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let sandbox = alice.sandbox(Role::Live).await;
    let id = sandbox["id"].as_str().expect("an id");
    let workspace = installation
        .data_dir()
        .join("sandboxes")
        .join(id)
        .join("state/workspace");
    (alice, workspace)
}

/// Starts the task and waits until its command runs.
async fn begun(account: &Account, workspace: &std::path::Path) -> String {
    let begun = account
        .runtime(
            Role::Live,
            "POST",
            "/conductor/execute",
            Some(json!({ "prompt": TASK })),
        )
        .await
        .expect(202)
        .json();
    until("the command", async || {
        workspace.join("counter").exists().then_some(())
    })
    .await;
    begun["run_id"].as_str().unwrap().to_owned()
}

/// The run and its events, once it is as wanted.
async fn seen(account: &Account, run: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, async || {
        let target = format!("/conductor/runs/{run}");
        let answer = account.runtime(Role::Live, "GET", &target, None).await;
        // Nobody answers for a moment while what was killed comes back.
        if answer.status != 200 {
            return None;
        }
        Some(answer.json()).filter(|run| wanted(run))
    })
    .await
}

fn count(run: &Value, kind: &str) -> usize {
    let events = run["events"].as_array().unwrap().iter();
    events.filter(|event| event["kind"] == kind).count()
}

fn demand_done_once(run: &Value, workspace: &std::path::Path) {
    assert_eq!(run["run"]["status"], "done", "{run:#}");
    let events = run["events"].as_array().unwrap();
    let result = events
        .iter()
        .find(|event| event["kind"] == "run.tool_result")
        .unwrap();
    let output = result["data"]["output"].as_str().unwrap();
    assert!(output.ends_with("before\nafter\n"), "{output}");
    let counter = std::fs::read_to_string(workspace.join("counter")).unwrap();
    assert_eq!(counter, "x\n", "the command ran more than once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_after_its_guest_was_killed_in_the_middle_of_a_command() {
    let installation = Setup::default().start().await;
    let (alice, workspace) = entered(&installation).await;
    let service = json!({ "argv": ["sleep", "600"], "detach": true });
    alice
        .control("POST", "/me/sandboxes/live/commands", Some(service))
        .await
        .expect(201);
    let before = alice.sandbox(Role::Live).await;
    let run = begun(&alice, &workspace).await;
    installation.guests()[0].signal(Signal::KILL);
    let resumed = seen(&alice, &run, "the run to be resumed", |run| {
        count(run, "run.resumed") == 1
    })
    .await;
    assert_eq!(resumed["run"]["status"], "running");
    std::fs::write(workspace.join("go"), "").unwrap();
    let ended = seen(&alice, &run, "the end of the run", |run| {
        run["run"]["status"] != "running"
    })
    .await;
    demand_done_once(&ended, &workspace);
    // The guest came back in the same start, and a service knows nothing of it.
    let after = alice.sandbox(Role::Live).await;
    assert_eq!(after["start_id"], before["start_id"]);
    let commands = alice
        .control("GET", "/me/sandboxes/live/commands", None)
        .await
        .expect(200)
        .json();
    let running: Vec<&Value> = commands["commands"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|command| command["state"] == "running")
        .collect();
    assert_eq!(running.len(), 1, "{commands:#}");
    assert_eq!(running[0]["argv"][0], "sleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_after_the_hypervisor_was_killed_in_the_middle_of_a_command() {
    let mut installation = Setup::default().leave_running().start().await;
    let (alice, workspace) = entered(&installation).await;
    let run = begun(&alice, &workspace).await;
    installation.end(Signal::KILL);
    // It ends while there is nobody to tell.
    std::fs::write(workspace.join("go"), "").unwrap();
    installation.spawn().await;
    let ended = seen(&alice, &run, "the end of the run", |run| {
        run["run"]["status"] != "running"
    })
    .await;
    demand_done_once(&ended, &workspace);
    assert_eq!(count(&ended, "run.resumed"), 0, "{ended:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_to_come_back_for_is_known_by_its_id_and_begins_once() {
    let installation = Setup::default().start().await;
    let (alice, workspace) = entered(&installation).await;
    let id = types::CommandId::generate();
    let request = json!({
        "argv": ["sh", "-c", "echo x >> counter; sleep 600"], "id": id, "rejoin": true,
    });
    let target = "/me/sandboxes/live/commands";
    let view = alice
        .control("POST", target, Some(request.clone()))
        .await
        .expect(201)
        .json();
    assert_eq!((&view["id"], &view["detach"]), (&json!(id), &json!(false)));
    until("the command", async || {
        workspace.join("counter").exists().then_some(())
    })
    .await;
    alice
        .control("POST", target, Some(request))
        .await
        .expect(409);
    let signal = format!("{target}/{id}/signal");
    alice
        .control("POST", &signal, Some(json!({ "signal": "kill" })))
        .await
        .expect(204);
    assert_eq!(
        std::fs::read_to_string(workspace.join("counter")).unwrap(),
        "x\n"
    );
}

/// Asks the gateway, or the proxy, whenever a file says so, and writes down what came.
const ASKS: &str = r"
import http.client, json, os, sys, time, urllib.request
kind, at = sys.argv[1], os.environ.get('HTTPS_PROXY', '').removeprefix('http://')
def gateway(number):
    body = {'model': 'gpt-double', 'messages': [{'role': 'user', 'content': f'ask {number}'}]}
    head = {'authorization': 'Bearer ' + os.environ['CHOIR_PROVIDER_GATEWAY_TOKEN'], 'content-type': 'application/json'}
    base = os.environ['CHOIR_PROVIDER_GATEWAY_BASE_URL'] + '/openai/chat/completions'
    return urllib.request.urlopen(urllib.request.Request(base, json.dumps(body).encode(), head), timeout=30).status
def proxy(number):
    connection = http.client.HTTPConnection(at, timeout=30)
    connection.request('GET', 'http://nobody.example/')
    return connection.getresponse().status
for number in range(4):
    while not os.path.exists(f'go-{number}'): time.sleep(0.02)
    try: said = {'gateway': gateway, 'proxy': proxy}[kind](number)
    except Exception as error: said = repr(error)
    open(f'{kind}-{number}.new', 'w').write(str(said))
    os.rename(f'{kind}-{number}.new', f'{kind}-{number}')
time.sleep(600)
";

/// What a command was granted is its own: it needs no guest, and not the same hypervisor.
#[tokio::test(flavor = "multi_thread")]
async fn services_keep_gateway_and_network_when_their_guest_crashes() {
    let provider = Provider::start(&Binaries::find());
    let mut installation = Setup::default()
        .config("[sandbox]\nsdk_env = true\n")
        .config(&provider.config())
        .leave_running()
        .start()
        .await;
    let (alice, workspace) = entered(&installation).await;
    let target = "/me/sandboxes/live/commands";
    for (kind, capabilities, network) in [
        ("gateway", json!(["provider:call"]), "none"),
        ("proxy", json!([]), "allowlist"),
    ] {
        let service = json!({
            "argv": ["/usr/bin/python3", "-c", ASKS, kind],
            "detach": true, "capabilities": capabilities, "network": network,
        });
        alice
            .control("POST", target, Some(service))
            .await
            .expect(201);
    }
    let answered = async |number: u32| {
        std::fs::write(workspace.join(format!("go-{number}")), "").unwrap();
        for (kind, status) in [("gateway", "200"), ("proxy", "403")] {
            let file = workspace.join(format!("{kind}-{number}"));
            let said = until(kind, async || std::fs::read_to_string(&file).ok()).await;
            assert_eq!(said, status, "{kind}, time {number}");
        }
    };
    let crash = async |installation: &Installation| {
        let before = installation.guests()[0];
        before.signal(Signal::KILL);
        until("another guest", async || {
            let now = installation.guests();
            now.first().filter(|now| **now != before).map(|_| ())
        })
        .await;
        until("its health", async || {
            let state = alice.sandbox(Role::Live).await["state"].clone();
            (state == "running").then_some(())
        })
        .await;
    };
    let start = alice.sandbox(Role::Live).await["start_id"].clone();
    answered(0).await;
    crash(&installation).await;
    answered(1).await;
    // The same under a hypervisor that found all this running.
    installation.end(Signal::KILL);
    installation.spawn().await;
    answered(2).await;
    crash(&installation).await;
    answered(3).await;
    assert_eq!(alice.sandbox(Role::Live).await["start_id"], start);
}

/// What its owner runs from outside needs no guest either, nor does its answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_owners_command_is_answered_to_its_end_when_the_guest_crashes() {
    let installation = Setup::default().start().await;
    let (alice, workspace) = entered(&installation).await;
    let script = "touch began; while [ ! -e go ]; do sleep 0.02; done; echo well";
    let request = json!({ "argv": ["sh", "-c", script] });
    let crash = async {
        until("the command", async || {
            workspace.join("began").exists().then_some(())
        })
        .await;
        let guest = || {
            let mut others = installation.others().into_iter();
            others.find(|process| process.command_line().starts_with("/choir/bin/sandbox"))
        };
        let before = guest().expect("the guest");
        before.signal(Signal::KILL);
        until("another guest", async || {
            guest().filter(|now| *now != before)
        })
        .await;
        std::fs::write(workspace.join("go"), "").unwrap();
    };
    let ((code, output), ()) = tokio::join!(alice.command(Role::Live, &request), crash);
    assert_eq!((code, output.as_str()), (Some(0), "well\n"));
}

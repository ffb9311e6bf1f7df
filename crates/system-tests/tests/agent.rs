//! The agent at work behind the walls, with the offline demo provider.

use serde_json::{Value, json};
use system_tests::wait::until;
use system_tests::{Account, Binaries, Installation, Provider, Setup};
use types::Role;

/// A repository whose test fails because of one wrong operator.
const CODE: &str = "def total(prices, discount):\n    return sum(prices) + discount\n";
const TEST: &str = "import unittest\n\nfrom shop import total\n\n\nclass Total(unittest.TestCase):\n    \
     def test_takes_the_discount_off(self):\n        self.assertEqual(total([10, 20, 5], 5), 30)\n\n\n\
     if __name__ == \"__main__\":\n    unittest.main()\n";

async fn entered(installation: &Installation, role: Role) -> Account {
    let alice = Account::admin(installation, "alice").await;
    alice.start(role).await;
    alice.enter(role).await;
    alice
}

async fn put(account: &Account, path: &str, content: &str) {
    let ask = system_tests::http::Ask::new(
        "PUT",
        &account.host(Role::Live),
        &format!("/api/files/content?path={path}"),
    )
    .same_origin(&account.origin(Role::Live))
    .bytes(content);
    let answer = account.client.send(ask).await;
    assert!(
        (200..300).contains(&answer.status),
        "{} {}",
        answer.status,
        answer.text()
    );
}

/// Runs a prompt to its end; returns the run and its events.
async fn run(account: &Account, role: Role, prompt: &str) -> (Value, Vec<Value>) {
    run_task(account, role, json!({ "prompt": prompt })).await
}

/// Runs a task to its end; returns the run and its events.
async fn run_task(account: &Account, role: Role, task: Value) -> (Value, Vec<Value>) {
    let begun = account
        .runtime(role, "POST", "/conductor/execute", Some(task))
        .await
        .expect(202)
        .json();
    let id = begun["run_id"].as_str().unwrap().to_owned();
    let whole = until("the end of the run", async || {
        let seen = account
            .runtime(role, "GET", &format!("/conductor/runs/{id}"), None)
            .await
            .expect(200)
            .json();
        (seen["run"]["status"] != "running").then_some(seen)
    })
    .await;
    (
        whole["run"].clone(),
        whole["events"].as_array().unwrap().clone(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_works_with_models_of_either_format_through_the_gateway() {
    let provider = Provider::start(&Binaries::find());
    let installation = Setup::default().config(&provider.config()).start().await;
    let alice = entered(&installation, Role::Live).await;
    for model in [
        "openai/gpt-double",
        "openai/fast",
        "anthropic/claude-double",
    ] {
        let task = json!({"model": model, "prompt": "run: echo agent-$((40+2))"});
        let (done, events) = run_task(&alice, Role::Live, task).await;
        assert_eq!(done["status"], "done", "{model}: {done:#}");
        let answer = done["answer"].as_str().unwrap();
        assert!(
            answer.contains("the tool said") && answer.contains("agent-42"),
            "{answer}"
        );
        let used = events.iter().find(|event| event["kind"] == "run.usage");
        let used = &used.unwrap()["data"];
        assert_eq!(used["estimated"], false, "{model}: {used:#}");
        // What the gateway tries again, and what the agent has to.
        for (task, said) in [
            ("fail 503 x1", "after 1 failures"),
            ("fail 529 x3", "after 3 failures"),
        ] {
            let prompt = format!("{task} {model}");
            let (done, _) = run_task(
                &alice,
                Role::Live,
                json!({"model": model, "prompt": prompt}),
            )
            .await;
            assert_eq!(done["answer"], said, "{model}: {done:#}");
        }
        let refused = json!({"model": model, "prompt": "fail 400"});
        let (refused, _) = run_task(&alice, Role::Live, refused).await;
        assert_eq!(refused["status"], "failed", "{model}: {refused:#}");
        assert!(
            refused["error"].as_str().unwrap().contains("400"),
            "{refused:#}"
        );
    }
    let used = alice.control("GET", "/me/usage?by=model", None).await;
    let used = used.expect(200).json();
    let models: Vec<_> = used["usage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["model"])
        .collect();
    assert!(models.contains(&&json!("gpt-double")), "{used:#}");
    assert!(models.contains(&&json!("claude-double")), "{used:#}");
}

/// A provider that the agent cannot talk to, and one that it can.
const TWO_FORMATS: &str = r#"
    [[providers]]
    name = "gem"
    kind = "gemini"
    base_url = "http://127.0.0.1:9/v1beta"
    models = ["gemini-pro"]
    [[providers]]
    name = "demo"
    kind = "demo"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_of_a_format_that_the_agent_does_not_speak_leaves_it_the_others() {
    let installation = Setup::default().config(TWO_FORMATS).start().await;
    let alice = entered(&installation, Role::Live).await;
    let (run, _) = run(&alice, Role::Live, "run: echo it-works").await;
    assert_eq!(run["status"], "done", "{run:#}");
    assert_eq!(run["model"], "demo/choir-demo");
    let info = alice.runtime(Role::Live, "GET", "/api/info", None).await;
    let models = &info.expect(200).json()["models"];
    assert_eq!(models["default"]["provider"], "demo", "{models:#}");
    assert_eq!(models["providers"].as_array().unwrap().len(), 1);
    // Whoever asks for the other one is told why.
    let asked = json!({"prompt": "run: true", "model": "gem/gemini-pro"});
    let refused = alice
        .runtime(Role::Live, "POST", "/conductor/execute", Some(asked))
        .await
        .expect(400)
        .text();
    assert!(refused.contains("does not speak"), "{refused}");
    assert!(refused.contains("demo/choir-demo"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_makes_a_failing_test_pass() {
    let installation = Setup::default().start().await;
    let alice = entered(&installation, Role::Live).await;
    put(&alice, "shop.py", CODE).await;
    put(&alice, "test_shop.py", TEST).await;
    let (failed, _) = run(&alice, Role::Live, "run: python3 -m unittest").await;
    assert_eq!(failed["status"], "done", "{failed:#}");
    assert!(
        failed["answer"].as_str().unwrap().contains("FAILED"),
        "{failed:#}"
    );

    let (mended, events) = run(
        &alice,
        Role::Live,
        "fix the failing test with python3 -m unittest",
    )
    .await;
    assert_eq!(mended["status"], "done", "{mended:#}");
    let kinds: Vec<&str> = events
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    for kind in [
        "run.started",
        "run.tool_call",
        "run.tool_result",
        "file.changed",
        "run.finished",
    ] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    let code = alice
        .runtime(Role::Live, "GET", "/api/files/content?path=shop.py", None)
        .await
        .expect(200)
        .text();
    assert_eq!(code, CODE.replace('+', "-"));
    let test = alice
        .runtime(
            Role::Live,
            "GET",
            "/api/files/content?path=test_shop.py",
            None,
        )
        .await
        .expect(200)
        .text();
    assert_eq!(test, TEST, "the test itself was changed");
    let (passes, _) = run(&alice, Role::Live, "run: python3 -m unittest").await;
    assert!(
        passes["answer"].as_str().unwrap().contains("OK"),
        "{passes:#}"
    );
    assert!(
        passes["answer"]
            .as_str()
            .unwrap()
            .starts_with("Demo provider (no language model):"),
        "{passes:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_remembers_it_recalls_in_a_later_run_and_start() {
    let installation = Setup::default().start().await;
    let alice = entered(&installation, Role::Live).await;
    let (kept, _) = run(
        &alice,
        Role::Live,
        "remember: the harbour master is called Ingrid",
    )
    .await;
    assert_eq!(kept["status"], "done", "{kept:#}");
    alice.stop(Role::Live).await;
    alice.start(Role::Live).await;
    let (found, _) = run(&alice, Role::Live, "recall harbour master").await;
    assert!(
        found["answer"].as_str().unwrap().contains("Ingrid"),
        "{found:#}"
    );
    // The transcript survived as well.
    let runs = alice
        .runtime(Role::Live, "GET", "/conductor/runs", None)
        .await
        .expect(200)
        .json();
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(2), "{runs:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_roles_share_nothing() {
    let installation = Setup::default().start().await;
    let alice = entered(&installation, Role::Live).await;
    alice.start(Role::Dev).await;
    alice.enter(Role::Dev).await;
    put(&alice, "only-live.txt", "x").await;
    let here = alice
        .runtime(Role::Live, "GET", "/api/files?path=", None)
        .await
        .expect(200)
        .text();
    let there = alice
        .runtime(Role::Dev, "GET", "/api/files?path=", None)
        .await
        .expect(200)
        .text();
    assert!(here.contains("only-live.txt"), "{here}");
    assert!(!there.contains("only-live.txt"), "{there}");
}

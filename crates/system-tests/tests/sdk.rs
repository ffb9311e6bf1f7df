//! Stock clients, as their registries have them, behind the gateway: nothing but the
//! environment tells them where it is.

use std::path::PathBuf;

use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use system_tests::wait::{until, within};
use system_tests::{Account, Binaries, Installation, Provider, Setup};
use tokio_tungstenite::tungstenite::Message;
use types::Role;

/// What only the provider and the hypervisor know.
const KEY: &str = Provider::KEY;

/// Programs that test clients need, read-only inside.
const CLIENTS: &str = "/opt/clients";

/// Bytes of a prompt that comes through standard input.
const LARGE_PROMPT: usize = 500_000;

/// A client that hangs up is noticed above within this; what is aimed at is 100 ms, and the rest
/// is for a machine that does other things too.
const NOTICED_WITHIN_MS: u64 = 1500;

/// What `cargo xtask test` installs.
fn clients() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    for part in ["python/openai", "node_modules/openai"] {
        assert!(
            dir.join(part).is_dir(),
            "{part} is not in {}; `cargo xtask test` installs it",
            dir.display()
        );
    }
    dir
}

struct Place {
    provider: Provider,
    alice: Account,
    installation: Installation,
}

impl Place {
    /// An installation with both providers, and a sandbox that runs.
    async fn new() -> Self {
        let provider = Provider::start(&Binaries::find());
        let installation = Setup::default()
            .config(&format!(
                "[sandbox]\nsdk_env = true\n\
                 path = \"/usr/bin:/bin:{CLIENTS}/node_modules/.bin\"\n\
                 mounts = [{{ source = {:?}, target = {CLIENTS:?} }}]\n",
                clients(),
            ))
            .config(&provider.config())
            .start()
            .await;
        let alice = Account::admin(&installation, "alice").await;
        alice.start(Role::Live).await;
        alice.enter(Role::Live).await;
        Self {
            provider,
            alice,
            installation,
        }
    }

    /// Runs a command that may call models; returns its exit code and output.
    async fn run(&self, argv: &[&str]) -> (Option<i64>, String) {
        let request = json!({
            "argv": argv,
            "capabilities": ["provider:call"],
            "env": [["PYTHONPATH", format!("{CLIENTS}/python")], ["PYTHONDONTWRITEBYTECODE", "1"]],
        });
        self.alice.command(Role::Live, &request).await
    }

    /// Runs an agent with a prompt, as a shell without a terminal does; returns what it says.
    async fn agent(&self, agent: &str, prompt: &str, code: Option<i64>) -> String {
        let script = format!("cd /workspace && {agent} '{prompt}' </dev/null");
        let (ended, said) = self.run(&["bash", "-c", &script]).await;
        assert_eq!(ended, code, "{script}\n{said}");
        assert!(!said.contains(KEY), "{said}");
        said
    }

    /// Types a line in a fresh terminal and reads until a text appears.
    async fn terminal(&self, line: &str, until: &str) -> String {
        let size = json!({ "cols": 200, "rows": 50 });
        let made = self
            .alice
            .runtime(Role::Live, "POST", "/api/terminals", Some(size))
            .await
            .expect(201)
            .json();
        let target = format!("/ws/terminal/{}?from=0", made["id"].as_str().unwrap());
        let host = self.alice.host(Role::Live);
        let origin = self.alice.origin(Role::Live);
        let socket = self.alice.client.websocket(&host, &target, Some(&origin));
        let mut socket = socket.await.expect("a terminal");
        let python = format!("export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={CLIENTS}/python\n");
        for keys in [python.as_str(), line] {
            let keys = Message::binary(keys.as_bytes().to_vec());
            socket.send(keys).await.expect("the terminal listens");
        }
        let mut said = String::new();
        within(until, async {
            while !said.contains(until) {
                let message = socket.next().await.expect("the terminal goes on");
                if let Message::Binary(bytes) = message.expect("a message") {
                    said.push_str(&String::from_utf8_lossy(&bytes));
                }
            }
        })
        .await;
        said
    }

    /// What was used, by model.
    async fn usage(&self) -> Vec<Value> {
        let answer = self.alice.control("GET", "/me/usage?by=model", None).await;
        let answer = answer.expect(200).json();
        answer["usage"].as_array().unwrap().clone()
    }
}

/// What each script proves, in this order.
const PROVEN: [&str; 7] = [
    "plain",
    "streaming",
    "tools",
    "errors",
    "retries",
    "cancellation",
    "large bodies",
];

/// The scripts, by the interpreter that runs them: Debian's, which everybody may read.
const SCRIPTS: [(&str, &str); 4] = [
    ("/usr/bin/python3", "openai_sdk.py"),
    ("/usr/bin/python3", "anthropic_sdk.py"),
    ("node", "openai-sdk.mjs"),
    ("node", "anthropic-sdk.mjs"),
];

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdks_work_unmodified_in_runners_and_terminals() {
    let place = Place::new().await;
    let mut marks = Vec::new();
    let mut output = String::new();
    let in_runners = SCRIPTS.map(|(interpreter, script)| {
        let (script, mark) = (format!("{CLIENTS}/{script}"), format!("runner-{script}"));
        let place = &place;
        marks.push(mark.clone());
        async move {
            let tee = format!("{CLIENTS}/tee.py");
            let record = format!("/workspace/{mark}");
            let argv = ["/usr/bin/python3", tee.as_str(), record.as_str()];
            let argv = [&argv[..], &[interpreter, script.as_str(), mark.as_str()]].concat();
            (place.run(&argv).await, script)
        }
    });
    for ((code, said), script) in join_all(in_runners).await {
        assert_eq!(code, Some(0), "{script}\n{said}");
        let proven: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("ok "))
            .collect();
        assert_eq!(proven, PROVEN, "{script}");
        output.push_str(&said);
    }
    // The same at a prompt, where a person types it.
    let mut line = String::from("(");
    for (interpreter, script) in SCRIPTS {
        let mark = format!("terminal-{script}");
        // Written so that the echo of what is typed is not taken for what is said.
        line.push_str(&format!(
            "({interpreter} {CLIENTS}/{script} {mark} || echo fail''ed) & "
        ));
        marks.push(mark);
    }
    line.push_str("wait); echo do''ne\n");
    let said = place.terminal(&line, "done").await;
    assert!(!said.contains("failed"), "{said}");
    for proven in PROVEN {
        assert_eq!(
            said.matches(&format!("ok {proven}")).count(),
            SCRIPTS.len(),
            "{said}"
        );
    }
    output.push_str(&said);

    assert!(
        !output.contains(KEY),
        "the provider's key came down:\n{output}"
    );
    let seen = place.provider.seen().await;
    no_byte_of_the_key_came_down(&place).await;
    cancelled_at_once(&output, &marks, &seen);
    only_the_allowlist_went_up(&seen);
    // The rows are written behind; four tokens of each reply that says so came from a cache.
    let reported = seen.iter().filter(|one| one["usage"] == true).count() as u64;
    let rows = until("the usage of every call", async || {
        let rows = place.usage().await;
        let cached = rows.iter().filter_map(|row| row["cached_tokens"].as_u64());
        (cached.sum::<u64>() >= 4 * reported).then_some(rows)
    })
    .await;
    let sum = |field: &str| -> u64 { rows.iter().filter_map(|row| row[field].as_u64()).sum() };
    assert_eq!(sum("cached_tokens"), 4 * reported, "{rows:?}");
    assert!(
        sum("failures") > 0 && sum("calls") > sum("failures"),
        "{rows:?}"
    );
    let models: Vec<&str> = rows
        .iter()
        .filter_map(|row| row["model"].as_str())
        .collect();
    assert_eq!(
        models.len(),
        2,
        "an alias is counted as its model: {rows:?}"
    );
    assert!(
        rows.iter().any(|row| row["cost_usd"].as_f64() > Some(0.0)),
        "{rows:?}"
    );
}

/// The key is in every reply of the double: in headers, in errors, in bodies, in streams.
async fn no_byte_of_the_key_came_down(place: &Place) {
    let sandbox = place.alice.sandbox(Role::Live).await;
    let workspace = place
        .installation
        .data_dir()
        .join("sandboxes")
        .join(sandbox["id"].as_str().unwrap())
        .join("state/workspace");
    for (_, script) in SCRIPTS {
        let mut whole = String::new();
        let directory = workspace.join(format!("runner-{script}"));
        for file in std::fs::read_dir(directory).expect(script) {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            whole.push_str(&String::from_utf8_lossy(&bytes));
        }
        // Streams come in chunks, whose lengths may stand in the middle of anything.
        let bodies = without_chunks(&whole);
        assert!(whole.contains("HTTP/1.1 200 OK"), "{script}: {whole}");
        let mask = "*".repeat(KEY.len());
        for echo in [
            format!("the key is {mask} as it was sent"),
            format!("as it was told (key {mask})"),
            // A piece of a stream.
            format!("\"{mask} \""),
        ] {
            assert!(bodies.contains(&echo), "{echo} never came to {script}");
        }
        // Half of it would be as bad.
        let (first, last) = KEY.split_at(KEY.len() / 2);
        for text in [&whole, &bodies] {
            for part in [first, last] {
                assert!(!text.contains(part), "{part} came down to {script}: {text}");
            }
        }
    }
}

/// What was sent, without the lines that say how long a chunk is.
fn without_chunks(text: &str) -> String {
    let is_length = |line: &str| {
        !line.is_empty() && line.len() <= 8 && line.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut lines = text.split("\r\n").peekable();
    let mut bodies = String::new();
    while let Some(line) = lines.next() {
        if !is_length(line) {
            bodies.push_str(line);
            // The line break before a length belongs to the framing.
            if lines.peek().is_some_and(|next| !is_length(next)) {
                bodies.push_str("\r\n");
            }
        }
    }
    bodies
}

/// The double noticed each call that was left, and no other.
fn cancelled_at_once(output: &str, marks: &[String], seen: &[Value]) {
    let mut waits = Vec::new();
    for mark in marks {
        for kind in ["slow", "silent"] {
            let text = format!("{kind} {mark}");
            let left = format!("left {text} at ");
            let at = output.split(&left).nth(1).expect(&left);
            let left: u64 = at.split_whitespace().next().unwrap().parse().unwrap();
            let one = seen
                .iter()
                .find(|one| one["text"] == text.as_str())
                .expect(&text);
            assert_eq!(one["end"], "cut", "{one}");
            waits.push(one["ended_ms"].as_u64().unwrap().saturating_sub(left));
        }
    }
    assert!(
        waits.iter().all(|wait| *wait < NOTICED_WITHIN_MS),
        "{waits:?}"
    );
    let cut = seen.iter().filter(|one| one["end"] == "cut").count();
    assert_eq!(cut, waits.len(), "something else was cut, too");
}

/// The SDKs send a dozen headers about themselves; a provider gets what it needs.
fn only_the_allowlist_went_up(seen: &[Value]) {
    let mut names: Vec<&str> = seen
        .iter()
        .flat_map(|one| one["headers"].as_object().unwrap().keys())
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names,
        [
            "accept",
            "anthropic-beta",
            "anthropic-version",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-api-key",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn codex_and_claude_code_work_inside_with_what_is_shipped() {
    let place = Place::new().await;
    // A runner has an address of its own for every command, which Codex reads from nothing but
    // its configuration: what comes first in PATH gives it (docs/agents.md).
    let codex = "codex exec --skip-git-repo-check -m gpt-double -c approval_policy=never";
    let claude = "claude -p --model claude-double --allowedTools Bash --";
    let agents = [
        ("codex", codex, "/v1/responses"),
        ("claude", claude, "/anthropic/v1/messages?beta=true"),
    ];
    for (name, agent, path) in agents {
        let said = place
            .agent(agent, "run: echo in-a-runner-$((6*7))", Some(0))
            .await;
        assert!(said.contains("the tool said: "), "{said}");
        assert!(said.contains("in-a-runner-42"), "{said}");
        // What fails says why; what fails for a while is tried again, by the gateway and by the
        // agent itself.
        let said = place.agent(agent, "fail 400", Some(1)).await;
        assert!(said.contains("as it was told"), "{said}");
        for failure in ["fail 429 x1", "fail 503 x3"] {
            let prompt = format!("{failure} {name}");
            let said = place.agent(agent, &prompt, Some(0)).await;
            let times = failure.rsplit('x').next().unwrap();
            assert!(said.contains(&format!("after {times} failures")), "{said}");
        }
        // A prompt that no argument could hold.
        let large = format!("head -c {LARGE_PROMPT} /dev/zero | tr '\\0' x | {agent}");
        let large = large.trim_end_matches(" --").to_owned();
        let (code, said) = place.run(&["bash", "-c", &large]).await;
        assert_eq!(code, Some(0), "{said}");
        let received = said.split("received ").nth(1).expect(&said);
        let received: usize = received.split(' ').next().unwrap().parse().unwrap();
        assert!(received > LARGE_PROMPT, "{said}");
        // Who interrupts it ends the call as well.
        let text = format!("slow {name}");
        let mut argv: Vec<&str> = agent.split(' ').collect();
        argv.push(&text);
        let service = json!({
            "argv": argv, "capabilities": ["provider:call"], "detach": true, "cwd": "/workspace",
        });
        let commands = "/me/sandboxes/live/commands";
        let begun = place.alice.control("POST", commands, Some(service)).await;
        let id = begun.expect(201).json()["id"].as_str().unwrap().to_owned();
        place.provider.wait(&text, None).await;
        let interrupt = format!("{commands}/{id}/signal");
        let signal = json!({ "signal": "int" });
        place
            .alice
            .control("POST", &interrupt, Some(signal))
            .await
            .expect(204);
        place.provider.wait(&text, Some("cut")).await;
        let seen = place.provider.seen().await;
        let mut calls = seen
            .iter()
            .filter(|one| one["path"] == path && one["status"] == 200);
        assert!(calls.clone().count() >= 4, "{seen:?}");
        assert!(calls.all(|one| one["stream"] == true), "{seen:?}");
    }
    // A terminal has a function for it in ~/.bashrc.
    let line = format!(
        "cd /workspace; {codex} 'run: echo in-a-terminal-$((40+2))'; {claude} 'run: echo in-a-terminal-$((41+2))'; echo do''ne\n"
    );
    let said = place.terminal(&line, "done").await;
    for result in ["in-a-terminal-42", "in-a-terminal-43"] {
        assert!(said.contains(result), "{said}");
    }
}

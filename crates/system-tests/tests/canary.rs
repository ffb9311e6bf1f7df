//! Platform keys planted where the hypervisor may have them, and looked for everywhere else.

use std::fs;
use std::path::Path;

use serde_json::json;
use system_tests::account::post;
use system_tests::http::Ask;
use system_tests::wait::until;
use system_tests::{Account, Setup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use types::Role;

/// In the hypervisor's environment.
const IN_ENVIRONMENT: &str = "sk-canary-environment-7f3a9b1c5d2e";

/// In the provider's key file.
const IN_FILE: &str = "sk-canary-keyfile-4c8e2d6f0a1b";

/// A provider that refuses everybody, and says the key that it was shown.
fn refusal(_: &str) -> String {
    let body = json!({ "error": { "message": format!("no such key: {IN_FILE}") } }).to_string();
    format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_key_is_nowhere_but_in_its_request() {
    let (port, mut told) = double(refusal).await;
    let keys = tempfile::tempdir().unwrap();
    let key_file = keys.path().join("provider.key");
    fs::write(&key_file, format!("{IN_FILE}\n")).unwrap();
    let installation = Setup::default()
        .env("OPENAI_API_KEY", IN_ENVIRONMENT)
        .env("ANTHROPIC_API_KEY", IN_ENVIRONMENT)
        .env("SOMETHING_ELSE", IN_ENVIRONMENT)
        .config(&format!(
            "[log]\nlevel = \"trace\"\n[[providers]]\nname = \"openai\"\nkind = \"openai\"\n\
             base_url = \"http://127.0.0.1:{port}/v1\"\nkey_file = {key_file:?}\nmodels = [\"some-model\"]\naddresses = \"private_network_too\"\nretries = 0"
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
        alice.enter(role).await;
    }
    // A run that calls the provider, and a command that looks around inside.
    let begun = alice
        .runtime(
            Role::Live,
            "POST",
            "/conductor/execute",
            Some(json!({ "prompt": "hello" })),
        )
        .await
        .expect(202)
        .json();
    let sent = system_tests::wait::within("a call of the provider", told.recv())
        .await
        .unwrap();
    assert!(
        sent.contains(IN_FILE),
        "the provider never got the key: {sent}"
    );
    let id = begun["run_id"].as_str().unwrap().to_owned();
    until("the end of the run", async || {
        let seen = alice
            .runtime(Role::Live, "GET", &format!("/conductor/runs/{id}"), None)
            .await
            .expect(200)
            .json();
        (seen["run"]["status"] != "running").then_some(())
    })
    .await;
    let looked = alice
        .control("POST", "/me/sandboxes/live/commands", Some(json!({
            "argv": ["sh", "-c", "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; cat /workspace/* /home/choir/* 2>/dev/null; sleep 0.2"],
        })))
        .await
        .expect(200);
    let service = alice
        .control("POST", "/me/sandboxes/live/commands", Some(json!({ "argv": ["sleep", "60"], "detach": true, "capabilities": ["provider:call"] })))
        .await;
    assert_eq!(service.status, 201, "{}", service.text());

    let mut places: Vec<(String, Vec<u8>)> = vec![
        ("the output of a command".into(), decoded(&looked.text())),
        ("the log".into(), installation.log().into_bytes()),
        ("standard output".into(), installation.output().into_bytes()),
    ];
    for process in installation.others() {
        places.push((
            format!("the environment of {}", process.command_line()),
            process.environment(),
        ));
        places.push((
            format!("the arguments of {}", process.command_line()),
            process.command_line().into_bytes(),
        ));
    }
    assert!(places.len() > 12, "only {} places", places.len());
    files(&installation.data_dir(), &mut places);
    for (host, target) in [
        (alice.host(Role::Live), "/logs/events?limit=1000".to_owned()),
        (alice.host(Role::Live), "/logs/events.jsonl".to_owned()),
        (alice.host(Role::Live), format!("/conductor/runs/{id}")),
        (alice.host(Role::Live), "/api/info".to_owned()),
        ("localhost".to_owned(), "/me/sandboxes".to_owned()),
        ("localhost".to_owned(), "/me/sandboxes/live/logs".to_owned()),
        ("localhost".to_owned(), "/admin/audit?tail=1000".to_owned()),
        ("localhost".to_owned(), "/console".to_owned()),
        ("localhost".to_owned(), "/no/such/page".to_owned()),
    ] {
        let origin = format!("http://{host}:{}", installation.port());
        let answer = alice
            .client
            .send(Ask::new("GET", &host, &target).same_origin(&origin))
            .await;
        places.push((format!("{host}{target}"), answer.body.to_vec()));
    }
    // The search finds what is there: the hypervisor itself has both. It keeps its memory to
    // itself, so only root can look.
    if system_tests::identity::caller_is_root() {
        assert!(holds(&installation.process().environment(), IN_ENVIRONMENT));
    }
    assert!(holds(&fs::read(&key_file).unwrap(), IN_FILE));
    for (place, content) in places {
        for canary in [IN_ENVIRONMENT, IN_FILE] {
            assert!(!holds(&content, canary), "{canary} is in {place}");
        }
    }
}

/// Output of a command, with its base64 pieces decoded.
fn decoded(ndjson: &str) -> Vec<u8> {
    use base64::Engine as _;
    ndjson
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|event| {
            base64::engine::general_purpose::STANDARD
                .decode(event["data"].as_str()?)
                .ok()
        })
        .flatten()
        .collect()
}

fn files(dir: &Path, places: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), places);
        } else if kind.is_file() {
            places.push((
                entry.path().display().to_string(),
                fs::read(entry.path()).unwrap_or_default(),
            ));
        }
    }
}

fn holds(content: &[u8], needle: &str) -> bool {
    content
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// What only one party may know is in no file, no log and no other process: gateway tokens,
/// sessions, recovery codes, API tokens.
#[tokio::test(flavor = "multi_thread")]
async fn what_proves_somebody_is_written_down_nowhere() {
    let installation = Setup::default()
        .hostile_guest()
        .config("[log]\nlevel = \"trace\"")
        .start()
        .await;
    let mut alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let token = alice.hostile_token(Role::Live).await;
    let api = alice
        .control(
            "POST",
            "/me/tokens",
            Some(json!({ "name": "canary", "scopes": ["sandboxes"] })),
        )
        .await
        .expect(201)
        .json();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let mut secrets = vec![token, text(&api["token"])];
    for host in ["localhost".to_owned(), alice.host(Role::Live)] {
        for cookie in alice.client.cookies(&host).split("; ") {
            secrets.push(cookie.split_once('=').expect("a cookie").1.to_owned());
        }
    }
    for code in alice.registered["recovery_codes"]
        .as_array()
        .expect("codes")
    {
        secrets.push(text(code));
    }
    // Each is used once, so that it passes through everything that might note it.
    let recovered = json!({ "name": "alice", "code": secrets.last() });
    let client = installation.client();
    let by_token = Ask::new("GET", "localhost", "/me/sandboxes").bearer(&secrets[1]);
    client.send(by_token).await.expect(200);
    alice
        .command(Role::Live, &json!({ "argv": ["true"] }))
        .await;
    alice.sign_in().await.expect(200);
    let used = post(
        &client,
        &installation.control(),
        "/auth/recovery",
        &recovered,
    )
    .await;
    used.expect(200);

    let mut places = vec![
        ("the log".to_owned(), installation.log().into_bytes()),
        (
            "standard output".to_owned(),
            installation.output().into_bytes(),
        ),
    ];
    files(&installation.data_dir(), &mut places);
    for process in installation.others() {
        let name = process.command_line();
        places.push((
            format!("the arguments of {name}"),
            name.clone().into_bytes(),
        ));
        // The guest's own environment is the one place for its token.
        if !name.starts_with("/choir/bin/sandbox") {
            places.push((format!("the environment of {name}"), process.environment()));
        }
    }
    assert!(places.len() > 10, "only {} places", places.len());
    assert!(secrets.len() >= 14, "only {} secrets", secrets.len());
    for (place, content) in places {
        for secret in &secrets {
            assert!(!holds(&content, secret), "{secret} is in {place}");
            // Without the hyphens that are there for people.
            assert!(
                !holds(&content, &secret.replace('-', "")),
                "{secret} is in {place}"
            );
        }
    }
}

/// Tokens of channels, good and bad ones, shown on every channel: each opens its own alone, and
/// not even its beginning is written down by anybody.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_their_own_channel_and_leave_no_trace_on_any() {
    let installation = Setup::default()
        .hostile_guest()
        .config("[log]\nlevel = \"trace\"\n[sandbox]\nsdk_env = true")
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let token = alice.hostile_token(Role::Live).await;
    let dir = alice.start_dir(&installation, Role::Live).await;
    let mut parties = vec![(dir.join("channel"), token)];
    for _ in 0..2 {
        let commands = "/me/sandboxes/live/commands";
        let service = json!({
            "argv": ["sh", "-c", "echo $CHOIR_PROVIDER_GATEWAY_TOKEN; exec sleep 600"],
            "detach": true, "capabilities": ["provider:call"],
        });
        let begun = alice.control("POST", commands, Some(service)).await;
        let id = begun.expect(201).json()["id"].as_str().unwrap().to_owned();
        let token = until("its token", async || {
            let output = format!("{commands}/{id}/output");
            let output = alice.control("GET", &output, None).await.expect(200);
            let said = output.text();
            said.ends_with('\n').then(|| said.trim().to_owned())
        })
        .await;
        parties.push((dir.join("runners").join(id), token));
    }

    let mut beginnings = Vec::new();
    for (_, token) in &parties {
        assert!(token.starts_with("choirgw_"), "{token}");
        let beginning = token["choirgw_".len()..][..8].to_owned();
        assert!(!beginnings.contains(&beginning), "one each");
        beginnings.push(beginning);
    }
    for (channel, own) in &parties {
        let socket = channel.join("channel.sock");
        for (_, token) in &parties {
            let mut mistyped = token.clone();
            mistyped.replace_range(30..31, if &token[30..31] == "x" { "y" } else { "x" });
            for (shown, good) in [
                (token.as_str(), token == own),
                (&token[..token.len() - 1], false),
                (&token[..20], false),
                (mistyped.as_str(), false),
            ] {
                let chat = json!({ "model": "choir-demo", "messages": [{ "role": "user", "content": "hello" }] });
                let target = "/v1/chat/completions";
                let answer =
                    system_tests::channel::send(&socket, "POST", target, Some(shown), Some(&chat));
                let answer = answer.await;
                assert_eq!(answer.status, if good { 200 } else { 401 }, "{channel:?}");
                let said = answer.text();
                assert!(beginnings.iter().all(|one| !said.contains(one)), "{said}");
            }
        }
    }

    let log = installation.log();
    assert!(log.contains("channel request"), "nothing was looked at");
    let audit = alice.control("GET", "/admin/audit?tail=1000", None).await;
    let audit = audit.expect(200).text();
    for reason in ["foreign", "malformed"] {
        assert!(
            audit.contains(&format!("\"reason\":\"{reason}\"")),
            "{audit}"
        );
    }
    let mut places = vec![
        ("the log".to_owned(), log.into_bytes()),
        (
            "standard output".to_owned(),
            installation.output().into_bytes(),
        ),
        ("the audit log".to_owned(), audit.into_bytes()),
    ];
    files(&installation.data_dir(), &mut places);
    for file in ["hypervisor.db", "/audit/", "/grants/"] {
        assert!(
            places.iter().any(|(place, _)| place.contains(file)),
            "{file}"
        );
    }
    for (place, content) in places {
        for beginning in &beginnings {
            assert!(!holds(&content, beginning), "{beginning} is in {place}");
        }
    }
}

/// What a model was asked and said, and what stood behind the path.
const PROMPT: &str = "canary-prompt-9b1d5f7a3c2e";
const REPLY: &str = "canary-reply-2e8c4a6f0d1b";
const QUERY: &str = "canary-query-7d3b9f1e5a8c";

/// Takes requests one by one, tells each, and answers as `answer` says.
async fn double(answer: fn(&str) -> String) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let request = loop {
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let head = head.to_lowercase();
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
                    if body.len() >= length.unwrap_or(0) {
                        break text;
                    }
                };
                let reply = answer(&request);
                let _ = tell.send(request);
                let _ = stream.write_all(reply.as_bytes()).await;
            });
        }
    });
    (port, told)
}

/// Whole, as a stream, as a stream that breaks off, or with an error; always with the words.
fn model(request: &str) -> String {
    let head = |status: &str, kind: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n")
    };
    let whole = |status: &str, body: &serde_json::Value| {
        let (head, body) = (head(status, "application/json"), body.to_string());
        format!("{head}content-length: {}\r\n\r\n{body}", body.len())
    };
    if request.contains("please fail") {
        let body =
            json!({ "error": { "message": format!("{REPLY} is what you get for {PROMPT}") } });
        return whole("400 Bad Request", &body);
    }
    if !request.contains(r#""stream":true"#) {
        let body = json!({
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": REPLY } }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7 },
        });
        return whole("200 OK", &body);
    }
    let event = json!({ "choices": [{ "index": 0, "delta": { "content": REPLY } }] });
    let event = format!("data: {event}\n\n");
    let head = head("200 OK", "text/event-stream");
    let stream = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n",
        event.len()
    );
    if request.contains("please break") {
        return stream;
    }
    format!("{stream}e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
}

/// Takes what it is told.
fn collector(_request: &str) -> String {
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_a_model_and_by_it_is_written_down_nowhere() {
    let (provider, mut asked) = double(model).await;
    let (collecting, mut collected) = double(collector).await;
    let scraped = system_tests::installation::free_port();
    let installation = Setup::default()
        .hostile_guest()
        .config(&format!(
            "[log]\nlevel = \"trace\"\n[listen]\nmetrics_address = \"127.0.0.1:{scraped}\"\n\
             [telemetry.otlp]\nendpoint = \"http://127.0.0.1:{collecting}\"\ninterval = \"1s\"\n\
             [[providers]]\nname = \"openai\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:{provider}/v1\"\n\
             models = [\"some-model\"]\naddresses = \"private_network_too\"\nretries = 0\nquery = [\"trace\"]"
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let dir = alice.start_dir(&installation, Role::Live).await;
    let channel = dir.join("channel/channel.sock");
    let token = alice.hostile_token(Role::Live).await;

    let calls = [
        ("", false, 200),
        ("", true, 200),
        ("please break", true, 200),
        ("please fail", false, 400),
        ("please fail", true, 400),
    ];
    for (how, stream, status) in calls {
        let body = json!({
            "model": "some-model", "stream": stream,
            "messages": [{ "role": "user", "content": format!("{PROMPT} {how}") }],
        })
        .to_string();
        let request = format!(
            "POST /provider/v1/openai/chat/completions?trace={QUERY} HTTP/1.1\r\nhost: channel\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = system_tests::channel::raw(&channel, request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains(REPLY), "the caller gets it: {answer}");
        let whole = !stream || status != 200 || answer.ends_with("0\r\n\r\n");
        assert_eq!(whole, how != "please break", "{answer}");
        let seen = asked.recv().await.unwrap();
        assert!(seen.contains(PROMPT), "the provider gets it: {seen}");
    }
    let mut told = String::new();
    while told.matches("\"spanId\"").count() < calls.len() || !told.contains("token.usage") {
        let more = system_tests::wait::within("what the collector is told", collected.recv()).await;
        told.push_str(&more.unwrap());
    }
    let usage = alice
        .control("GET", "/me/usage?by=model", None)
        .await
        .expect(200)
        .json();
    assert_eq!(usage["usage"][0]["calls"], calls.len(), "{usage}");
    let mut scrape = tokio::net::TcpStream::connect(("127.0.0.1", scraped))
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    scrape.write_all(request).await.unwrap();
    let mut metrics = String::new();
    scrape.read_to_string(&mut metrics).await.unwrap();
    let counted = "gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name=\"chat\"";
    assert!(metrics.contains(counted), "{metrics}");

    let log = installation.log();
    assert_eq!(log.matches("\"model call\"").count(), calls.len());
    let mut places = vec![
        ("the log".to_owned(), log.into_bytes()),
        (
            "standard output".to_owned(),
            installation.output().into_bytes(),
        ),
        ("the metrics".to_owned(), metrics.into_bytes()),
        ("what the collector was told".to_owned(), told.into_bytes()),
    ];
    files(&installation.data_dir(), &mut places);
    // The search finds what is there: the database has the model's name.
    let database = places
        .iter()
        .filter(|(place, _)| place.contains("hypervisor.db"));
    assert!(
        database
            .clone()
            .any(|(_, content)| holds(content, "some-model"))
    );
    assert!(places.iter().any(|(place, _)| place.contains("/audit/")));
    for (place, content) in &places {
        for canary in [PROMPT, REPLY, QUERY] {
            assert!(!holds(content, canary), "{canary} is in {place}");
        }
    }
}

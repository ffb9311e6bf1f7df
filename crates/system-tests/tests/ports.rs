//! Ports of a workbench: preview origins, tunnels, services.

use std::process::Stdio;

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::wait::{until, within};
use system_tests::{Account, Installation, Setup, browser};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_tungstenite::tungstenite::Message;
use types::Role;

/// The server that commands run: `python3 -c SERVER PORT`.
const SERVER: &str = include_str!("../src/port-server.py");

fn host(user: &str, port: u16) -> String {
    format!("{port}--{user}.localhost")
}

fn origin(account: &Account, host: &str) -> String {
    format!("http://{host}:{}", account.client.port())
}

/// Starts the server as a service and waits until it is listed as listening.
async fn serve(account: &Account, role: Role, port: u16) -> Value {
    let body = json!({
        "argv": ["python3", "-c", SERVER, port.to_string()],
        "detach": true,
        "label": format!("web-{port}"),
    });
    let made = account
        .control(
            "POST",
            &format!("/me/sandboxes/{role}/commands"),
            Some(body),
        )
        .await
        .expect(201)
        .json();
    let listed = until("a listening server", async || {
        let listed = ports(account, role).await;
        listed
            .into_iter()
            .find(|listed| listed["port"] == u64::from(port))
    })
    .await;
    assert_eq!(listed["command_id"], made["id"], "{listed}");
    made
}

async fn ports(account: &Account, role: Role) -> Vec<Value> {
    let target = format!("/me/sandboxes/{role}/ports");
    let listed = account.control("GET", &target, None).await.expect(200);
    listed.json()["ports"].as_array().unwrap().clone()
}

async fn audit(account: &Account) -> String {
    account
        .control("GET", "/admin/audit?tail=500", None)
        .await
        .expect(200)
        .text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_the_workbench_has_an_origin_of_its_own_behind_the_same_gate() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    for role in Role::ALL {
        alice.start(role).await;
    }
    let made = serve(&alice, Role::Live, 3000).await;
    let listed = ports(&alice, Role::Live).await;
    let preview = host("alice", 3000);
    let own = origin(&alice, &preview);
    assert_eq!(listed[0]["url"], format!("{own}/"), "{listed:?}");
    assert_eq!(listed[0]["command"], "web-3000");

    // Nobody: a person is sent to sign in, a program and a WebSocket are refused.
    let nobody = installation.client();
    let page = |host: &str, path: &str| Ask::new("GET", host, path).navigation();
    let answer = nobody.send(page(&preview, "/")).await.expect(302);
    assert!(
        answer
            .header("location")
            .starts_with(&format!("{}/auth/handover?", installation.control()))
    );
    nobody
        .send(Ask::new("GET", &preview, "/x"))
        .await
        .expect(401);
    assert_eq!(
        nobody
            .websocket(&preview, "/ws", Some(&own))
            .await
            .unwrap_err(),
        401
    );

    // The person whose sandbox it is.
    alice.enter_host(&preview).await;
    let body = alice
        .client
        .send(page(&preview, "/hello?x=1"))
        .await
        .expect(200);
    assert!(body.text().contains("port 3000"), "{}", body.text());
    assert!(body.text().contains("/hello?x=1"), "{}", body.text());
    // Every path but the reserved one is the server's, also those of sign-in and of `dev`.
    for path in ["/login", "/dev/x", "/auth/me", "/me/sandboxes"] {
        let answer = alice.client.send(page(&preview, path)).await.expect(200);
        assert!(answer.text().contains(path), "{}", answer.text());
    }
    alice
        .client
        .send(page(&preview, "/.choir/nothing"))
        .await
        .expect(404);

    // What it is told, and what it may say.
    let asked = Ask::new("GET", &preview, "/headers")
        .same_origin(&own)
        .header("authorization", "Bearer something")
        .header("x-choir-user", "root")
        .header("x-forwarded-for", "1.2.3.4");
    alice.client.set_cookie(&preview, "mine", "kept");
    let answer = alice.client.send(asked).await.expect(200);
    let seen = answer.json();
    assert_eq!(seen["host"], own.trim_start_matches("http://"));
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    let cookie = seen["cookie"].as_str().unwrap();
    assert!(
        cookie.contains("mine=kept") && !cookie.contains("choir_"),
        "{cookie}"
    );
    for gone in ["authorization", "x-choir-user"] {
        assert!(seen[gone].is_null(), "{seen}");
    }
    let set: Vec<&str> = answer
        .headers
        .get_all("set-cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    assert_eq!(set, ["app=of-3000; Path=/"]);

    // A WebSocket of its own pages, and none of anybody else's.
    let mut socket = alice
        .client
        .websocket(&preview, "/ws", Some(&own))
        .await
        .unwrap();
    socket.send(Message::text("over and back")).await.unwrap();
    let heard = within("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(heard, Message::text("over and back"));
    for other in [
        None,
        Some(alice.origin(Role::Live)),
        Some(installation.control()),
        Some(origin(&alice, &host("alice", 3001))),
    ] {
        let refused = alice
            .client
            .websocket(&preview, "/ws", other.as_deref())
            .await;
        assert_eq!(refused.unwrap_err(), 403, "{other:?}");
    }
    let sibling = Ask::new("POST", &preview, "/x")
        .header("origin", &alice.origin(Role::Live))
        .header("sec-fetch-site", "same-site");
    alice.client.send(sibling).await.expect(403);

    // A cookie of one origin opens no other, and nobody else's opens this.
    alice.enter(Role::Live).await;
    let of_live = alice.client.cookies(&alice.host(Role::Live));
    let of_port = alice.client.cookies(&preview);
    assert_ne!(of_live, of_port);
    let with = |host: &str, cookie: &str| {
        Ask::new("GET", host, "/x")
            .without_cookies()
            .header("cookie", cookie)
    };
    nobody.send(with(&preview, &of_live)).await.expect(401);
    nobody
        .send(with(&alice.host(Role::Live), &of_port))
        .await
        .expect(401);
    nobody
        .send(with(&host("alice", 3001), &of_port))
        .await
        .expect(401);
    bob.start(Role::Live).await;
    serve(&bob, Role::Live, 3000).await;
    bob.enter_host(&host("bob", 3000)).await;
    let of_bob = bob.client.cookies(&host("bob", 3000));
    nobody.send(with(&preview, &of_bob)).await.expect(401);
    let asked = format!(
        "/auth/handover?host={preview}:{}&state={}&next=/",
        installation.port(),
        "0".repeat(64)
    );
    bob.client.send(page("localhost", &asked)).await.expect(404);

    // Where nothing listens: a page that says what does, and a problem.
    let empty = host("alice", 3001);
    let answer = alice.enter_host_at(&empty, 502).await;
    let text = answer.text();
    assert!(
        text.contains("Nothing listens on port 3001 of live.") && text.contains(&format!("{own}/")),
        "{text}"
    );
    let answer = alice
        .client
        .send(Ask::new("GET", &empty, "/api"))
        .await
        .expect(502);
    assert_eq!(answer.code(), "bad_gateway");
    assert!(
        answer.text().contains("choir service start"),
        "{}",
        answer.text()
    );
    assert_eq!(
        alice
            .client
            .websocket(&empty, "/ws", Some(&origin(&alice, &empty)))
            .await
            .unwrap_err(),
        502
    );
    // `dev` is another sandbox with ports of its own.
    alice.enter_host_at("3000--dev--alice.localhost", 502).await;
    serve(&alice, Role::Dev, 3000).await;
    let dev = alice
        .client
        .send(page("3000--dev--alice.localhost", "/"))
        .await
        .expect(200);
    assert!(dev.text().contains("port 3000"));

    // Gone with its command, and with what was open over it.
    let signal = format!(
        "/me/sandboxes/live/commands/{}/signal",
        made["id"].as_str().unwrap()
    );
    alice
        .control("POST", &signal, Some(json!({"signal": "kill"})))
        .await
        .expect(204);
    let end = within("the end of the WebSocket", socket.next()).await;
    assert!(
        matches!(end, None | Some(Ok(Message::Close(_)) | Err(_))),
        "{end:?}"
    );
    until("a closed port", async || {
        let answer = alice.client.send(Ask::new("GET", &preview, "/")).await;
        (answer.status == 502).then_some(())
    })
    .await;

    let records = audit(&alice).await;
    for (action, sign) in [
        ("preview.open", "\"port\":\"3000\""),
        ("session.handover", &preview),
    ] {
        assert!(
            records
                .lines()
                .any(|line| line.contains(action) && line.contains(sign)),
            "no {action} with {sign}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_wakes_a_stopped_sandbox_only_by_navigation() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    serve(&alice, Role::Live, 3000).await;
    let preview = host("alice", 3000);
    let own = origin(&alice, &preview);
    alice.enter_host(&preview).await;
    alice.stop(Role::Live).await;
    let ask = || Ask::new("GET", &preview, "/x").same_origin(&own);
    let answer = alice.client.send(ask()).await.expect(503);
    assert_eq!(answer.code(), "sandbox_not_running");
    assert_eq!(
        alice
            .client
            .websocket(&preview, "/ws", Some(&own))
            .await
            .unwrap_err(),
        503
    );
    let refused = alice.control("GET", "/me/sandboxes/live/ports", None).await;
    assert_eq!(refused.code(), "sandbox_not_running");
    assert_eq!(alice.sandbox(Role::Live).await["state"], "stopped");
    let page = Ask::new("GET", &preview, "/").navigation();
    let waiting = alice.client.send(page.clone()).await.expect(503);
    assert!(waiting.text().contains("Starting"), "{}", waiting.text());
    until("a running sandbox", async || {
        (alice.sandbox(Role::Live).await["state"] == "running").then_some(())
    })
    .await;
    // It runs again, and the service of the start before does not.
    alice.client.send(page).await.expect(502);
}

struct Shell<'a> {
    installation: &'a Installation,
    token: std::path::PathBuf,
}

impl Shell<'_> {
    async fn of<'a>(installation: &'a Installation, account: &Account) -> Shell<'a> {
        let body = json!({ "name": "shell", "scopes": ["sandboxes", "commands", "account"] });
        let made = account
            .control("POST", "/me/tokens", Some(body))
            .await
            .expect(201)
            .json();
        let token = installation.scratch().join("token");
        std::fs::write(&token, made["token"].as_str().unwrap()).unwrap();
        Shell {
            installation,
            token,
        }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(self.installation.choir());
        command
            .arg("--server")
            .arg(self.installation.control())
            .arg("--token-file")
            .arg(&self.token)
            .args(arguments)
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = within(&arguments.join(" "), self.command(arguments).output())
            .await
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code(), text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_starts_follows_reaches_and_stops_a_service() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let shell = Shell::of(&installation, &alice).await;
    let (code, text) = shell.run(&["service", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("No services in live"), "{text}");
    let start = [
        "service", "start", "--name", "web", "--", "python3", "-u", "-c", SERVER, "3000",
    ];
    let (code, text) = shell.run(&start).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = shell.run(&start).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("a service named web runs in live already"),
        "{text}"
    );
    let listed = until("a listed port", async || {
        let (_, text) = shell.run(&["port", "list"]).await;
        text.contains("3000--alice.localhost").then_some(text)
    })
    .await;
    assert!(
        listed.contains("127.0.0.1") && listed.contains("web"),
        "{listed}"
    );
    let (_, text) = shell.run(&["service", "list"]).await;
    assert!(
        text.lines().any(|line| line.starts_with("web ")
            && line.contains("running")
            && line.contains(" 3000 ")),
        "{text}"
    );

    // A tunnel, whatever speaks through it.
    let mut forwarding = shell
        .command(&["port", "forward", "3000:0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(forwarding.stdout.take().unwrap()).lines();
    let line = within("the tunnel", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    let local = serde_json::from_str::<Value>(&line).unwrap()["local"]
        .as_u64()
        .unwrap();
    let local = u16::try_from(local).unwrap();
    for (path, wanted) in [("/a", "<p>/a</p>"), ("/b", "<p>/b</p>")] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("an answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        assert!(answer.contains(wanted), "{answer}");
    }
    // A side that sends no more is still answered.
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local))
        .await
        .unwrap();
    stream
        .write_all(b"GET /half HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.contains("<p>/half</p>"), "{answer}");
    // A side that sends on to one that has answered, and takes no more, reads the answer.
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local))
        .await
        .unwrap();
    let (mut reading, mut writing) = stream.split();
    let mut request = b"PUT / HTTP/1.0\r\ncontent-length: 8388608\r\n\r\n".to_vec();
    request.resize(request.len() + (8 << 20), b'x');
    let mut answer = String::new();
    let (sent, read) = within("an answer", async {
        tokio::join!(
            writing.write_all(&request),
            reading.read_to_string(&mut answer)
        )
    })
    .await;
    sent.unwrap();
    read.unwrap();
    assert!(answer.contains(" 501 "), "{answer}");
    forwarding.kill().await.unwrap();

    let (_, text) = shell.run(&["service", "logs", "web"]).await;
    assert!(text.contains("GET /a HTTP/1.0"), "{text}");
    let (code, text) = shell.run(&["port", "open", "3000", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let url = format!("http://3000--alice.localhost:{}/", installation.port());
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["url"], url);

    // A restart of the hypervisor is nothing to a service.
    let token = shell.token.clone();
    installation.end(Signal::KILL);
    installation.spawn().await;
    let shell = Shell {
        installation: &installation,
        token,
    };
    let (_, text) = shell.run(&["service", "list", "--json"]).await;
    let services: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(services["services"][0]["state"], "running", "{services:#}");
    let (_, text) = shell.run(&["port", "list"]).await;
    assert!(text.contains("3000--alice.localhost"), "{text}");

    let (code, text) = shell.run(&["service", "stop", "web"]).await;
    assert_eq!((code, &*text), (Some(0), "web has ended\n"));
    let (_, text) = shell.run(&["port", "list"]).await;
    assert!(text.contains("Nothing listens in live"), "{text}");
    let (_, text) = shell.run(&["service", "list"]).await;
    assert!(text.contains("signal 15"), "{text}");
    let (code, text) = shell.run(&["service", "logs", "nothing"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("there is no service nothing in live"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_wildcard_names_ports_are_forwarded_only() {
    let port = system_tests::installation::free_port();
    let installation = Setup::default()
        .port(port)
        .config(&format!(
            "[origins]\ncontrol = \"http://localhost:{port}\"\nruntime = \"single_host\"\n\
             single_host = \"http://run.localhost:{port}\""
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    serve(&alice, Role::Live, 3000).await;
    let answer = alice
        .client
        .send(Ask::new("GET", "3000--alice.localhost", "/").navigation())
        .await;
    assert_eq!(answer.code(), "misdirected_request");
    let shell = Shell::of(&installation, &alice).await;
    let (code, text) = shell.run(&["port", "open", "3000"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("one host") && text.contains("choir port forward"),
        "{text}"
    );
    let (code, text) = shell.run(&["port", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("3000") && text.contains("one host"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_port_is_a_world_of_its_own() {
    let installation = Setup::default().start().await;
    let seen = browser::run(
        "preview.mjs",
        &json!({
            "control": installation.control(),
            "live": installation.runtime("alice"),
            "setup": system_tests::account::parameter(installation.link(), "setup").expect("a set-up link"),
            "server": SERVER,
            "ports": [3000, 3001],
        }),
    )
    .await;
    let [first, second] = ["3000", "3001"].map(|port| seen["ports"][port].clone());
    assert_eq!(first["title"], "port 3000", "{seen:#}");
    assert_eq!(second["title"], "port 3001", "{seen:#}");
    // Its own cookies and storage, and nothing of another port's or of ours.
    assert_eq!(first["cookies"], "app=of-3000", "{seen:#}");
    assert_eq!(second["cookies"], "app=of-3001", "{seen:#}");
    assert_eq!(first["stored"], Value::Null, "{seen:#}");
    assert_eq!(second["stored"], Value::Null, "{seen:#}");
    for port in [&first, &second] {
        assert_eq!(port["echo"], "echoed", "{seen:#}");
        assert_eq!(port["worker"], "registered /", "{seen:#}");
        for (attempt, outcome) in port["attempts"].as_object().unwrap() {
            let outcome = outcome.as_str().unwrap();
            assert!(
                matches!(outcome, "refused" | "closed" | "empty"),
                "{attempt}: {outcome}"
            );
        }
        assert_eq!(port["attempts"].as_object().unwrap().len(), 10, "{seen:#}");
    }
    let ours: Vec<&Value> = seen["cookies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|cookie| cookie["name"] == "choir_runtime")
        .collect();
    assert_eq!(ours.len(), 3, "live and two ports have one each: {ours:?}");
    for cookie in ours {
        assert_eq!(cookie["httpOnly"], true);
        assert!(!cookie["domain"].as_str().unwrap().starts_with('.'));
    }
    assert_eq!(seen["after"], 200, "still signed in: {seen:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_desktop_lists_starts_and_stops_services_and_links_their_ports() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let services = async || {
        let answer = alice.runtime(Role::Live, "GET", "/api/services", None);
        answer.await.expect(200).json()
    };
    assert_eq!(services().await["services"], json!([]));
    let body = json!({ "command": "echo begun; exec python3 -m http.server 3000 --bind 127.0.0.1", "name": "files" });
    let made = alice
        .runtime(Role::Live, "POST", "/api/services", Some(body))
        .await
        .expect(201)
        .json();
    let id = made["id"].as_str().unwrap();
    let seen = until("a listening service", async || {
        let seen = services().await;
        (seen["ports"][0]["port"] == 3000).then_some(seen)
    })
    .await;
    assert_eq!(seen["services"][0]["name"], "files", "{seen:#}");
    assert_eq!(seen["services"][0]["state"], "running", "{seen:#}");
    assert_eq!(seen["ports"][0]["command_id"], id, "{seen:#}");
    assert_eq!(
        seen["ports"][0]["url"],
        format!("{}/", origin(&alice, &host("alice", 3000))),
        "{seen:#}"
    );
    let mut socket = alice
        .client
        .websocket(
            &alice.host(Role::Live),
            &format!("/ws/terminal/{id}"),
            Some(&alice.origin(Role::Live)),
        )
        .await
        .unwrap();
    let mut heard = String::new();
    while !heard.contains("begun") {
        match within("its output", socket.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => heard.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Text(_) | Message::Ping(_) => {}
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    alice
        .runtime(
            Role::Live,
            "POST",
            &format!("/api/services/{id}/stop"),
            None,
        )
        .await
        .expect(204);
    until("the end of the service", async || {
        let seen = services().await;
        (seen["services"][0]["state"] == "exited" && seen["ports"] == json!([])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_home_has_a_prompt_and_a_configuration_for_codex() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Dev).await;
    let show = json!({ "argv": ["sh", "-c", "cat ~/.codex/config.toml; stat -c %a ~/.codex ~/.codex/config.toml"] });
    let (code, text) = alice.command(Role::Dev, &show).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("sandbox_mode = \"danger-full-access\""),
        "{text}"
    );
    assert!(
        text.contains("env_key = \"CHOIR_PROVIDER_GATEWAY_TOKEN\""),
        "{text}"
    );
    assert!(text.ends_with("700\n600\n"), "{text}");
    // The prompt, as an interactive login shell makes it; without its colours.
    let prompt = json!({ "argv": ["bash", "-lic", "cd /workspace; printf '%s' \"${PS1@P}\" | sed 's/\\x1b\\[[0-9;]*m//g' | tr -d '\\001\\002'; type -t codex"] });
    let (_, text) = alice.command(Role::Dev, &prompt).await;
    assert!(text.contains("alice:dev:/workspace$ function"), "{text}");
    // What is changed stays changed.
    let change =
        json!({ "argv": ["sh", "-c", "echo mine > ~/.bashrc; echo mine > ~/.codex/config.toml"] });
    alice.command(Role::Dev, &change).await;
    alice.stop(Role::Dev).await;
    alice.start(Role::Dev).await;
    let look = json!({ "argv": ["sh", "-c", "cat ~/.bashrc ~/.codex/config.toml"] });
    assert_eq!(alice.command(Role::Dev, &look).await.1, "mine\nmine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sandbox_may_do_is_explained_in_words() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let shell = Shell::of(&installation, &alice).await;
    // Also of one that does not run.
    let (code, text) = shell.run(&["sandbox", "explain", "dev"]).await;
    assert_eq!(code, Some(0), "{text}");
    for words in [
        "dev is stopped.",
        "+ may read and write /workspace",
        "- may not trace, signal or read the memory",
        "at the moment it reaches nothing outside",
        "Codex's own sandbox needs user namespaces",
        "What was denied lately\n    nothing",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    alice.start(Role::Live).await;
    let denied = json!({ "argv": ["python3", "-c", "import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0)"] });
    alice.command(Role::Live, &denied).await;
    let told = until("a notice of the denial", async || {
        let (_, text) = shell.run(&["sandbox", "explain", "--json"]).await;
        let told: Value = serde_json::from_str(&text).unwrap();
        (!told["denied"].as_array().unwrap().is_empty()).then_some(told)
    })
    .await;
    assert_eq!(told["denied"][0]["kind"], "syscall_denied", "{told:#}");
    assert_eq!(told["state"], "running");
    let (_, text) = shell.run(&["sandbox", "explain"]).await;
    assert!(text.contains("ptrace"), "{text}");
}

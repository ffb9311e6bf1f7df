//! SIGHUP: what of a changed configuration is taken at once.

use rustix::process::Signal;
use serde_json::json;
use system_tests::wait::{until, within};
use system_tests::{Account, Setup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use types::Role;

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                      b\r\ndata: one\n\n\r\n";

/// Reads until the text has been seen.
async fn seen(stream: &mut UnixStream, text: &str) {
    let mut all = String::new();
    within(text, async {
        while !all.contains(text) {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            assert_ne!(read, 0, "{all}");
            all.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_bounds_of_calls_cuts_none_and_names_what_waits() {
    let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", provider.local_addr().unwrap());
    let installation = Setup::default()
        .hostile_guest()
        .config(&format!(
            "drain = \"11s\"\n[gateway.sandbox]\nconcurrent = 7\n[[providers]]\nname = \"p\"\nkind = \"openai\"\n\
             base_url = {base:?}\nmodels = [\"m\"]\naddresses = \"private_network_too\""
        ))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let run = alice.start_dir(&installation, Role::Live).await;
    let channel = run.join("channel/channel.sock");
    let token = alice.hostile_token(Role::Live).await;

    let body = json!({ "model": "m", "stream": true, "messages": [] });
    let text = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: channel\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    let mut open = system_tests::channel::connect(&channel).await;
    open.write_all(request.as_bytes()).await.unwrap();
    let (mut upstream, _) = provider.accept().await.unwrap();
    // A reply before its request would be nobody's.
    assert!(upstream.read(&mut [0; 4096]).await.unwrap() > 0);
    upstream.write_all(STREAM.as_bytes()).await.unwrap();
    seen(&mut open, "data: one").await;

    let file = installation.scratch().join("hypervisor.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let after = before
        .replace("concurrent = 7", "concurrent = 1")
        .replace("\"11s\"", "\"12s\"");
    std::fs::write(&file, after).unwrap();
    installation.process().signal(Signal::HUP);
    until("the word of the reload", async || {
        let log = installation.log();
        log.contains("\"keys\":\"drain\"").then_some(())
    })
    .await;

    let target = "/v1/chat/completions";
    let refused =
        system_tests::channel::send(&channel, "POST", target, Some(&token), Some(&body)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["x-choir-limit"], "concurrent");
    upstream
        .write_all(b"b\r\ndata: two\n\n\r\n0\r\n\r\n")
        .await
        .unwrap();
    seen(&mut open, "data: two\n\n\r\n0\r\n\r\n").await;
}

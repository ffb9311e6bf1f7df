//! How the hypervisor ends: with a deadline, at once when told twice, with its sandboxes or
//! without them.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;
use system_tests::wait::{until, within};
use system_tests::{Account, Setup};
use types::Role;

/// A request that does not end keeps the process no longer than `drain`, and the sandboxes of
/// a service go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_has_a_deadline_and_leaves_the_sandboxes_of_a_service() {
    let mut installation = Setup::default()
        .config("drain = \"2s\"")
        .leave_running()
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let supervisors = installation.supervisors();
    let endless = endless(&alice).await;
    let began = Instant::now();
    let status = installation.end(Signal::TERM);
    assert!(status.success(), "{}", installation.log());
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    drop(endless);
    assert_eq!(installation.supervisors(), supervisors);
    installation.spawn().await;
    assert_eq!(alice.sandbox(Role::Live).await["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let mut installation = Setup::default()
        .config("drain = \"10m\"")
        .leave_running()
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let _endless = endless(&alice).await;
    installation.process().signal(Signal::TERM);
    until("the drain", async || {
        installation.log().contains("draining").then_some(())
    })
    .await;
    let status = installation.end(Signal::INT);
    assert!(!status.success());
    assert!(
        installation.log().contains("told to end a second time"),
        "{}",
        installation.log()
    );
    // The next one takes over as after any other end.
    installation.spawn().await;
    assert_eq!(alice.sandbox(Role::Live).await["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_ends_takes_its_sandboxes_along() {
    let mut installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
    }
    let supervisors = installation.supervisors();
    assert_eq!(supervisors.len(), 2);
    assert!(installation.end(Signal::TERM).success());
    assert!(supervisors.iter().all(|process| !process.is_alive()));
    let left = std::fs::read_dir(installation.data_dir().join("run"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

/// A command whose output is followed and that does not end by itself.
async fn endless(account: &Account) -> tokio::net::TcpStream {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let body = json!({ "argv": ["sh", "-c", "echo begun; sleep 600"] }).to_string();
    let control = format!("http://localhost:{}", account.client.port());
    let head = format!(
        "POST /me/sandboxes/live/commands HTTP/1.1\r\nhost: localhost:{}\r\norigin: {control}\r\n\
         sec-fetch-site: same-origin\r\ncontent-type: application/json\r\ncookie: {}\r\n\
         content-length: {}\r\n\r\n{body}",
        account.client.port(),
        account.client.cookies("localhost"),
        body.len()
    );
    let mut stream = account.client.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    within("the command's output", async {
        let mut piece = [0; 1024];
        while !String::from_utf8_lossy(&seen).contains("\"output\"") {
            let read = stream.read(&mut piece).await.unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..read]);
        }
    })
    .await;
    stream
}

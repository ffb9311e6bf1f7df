//! Requests that are not as they should be, and answers that take long.

use system_tests::{Account, Setup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use types::Role;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_parties_could_read_differently_is_refused() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let host = format!("{}:{}", alice.host(Role::Live), installation.port());
    let cookie = alice.client.cookies(&alice.host(Role::Live));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let ask = |fields: &str, body: &str| {
        format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{fields}\r\n{body}")
    };
    // As a control: the same request without a fault is answered.
    let (status, _) = alice
        .client
        .send_raw(ask("Content-Length: 2\r\n", "ok").as_bytes())
        .await;
    assert_eq!(status, 200);
    for (fault, request) in [
        (
            "two lengths",
            ask("Content-Length: 2\r\nContent-Length: 40\r\n", smuggled),
        ),
        (
            "a length with a sign",
            ask("Content-Length: +2\r\n", smuggled),
        ),
        (
            "a length that is a list",
            ask("Content-Length: 2, 40\r\n", smuggled),
        ),
        (
            "an unknown coding",
            ask("Transfer-Encoding: xchunked\r\n", smuggled),
        ),
        (
            "a coding after chunked",
            ask(
                "Transfer-Encoding: chunked, identity\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        (
            "a space before the colon",
            ask(
                "Transfer-Encoding : chunked\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        ("a folded field", ask("X-A: b\r\n\tc\r\n", smuggled)),
        ("a control character", ask("X-A: b\0c\r\n", smuggled)),
        ("two hosts", ask("Host: localhost\r\n", "")),
        (
            "a bad chunk",
            ask(
                "Transfer-Encoding: chunked\r\n",
                &format!("zz\r\n{smuggled}"),
            ),
        ),
    ] {
        let (status, answer) = alice.client.send_raw(request.as_bytes()).await;
        assert!(
            (400..600).contains(&status) || status == 0,
            "{fault}: {answer}"
        );
        assert!(!answer.contains("/smuggled"), "{fault}: {answer}");
    }
    // Both framings at once: whichever is taken, nothing is left for another request.
    let both = ask(
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        &format!("0\r\n\r\n{smuggled}"),
    );
    let (_, answer) = alice.client.send_raw(both.as_bytes()).await;
    assert!(!answer.contains("/smuggled"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_arrives_as_it_is_written() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let host = alice.host(Role::Live);
    let mut stream = alice.client.connect().await;
    let request = format!(
        "GET /hostile/event-stream HTTP/1.1\r\nHost: {host}:{}\r\nCookie: {}\r\n\r\n",
        installation.port(),
        alice.client.cookies(&host)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    // The stream never ends, so a proxy that waits for its end never says a word.
    system_tests::wait::within("two events", async {
        let mut piece = [0; 4096];
        while seen.matches("data: x").count() < 2 {
            let read = stream.read(&mut piece).await.unwrap();
            assert_ne!(read, 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    })
    .await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
}

//! A hypervisor that has no descriptor left.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use system_tests::processes::Process;
use system_tests::wait::{until, within};
use system_tests::{Account, Setup};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use types::Role;

/// Descriptors that are left when strangers begin to take them.
const LEFT: usize = 16;

/// How long it is watched without any, and how much of that it may be at work, in clock ticks of
/// 10 ms: a loop that does not wait takes all 200.
const WATCHED: Duration = Duration::from_secs(2);
const AT_WORK: u64 = 40;

const TOLD: &str = "cannot accept connections";

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_what_is_open_goes_on_and_what_comes_waits() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let (host, origin) = (alice.host(Role::Live), alice.origin(Role::Live));
    let opened = alice.client.websocket(&host, "/ws", Some(&origin)).await;
    let mut socket = opened.expect("a WebSocket");
    let mut open = connection(installation.port()).await;
    assert_eq!(status(&mut open, &alice).await, 200);

    let process = installation.process();
    limit(process, process.usage().unwrap().descriptors + LEFT);
    // The kernel takes them all; they wait to be accepted.
    let mut strangers = Vec::new();
    for _ in 0..4 * LEFT {
        let address = ("127.0.0.1", installation.port());
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    until("the end of descriptors", async || {
        installation.log().contains(TOLD).then_some(())
    })
    .await;

    for number in 0_u8..20 {
        assert_eq!(status(&mut open, &alice).await, 200);
        socket
            .send(Message::Ping(vec![number].into()))
            .await
            .unwrap();
        within("an answer to a ping", async {
            loop {
                match socket.next().await.expect("the socket stays").unwrap() {
                    Message::Pong(said) if said == vec![number] => break,
                    _ => {}
                }
            }
        })
        .await;
    }
    let before = process.usage().unwrap().cpu_ticks;
    // It is to do nothing for as long.
    tokio::time::sleep(WATCHED).await;
    let at_work = process.usage().unwrap().cpu_ticks - before;
    assert!(at_work < AT_WORK, "{at_work} ticks of 10 ms in {WATCHED:?}");
    let log = installation.log();
    assert_eq!(log.matches(TOLD).count(), 1, "{log}");
    assert!(log.contains("LimitNOFILE"), "{log}");

    drop(strangers);
    let mut again = within("a connection", connection(installation.port())).await;
    let answered = within("an answer", status(&mut again, &alice)).await;
    assert_eq!(answered, 200);
    assert_eq!(status(&mut open, &alice).await, 200);
}

async fn connection(port: u16) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    sender
}

/// Asks for something of the account's own.
async fn status(sender: &mut SendRequest<Empty<Bytes>>, alice: &Account) -> u16 {
    let request = Request::get("/me/sandboxes")
        .header("host", format!("localhost:{}", alice.client.port()))
        .header("cookie", alice.client.cookies("localhost"))
        .header("sec-fetch-site", "same-origin")
        .body(Empty::new())
        .unwrap();
    sender.ready().await.unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

/// Lets a process have so many descriptors.
fn limit(process: Process, descriptors: usize) {
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    let most = Some(u64::try_from(descriptors).unwrap());
    let new = Rlimit {
        current: most,
        maximum: most,
    };
    prlimit(Some(pid), Resource::Nofile, new).unwrap();
}

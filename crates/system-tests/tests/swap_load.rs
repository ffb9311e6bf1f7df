//! Swaps under load: nothing lost, nothing mixed, nobody storms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::account::parameter;
use system_tests::http::Ask;
use system_tests::load::{Check, Load, Sockets};
use system_tests::processes::Process;
use system_tests::wait::{until, within};
use system_tests::{Account, Installation, Setup, browser};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use types::Role;

/// Swaps while the load runs, and each how many are watched to the last socket.
const SWAPS: u64 = 100;
const WATCHED: u64 = 5;

/// The sockets of both roles close within 1.5 s. What a machine adds to it that is busy with
/// sixty-four connections and other tests is most of this; the bench tells the rest.
const CLOSE_WITHIN: Duration = Duration::from_millis(1500 + 8500);

/// A user with both sandboxes running, each with a desktop of its own that names it.
async fn told_apart(installation: &Installation) -> Account {
    let alice = Account::admin(installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
        alice.enter(role).await;
        let id = alice.sandbox(role).await["id"].clone();
        let id = id.as_str().unwrap();
        let page = format!(
            "<!doctype html><html lang=\"en\"><title>{id}</title><script src=\"part.js\"></script>{}</html>",
            "x".repeat(20_000)
        );
        for (name, text) in [("index.html", page), ("part.js", format!("\"{id}\";"))] {
            put(&alice, role, &format!(".choir/desktop/{name}"), text).await;
        }
    }
    alice
}

async fn put(account: &Account, role: Role, path: &str, text: String) {
    if let Some((parent, _)) = path.rsplit_once('/') {
        let body = json!({ "path": parent });
        let made = account
            .runtime(role, "POST", "/api/files/dir", Some(body))
            .await;
        assert!(
            matches!(made.status, 200 | 201 | 204 | 409),
            "{}",
            made.text()
        );
    }
    let ask = Ask::new(
        "PUT",
        &account.host(role),
        &format!("/api/files/content?path={path}"),
    )
    .same_origin(&account.origin(role))
    .bytes(text);
    let answer = account.client.send(ask).await;
    assert!(
        matches!(answer.status, 200 | 201 | 204),
        "{}",
        answer.text()
    );
}

async fn swap(account: &Account) -> u64 {
    let swapped = account
        .control("POST", "/me/sandboxes/swap", None)
        .await
        .expect(200)
        .json();
    swapped["generation"].as_u64().unwrap()
}

/// Every second generation serves the same sandbox, in every part of it.
async fn of_one_sandbox(account: &Account) -> Check {
    let live = account.sandbox(Role::Live).await;
    let dev = account.sandbox(Role::Dev).await;
    let start = live["generation"].as_u64().unwrap();
    let ids = [&live, &dev].map(|view| view["id"].as_str().unwrap().to_owned());
    Arc::new(move |target, generation, body| {
        let own = &ids[usize::try_from((generation - start) % 2).unwrap()];
        let text = String::from_utf8_lossy(body);
        let said = match target {
            "/health" => {
                let body: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                body["sandbox_id"].as_str().unwrap_or_default().to_owned()
            }
            "/" => {
                let start = text.find("<title>").ok_or("no title")? + 7;
                text.get(start..start + own.len())
                    .unwrap_or_default()
                    .to_owned()
            }
            _ => text.trim_matches(['"', ';']).to_owned(),
        };
        if said == *own {
            Ok(())
        } else {
            Err(format!(
                "{target} of generation {generation} came from {said}, not {own}"
            ))
        }
    })
}

async fn notices(account: &Account, kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for role in Role::ALL {
        let path = format!("/me/sandboxes/{role}/notices");
        let all = account.control("GET", &path, None).await.expect(200).json();
        let all = all["notices"].as_array().unwrap().clone();
        found.extend(all.into_iter().filter(|notice| notice["kind"] == kind));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_swaps_lose_no_request_and_move_every_socket() {
    let installation = Setup::default().start().await;
    let alice = Arc::new(told_apart(&installation).await);
    let check = of_one_sandbox(&alice).await;
    let targets = ["/", "/part.js", "/health"].map(str::to_owned);
    let load = Load::start(&alice, 64, &targets, &check);
    let sockets = Sockets::open(&alice, 50);
    until("fifty sockets", async || sockets.all_at(0).then_some(())).await;
    let mut slowest = Duration::ZERO;
    for number in 1..=SWAPS {
        let watched = number % (SWAPS / WATCHED) == 0;
        if watched {
            // All of them are of the present generation before it ends.
            until("all sockets back", async || {
                sockets.all_at(number - 1).then_some(())
            })
            .await;
        }
        assert_eq!(swap(&alice).await, number);
        let swapped = Instant::now();
        if watched {
            let last = until("the last socket to be told", async || {
                sockets.all_closed_by(number)
            })
            .await;
            slowest = slowest.max(last.saturating_duration_since(swapped));
        }
    }
    until("all sockets back", async || {
        sockets.all_at(SWAPS).then_some(())
    })
    .await;
    let opened = sockets.opened();
    let (answers, faults) = within("the load to end", load.finish()).await;
    assert_eq!(faults, Vec::<String>::new(), "{answers} answers");
    assert_eq!(sockets.finish().await, Vec::<String>::new());
    assert!(answers > 64 * SWAPS / 4, "{answers} answers are no load");
    assert!(slowest < CLOSE_WITHIN, "the last socket after {slowest:?}");
    // Each is opened once, and again once per swap that was watched or came upon it.
    assert!(
        opened >= 50 * (1 + usize::try_from(WATCHED).unwrap()),
        "{opened} handshakes"
    );
    assert_eq!(
        notices(&alice, "reconnect_storm").await,
        Vec::<Value>::new()
    );
    assert_eq!(
        notices(&alice, "mismatched_runtime").await,
        Vec::<Value>::new()
    );
    eprintln!("{answers} answers, {opened} handshakes, last socket within {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_desktop_comes_back_from_each_of_ten_swaps_without_a_storm() {
    let installation = Setup::default().start().await;
    let input = json!({
        "control": installation.control(),
        "live": installation.runtime("alice"),
        "dev": installation.runtime("dev--alice"),
        "setup": parameter(installation.link(), "setup"),
        "user": "alice",
        "swaps": 10,
    });
    let seen = browser::run_within("swaps.mjs", &input, Duration::from_secs(150)).await;
    let rounds = seen["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 10, "{seen:#}");
    for (number, round) in rounds.iter().enumerate() {
        for role in ["live", "dev"] {
            let page = &round[role];
            assert_eq!(page["generation"], number + 1, "{seen:#}");
            assert_eq!(page["served"], number + 1, "{seen:#}");
            // One load, and the sockets of events and of a terminal. The load before may be
            // counted late, and its terminal be refused once, if the swap meets it loading.
            assert!(
                (1..=2).contains(&page["loads"].as_u64().unwrap()),
                "{seen:#}"
            );
            assert!(
                (1..=4).contains(&page["sockets"].as_u64().unwrap()),
                "{seen:#}"
            );
            // 1.5 s to close, 3 s of jitter, and what loading takes on a busy machine.
            assert!(
                page["back_ms"].as_u64().unwrap() < 1500 + 3000 + 8000,
                "{seen:#}"
            );
        }
    }
    assert_eq!(seen["failed"], json!([]), "{seen:#}");
    assert_eq!(seen["storms"], json!([]), "{seen:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_before_a_swap_ends_where_it_began() {
    let installation = Setup::default().start().await;
    let alice = told_apart(&installation).await;
    let (first, second) = (
        alice.sandbox(Role::Live).await["id"].clone(),
        alice.sandbox(Role::Dev).await["id"].clone(),
    );
    let large = "0123456789abcdef".repeat(512 * 1024);
    put(&alice, Role::Live, "large.txt", large.clone()).await;

    // A download of 8 MiB of which nothing is read yet.
    let mut download = begin(
        &alice,
        "GET",
        "/api/files/content?path=large.txt",
        Vec::new(),
    )
    .await;
    assert_eq!(download.headers()["x-choir-generation"], "0");
    // An upload that was let in and of which nothing is sent yet.
    let mut upload = alice.client.connect().await;
    let host = alice.host(Role::Live);
    let head = format!(
        "PUT /api/files/content?path=uploaded.txt HTTP/1.1\r\nHost: {host}:{}\r\nOrigin: {}\r\nCookie: {}\r\n\
         Content-Length: 25\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        alice.client.port(),
        alice.origin(Role::Live),
        alice.client.cookies(&host)
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    // Said when its body is wanted: after it was decided who gets it.
    let mut line = [0; 25];
    within("leave to go on", upload.read_exact(&mut line))
        .await
        .unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    upload.write_all(b"begun before, ").await.unwrap();

    assert_eq!(swap(&alice).await, 1);
    assert_eq!(alice.sandbox(Role::Live).await["id"], second);
    upload.write_all(b"ended after").await.unwrap();
    let mut answer = String::new();
    within(
        "the answer to the upload",
        upload.read_to_string(&mut answer),
    )
    .await
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    let body = within("the rest of the download", download.body_mut().collect())
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(body.len(), large.len());
    assert!(body == large.as_bytes());

    // Where it began is dev now.
    assert_eq!(alice.sandbox(Role::Dev).await["id"], first);
    let read = "/api/files/content?path=uploaded.txt";
    let there = alice
        .runtime(Role::Dev, "GET", read, None)
        .await
        .expect(200);
    assert_eq!(there.text(), "begun before, ended after");
    alice
        .runtime(Role::Live, "GET", read, None)
        .await
        .expect(404);
}

fn head(account: &Account, method: &str, target: &str) -> http::request::Builder {
    let host = account.host(Role::Live);
    Request::builder()
        .method(method)
        .uri(target)
        .header("host", format!("{host}:{}", account.client.port()))
        .header("origin", account.origin(Role::Live))
        .header("cookie", account.client.cookies(&host))
}

/// Sends a request and returns as soon as the head of its answer is there.
async fn begin(
    account: &Account,
    method: &str,
    target: &str,
    body: Vec<u8>,
) -> http::Response<hyper::body::Incoming> {
    let stream = account.client.connect().await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = head(account, method, target)
        .body(http_body_util::Full::new(Bytes::from(body)))
        .unwrap();
    within(target, sender.send_request(request)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_goes_on_where_it_began() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
        alice.enter(role).await;
    }
    let mut stream = begin(&alice, "GET", "/hostile/event-stream", Vec::new()).await;
    assert_eq!(stream.headers()["x-choir-generation"], "0");
    let mut event = async || {
        let frame = within("an event", stream.body_mut().frame()).await;
        frame
            .expect("no end")
            .expect("no break")
            .into_data()
            .is_ok()
    };
    assert!(event().await);
    assert_eq!(swap(&alice).await, 1);
    for _ in 0..3 {
        assert!(event().await, "it goes on after the swap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storms_missing_parts_and_pages_of_an_older_generation_are_noticed() {
    let installation = Setup::default().start().await;
    let alice = told_apart(&installation).await;
    let (host, origin) = (alice.host(Role::Live), alice.origin(Role::Live));
    // A page that opens its socket again and again, without waiting.
    for _ in 0..40 {
        let socket = alice.client.websocket(&host, "/ws", Some(&origin)).await;
        let mut socket = socket.expect("a socket");
        socket.close(None).await.expect("a close");
        // Until the other side has closed it too.
        while let Some(Ok(_)) = socket.next().await {}
    }
    let storms = notices(&alice, "reconnect_storm").await;
    assert_eq!(storms.len(), 1, "{storms:?}");
    assert_eq!(storms[0]["role"], "live");
    // A script of another build.
    for _ in 0..6 {
        let ask = Ask::new("GET", &host, "/assets/index-of-another-build.js")
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-dest", "script");
        alice.client.send(ask).await.expect(404);
    }
    let missing = notices(&alice, "mismatched_runtime").await;
    assert_eq!(missing.len(), 1, "{missing:?}");
    let message = missing[0]["message"].as_str().unwrap();
    assert!(
        message.contains("/assets/index-of-another-build.js"),
        "{message}"
    );

    // A page that was loaded before a swap may read, and neither change nor open anything.
    assert_eq!(swap(&alice).await, 1);
    let stale = |method: &str, target: &str| {
        Ask::new(method, &host, target)
            .same_origin(&origin)
            .header("x-choir-generation", "0")
    };
    let read = alice.client.send(stale("GET", "/health")).await.expect(200);
    assert_eq!(read.header("x-choir-generation"), "1");
    let written = stale("PUT", "/api/files/content?path=wrong.txt").bytes("draft");
    let refused = alice.client.send(written).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (409, "stale_generation")
    );
    let socket = alice
        .client
        .websocket(&host, "/ws?choir_generation=0", Some(&origin))
        .await;
    assert_eq!(socket.err(), Some(409));
    let present = alice
        .client
        .websocket(&host, "/ws?choir_generation=1", Some(&origin))
        .await;
    assert!(present.is_ok());
    drop(present);

    // Right after a swap that is a matter of moments. A page that goes on so is worth a word.
    let stale_notices = async || {
        let all = notices(&alice, "mismatched_runtime").await;
        let told = all.into_iter().filter(|notice| {
            let message = notice["message"].as_str().unwrap_or_default();
            message.contains("loaded before the last swap (generation 0, now 1)")
        });
        told.count()
    };
    assert_eq!(stale_notices().await, 0);
    until("the notice of a stale page", async || {
        alice.client.send(stale("GET", "/health")).await.expect(200);
        (stale_notices().await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_says_in_a_line_that_a_page_is_of_another_build() {
    let installation = Setup::default().start().await;
    let input = json!({
        "control": installation.control(),
        "live": installation.runtime("alice"),
        "setup": parameter(installation.link(), "setup"),
        "user": "alice",
    });
    let seen = browser::run("notices.mjs", &input).await;
    assert_eq!(seen["before"], 0, "{seen:#}");
    let line = seen["line"].as_str().unwrap();
    assert!(line.contains("/assets/of-another-build.js"), "{line}");
}

/// Kills the guest that is in a role now.
async fn kill_guest(installation: &Installation, account: &Account, role: Role) {
    let id = account.sandbox(role).await["id"].clone();
    let mut guests = installation.guests().into_iter();
    let guest = guests.find(|guest| is_of(*guest, &id));
    guest.expect("its guest").signal(Signal::KILL);
}

/// Whether a guest is one of this sandbox.
fn is_of(guest: Process, sandbox: &Value) -> bool {
    let environment = String::from_utf8_lossy(&guest.environment()).into_owned();
    environment.contains(&format!("CHOIR_SANDBOX_ID={}", sandbox.as_str().unwrap()))
}

async fn outcome(account: &Account) -> Value {
    until("the end of the trial", async || {
        let last = account
            .control("GET", "/me/sandboxes/swap", None)
            .await
            .expect(200)
            .json();
        (last["swap"]["outcome"] != "on_trial").then(|| last["swap"].clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_live_that_dies_is_taken_back_also_while_the_hypervisor_is_down() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    for role in Role::ALL {
        alice.start(role).await;
    }
    let old = alice.sandbox(Role::Live).await["id"].clone();
    assert_eq!(swap(&alice).await, 1);
    kill_guest(&installation, &alice, Role::Live).await;
    let ended = outcome(&alice).await;
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert!(
        ended["reason"].as_str().unwrap().contains("crashed"),
        "{ended:#}"
    );
    until("the old live", async || {
        let live = alice.sandbox(Role::Live).await;
        (live["id"] == old && live["generation"] == 2).then_some(())
    })
    .await;
    until("a notice", async || {
        (notices(&alice, "rolled_back").await.len() == 1).then_some(())
    })
    .await;

    // Again, with the hypervisor killed while the new live is on trial.
    alice.start(Role::Dev).await;
    assert_eq!(swap(&alice).await, 3);
    installation.end(Signal::KILL);
    assert_eq!(installation.supervisors().len(), 2);
    let mut guests = installation.guests();
    guests.retain(|guest| !is_of(*guest, &old));
    assert!(!guests.is_empty());
    for guest in guests {
        guest.signal(Signal::KILL);
    }
    installation.spawn().await;
    let ended = outcome(&alice).await;
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    until("the old live", async || {
        (alice.sandbox(Role::Live).await["id"] == old).then_some(())
    })
    .await;
    installation.end(Signal::TERM);
}

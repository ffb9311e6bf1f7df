//! The gate in front of guests that mean harm.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use gateway::{AppSocket, Forwarder, Limits, Upstream};
use http::StatusCode;
use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;
use types::StartId;

use super::{Fault, PROVED_WITHIN, Step, Unhealthy, ready_for_swap, socket_path};

/// What a guest does with a request of this path.
type Answer = fn(&str, &mut UnixStream) -> io::Result<()>;

const HEALTHY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}";

/// Asks everything of a guest that answers like this.
async fn gate(answer: Answer) -> (Result<(), Unhealthy>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("app.sock")).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream, answer));
        }
    });
    let handle = || rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let ended = CancellationToken::new();
    let upstream = Upstream::app(
        StartId::generate(),
        AppSocket::new(handle().unwrap()),
        ended.clone(),
        Limits::app(),
    );
    let began = Instant::now();
    let seen = ready_for_swap(
        &Forwarder::new(),
        &upstream,
        &AppSocket::new(handle().unwrap()),
    )
    .await;
    ended.cancel();
    (seen, began.elapsed())
}

fn serve(mut stream: UnixStream, answer: Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match reader.read_line(&mut head) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        // The gate goes away when it has seen enough.
        if answer(&path, &mut stream).is_err() {
            return;
        }
    }
}

/// Says this again and again until the other side has gone.
fn forever(stream: &mut UnixStream, bytes: &[u8], pause: Duration) -> io::Result<()> {
    loop {
        stream.write_all(bytes)?;
        thread::sleep(pause);
    }
}

fn well_until(path: &str, ill: &str, stream: &mut UnixStream) -> io::Result<bool> {
    if path == ill {
        return Ok(false);
    }
    stream.write_all(HEALTHY)?;
    Ok(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_hostile_guest_holds_the_gate_open() {
    let endless_page: Answer = |path, stream| {
        if well_until(path, "/", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        forever(
            stream,
            &[b"4000\r\n", [b'x'; 0x4000].as_slice(), b"\r\n"].concat(),
            Duration::ZERO,
        )
    };
    let trickling_page: Answer = |path, stream| {
        if well_until(path, "/", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        forever(stream, b"1\r\nx\r\n", Duration::from_millis(50))
    };
    let silent_page: Answer = |path, stream| {
        if well_until(path, "/", stream)? {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(30));
        Ok(())
    };
    let hints: Answer = |path, stream| {
        if well_until(path, "/", stream)? {
            return Ok(());
        }
        forever(
            stream,
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
            Duration::ZERO,
        )
    };
    let socket_hints: Answer = |path, stream| {
        if well_until(path, "/ws", stream)? {
            return Ok(());
        }
        forever(
            stream,
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
            Duration::ZERO,
        )
    };
    let socket_silence: Answer = |path, stream| {
        if well_until(path, "/ws", stream)? {
            return Ok(());
        }
        forever(stream, b"", Duration::from_millis(50))
    };
    let socket_head: Answer = |path, stream| {
        if well_until(path, "/ws", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nx-endless: ")?;
        forever(stream, &[b'a'; 4096], Duration::ZERO)
    };
    let socket_trickle: Answer = |path, stream| {
        if well_until(path, "/ws", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nx-endless: ")?;
        forever(stream, b"a", Duration::from_millis(50))
    };
    let cases: [(&str, Answer, Step); 8] = [
        ("endless page", endless_page, Step::Page),
        ("trickling page", trickling_page, Step::Page),
        ("silent page", silent_page, Step::Page),
        ("1xx flood", hints, Step::Page),
        (
            "1xx flood on the socket",
            socket_hints,
            Step::WebSocket("/ws".into()),
        ),
        (
            "handshake that never ends",
            socket_silence,
            Step::WebSocket("/ws".into()),
        ),
        ("endless head", socket_head, Step::WebSocket("/ws".into())),
        (
            "trickling head",
            socket_trickle,
            Step::WebSocket("/ws".into()),
        ),
    ];
    let asked = cases.map(|(name, answer, step)| async move {
        let (seen, took) = gate(answer).await;
        let unhealthy = seen.expect_err(name);
        assert_eq!(unhealthy.step, step, "{name}: {unhealthy}");
        assert!(
            took < PROVED_WITHIN + Duration::from_secs(2),
            "{name}: {took:?}"
        );
        (name, unhealthy)
    });
    for (name, unhealthy) in futures_util::future::join_all(asked).await {
        match name {
            "endless page" => assert_eq!(unhealthy.fault, Fault::TooLong(4 << 20)),
            "trickling page" | "silent page" | "handshake that never ends" => {
                assert_eq!(unhealthy.fault, Fault::Timeout, "{name}");
            }
            _ => assert!(
                matches!(unhealthy.fault, Fault::Broken(_) | Fault::Status(_)),
                "{name}: {unhealthy}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_says_which_step_failed_and_how() {
    let no_page: Answer = |path, stream| {
        if well_until(path, "/", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n")
    };
    let (seen, _) = gate(no_page).await;
    let unhealthy = seen.unwrap_err();
    assert_eq!(
        (&unhealthy.step, &unhealthy.fault),
        (
            &Step::Page,
            &Fault::Status(StatusCode::INTERNAL_SERVER_ERROR)
        )
    );
    let no_socket: Answer = |path, stream| {
        if well_until(path, "/ws", stream)? {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    };
    let (seen, _) = gate(no_socket).await;
    let text = seen.unwrap_err().to_string();
    assert!(
        text.starts_with("the WebSocket handshake on /ws was answered with 404 Not Found after"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_socket_says_so_in_its_health_document() {
    let none: Answer = |path, stream| match path {
        "/health" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"websocket\":null}")
        }
        "/" => stream.write_all(HEALTHY),
        _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    };
    assert_eq!(gate(none).await.0, Ok(()));
}

#[test]
fn the_health_document_says_where_the_socket_is() {
    let path = |text: &str| socket_path(text.as_bytes());
    assert_eq!(path("{\"status\":\"ok\"}"), Ok(Some("/ws".into())));
    assert_eq!(path("all is well"), Ok(Some("/ws".into())));
    assert_eq!(
        path("{\"websocket\":\"/live/socket?v=2\"}"),
        Ok(Some("/live/socket?v=2".into()))
    );
    assert_eq!(path("{\"websocket\":null}"), Ok(None));
    for bad in [
        "\"ws\"",
        "\"//evil/x\"",
        "\"/a b\"",
        "\"/a\\n\"",
        "7",
        "\"/#x\"",
    ] {
        let document = format!("{{\"websocket\":{bad}}}");
        assert_eq!(path(&document), Err(Fault::BadPath), "{bad}");
    }
}

#[test]
fn a_refusal_names_step_status_time_and_the_last_log_line() {
    let unhealthy = Unhealthy {
        step: Step::WebSocket("/ws".into()),
        fault: Fault::Status(StatusCode::NOT_FOUND),
        took: Duration::from_millis(12),
        last_log: None,
    };
    assert_eq!(
        unhealthy
            .with_last_log(Some("no such route".into()))
            .to_string(),
        "the WebSocket handshake on /ws was answered with 404 Not Found after 12 ms; \
         its last log line: no such route"
    );
}

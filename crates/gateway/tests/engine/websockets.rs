//! WebSockets through the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use gateway::Limits;
use gateway::websocket::CloseNotice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::bed::*;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An app that echoes, and reports how its end closed.
fn echo(
    closes: mpsc::UnboundedSender<Option<CloseFrame>>,
) -> impl Fn(UnixStream, usize) -> futures_util::future::BoxFuture<'static, ()> {
    move |stream, _| {
        let closes = closes.clone();
        Box::pin(async move {
            let mut socket = accept_async(stream).await.unwrap();
            let mut close = None;
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Close(frame) => close = frame,
                    message @ (Message::Text(_) | Message::Binary(_)) => {
                        socket.send(message).await.unwrap();
                    }
                    _ => {}
                }
            }
            let _ = closes.send(close);
        })
    }
}

async fn open(bed: &Bed) -> WebSocketStream<TcpStream> {
    let stream = bed.connect().await;
    within(client_async("ws://alice.localhost/ws", stream))
        .await
        .unwrap()
        .0
}

#[tokio::test]
async fn messages_of_every_size_pass_in_both_directions_and_closing_is_clean() {
    let (closes, mut closed) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), echo(closes));
    let mut socket = open(&bed).await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let message = Message::binary(vec![7_u8; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), message);
    }
    assert_eq!(bed.upstream.activity().open_websockets(), 1);
    assert_eq!(bed.upstream.activity().open_exchanges(), 0);
    let frame = CloseFrame {
        code: 4000.into(),
        reason: "bye".into(),
    };
    socket.close(Some(frame.clone())).await.unwrap();
    assert_eq!(
        within(socket.next()).await.unwrap().unwrap(),
        Message::Close(Some(frame.clone()))
    );
    assert_eq!(within(closed.recv()).await.unwrap(), Some(frame));
    drop(socket);
    eventually("it is counted out", || {
        bed.upstream.activity().open_websockets() == 0
    })
    .await;
    within(bed.forwarder.drained()).await;
}

#[tokio::test]
async fn a_swap_closes_both_ends_with_1012_and_the_reason() {
    let (closes, mut closed) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), echo(closes));
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let mut socket = open(&bed).await;
        socket.send(Message::text("hello")).await.unwrap();
        within(socket.next()).await.unwrap().unwrap();
        sockets.push(socket);
    }
    let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "{\"generation\":4}");
    let window = Duration::from_millis(300);
    let began = Instant::now();
    assert_eq!(bed.upstream.close_websockets(&notice, window, 7), 10);
    let mut last = Duration::ZERO;
    for mut socket in sockets {
        let Message::Close(Some(frame)) = within(socket.next()).await.unwrap().unwrap() else {
            panic!("not a close");
        };
        assert_eq!(u16::from(frame.code), 1012);
        assert_eq!(frame.reason.as_str(), "{\"generation\":4}");
        // The answer to it goes out, and then the connection ends.
        assert!(!matches!(within(socket.next()).await, Some(Ok(_))));
        last = last.max(began.elapsed());
        let frame = within(closed.recv()).await.unwrap().unwrap();
        assert_eq!(u16::from(frame.code), 1012);
        assert_eq!(frame.reason.as_str(), "{\"generation\":4}");
    }
    assert!(
        last >= window * 8 / 10,
        "not spread: all closed after {last:?}"
    );
    within(bed.forwarder.drained()).await;
    // The next ones are not affected.
    let mut socket = open(&bed).await;
    socket.send(Message::text("again")).await.unwrap();
    assert_eq!(
        within(socket.next()).await.unwrap().unwrap(),
        Message::text("again")
    );
}

#[tokio::test]
async fn a_close_waits_for_the_end_of_the_frame_that_is_on_its_way() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        say(&mut stream, SWITCH).await;
        // Half of a frame of ten bytes, and later the rest and another frame.
        stream.write_all(b"\x82\x0a01234").await.unwrap();
        // In the other direction no frame is on its way, so the app is told at once.
        let mut close = [0; 9];
        stream.read_exact(&mut close).await.unwrap();
        assert_eq!(close[..2], [0x88, 0x83]);
        stream.write_all(b"56789\x81\x04late").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let mut client = open_raw(&bed).await;
    let mut frame = [0; 7];
    within(client.read_exact(&mut frame)).await.unwrap();
    assert_eq!(&frame, b"\x82\x0a01234");
    let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "x");
    assert_eq!(bed.upstream.close_websockets(&notice, Duration::ZERO, 1), 1);
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"56789\x88\x03\x03\xf4x");
}

#[tokio::test]
async fn an_upgrade_that_is_under_way_is_closed_too() {
    let answer = Arc::new(Notify::new());
    let answering = Arc::clone(&answer);
    let asked = Arc::new(Notify::new());
    let asking = Arc::clone(&asked);
    let bed = Bed::new(limits(), move |mut stream, _| {
        let answering = Arc::clone(&answering);
        let asking = Arc::clone(&asking);
        async move {
            read_head(&mut stream).await;
            asking.notify_one();
            answering.notified().await;
            say(&mut stream, SWITCH).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let mut client = bed.connect().await;
    say(&mut client, UPGRADE).await;
    within(asked.notified()).await;
    let notice = CloseNotice::new(CloseNotice::SERVICE_RESTART, "");
    assert_eq!(bed.upstream.close_websockets(&notice, Duration::ZERO, 1), 1);
    answer.notify_one();
    read_head(&mut client).await;
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xf4");
}

#[tokio::test]
async fn only_data_counts_as_activity() {
    let (closes, _closed) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), echo(closes));
    let mut socket = open(&bed).await;
    socket.send(Message::text("data")).await.unwrap();
    within(socket.next()).await.unwrap().unwrap();
    let after_data = bed.upstream.activity().last();
    // Activity is kept to the millisecond.
    tokio::time::sleep(Duration::from_millis(5)).await;
    for _ in 0..3 {
        socket.send(Message::Ping("x".into())).await.unwrap();
        assert!(within(socket.next()).await.unwrap().unwrap().is_pong());
    }
    assert_eq!(bed.upstream.activity().last(), after_data);
    // An application's own keepalive is as long as the one before it, and an empty frame is
    // nothing.
    for keepalive in ["data", "ping", ""] {
        socket.send(Message::text(keepalive)).await.unwrap();
        within(socket.next()).await.unwrap().unwrap();
    }
    assert_eq!(bed.upstream.activity().last(), after_data);
    socket.send(Message::text("more data")).await.unwrap();
    within(socket.next()).await.unwrap().unwrap();
    assert!(bed.upstream.activity().last() > after_data);
}

/// What comes back by itself again and again, greets and catches up, keeps nothing awake.
#[tokio::test]
async fn neither_a_handshake_nor_a_greeting_counts_as_activity() {
    let (closes, _closed) = mpsc::unbounded_channel();
    let greeting = Limits {
        websocket_greeting: PATIENCE,
        ..limits()
    };
    let bed = Bed::new(greeting, echo(closes));
    let before = bed.upstream.activity().last();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut socket = open(&bed).await;
    socket.send(Message::text("hello, since 17")).await.unwrap();
    within(socket.next()).await.unwrap().unwrap();
    assert_eq!(bed.upstream.activity().last(), before);
}

#[tokio::test]
async fn the_end_of_the_start_cuts_websockets() {
    let (closes, mut closed) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), echo(closes));
    let mut socket = open(&bed).await;
    socket.send(Message::text("data")).await.unwrap();
    within(socket.next()).await.unwrap().unwrap();
    bed.ended.cancel();
    match within(socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("{other:?}"),
    }
    within(closed.recv()).await.unwrap();
    eventually("it is gone", || {
        bed.upstream.activity().open_websockets() == 0
    })
    .await;
}

#[tokio::test]
async fn an_abandoned_websocket_is_closed_after_its_silence() {
    let (closes, mut closed) = mpsc::unbounded_channel();
    let bed = Bed::new(
        Limits {
            websocket_idle: Duration::from_millis(50),
            ..limits()
        },
        echo(closes),
    );
    let mut socket = open(&bed).await;
    match within(socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("{other:?}"),
    }
    assert!(!matches!(within(socket.next()).await, Some(Ok(_))));
    within(closed.recv()).await.unwrap();
}

#[tokio::test]
async fn half_closes_pass_through() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        say(&mut stream, SWITCH).await;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"raw");
        stream.write_all(b"still here").await.unwrap();
    });
    let mut client = bed.connect().await;
    say(&mut client, UPGRADE).await;
    read_head(&mut client).await;
    client.write_all(b"raw").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"still here");
}

#[tokio::test]
async fn what_an_app_says_last_arrives_although_it_takes_no_more() {
    for _ in 0..50 {
        let bed = Bed::new(limits(), |mut stream, _| async move {
            read_head(&mut stream).await;
            say(&mut stream, SWITCH).await;
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            // Closed with unread bytes, and while more come.
            stream.write_all(b"last words").await.unwrap();
        });
        let mut client = bed.connect().await;
        say(&mut client, UPGRADE).await;
        read_head(&mut client).await;
        let (mut read, mut write) = client.into_split();
        let typing =
            tokio::spawn(async move { while write.write_all(&[0; 1024]).await.is_ok() {} });
        let mut heard = Vec::new();
        within(read.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard, b"last words");
        drop(read);
        typing.abort();
    }
}

#[tokio::test]
async fn bytes_behind_the_101_are_not_lost() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        let mut all = SWITCH.as_bytes().to_vec();
        all.extend_from_slice(b"\x81\x05early");
        stream.write_all(&all).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let mut socket = open_raw(&bed).await;
    let mut frame = [0; 7];
    within(socket.read_exact(&mut frame)).await.unwrap();
    assert_eq!(&frame, b"\x81\x05early");
}

async fn open_raw(bed: &Bed) -> TcpStream {
    let mut client = bed.connect().await;
    say(&mut client, UPGRADE).await;
    let head = read_head(&mut client).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept"), "{head}");
    client
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer_and_a_false_101_is_none() {
    for (reply, status) in [
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
            "403",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "502",
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "502"),
    ] {
        let bed = Bed::new(limits(), canned(reply));
        let mut client = bed.connect().await;
        say(&mut client, UPGRADE).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        within(bed.forwarder.drained()).await;
    }
}

#[tokio::test]
async fn websockets_are_bounded() {
    let (closes, _closed) = mpsc::unbounded_channel();
    let bed = Bed::new(
        Limits {
            max_websockets: 1,
            ..limits()
        },
        echo(closes),
    );
    let first = open(&bed).await;
    let mut client = bed.connect().await;
    say(&mut client, UPGRADE).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 503"));
    drop(first);
    eventually("the first is gone", || {
        bed.upstream.activity().open_websockets() == 0
    })
    .await;
    open_raw(&bed).await;
}

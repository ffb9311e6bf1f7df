//! Replies of a hostile app, and requests that two parsers might frame differently.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::bed::*;

#[tokio::test]
async fn replies_that_are_not_sound_become_502() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(200));
    let huge = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(200 << 10));
    let endless = "A".repeat(400 << 10);
    for reply in [
        "garbage\r\n\r\n",
        "\u{0}\u{1}\u{2}",
        "HTTP/0.9 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\u{0}: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\u{0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "",
        many.as_str(),
        huge.as_str(),
        endless.as_str(),
    ] {
        let sent: Arc<str> = Arc::from(reply);
        let bed = Bed::new(limits(), move |mut stream, _| {
            let sent = Arc::clone(&sent);
            async move {
                read_head(&mut stream).await;
                let _ = stream.write_all(sent.as_bytes()).await;
            }
        });
        let answer = bed.get("/").await;
        let shown = &reply[..reply.len().min(120)];
        assert!(
            answer.starts_with("HTTP/1.1 502"),
            "{shown:?} became {answer}"
        );
        assert_eq!(bed.upstream.idle_connections(), 0, "{shown:?}");
    }
}

#[tokio::test]
async fn a_reply_before_its_request_answers_nothing() {
    for together in [false, true] {
        let bed = Bed::new(limits(), move |stream, index| {
            answers_once_too_often(stream, index, together)
        });
        for expected in ["0", "1", "1"] {
            let answer = bed.get("/").await;
            assert!(answer.ends_with(expected), "{answer}");
        }
        assert_eq!(bed.accepted(), 2, "{together}");
    }
}

#[tokio::test]
async fn a_flood_of_interim_replies_ends() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        while stream
            .write_all(b"HTTP/1.1 102 Processing\r\nA: b\r\n\r\n")
            .await
            .is_ok()
        {}
    });
    let answer = bed.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn a_truncated_answer_never_looks_whole() {
    for reply in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nBad Trailer\r\n\r\n",
    ] {
        let bed = Bed::new(limits(), move |mut stream, _| async move {
            read_head(&mut stream).await;
            say(&mut stream, reply).await;
        });
        let answer = bed.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
        let whole = answer.ends_with("0\r\n\r\n") || answer.contains("content-length: 4\r\n");
        assert!(!whole, "{answer}");
    }
}

#[tokio::test]
async fn chunk_extensions_are_bounded() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
        let chunk = format!("1;{}\r\na\r\n", "x".repeat(8000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let answer = bed.get("/").await;
    assert!(!answer.ends_with("0\r\n\r\n"), "it ended as if whole");
}

#[tokio::test]
async fn a_connection_that_closed_meanwhile_is_replaced_without_a_trace() {
    let (closed, mut closing) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), move |mut stream, _| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            say(&mut stream, OK).await;
            drop(stream);
            closed.send(()).unwrap();
        }
    });
    for request in ["GET", "GET", "DELETE", "GET"] {
        let reply = bed
            .ask(&format!(
                "{request} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(reply.ends_with("ok"), "{reply}");
        within(closing.recv()).await;
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_seen_is_repeated_only_if_that_is_safe() {
    // Each connection answers once and takes the next request to its grave.
    let (seen, mut requests) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), move |mut stream, _| {
        let seen = seen.clone();
        async move {
            for answered in [true, false] {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                seen.send(head.split(' ').next().unwrap().to_owned())
                    .unwrap();
                if answered {
                    say(&mut stream, OK).await;
                }
            }
        }
    });
    for (method, status) in [
        ("GET", "200"),
        ("GET", "200"),
        ("POST", "502"),
        ("GET", "200"),
    ] {
        let reply = bed
            .ask(&format!(
                "{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status}")),
            "{method}: {reply}"
        );
    }
    drop(bed);
    let mut all = Vec::new();
    while let Ok(method) = requests.try_recv() {
        all.push(method);
    }
    assert_eq!(all, ["GET", "GET", "GET", "POST", "GET"]);
}

#[tokio::test]
async fn requests_that_two_parsers_frame_differently_reach_the_app_as_one_or_not_at_all() {
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 35\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 35\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 30\r\nConnection: close\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\nConnection: close\nX: a\n\nGET /smuggled HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 0\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let (seen, mut heads) = mpsc::unbounded_channel();
        let bed = Bed::new(limits(), move |mut stream, _| {
            let seen = seen.clone();
            async move {
                let mut bytes = [0; 4096];
                let mut all = String::new();
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    all.push_str(&String::from_utf8_lossy(&bytes[..count]));
                    seen.send(all.clone()).unwrap();
                    if all.contains("\r\n\r\n") {
                        let _ = stream.write_all(OK.as_bytes()).await;
                    }
                }
            }
        });
        let mut client = bed.connect().await;
        say(&mut client, request).await;
        client.shutdown().await.unwrap();
        let _ = within(read_all(&mut client)).await;
        while let Ok(text) = heads.try_recv() {
            assert!(
                !text.contains("smuggled"),
                "{request:?} reached the app as {text:?}"
            );
            let lower = text.to_lowercase();
            assert!(
                !(lower.contains("content-length") && lower.contains("transfer-encoding")),
                "{text:?}"
            );
            assert!(
                !lower.contains("upgrade") && !lower.contains("http2-settings"),
                "{text:?}"
            );
        }
    }
}

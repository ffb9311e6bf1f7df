//! Connections belong to a start and die with it.

use std::sync::Arc;

use gateway::{Limits, Upstream, Upstreams};
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use types::StartId;

use crate::bed::*;

#[tokio::test]
async fn the_end_of_a_start_cuts_what_rests_what_waits_and_what_streams() {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), move |mut stream, _| {
        let ends = ends.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.starts_with("GET /stream") {
                    say(&mut stream, "HTTP/1.1 200 OK\r\n\r\nsome").await;
                } else if head.starts_with("GET /wait") {
                } else if head.is_empty() {
                    break;
                } else {
                    say(&mut stream, OK).await;
                }
            }
            ends.send(()).unwrap();
        }
    });
    let mut stream = bed.connect().await;
    say(
        &mut stream,
        "GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    read_until(&mut stream, "some").await;
    let mut wait = bed.connect().await;
    say(
        &mut wait,
        "GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    eventually("two are busy", || bed.accepted() == 2).await;
    assert!(bed.get("/").await.ends_with("ok"));
    eventually("three connections", || {
        bed.accepted() == 3 && bed.upstream.idle_connections() == 1
    })
    .await;

    bed.ended.cancel();
    for _ in 0..3 {
        within(ended.recv()).await.unwrap();
    }
    // A stream that ends with its connection must not look complete.
    let rest = within(read_all(&mut stream)).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    let answer = within(read_all(&mut wait)).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let answer = bed.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(bed.upstream.idle_connections(), 0);
    assert_eq!(bed.accepted(), 3);
}

#[tokio::test]
async fn a_connection_of_one_start_never_serves_the_next() {
    let bed = Bed::new(limits(), canned(OK));
    assert!(bed.get("/").await.ends_with("ok"));
    assert_eq!(bed.upstream.idle_connections(), 1);

    let upstreams = Upstreams::new();
    let old = bed.upstream.start().unwrap();
    upstreams.get_or_insert(old, || bed.upstream.clone());
    let next = StartId::generate();
    let make = || {
        Upstream::app(
            next,
            app_socket(bed.directory.path()),
            CancellationToken::new(),
            limits(),
        )
    };
    let second = upstreams.get_or_insert(next, make);
    assert_eq!(second.idle_connections(), 0);
    let request = http::Request::get("/")
        .body(gateway::RequestBody::empty())
        .unwrap();
    bed.forwarder
        .forward(request, &second, &rules(None))
        .await
        .unwrap();
    assert_eq!(bed.accepted(), 2);

    assert!(upstreams.get(old).is_some());
    bed.ended.cancel();
    assert!(upstreams.get(old).is_none());
    assert!(upstreams.get(next).is_some());
}

#[tokio::test]
async fn connections_that_rest_for_too_long_are_closed() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let bed = Bed::new(
        Limits {
            keep_idle: std::time::Duration::from_millis(50),
            ..limits()
        },
        move |mut stream, _| {
            let told = Arc::clone(&told);
            async move {
                read_head(&mut stream).await;
                say(&mut stream, OK).await;
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
                told.notify_one();
            }
        },
    );
    assert!(bed.get("/").await.ends_with("ok"));
    within(gone.notified()).await;
    assert_eq!(bed.upstream.idle_connections(), 0);
}

#[tokio::test]
async fn dropping_the_last_upstream_closes_its_connections() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let bed = Bed::new(limits(), move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            say(&mut stream, OK).await;
            let _ = stream.read(&mut [0; 1]).await;
            told.notify_one();
        }
    });
    let second = Upstream::app(
        StartId::generate(),
        app_socket(bed.directory.path()),
        CancellationToken::new(),
        limits(),
    );
    let request = http::Request::get("/")
        .body(gateway::RequestBody::empty())
        .unwrap();
    let response = bed
        .forwarder
        .forward(request, &second, &rules(None))
        .await
        .unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    assert_eq!(body.to_bytes(), "ok");
    assert_eq!(second.idle_connections(), 1);
    drop(second);
    within(gone.notified()).await;
}

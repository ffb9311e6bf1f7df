//! Ordinary exchanges, streams, bounds and timeouts.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use gateway::Limits;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Notify, mpsc};

use crate::bed::*;

#[tokio::test]
async fn a_request_is_cleaned_forwarded_and_its_connection_reused() {
    let (heads, mut seen) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), move |mut stream, _| {
        let heads = heads.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                heads.send(head).unwrap();
                say(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\n\
                     Set-Cookie: choir_session=x\r\nSet-Cookie: theme=dark; Path=/\r\n\
                     Location: /x\r\n\r\nok",
                )
                .await;
            }
        }
    });
    let reply = bed
        .ask(
            "GET http://evil.example/dev/a?b HTTP/1.1\r\nHost: evil.example\r\n\
             X-Choir-Role: admin\r\nAuthorization: Bearer choirpat_x\r\n\
             Cookie: choir_runtime=x; a=1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
        )
        .await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    let reply = reply.to_lowercase();
    assert!(reply.ends_with("\r\n\r\nok"), "{reply}");
    assert!(
        reply.contains("set-cookie: theme=dark; path=/dev\r\n"),
        "{reply}"
    );
    assert!(reply.contains("location: /dev/x\r\n"), "{reply}");
    assert!(
        !reply.contains("choir_session") && !reply.contains("keep-alive"),
        "{reply}"
    );

    let head = seen.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("get /a?b http/1.1\r\n"), "{head}");
    for line in [
        "host: alice.localhost:9090",
        "x-choir-role: live",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-prefix: /dev",
        "x-forwarded-proto: http",
        "cookie: a=1",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(
        !head.contains("authorization") && !head.contains("x-hop"),
        "{head}"
    );
    assert!(!head.contains("evil"), "{head}");

    for _ in 0..5 {
        assert!(bed.get("/").await.ends_with("ok"));
    }
    assert_eq!(bed.accepted(), 1);
    assert_eq!(bed.upstream.idle_connections(), 1);
}

#[tokio::test]
async fn responses_without_a_body_keep_the_connection() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        loop {
            let head = read_head(&mut stream).await;
            let reply = if head.starts_with("HEAD") {
                "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            } else if head.starts_with("GET /none") {
                "HTTP/1.1 204 No Content\r\n\r\n"
            } else if head.starts_with("GET /same") {
                "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"
            } else if head.is_empty() {
                return;
            } else {
                "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            };
            say(&mut stream, reply).await;
        }
    });
    let head = bed
        .ask("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        head.contains("content-length: 1000\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    assert!(bed.get("/none").await.starts_with("HTTP/1.1 204"));
    assert!(bed.get("/same").await.starts_with("HTTP/1.1 304"));
    assert!(bed.get("/").await.starts_with("HTTP/1.1 200"));
    assert_eq!(bed.accepted(), 1);
}

#[tokio::test]
async fn bodies_stream_up_and_down_with_their_trailers() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert!(head.contains("te: trailers"), "{head}");
        let first = read_until(&mut stream, "one\r\n").await;
        assert!(first.starts_with("3\r\n"), "{first}");
        say(
            &mut stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum, set-cookie\r\n\r\n3\r\nuno\r\n",
        )
        .await;
        // The second chunk comes only after the client has seen the answer to the first.
        let rest = read_until(&mut stream, "0\r\n\r\n").await;
        assert!(rest.contains("two"), "{rest}");
        say(
            &mut stream,
            "0\r\nX-Sum: 7\r\nSet-Cookie: choir_session=x\r\n\r\n",
        )
        .await;
    });
    let mut client = bed.connect().await;
    say(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\none\r\n",
    )
    .await;
    let head = read_until(&mut client, "uno\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    say(&mut client, "3\r\ntwo\r\n0\r\n\r\n").await;
    let rest = within(read_all(&mut client)).await.to_lowercase();
    assert!(rest.contains("0\r\nx-sum: 7\r\n"), "{rest}");
    assert!(!rest.contains("set-cookie"), "{rest}");
}

#[tokio::test]
async fn each_server_sent_event_arrives_before_the_next_is_made() {
    let (go, next) = mpsc::unbounded_channel::<()>();
    let next = Arc::new(Mutex::new(next));
    let bed = Bed::new(limits(), move |mut stream, _| {
        let next = Arc::clone(&next);
        async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
            )
            .await;
            for event in 0..20 {
                say(&mut stream, &format!("data: {event}\n\n")).await;
                if next.lock().await.recv().await.is_none() {
                    return;
                }
            }
        }
    });
    let mut client = bed.connect().await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    for event in 0..20 {
        read_until(&mut client, &format!("data: {event}\n\n")).await;
        go.send(()).unwrap();
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_app_before_and_within_the_answer() {
    for answered in [false, true] {
        let gone = Arc::new(Notify::new());
        let told = Arc::clone(&gone);
        let reached = Arc::new(Notify::new());
        let reaches = Arc::clone(&reached);
        let bed = Bed::new(limits(), move |mut stream, _| {
            let told = Arc::clone(&told);
            let reaches = Arc::clone(&reaches);
            async move {
                read_head(&mut stream).await;
                if answered {
                    say(&mut stream, "HTTP/1.1 200 OK\r\n\r\nsome").await;
                }
                reaches.notify_one();
                assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
                told.notify_one();
            }
        });
        let mut client = bed.connect().await;
        say(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        within(reached.notified()).await;
        if answered {
            read_until(&mut client, "some").await;
        }
        drop(client);
        within(gone.notified()).await;
        eventually("the exchange is over", || {
            bed.upstream.activity().open_exchanges() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_app_back() {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let bed = Bed::new(limits(), move |mut stream, _| {
        let counter = Arc::clone(&counter);
        async move {
            read_head(&mut stream).await;
            say(&mut stream, "HTTP/1.1 200 OK\r\n\r\n").await;
            let chunk = vec![0_u8; 64 << 10];
            while stream.write_all(&chunk).await.is_ok() {
                counter.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
    });
    let mut client = bed.connect().await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut client, "\r\n\r\n").await;
    // Nothing is read any more. What the app gets rid of is what kernel buffers and one
    // read buffer hold; an engine that buffered would take all of it.
    let mut last = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = written.load(Ordering::SeqCst);
        if now == last {
            break;
        }
        last = now;
        assert!(now < 64 << 20, "the engine holds {now} bytes");
    }
    drop(client);
}

#[tokio::test]
async fn expect_is_answered_here_and_not_passed_on() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(!head.contains("expect"), "{head}");
        read_until(&mut stream, "body").await;
        say(&mut stream, OK).await;
    });
    let mut client = bed.connect().await;
    say(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    let interim = read_head(&mut client).await;
    assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
    say(&mut client, "body").await;
    assert!(
        read_until(&mut client, "ok")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        )
        .await;
        // Reads on, as a polite server does, until the client gives up.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let mut client = bed.connect().await;
    say(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nsome",
    )
    .await;
    let reply = read_until(&mut client, "no").await;
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
}

async fn http2(bed: &Bed) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(bed.connect().await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http2_in_http1_out() {
    let (heads, mut seen) = mpsc::unbounded_channel();
    let bed = Bed::new(limits(), move |mut stream, _| {
        let heads = heads.clone();
        async move {
            heads.send(read_head(&mut stream).await).unwrap();
            read_until(&mut stream, "up").await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndown\r\n0\r\nX-Sum: 1\r\n\r\n",
            )
            .await;
        }
    });
    let mut sender = http2(&bed).await;
    let request = Request::post("http://evil.example/a?b")
        .header("cookie", "a=1")
        .header("cookie", "choir_session=x")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(b"up")))
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = within(response.into_body().collect()).await.unwrap();
    let mut sum = HeaderMap::new();
    sum.insert("x-sum", HeaderValue::from_static("1"));
    assert_eq!(body.trailers(), Some(&sum));
    assert_eq!(body.to_bytes(), "down");
    let head = seen.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("post /a?b http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\ncookie: a=1; b=2\r\n"), "{head}");
    assert!(
        head.contains("\r\nhost: alice.localhost:9090\r\n"),
        "{head}"
    );
    assert!(!head.contains("evil"), "{head}");
}

#[tokio::test]
async fn what_came_before_it_broke_off_reaches_a_client_of_http2() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        let part = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
        say(&mut stream, part).await;
    });
    let mut sender = http2(&bed).await;
    let request = Request::get("http://alice.localhost/").body(Full::default());
    let response = within(sender.send_request(request.unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let part = within(body.frame()).await.unwrap().unwrap();
    assert_eq!(part.into_data().unwrap(), "half");
    assert!(within(body.frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn silence_has_bounds() {
    let short = Duration::from_millis(50);
    // No answer.
    let bed = Bed::new(
        Limits {
            first_byte: short,
            ..limits()
        },
        |mut stream, _| async move {
            read_head(&mut stream).await;
            let _ = stream.read(&mut [0; 1]).await;
        },
    );
    assert!(bed.get("/").await.starts_with("HTTP/1.1 504"));

    // An answer that stops in its middle: the client must not take it for complete.
    let bed = Bed::new(
        Limits {
            response_idle: short,
            ..limits()
        },
        |mut stream, _| async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
            )
            .await;
            let _ = stream.read(&mut [0; 1]).await;
        },
    );
    let reply = bed.get("/").await;
    assert!(
        reply.contains("some") && !reply.ends_with("0\r\n\r\n"),
        "{reply}"
    );

    // A request that stops in its middle.
    let bed = Bed::new(
        Limits {
            upload_idle: short,
            ..limits()
        },
        |mut stream, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        },
    );
    let reply = bed
        .ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\nsome")
        .await;
    assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
    assert!(reply.contains("stalled"), "{reply}");
}

#[tokio::test(start_paused = true)]
async fn each_exchange_of_a_connection_has_the_whole_time_for_its_first_byte() {
    let first_byte = Duration::from_secs(10);
    let nearly = first_byte - Duration::from_secs(1);
    let bed = Bed::new(
        Limits {
            first_byte,
            ..limits()
        },
        move |mut stream, _| async move {
            for _ in 0..3 {
                read_head(&mut stream).await;
                tokio::time::sleep(nearly).await;
                say(&mut stream, OK).await;
            }
            let _ = stream.read(&mut [0; 1]).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        },
    );
    for rest in [Duration::ZERO, nearly, Duration::ZERO] {
        let reply = bed.get("/").await;
        assert!(reply.ends_with("ok"), "{reply}");
        // The time of the exchange before runs out in the middle of the second one's rest.
        tokio::time::sleep(rest).await;
    }
    let began = tokio::time::Instant::now();
    assert!(bed.get("/").await.starts_with("HTTP/1.1 504"));
    let late = began.elapsed() - first_byte;
    assert!(late < Duration::from_secs(1), "{late:?}");
    assert_eq!(bed.accepted.load(Ordering::SeqCst), 1);
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn whoever_waits_for_an_answer_is_not_woken_before_there_is_something_of_it() {
    let bed = Bed::new(limits(), canned(OK));
    assert!(bed.get("/").await.ends_with("ok"));
    let request = Request::get("/")
        .body(gateway::RequestBody::new(Full::new(Bytes::from(
            "question",
        ))))
        .unwrap();
    let rules = rules(None);
    let mut answer = pin!(bed.forwarder.forward(request, &bed.upstream, &rules));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    // The app has no turn in between.
    let polled = answer.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    assert_eq!(within(answer).await.unwrap().status(), StatusCode::OK);
    assert_eq!(bed.accepted(), 1);
}

#[tokio::test]
async fn the_first_byte_is_awaited_from_the_end_of_the_upload() {
    let bed = Bed::new(
        Limits {
            first_byte: PATIENCE,
            upload_idle: Duration::from_millis(100),
            ..limits()
        },
        |mut stream, _| async move {
            read_until(&mut stream, "body").await;
            // Longer than an upload may be silent: it is complete, so that does not count.
            tokio::time::sleep(Duration::from_millis(300)).await;
            say(&mut stream, OK).await;
        },
    );
    let reply = bed
        .ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody")
        .await;
    assert!(reply.ends_with("ok"), "{reply}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_and_without_a_length() {
    let bed = Bed::new(
        Limits {
            max_request_body: 4,
            ..limits()
        },
        |mut stream, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        },
    );
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n12345",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\n123\r\n2\r\n45\r\n0\r\n\r\n",
    ] {
        let reply = bed.ask(request).await;
        assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    }
}

#[tokio::test]
async fn exchanges_are_bounded_and_those_who_wait_are_served_in_turn() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let bed = Bed::new(
        Limits {
            max_exchanges: 1,
            max_waiting: 1,
            wait: PATIENCE,
            ..limits()
        },
        move |mut stream, _| {
            let released = Arc::clone(&released);
            async move {
                loop {
                    if read_head(&mut stream).await.is_empty() {
                        return;
                    }
                    released.notified().await;
                    say(&mut stream, OK).await;
                }
            }
        },
    );
    let mut first = bed.connect().await;
    say(&mut first, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    eventually("the first is under way", || bed.accepted() == 1).await;
    // Of two more, one waits and one is turned away; which is which does not matter.
    let (one, two) = (bed.get("/"), bed.get("/"));
    tokio::pin!(one, two);
    let (turned_away, waiting) = tokio::select! {
        reply = &mut one => (reply, two),
        reply = &mut two => (reply, one),
    };
    assert!(turned_away.starts_with("HTTP/1.1 503"), "{turned_away}");
    release.notify_one();
    read_until(&mut first, "ok").await;
    release.notify_one();
    assert!(waiting.await.ends_with("ok"));
    assert_eq!(bed.accepted(), 1);
}

#[tokio::test]
async fn service_worker_scripts_and_odd_methods_are_refused() {
    let bed = Bed::new(limits(), canned(OK));
    for (request, status) in [
        (
            "GET /sw.js HTTP/1.1\r\nHost: x\r\nService-Worker: script\r\n",
            "403",
        ),
        ("TRACE / HTTP/1.1\r\nHost: x\r\n", "405"),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n", "405"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n", "400"),
        (
            "GET /dev HTTP/1.1\r\nHost: x\r\nConnection: host\r\n",
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
            "400",
        ),
    ] {
        let mut client = bed.connect().await;
        say(&mut client, &format!("{request}\r\n")).await;
        let reply = read_head(&mut client).await;
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {reply}"
        );
    }
    assert_eq!(bed.accepted(), 0);
}

#[tokio::test]
async fn a_body_dropped_unread_closes_its_connection() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let bed = Bed::new(limits(), move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            )
            .await;
            let _ = stream.read(&mut [0; 1]).await;
            told.notify_one();
        }
    });
    let request = Request::get("/")
        .body(gateway::RequestBody::new(Empty::<Bytes>::new()))
        .unwrap();
    let response = bed
        .forwarder
        .forward(request, &bed.upstream, &rules(None))
        .await
        .unwrap();
    assert_eq!(bed.upstream.activity().open_exchanges(), 1);
    drop(response);
    within(gone.notified()).await;
    assert_eq!(bed.upstream.idle_connections(), 0);
}

#[tokio::test]
async fn an_app_that_refuses_and_hangs_up_is_still_heard() {
    let bed = Bed::new(limits(), |mut stream, _| async move {
        read_head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        )
        .await;
    });
    let mut client = bed.connect().await;
    let length = 4 << 20;
    say(
        &mut client,
        &format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"),
    )
    .await;
    let (mut read, mut write) = client.into_split();
    let upload = tokio::spawn(async move {
        // The server may stop reading; that is its right.
        let _ = write.write_all(&vec![b'x'; length]).await;
        write
    });
    let reply = read_until(&mut read, "no").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    drop(read);
    drop(within(upload).await.unwrap());
}

#[tokio::test]
async fn comments_that_keep_an_event_stream_alive_are_no_activity() {
    let (go, next) = mpsc::unbounded_channel::<&'static str>();
    let next = Arc::new(Mutex::new(next));
    let bed = Bed::new(limits(), move |mut stream, _| {
        let next = Arc::clone(&next);
        async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n",
            )
            .await;
            while let Some(event) = next.lock().await.recv().await {
                say(&mut stream, event).await;
            }
        }
    });
    let mut client = bed.connect().await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut last = bed.upstream.activity().last();
    for (event, counts) in [
        ("data: 1\n\n", true),
        (": ping\n\n", false),
        (":\n\ndata: 2\n\n", true),
    ] {
        // Activity is kept to the millisecond.
        tokio::time::sleep(Duration::from_millis(5)).await;
        go.send(event).unwrap();
        read_until(&mut client, event).await;
        let now = bed.upstream.activity().last();
        assert_eq!(now > last, counts, "{event:?}");
        last = now;
    }
}

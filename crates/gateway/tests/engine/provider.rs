//! The provider side.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use gateway::provider::{
    Outcome, PassedHeaders, Provider, ProviderConfig, ProviderConfigError, ProviderKey,
    ProviderKind, TrustRoots,
};
use gateway::{BodyError, ConnectError, ForwardError, Limits, Refusal};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use crate::bed::*;

struct Remote {
    base: String,
    accepted: Arc<AtomicUsize>,
}

fn remote<F, S>(serve: S) -> Remote
where
    S: Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let listener = TcpListener::from_std(listener).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
        }
    });
    Remote { base, accepted }
}

async fn send(
    provider: &Provider,
    request: &Request<Bytes>,
    rest: &str,
    right: &CancellationToken,
) -> Result<http::Response<gateway::provider::ReplyBody>, ForwardError> {
    let (head, body) = request.clone().into_parts();
    provider.send(&head, &body, rest, None, right).await
}

fn config(base: &str) -> ProviderConfig {
    ProviderConfig {
        name: "acme".to_owned(),
        kind: ProviderKind::OpenAi,
        base_url: base.to_owned(),
        key: Some(ProviderKey::new("sk-canary").unwrap()),
        headers_up: PassedHeaders::OfKind,
        headers_down: PassedHeaders::OfKind,
        private_addresses: true,
        whole_reply: None,
        roots: TrustRoots::WebPki,
        limits: Limits {
            max_request_body: 4 << 20,
            ..Limits::provider()
        },
    }
}

fn post(body: impl Into<Bytes>) -> Request<Bytes> {
    Request::post("http://evil.example/provider/v1/acme/chat/completions?a=b")
        .header("authorization", "Bearer choirgw_x")
        .header("cookie", "a=1")
        .header("x-forwarded-for", "1.1.1.1")
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

#[tokio::test]
async fn a_call_goes_up_with_our_key_only_and_comes_down_clean() {
    let (seen, mut heads) = mpsc::unbounded_channel();
    let remote = remote(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                seen.send(head).unwrap();
                read_until(&mut stream, "\"}").await;
                say(
                    &mut stream,
                    "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\n\
                     X-Request-Id: bad key sk-canary\r\nRetry-After: 3\r\nCF-Ray: x\r\n\r\nno",
                )
                .await;
            }
        }
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let right = CancellationToken::new();
    for _ in 0..3 {
        let reply = within(send(
            &provider,
            &post(r#"{"model":"m-1"}"#),
            "chat/completions",
            &right,
        ))
        .await
        .unwrap();
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
        let headers = reply.headers().clone();
        let mut names: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "retry-after"]);
        assert_eq!(reply.collect().await.unwrap().to_bytes(), "no");
        let head = heads.recv().await.unwrap().to_lowercase();
        assert!(
            head.starts_with("post /v1/chat/completions?a=b http/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains("\r\nauthorization: bearer sk-canary\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
        for absent in ["choirgw", "cookie", "forwarded", "evil", "accept-encoding"] {
            assert!(!head.contains(absent), "{absent}: {head}");
        }
    }
    assert_eq!(remote.accepted.load(Ordering::SeqCst), 1);
    assert!(!format!("{provider:?}").contains("canary"));
}

#[tokio::test]
async fn paths_that_leave_the_base_never_leave_the_gateway() {
    let remote = remote(|_, _| async { panic!("it was connected to") });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let right = CancellationToken::new();
    for rest in [
        "../admin",
        "//evil.example/",
        "%2e%2e/x",
        "a%2f..%2fb",
        "http://evil.example/",
    ] {
        match send(&provider, &post(""), rest, &right).await {
            Err(ForwardError::Refused(Refusal::Path)) => {}
            other => panic!("{rest}: {other:?}"),
        }
    }
    assert_eq!(remote.accepted.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let remote = remote(|mut stream, _| async move {
        read_head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        let _ = stream.read(&mut [0; 1]).await;
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let error = within(send(&provider, &post("{}"), "x", &CancellationToken::new()))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
    assert!(error.to_string().contains("redirect"), "{error}");
}

#[tokio::test]
async fn the_end_of_a_right_cuts_its_stream_and_no_other() {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let remote = remote(move |mut stream, index| {
        let ends = ends.clone();
        async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n",
            )
            .await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            ends.send(index).unwrap();
        }
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let (one, two) = (CancellationToken::new(), CancellationToken::new());
    let mut bodies = Vec::new();
    for right in [&one, &two] {
        let reply = within(send(&provider, &post("{}"), "x", right))
            .await
            .unwrap();
        let mut body = reply.into_body();
        let event = within(body.frame()).await.unwrap().unwrap();
        assert_eq!(event.into_data().unwrap(), "data: 1\n\n");
        bodies.push(body);
    }
    one.cancel();
    match within(bodies[0].frame()).await {
        Some(Err(BodyError::Ended)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(within(ended.recv()).await, Some(0));
    assert!(ended.try_recv().is_err());
    bodies.clear();
    assert_eq!(within(ended.recv()).await, Some(1));
    let error = send(&provider, &post("{}"), "x", &one).await.unwrap_err();
    assert!(matches!(error, ForwardError::Ended), "{error:?}");
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_a_connection() {
    let right = CancellationToken::new();
    let ask = async |config: ProviderConfig| {
        let provider = Provider::new(config).unwrap();
        for expected in ["0", "1", "1"] {
            let request = Request::get("/").body(Bytes::new()).unwrap();
            let reply = within(send(&provider, &request, "models", &right))
                .await
                .unwrap();
            assert_eq!(reply.collect().await.unwrap().to_bytes(), expected);
        }
    };
    for together in [false, true] {
        let remote = remote(move |stream, index| answers_once_too_often(stream, index, together));
        ask(config(&remote.base)).await;
        assert_eq!(remote.accepted.load(Ordering::SeqCst), 2, "{together}");
        let (port, accepted) =
            tls_remote(move |stream, index| answers_once_too_often(stream, index, together));
        ask(config_of_tls(&format!("https://localhost:{port}"))).await;
        assert_eq!(accepted.load(Ordering::SeqCst), 2, "TLS, {together}");
    }
}

/// The runtime cannot know yet of what has come since it last looked; the kernel does.
#[tokio::test]
async fn what_came_unasked_for_one_sandbox_answers_no_other() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const EVIL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (sent, is_sent) = std::sync::mpsc::channel();
    let remote = std::thread::spawn(move || {
        let answered = || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            stream.write_all(OK).unwrap();
            stream
        };
        let mut first = answered();
        gone.recv().unwrap();
        first.write_all(EVIL).unwrap();
        sent.send(()).unwrap();
        answered()
    });
    let provider = Provider::new(config(&base)).unwrap();
    let right = CancellationToken::new();
    let request = Request::get("/").body(Bytes::new()).unwrap();
    let (head, none) = request.into_parts();
    let ask = async |caller| {
        let reply = provider.send(&head, &none, "models", Some(caller), &right);
        let body = within(reply).await.unwrap().collect();
        within(body).await.unwrap().to_bytes()
    };
    assert_eq!(ask(SandboxId::generate()).await, "ok");
    // Until the other one asks nobody looks at what the runtime has to tell.
    go.send(()).unwrap();
    is_sent.recv().unwrap();
    assert_eq!(ask(SandboxId::generate()).await, "ok");
    drop(remote.join().unwrap());
}

#[tokio::test]
async fn a_body_over_the_limit_and_a_host_that_is_not_there_are_told_apart() {
    let remote = remote(|mut stream, _| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let right = CancellationToken::new();
    let error = send(&provider, &post(vec![b'x'; (4 << 20) + 1]), "x", &right)
        .await
        .unwrap_err();
    assert!(matches!(error, ForwardError::TooLarge { .. }), "{error:?}");

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let provider = Provider::new(config(&base)).unwrap();
    let error = send(&provider, &post("{}"), "x", &right).await.unwrap_err();
    assert!(matches!(error, ForwardError::Unreachable(_)), "{error:?}");
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_wrong_configuration_says_what_is_wrong() {
    let missing = ProviderConfig {
        roots: TrustRoots::File("/nonexistent/ca.pem".into()),
        ..config("https://127.0.0.1/v1")
    };
    assert!(matches!(
        Provider::new(missing),
        Err(ProviderConfigError::Roots { .. })
    ));
    assert!(matches!(
        Provider::new(config("http://api.example.com/v1")),
        Err(ProviderConfigError::BaseUrl { .. })
    ));
}

/// Trusted by [`config_of_tls`] alone.
const ROOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/tls/ca.pem");

fn config_of_tls(base: &str) -> ProviderConfig {
    ProviderConfig {
        roots: TrustRoots::File(ROOTS.into()),
        ..config(base)
    }
}

/// Serves each connection over TLS, with the certificate of `tls/`. Returns the port, and how
/// many connections there were.
fn tls_remote<F>(
    serve: impl Fn(TlsStream<TcpStream>, usize) -> F + Send + 'static,
) -> (u16, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let chain = CertificateDer::pem_slice_iter(include_bytes!("tls/server.pem"))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = TcpListener::from_std(listener).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            let index = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, index));
        }
    });
    (port, accepted)
}

#[tokio::test]
async fn tls_is_verified_against_the_configured_roots() {
    let (port, _) = tls_remote(|mut stream, _| async move {
        while !read_head(&mut stream).await.is_empty() {
            say(&mut stream, OK).await;
        }
    });
    let get = || Request::get("/").body(Bytes::new()).unwrap();
    let right = CancellationToken::new();
    for host in ["localhost", "127.0.0.1"] {
        let base = format!("https://{host}:{port}/v1");
        let provider = Provider::new(config_of_tls(&base)).unwrap();
        for _ in 0..2 {
            let reply = within(send(&provider, &get(), "models", &right))
                .await
                .unwrap();
            assert_eq!(reply.collect().await.unwrap().to_bytes(), "ok");
        }
        let provider = Provider::new(config(&base)).unwrap();
        let error = send(&provider, &get(), "models", &right).await.unwrap_err();
        assert!(
            matches!(&error, ForwardError::Unreachable(ConnectError::Tls { .. })),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_request_in_the_middle_of_its_upload_is_cut_with_its_right() {
    let (seen, mut reached) = mpsc::unbounded_channel();
    let ended = Arc::new(Notify::new());
    let end = Arc::clone(&ended);
    let remote = remote(move |mut stream, _| {
        let (seen, end) = (seen.clone(), Arc::clone(&end));
        async move {
            read_until(&mut stream, "first").await;
            seen.send(()).unwrap();
            // Nothing more is read until the caller's right has ended, so that the upload hangs.
            end.notified().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            seen.send(()).unwrap();
        }
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let right = CancellationToken::new();
    let mut body = b"first".to_vec();
    body.resize(4 << 20, b'x');
    let request = post(body);
    let cut = async {
        reached.recv().await.unwrap();
        right.cancel();
        ended.notify_one();
        reached.recv().await.unwrap();
    };
    let (outcome, ()) =
        within(async { tokio::join!(send(&provider, &request, "x", &right), cut) }).await;
    assert!(matches!(outcome, Err(ForwardError::Ended)), "{outcome:?}");
}

/// What a reply told at its end.
async fn end_of(
    provider: &Provider,
    read: impl AsyncFnOnce(gateway::provider::ReplyBody),
) -> gateway::provider::ReplyEnd {
    let (told, ended) = tokio::sync::oneshot::channel();
    let reply = within(send(provider, &post("{}"), "x", &CancellationToken::new()))
        .await
        .unwrap();
    let body = reply.into_body().on_end(move |end| {
        let _ = told.send(end);
    });
    read(body).await;
    within(ended).await.unwrap()
}

fn answering(answer: &'static str) -> Remote {
    remote(move |mut stream, _| async move {
        while !read_head(&mut stream).await.is_empty() {
            read_until(&mut stream, "{}").await;
            say(&mut stream, answer).await;
        }
    })
}

#[tokio::test]
async fn a_key_in_a_body_never_comes_down_whatever_the_status() {
    for head in [
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 23\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
    ] {
        let remote = remote(move |mut stream, _| async move {
            read_head(&mut stream).await;
            read_until(&mut stream, "{}").await;
            say(&mut stream, head).await;
            // The key is cut, so that no piece has the whole of it.
            for piece in ["bad key sk-c", "anary, sorr"] {
                say(&mut stream, piece).await;
                tokio::task::yield_now().await;
            }
        });
        let provider = Provider::new(config(&remote.base)).unwrap();
        let mut text = Bytes::new();
        let end = end_of(&provider, async |body| {
            text = body.collect().await.unwrap().to_bytes();
        })
        .await;
        assert_eq!(text, "bad key *********, sorr");
        assert_eq!(end.outcome, Outcome::Complete);
        assert_eq!(end.bytes, 23);
        assert!(end.first_byte.is_some());
    }
}

#[tokio::test]
async fn a_key_within_the_base64_of_bedrock_never_comes_down() {
    // `bad key sk-canary, sorry`
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n\
                  Content-Length: 44\r\n\r\n{\"bytes\":\"YmFkIGtleSBzay1jYW5hcnksIHNvcnJ5\"}";
    let remote = answering(answer);
    let mut config = config(&remote.base);
    config.kind = ProviderKind::Bedrock;
    let provider = Provider::new(config).unwrap();
    let mut text = Bytes::new();
    end_of(&provider, async |body| {
        text = body.collect().await.unwrap().to_bytes();
    })
    .await;
    assert_eq!(text, r#"{"bytes":"YmFkIGtleSB***********ksIHNvcnJ5"}"#);
}

#[tokio::test]
async fn a_reply_tells_its_usage_and_how_it_ended() {
    let whole = answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n{\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}",
    );
    let provider = Provider::new(config(&whole.base)).unwrap();
    let end = end_of(&provider, async |body| {
        body.collect().await.unwrap();
    })
    .await;
    assert_eq!(end.outcome, Outcome::Complete);
    assert_eq!(
        end.usage.map(|usage| (usage.input, usage.output)),
        Some((7, 2))
    );

    let broken = remote(|mut stream, _| async move {
        read_head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        )
        .await;
    });
    let provider = Provider::new(config(&broken.base)).unwrap();
    let end = end_of(&provider, async |body| {
        assert!(
            body.collect().await.is_err(),
            "a truncated stream looked whole"
        );
    })
    .await;
    assert_eq!((end.outcome, end.events), (Outcome::Broken, 1));

    let endless = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    let provider = Provider::new(config(&endless.base)).unwrap();
    let end = end_of(&provider, async |mut body| {
        within(body.frame()).await.unwrap().unwrap();
    })
    .await;
    assert_eq!((end.outcome, end.bytes), (Outcome::ClientGone, 2));

    let bounded = ProviderConfig {
        whole_reply: Some(std::time::Duration::from_millis(20)),
        ..config(&endless.base)
    };
    let provider = Provider::new(bounded).unwrap();
    let end = end_of(&provider, async |body| {
        let error = body.collect().await.unwrap_err();
        assert!(matches!(error, BodyError::TooLong(_)), "{error:?}");
    })
    .await;
    assert_eq!(end.outcome, Outcome::TooLong);
}

/// Sends two pieces of a reply and tells when the gateway closes the connection.
fn endless(closed: Arc<Notify>) -> Remote {
    remote(move |mut stream, _| {
        let closed = Arc::clone(&closed);
        async move {
            read_head(&mut stream).await;
            read_until(&mut stream, "{}").await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            )
            .await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            closed.notify_one();
        }
    })
}

#[tokio::test]
async fn a_reply_that_its_client_does_not_take_is_ended() {
    let short = std::time::Duration::from_millis(50);
    for (idle, whole, outcome) in [
        (Some(short), None, Outcome::ClientGone),
        (None, Some(short), Outcome::TooLong),
    ] {
        let closed = Arc::new(Notify::new());
        let remote = endless(Arc::clone(&closed));
        let mut config = config(&remote.base);
        config.whole_reply = whole;
        config.limits.response_idle = idle.unwrap_or(config.limits.response_idle);
        let provider = Provider::new(config).unwrap();
        let (told, ended) = tokio::sync::oneshot::channel();
        let right = CancellationToken::new();
        let reply = within(send(&provider, &post("{}"), "x", &right))
            .await
            .unwrap();
        let mut body = reply.into_body().on_end(move |end| {
            let _ = told.send(end);
        });
        within(body.frame()).await.unwrap().unwrap();
        // Nothing is asked for from here on, as when the client does not read.
        let end = within(ended).await.unwrap();
        assert_eq!((end.outcome, end.events), (outcome, 1));
        within(closed.notified()).await;
        assert!(!http_body::Body::is_end_stream(&body));
        let error = within(body.frame()).await.unwrap().unwrap_err();
        match outcome {
            Outcome::TooLong => assert!(matches!(error, BodyError::TooLong(_)), "{error:?}"),
            _ => assert!(matches!(error, BodyError::NotTaken(_)), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_reply_with_trailers_is_whole_and_they_stay_behind() {
    let remote = answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Key\r\n\r\n\
         5\r\nab sk\r\n0\r\nX-Key: sk-canary\r\n\r\n",
    );
    let provider = Provider::new(config(&remote.base)).unwrap();
    for _ in 0..2 {
        let end = end_of(&provider, async |body| {
            let whole = body.collect().await.unwrap();
            assert_eq!(whole.trailers(), None);
            // What may have been the beginning of a key was none.
            assert_eq!(whole.to_bytes(), "ab sk");
        })
        .await;
        assert_eq!((end.outcome, end.bytes), (Outcome::Complete, 5));
    }
    assert_eq!(remote.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reply_that_is_compressed_unasked_is_refused() {
    let remote =
        answering("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx");
    let provider = Provider::new(config(&remote.base)).unwrap();
    let error = within(send(&provider, &post("{}"), "x", &CancellationToken::new()))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn another_key_is_used_from_the_next_call_on() {
    let (seen, mut heads) = mpsc::unbounded_channel();
    let remote = remote(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                read_until(&mut stream, "{}").await;
                seen.send(head.to_lowercase()).unwrap();
                say(&mut stream, OK).await;
            }
        }
    });
    let provider = Provider::new(config(&remote.base)).unwrap();
    let right = CancellationToken::new();
    for (key, expected) in [
        (None, "bearer sk-canary"),
        (Some("sk-next"), "bearer sk-next"),
    ] {
        if let Some(key) = key {
            provider.set_key(Some(ProviderKey::new(key).unwrap()));
        }
        let reply = within(send(&provider, &post("{}"), "x", &right))
            .await
            .unwrap();
        reply.collect().await.unwrap();
        assert!(heads.recv().await.unwrap().contains(expected));
    }
    assert_eq!(
        remote.accepted.load(Ordering::SeqCst),
        1,
        "no connection was lost"
    );
}

#[tokio::test]
async fn a_name_that_stands_for_a_private_address_is_not_connected_to() {
    let remote = remote(|_, _| async { panic!("it was connected to") });
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let base = remote.base.replace("127.0.0.1", host);
        let public = ProviderConfig {
            private_addresses: false,
            ..config(&base)
        };
        let provider = match Provider::new(public) {
            Ok(provider) => provider,
            // Refused even earlier: plain HTTP with a key to what is not written as loopback.
            Err(error) => {
                assert!(
                    matches!(error, ProviderConfigError::BaseUrl { .. }),
                    "{error:?}"
                );
                continue;
            }
        };
        let error = send(&provider, &post("{}"), "x", &CancellationToken::new())
            .await
            .unwrap_err();
        let ForwardError::Unreachable(ConnectError::Tcp { source, .. }) = error else {
            panic!("{host}: {error:?}");
        };
        assert!(
            source.to_string().contains("private_network_too"),
            "{source}"
        );
    }
    assert_eq!(remote.accepted.load(Ordering::SeqCst), 0);
}

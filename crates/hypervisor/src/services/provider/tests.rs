//! Calls against providers on loopback that misbehave in every way.

mod billing;
mod places;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use types::{RequestId, SandboxId, UserId};

use super::answer::CallError;
use super::paths::Names;
use super::{Call, Called, Caller, Providers, READ_AT_ONCE, read, read_aside};
use crate::clock::Clock;
use crate::config::{Config, ProviderKind, RawConfig};
use crate::http::metrics::Metrics;
use crate::store::{Store, UsageBy};

const NOW: i64 = 1_795_348_800_000;

/// A provider that reads requests and answers each as `answers` says, in turn; the last
/// answer is repeated.
struct Upstream {
    base: String,
    requests: mpsc::UnboundedReceiver<String>,
    calls: Arc<AtomicUsize>,
    /// Connections that the gateway has ended.
    ended: mpsc::UnboundedReceiver<()>,
}

async fn upstream(answers: &'static [&'static str]) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let (seen, requests) = mpsc::unbounded_channel();
    let (over, ended) = mpsc::unbounded_channel();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, over, count) = (seen.clone(), over.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                while let Some(request) = read_request(&mut stream).await {
                    let call = count.fetch_add(1, Ordering::SeqCst);
                    let _ = seen.send(request);
                    let answer = answers[call.min(answers.len() - 1)];
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                    if answer.contains("Connection: close") {
                        return;
                    }
                }
                let _ = over.send(());
            });
        }
    });
    Upstream {
        base,
        requests,
        calls,
        ended,
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length: usize = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        if body.len() >= length {
            return Some(text);
        }
    }
}

struct Bed {
    providers: Providers,
    caller: Caller,
    store: Store,
    user: UserId,
    right: CancellationToken,
    dir: tempfile::TempDir,
}

impl Bed {
    async fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, toml);
        let store = Store::open(&dir.path().join("hypervisor.db"))
            .await
            .unwrap();
        let metrics = Arc::new(Metrics::new());
        let providers = Providers::open(&config, &store, Clock::fixed(NOW), metrics)
            .await
            .unwrap();
        let user = UserId::generate();
        let caller = providers.caller(SandboxId::generate(), user, None);
        Self {
            providers,
            caller,
            store,
            user,
            right: CancellationToken::new(),
            dir,
        }
    }

    async fn call(&self, called: Called<'_>, body: &str) -> Response {
        let request = Request::post("/")
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.send(called, request).await
    }

    async fn send(&self, called: Called<'_>, request: Request<Body>) -> Response {
        let (mut head, body) = request.into_parts();
        within(self.providers.call(
            &self.caller,
            called,
            &mut head,
            body,
            RequestId::generate(),
            &self.right,
        ))
        .await
    }

    async fn chat(&self, body: &str) -> Response {
        self.call(
            Called::Model {
                kind: ProviderKind::OpenAi,
                rest: "chat/completions",
            },
            body,
        )
        .await
    }

    async fn usage(&self, by: UsageBy) -> Vec<crate::store::UsageRow> {
        within(self.providers.flush()).await;
        let day = NOW / 86_400_000;
        self.store.usage(Some(self.user), day, by).await.unwrap()
    }
}

fn config(dir: &tempfile::TempDir, toml: &str) -> Config {
    let file = dir.path().join("choir.toml");
    std::fs::write(&file, toml).unwrap();
    Config::build(RawConfig::read(Some(&file), Vec::new()).unwrap()).unwrap()
}

fn provider(name: &str, base: &str, more: &str) -> String {
    format!(
        "[[providers]]\nname = {name:?}\nkind = \"openai\"\nbase_url = {base:?}\n\
         models = [\"gpt-x\"]\naddresses = \"private_network_too\"\n{more}\n"
    )
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it took too long")
}

async fn text(response: Response) -> String {
    let body = within(response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 65\r\n\r\n\
    {\"id\":\"x\",\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":100}}";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
    9\r\ndata: 1\n\n\r\n";

#[tokio::test]
async fn a_call_by_model_goes_to_whoever_offers_it_and_is_accounted_for() {
    let mut other = upstream(&[OK]).await;
    let mut wanted = upstream(&[OK]).await;
    let toml = provider("first", &other.base, "").replace("gpt-x", "gpt-a")
        + &provider(
            "second",
            &wanted.base,
            "aliases = { fast = \"gpt-x\" }\nprices = { gpt-x = { input = 2.5, output = 10.0 } }",
        );
    let bed = Bed::new(&toml).await;
    let body = r#"{ "messages" : [], "model" : "fast", "n":1 }"#;
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await;
    let request = within(wanted.requests.recv()).await.unwrap();
    assert!(
        request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.ends_with(r#"{ "messages" : [], "model" : "gpt-x", "n":1 }"#),
        "nothing but the name changes: {request}"
    );
    assert!(other.requests.try_recv().is_err());

    let rows = bed.usage(UsageBy::Model).await;
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(row.provider.as_deref(), Some("second"));
    assert_eq!(row.model.as_deref(), Some("gpt-x"));
    assert_eq!((row.calls, row.failures), (1, 0));
    assert_eq!((row.input_tokens, row.output_tokens), (1000, 100));
    // 1000 × 2.5 + 100 × 10 micro-dollars.
    assert_eq!(row.cost, 3_500_000);
}

#[tokio::test]
async fn what_is_not_offered_not_served_or_not_clear_never_goes_up() {
    let up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    for (body, status, code) in [
        (r#"{"model":"gpt-9"}"#, 404, "model_not_found"),
        (r#"{"messages":[]}"#, 400, "invalid_request"),
        (
            r#"{"model":"gpt-x","model":"gpt-9"}"#,
            400,
            "invalid_request",
        ),
        ("not json", 400, "invalid_request"),
    ] {
        let response = bed.chat(body).await;
        assert_eq!(response.status().as_u16(), status, "{body}");
        let document: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(document["error"]["code"], code, "{body}");
    }
    let called = Called::Provider {
        name: "acme",
        rest: "files",
    };
    let response = bed.call(called, "{}").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
    assert!(bed.usage(UsageBy::Day).await.is_empty());
}

#[tokio::test]
async fn a_provider_in_trouble_is_asked_again_and_then_another_one() {
    let bad = upstream(&[BUSY]).await;
    let good = upstream(&[OK]).await;
    let toml = provider("bad", &bad.base, "retries = 1\nfallback = [\"good\"]")
        + &provider("good", &good.base, "");
    let bed = Bed::new(&toml).await;
    let response = bed.chat(r#"{"model":"gpt-x"}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await;
    assert_eq!(bad.calls.load(Ordering::SeqCst), 2);
    assert_eq!(good.calls.load(Ordering::SeqCst), 1);
    let rows = bed.usage(UsageBy::Provider).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].provider.as_deref(), Some("good"));
}

#[tokio::test]
async fn without_another_one_the_providers_own_refusal_comes_down() {
    const LIMITED: &str =
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\nContent-Length: 4\r\n\r\nslow";
    let up = upstream(&[LIMITED]).await;
    let bed = Bed::new(&provider("acme", &up.base, "retries = 5")).await;
    let response = bed.chat(r#"{"model":"gpt-x"}"#).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "60");
    assert_eq!(text(response).await, "slow");
    assert_eq!(
        up.calls.load(Ordering::SeqCst),
        1,
        "a minute's pause is the client's to make"
    );
    let rows = bed.usage(UsageBy::Day).await;
    assert_eq!((rows[0].calls, rows[0].failures), (1, 1));
    assert_eq!((rows[0].input_tokens, rows[0].cost), (0, 0));
}

#[tokio::test]
async fn after_the_first_byte_there_is_no_other_attempt_and_no_clean_end() {
    let cut = upstream(&[
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
    ])
    .await;
    let good = upstream(&[OK]).await;
    let toml =
        provider("cut", &cut.base, "fallback = [\"good\"]") + &provider("good", &good.base, "");
    let bed = Bed::new(&toml).await;
    let response = bed.chat(r#"{"model":"gpt-x","stream":true}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
    let whole = within(response.into_body().collect()).await;
    assert!(whole.is_err(), "a truncated stream looked whole");
    assert_eq!(good.calls.load(Ordering::SeqCst), 0);
    let rows = bed.usage(UsageBy::Provider).await;
    assert_eq!((rows[0].calls, rows[0].failures), (1, 1));
    assert_eq!(rows[0].output_tokens, 1, "what came is charged");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_upstream_call_and_pays_for_what_came() {
    let mut up = upstream(&[STREAM]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let body = format!(
        r#"{{"model":"gpt-x","stream":true,"messages":"{}"}}"#,
        "x".repeat(4000)
    );
    let mut response = bed.chat(&body).await;
    within(response.body_mut().frame()).await.unwrap().unwrap();
    drop(response);
    within(up.ended.recv()).await.unwrap();
    let rows = bed.usage(UsageBy::Day).await;
    assert_eq!((rows[0].calls, rows[0].failures), (1, 1));
    assert_eq!(rows[0].output_tokens, 1);
    assert!((1000..1100).contains(&rows[0].input_tokens), "{rows:?}");
}

#[tokio::test]
async fn the_end_of_a_right_cuts_a_stream() {
    let mut up = upstream(&[STREAM]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let mut response = bed.chat(r#"{"model":"gpt-x","stream":true}"#).await;
    within(response.body_mut().frame()).await.unwrap().unwrap();
    bed.right.cancel();
    assert!(within(response.body_mut().frame()).await.unwrap().is_err());
    within(up.ended.recv()).await.unwrap();
}

#[tokio::test]
async fn what_is_open_is_waited_for_before_the_end() {
    let up = upstream(&[STREAM]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let response = bed.chat(r#"{"model":"gpt-x","stream":true}"#).await;
    let settled = bed.providers.settle();
    tokio::pin!(settled);
    let still = std::future::poll_fn(|cx| std::task::Poll::Ready(settled.as_mut().poll(cx)));
    assert!(still.await.is_pending(), "its reply was not read yet");
    drop(response);
    within(settled).await;
    let rows = bed.store.usage(None, NOW / 86_400_000, UsageBy::Day).await;
    assert_eq!(rows.unwrap()[0].calls, 1);
}

#[tokio::test]
async fn a_bound_is_told_by_its_name_and_nothing_goes_up() {
    let up = upstream(&[OK]).await;
    let toml = provider(
        "acme",
        &up.base,
        "prices = { gpt-x = { input = 1000.0, output = 1000.0 } }",
    ) + "[gateway.user]\ndaily_budget = 1.2\n";
    let bed = Bed::new(&toml).await;
    let body = r#"{"model":"gpt-x","max_tokens":100}"#;
    // 1,100 tokens at a thousandth of a dollar each.
    text(bed.chat(body).await).await;
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "daily_budget");
    assert!(text(response).await.contains("user.daily_budget"));
    assert_eq!(up.calls.load(Ordering::SeqCst), 1);

    // Another process finds in the table what was spent.
    within(bed.providers.flush()).await;
    let config = config(&bed.dir, &toml);
    let metrics = Arc::new(Metrics::new());
    let again = Providers::open(&config, &bed.store, Clock::fixed(NOW), metrics)
        .await
        .unwrap();
    let bed = Bed {
        caller: again.caller(SandboxId::generate(), bed.user, None),
        providers: again,
        ..bed
    };
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_key_is_exchanged_by_its_file_and_providers_by_a_reload() {
    let mut up = upstream(&[OK]).await;
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("key");
    std::fs::write(&file, "sk-one").unwrap();
    // Calls are made until the key is another one, which must not be one too many.
    let toml = provider("acme", &up.base, &format!("key_file = {file:?}"))
        + "[gateway.sandbox]\nrequests_per_minute = 1000000\n";
    let bed = Bed::new(&toml).await;
    let body = r#"{"model":"gpt-x"}"#;
    text(bed.chat(body).await).await;
    assert!(
        within(up.requests.recv())
            .await
            .unwrap()
            .contains("Bearer sk-one")
    );
    std::fs::write(keys.path().join("next"), "sk-another").unwrap();
    std::fs::rename(keys.path().join("next"), &file).unwrap();
    within(Box::pin(async {
        loop {
            text(bed.chat(body).await).await;
            if up
                .requests
                .recv()
                .await
                .unwrap()
                .contains("Bearer sk-another")
            {
                return;
            }
        }
    }))
    .await;

    let renamed = config(&bed.dir, &toml.replace("gpt-x", "gpt-y"));
    bed.providers.reload(&renamed).unwrap();
    assert_eq!(bed.chat(body).await.status(), StatusCode::NOT_FOUND);
    let response = bed.chat(r#"{"model":"gpt-y"}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_model_in_the_path_is_checked_and_renamed_there() {
    let mut up = upstream(&[OK]).await;
    let base = up.base.trim_end_matches("/v1").to_owned();
    let toml = format!(
        "[[providers]]\nname = \"google\"\nkind = \"gemini\"\nbase_url = {base:?}\n\
         models = [\"gemini-x\"]\naliases = {{ fast = \"gemini-x\" }}\naddresses = \"private_network_too\"\n"
    );
    let bed = Bed::new(&toml).await;
    let rest = |model: &str| format!("v1beta/models/{model}:generateContent");
    let call = async |model: &str| {
        let rest = rest(model);
        let called = Called::Provider {
            name: "google",
            rest: &rest,
        };
        bed.call(called, "{}").await
    };
    assert_eq!(call("fast").await.status(), StatusCode::OK);
    let request = within(up.requests.recv()).await.unwrap();
    assert!(
        request.contains("/v1beta/models/gemini-x:generateContent"),
        "{request}"
    );
    let response = call("gemini-9").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let document: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(document["error"]["status"], json!("NOT_FOUND"));
}

/// The thread of a lane goes on with other calls meanwhile.
#[tokio::test]
async fn what_takes_long_to_read_is_read_aside_and_to_the_same_end() {
    // So long that it cannot be over before anybody has looked.
    let filler = "x".repeat(32 * READ_AT_ONCE);
    let json = |model: &str| Bytes::from(format!(r#"{{"x":"{filler}",{model}"max_tokens":9}}"#));
    let headers = HeaderMap::new();
    for (names, body) in [
        (Names::InBody, json(r#""model":"m","#)),
        (Names::InBody, json("")),
        (Names::InBody, json(r#""model":"m","model":"n","#)),
        (Names::InPath("p%2Fq"), json("")),
        (Names::Unchecked, json("")),
    ] {
        let over = AtomicBool::new(false);
        let aside = async {
            let call = read_aside(names, &headers, body.clone(), "kept").await;
            over.store(true, Ordering::Relaxed);
            call
        };
        let beside = async { !over.load(Ordering::Relaxed) };
        let (call, goes_on) = tokio::join!(aside, beside);
        assert!(goes_on, "{names:?}");
        let seen = |call: Result<Call, CallError>| {
            call.map(|call| (call.model, call.max_output))
                .map_err(|error| error.code())
        };
        let call = call.map(|(call, kept)| {
            assert_eq!(kept, "kept");
            call
        });
        assert_eq!(seen(call), seen(read(names, &headers, &body)), "{names:?}");
    }
}

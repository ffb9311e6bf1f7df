//! What calls cost: reserved, settled and told, however they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::*;

const PRICED: &str = "prices = { gpt-x = { input = 1000.0, output = 1000.0 } }";

/// A provider of another kind than OpenAI's.
fn of_kind(kind: &str, base: &str, more: &str) -> String {
    let base = base.trim_end_matches("/v1");
    provider("acme", base, more).replace("kind = \"openai\"", &format!("kind = {kind:?}"))
}

fn named<'a>(rest: &'a str) -> Called<'a> {
    Called::Provider { name: "acme", rest }
}

impl Bed {
    async fn messages(&self, body: &str) -> Response {
        let called = Called::Model {
            kind: ProviderKind::Anthropic,
            rest: "v1/messages",
        };
        self.call(called, body).await
    }

    async fn only_row(&self) -> crate::store::UsageRow {
        let mut rows = self.usage(UsageBy::Model).await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    /// The counts of model calls that did not stay at nothing.
    fn counted(&self) -> Vec<String> {
        self.providers
            .metrics
            .text()
            .lines()
            .filter(|line| line.contains("gen_ai_client_operation_duration_seconds_count{"))
            .map(str::to_owned)
            .collect()
    }
}

/// The events of a thread: their message and their fields.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        #[derive(Default)]
        struct Fields(BTreeMap<String, String>);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name().to_owned(), format!("{value:?}"));
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
}

impl Lines {
    /// What is logged about model calls until the guard is dropped.
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn of_calls(&self) -> Vec<BTreeMap<String, String>> {
        let lines = self.0.lock().unwrap();
        lines
            .iter()
            .filter(|fields| {
                fields
                    .get("message")
                    .is_some_and(|message| message.starts_with("model call"))
            })
            .cloned()
            .collect()
    }
}

#[tokio::test]
async fn a_call_has_one_line_in_the_log_with_these_fields_and_no_others() {
    let up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, PRICED)).await;
    let (lines, _guard) = Lines::begin();
    text(bed.chat(r#"{"model":"gpt-x"}"#).await).await;
    let lines = lines.of_calls();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let fields: BTreeSet<&str> = lines[0].keys().map(String::as_str).collect();
    let expected = "sandbox_id user_id provider model status latency_ms first_byte_ms \
        input_tokens output_tokens cached_tokens cost request_id outcome message";
    assert_eq!(fields, expected.split_whitespace().collect());
    let shown = |field: &str| lines[0][field].trim_matches('"').to_owned();
    assert_eq!(shown("user_id"), bed.user.to_string());
    assert_eq!(shown("provider"), "acme");
    assert_eq!(shown("model"), "gpt-x");
    assert_eq!(shown("status"), "200");
    assert_eq!(shown("outcome"), "complete");
    assert_eq!(shown("input_tokens"), "1000");
    assert_eq!(shown("output_tokens"), "100");
    // 1,100 tokens at a thousandth of a dollar each.
    assert_eq!(shown("cost"), "1.1");
}

#[tokio::test]
async fn a_call_that_fails_and_one_that_is_refused_have_one_line_each() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let bed = Bed::new(&provider("acme", &base, "retries = 0")).await;
    let (lines, _guard) = Lines::begin();
    let response = bed.chat(r#"{"model":"gpt-x"}"#).await;
    assert!(response.status().is_server_error());
    let messages = || -> Vec<String> {
        let lines = lines.of_calls();
        lines.iter().map(|line| line["message"].clone()).collect()
    };
    assert_eq!(messages(), ["model call"]);
    bed.chat(r#"{"model":"gpt-9"}"#).await;
    assert_eq!(messages(), ["model call", "model call refused"]);
}

#[tokio::test]
async fn a_refusal_is_counted_as_no_model_call() {
    let up = upstream(&[OK]).await;
    let toml = provider("acme", &up.base, "") + "[gateway.user]\nrequests_per_minute = 1\n";
    let bed = Bed::new(&toml).await;
    let body = r#"{"model":"gpt-x"}"#;
    text(bed.chat(body).await).await;
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let counted = bed.counted();
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert!(counted[0].contains("gen_ai_provider_name=\"acme\""));
    assert!(counted[0].ends_with(" 1"), "{counted:?}");
    assert_eq!(bed.only_row().await.calls, 1);
}

const MESSAGE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\n\r\n\
    1f4\r\nevent: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":40,\"output_tokens\":1}}}\n\n\
    data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n\
    data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"b\"}}\n\n\
    data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"c\"}}\n\n\
    data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"d\"}}\n\n\
    data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"e\"}}\n\n";

#[tokio::test]
async fn a_stream_that_is_cut_costs_what_was_written_not_what_was_told_at_its_beginning() {
    let up = upstream(&[MESSAGE]).await;
    let bed = Bed::new(&of_kind("anthropic", &up.base, "")).await;
    let response = bed.messages(r#"{"model":"gpt-x","stream":true}"#).await;
    assert!(within(response.into_body().collect()).await.is_err());
    let row = bed.only_row().await;
    assert_eq!((row.input_tokens, row.output_tokens), (40, 6));
}

const CACHING: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
    data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\
    \"cache_creation_input_tokens\":7,\"cache_read_input_tokens\":4,\"cache_creation\":\
    {\"ephemeral_5m_input_tokens\":5,\"ephemeral_1h_input_tokens\":2},\"output_tokens\":1}}}\n\n\
    data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":3}}\n\n";

#[tokio::test]
async fn what_is_put_into_a_cache_costs_more_than_what_is_only_read() {
    for (more, cost) in [
        // 10 and 3 at 1, 4 at 0.1, 5 at 1.25, 2 at 2 thousandths of a dollar.
        ("", 23_650_000),
        (", cache_write = 3.0e3, cache_write_1h = 5.0e3", 38_400_000),
    ] {
        let up = upstream(&[CACHING]).await;
        let prices = format!(
            "prices = {{ gpt-x = {{ input = 1.0e3, output = 1.0e3, cached_input = 100.0{more} }} }}"
        );
        let bed = Bed::new(&of_kind("anthropic", &up.base, &prices)).await;
        text(bed.messages(r#"{"model":"gpt-x","stream":true}"#).await).await;
        let row = bed.only_row().await;
        let tokens = (row.input_tokens, row.cached_tokens, row.output_tokens);
        assert_eq!((tokens, row.cost), ((21, 4, 3), cost));
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_pays_for_what_was_read_and_written() {
    // It never answers.
    let mut up = upstream(&[""]).await;
    let bed = Bed::new(&provider("acme", &up.base, PRICED)).await;
    let body = format!(r#"{{"model":"gpt-x","x":"{}"}}"#, "x".repeat(4000));
    {
        let call = bed.chat(&body);
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it was answered"),
            request = up.requests.recv() => assert!(request.is_some()),
        }
    }
    let row = bed.only_row().await;
    assert_eq!((row.calls, row.failures), (1, 1));
    assert!((1000..1100).contains(&row.input_tokens), "{row:?}");
    assert!((1..=EXPECTED).contains(&row.output_tokens), "{row:?}");
    assert!(row.cost >= 1_000_000_000, "{row:?}");
}

const EXPECTED: u64 = 1024;

#[tokio::test]
async fn a_call_that_is_cut_before_the_answer_pays_for_what_was_read() {
    let mut up = upstream(&[""]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let body = format!(r#"{{"model":"gpt-x","x":"{}"}}"#, "x".repeat(4000));
    let (response, ()) = tokio::join!(bed.chat(&body), async {
        up.requests.recv().await.unwrap();
        bed.right.cancel();
    });
    assert!(!response.status().is_success());
    let row = bed.only_row().await;
    assert!((1000..1100).contains(&row.input_tokens), "{row:?}");
}

#[tokio::test]
async fn what_a_reply_does_not_tell_is_estimated_never_free() {
    for reply in [
        r#"{"text":"0123456789012345678901234567890123456789","usage":{"units":1}}  "#,
        r#"{"text":"0123456789012345678901234567890123456789"}                      "#,
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{reply}",
            reply.len()
        );
        let answers: &'static [&'static str] = vec![&*answer.leak()].leak();
        let up = upstream(answers).await;
        let bed = Bed::new(&provider("acme", &up.base, PRICED)).await;
        text(bed.chat(r#"{"model":"gpt-x","n":1}"#).await).await;
        let row = bed.only_row().await;
        assert_eq!(row.input_tokens, 5, "a quarter of the request: {row:?}");
        assert!(row.output_tokens >= 12, "{row:?}");
        assert!(row.cost > 0, "{row:?}");
    }
}

#[tokio::test]
async fn the_dearest_of_those_that_may_take_a_call_is_reserved() {
    let bad = upstream(&[BUSY]).await;
    let good = upstream(&[OK]).await;
    let price = |dollars: f64| {
        format!("prices = {{ gpt-x = {{ input = {dollars:?}, output = {dollars:?} }} }}")
    };
    let toml = provider(
        "cheap",
        &bad.base,
        &format!("retries = 0\nfallback = [\"dear\"]\n{}", price(1.0)),
    ) + &provider("dear", &good.base, &price(1000.0))
        + "[gateway.user]\ndaily_budget = 0.5\n";
    let bed = Bed::new(&toml).await;
    // 1,000 tokens: a thousandth of a dollar here, a dollar there.
    let response = bed.chat(r#"{"model":"gpt-x","max_tokens":1000}"#).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "daily_budget");
    assert_eq!(bad.calls.load(Ordering::SeqCst), 0);
    let response = bed.chat(r#"{"model":"gpt-x","max_tokens":100}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn every_bound_of_a_sandbox_a_user_and_a_provider_is_told_by_its_name() {
    let one = r#"{"model":"gpt-x","max_tokens":100}"#;
    for (bound, value, wait) in [
        ("requests_per_minute", "1", 1..=60),
        ("tokens_per_minute", "120", 1..=60),
        ("concurrent", "1", 1..=1),
        ("daily_budget", "0.12", 43_200..=43_200),
        ("monthly_budget", "0.12", 734_400..=734_400),
    ] {
        for kind in ["openai", "anthropic"] {
            for scope in ["sandbox", "user", "provider"] {
                // The reply takes as much as was reserved, and goes on as long as it is read.
                let up = upstream(&[SLOW]).await;
                let more = "prices = { gpt-x = { input = 1000.0, output = 1000.0 } }\n".to_owned();
                let toml = if scope == "provider" {
                    let more = format!("{more}limits = {{ {bound} = {value} }}");
                    of_kind(kind, &up.base, &more)
                } else {
                    of_kind(kind, &up.base, &more)
                        + &format!("[gateway.{scope}]\n{bound} = {value}\n")
                };
                let bed = Bed::new(&toml).await;
                let call = async || match kind {
                    "openai" => bed.chat(one).await,
                    _ => bed.messages(one).await,
                };
                let first = call().await;
                assert_eq!(first.status(), StatusCode::OK, "{scope}.{bound} {kind}");
                let refused = call().await;
                let what = format!("{scope}.{bound} {kind}");
                assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{what}");
                assert_eq!(refused.headers()["x-choir-limit"], bound, "{what}");
                let after = refused.headers()["retry-after"].to_str().unwrap();
                let after: u64 = after.parse().unwrap();
                assert!(wait.contains(&after), "{what}: {after}");
                let document: Value = serde_json::from_str(&text(refused).await).unwrap();
                let error = &document["error"];
                assert_eq!(error["type"], "rate_limit_error", "{what}");
                let message = error["message"].as_str().unwrap();
                assert!(message.contains(&format!("{scope}.{bound}")), "{message}");
                if kind == "openai" {
                    assert_eq!(error["code"], bound);
                } else {
                    assert_eq!(document["type"], "error");
                }
                assert_eq!(up.calls.load(Ordering::SeqCst), 1, "{what}");
                drop(first);
            }
        }
    }
}

const SLOW: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{";

#[tokio::test]
async fn a_reload_with_other_bounds_forgets_nothing() {
    let up = upstream(&[OK]).await;
    let with = |budget: &str| {
        let more = format!("{PRICED}\nlimits = {{ daily_budget = {budget} }}");
        provider("acme", &up.base, &more)
    };
    let bed = Bed::new(&with("5.0")).await;
    let body = r#"{"model":"gpt-x","max_tokens":100}"#;
    text(bed.chat(body).await).await;
    bed.providers
        .reload(&config(&bed.dir, &with("1.1")))
        .unwrap();
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "daily_budget");
    bed.providers
        .reload(&config(&bed.dir, &with("1.3")))
        .unwrap();
    assert_eq!(bed.chat(body).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn bounds_of_a_reply_are_read_in_every_dialect() {
    for (kind, rest, bound) in [
        (
            "gemini",
            "v1beta/models/gpt-x:generateContent",
            r#""generationConfig":{"maxOutputTokens":N}"#,
        ),
        (
            "gemini",
            "v1beta/models/gpt-x:streamGenerateContent",
            r#""generation_config":{"max_output_tokens":"N"}"#,
        ),
        (
            "bedrock",
            "model/gpt-x/converse",
            r#""inferenceConfig":{"maxTokens":N}"#,
        ),
        ("bedrock", "model/gpt-x/invoke", r#""max_tokens":N"#),
        ("bedrock", "model/gpt-x/invoke", r#""max_gen_len":N"#),
    ] {
        let up = upstream(&[OK]).await;
        let toml = of_kind(kind, &up.base, PRICED) + "[gateway.user]\ndaily_budget = 0.5\n";
        let bed = Bed::new(&toml).await;
        let body = |bound: &str| format!(r#"{{"x":[{{"a":1}}],{bound}}}"#);
        let call = async |body: String| bed.call(named(rest), &body).await;
        // 1,000 tokens cost a dollar.
        let dear = call(body(&bound.replace('N', "1000"))).await;
        assert_eq!(dear.status(), StatusCode::TOO_MANY_REQUESTS, "{bound}");
        let twice = format!("{bound},{bound}");
        let two = call(body(&twice.replace('N', "10"))).await;
        assert_eq!(two.status(), StatusCode::BAD_REQUEST, "{bound} twice");
        assert_eq!(up.calls.load(Ordering::SeqCst), 0);
        let cheap = call(body(&bound.replace('N', "10"))).await;
        assert_eq!(cheap.status(), StatusCode::OK, "{bound}");
    }
}

#[tokio::test]
async fn a_reload_takes_the_bounds_of_sandboxes_and_users_under_an_open_stream() {
    let mut up = upstream(&[STREAM, OK]).await;
    let toml = provider("acme", &up.base, PRICED);
    let bed = Bed::new(&toml).await;
    let body = r#"{"model":"gpt-x","max_tokens":100}"#;
    let mut open = bed.chat(body).await;
    within(open.body_mut().frame()).await.unwrap().unwrap();
    let large = format!(r#"{{"model":"gpt-x","max_tokens":1,"x":"{:2000}"}}"#, "");
    for (bounds, status, bound) in [
        ("[gateway.sandbox]\nconcurrent = 1", 429, "concurrent"),
        ("[gateway.user]\nconcurrent = 1", 429, "concurrent"),
        ("[gateway]\nmax_request_bytes = 1024", 413, ""),
    ] {
        let reloaded = format!("{toml}{bounds}\n");
        bed.providers.reload(&config(&bed.dir, &reloaded)).unwrap();
        let response = bed.chat(&large).await;
        assert_eq!(response.status().as_u16(), status, "{bounds}");
        if !bound.is_empty() {
            assert_eq!(response.headers()["x-choir-limit"], bound, "{bounds}");
        }
    }
    bed.providers.reload(&config(&bed.dir, &toml)).unwrap();
    assert_eq!(bed.chat(&large).await.status(), StatusCode::OK);
    let still = std::future::poll_fn(|cx| {
        let body = std::pin::Pin::new(open.body_mut());
        std::task::Poll::Ready(http_body::Body::poll_frame(body, cx))
    });
    assert!(still.await.is_pending(), "the stream goes on");
    assert!(up.ended.try_recv().is_err());
}

impl Bed {
    /// The database as it lies on the disk.
    async fn database(&self) -> sqlx::SqlitePool {
        let file = self.dir.path().join("hypervisor.db");
        let url = format!("sqlite:{}", file.display());
        sqlx::SqlitePool::connect(&url).await.unwrap()
    }
}

#[tokio::test]
async fn a_reload_forgets_calls_that_are_kept_no_longer() {
    let up = upstream(&[OK]).await;
    let toml = provider("acme", &up.base, "");
    let bed = Bed::new(&toml).await;
    text(bed.chat(r#"{"model":"gpt-x"}"#).await).await;
    within(bed.providers.flush()).await;
    let database = bed.database().await;
    // Begun a day before the clock of this test.
    let ago = NOW - 86_400_000;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "CREATE TEMP TABLE old AS SELECT * FROM provider_call_records;
         UPDATE old SET id_high = {ago} << 16;
         INSERT INTO provider_call_records SELECT * FROM old",
    )))
    .execute(&database)
    .await
    .unwrap();
    let kept = async || -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM provider_calls");
        count.fetch_one(&database).await.unwrap()
    };
    for (hours, calls) in [(48, 2), (12, 1)] {
        let toml = format!("{toml}[gateway]\nusage_kept = \"{hours}h\"\n");
        bed.providers.reload(&config(&bed.dir, &toml)).unwrap();
        within(bed.providers.flush()).await;
        assert_eq!(kept().await, calls, "{hours}");
    }
}

#[tokio::test]
async fn a_call_that_the_database_refuses_is_told_and_holds_up_no_other() {
    let up = upstream(&[OK]).await;
    let toml = provider("acme", &up.base, "");
    let bed = Bed::new(&toml.replace("gpt-x", "one\", \"bad\", \"two")).await;
    let database = bed.database().await;
    sqlx::raw_sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON provider_days WHEN NEW.model = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'on purpose'); END",
    )
    .execute(&database)
    .await
    .unwrap();
    let (lines, _guard) = Lines::begin();
    for model in ["one", "bad", "two"] {
        let body = format!(r#"{{"model":"{model}"}}"#);
        text(bed.chat(&body).await).await;
    }
    within(bed.providers.settle()).await;
    let rows = bed.usage(UsageBy::Model).await;
    let models: BTreeSet<_> = rows.iter().filter_map(|row| row.model.as_deref()).collect();
    assert_eq!(models, BTreeSet::from(["one", "two"]));
    let text = bed.providers.metrics.text();
    assert!(text.contains("choir_provider_calls_unrecorded_total 1"));
    let lines = lines.0.lock().unwrap();
    let told = lines.iter().filter(|fields| {
        fields["message"].contains("missing from the usage table")
            && fields.contains_key("request_id")
    });
    assert_eq!(told.count(), 1);
}

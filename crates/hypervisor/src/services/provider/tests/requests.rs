//! What of a call goes up, what does not, and what is answered without going up.

use super::*;

/// A provider of another kind, with the model `m-1` and a key.
fn kind(kind: &str, base: &str, dir: &tempfile::TempDir, more: &str) -> String {
    let key = dir.path().join("key");
    std::fs::write(&key, "real-key/+=").unwrap();
    let base = base.trim_end_matches("/v1");
    format!(
        "[[providers]]\nname = {kind:?}\nkind = {kind:?}\nbase_url = {base:?}\n\
         models = [\"m-1\"]\nkey_file = {key:?}\naddresses = \"private_network_too\"\n{more}\n"
    )
}

fn at<'a>(name: &'a str, rest: &'a str) -> Called<'a> {
    Called::Provider { name, rest }
}

const CHAT: Called<'_> = Called::Model {
    kind: ProviderKind::OpenAi,
    rest: "chat/completions",
};

impl Bed {
    async fn asked(
        &self,
        called: Called<'_>,
        uri: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        self.send(called, request).await
    }
}

async fn document(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

#[tokio::test]
async fn without_an_alias_a_request_goes_up_byte_for_byte() {
    let mut up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let body = "\t{\"z\" :1e0,\r\n \"mod\\u0065l\":\"gpt\\u002dx\" , \"a\": \"\\u00e9\\/é\" ,\"n\":1.0 }\n";
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let request = within(up.requests.recv()).await.unwrap();
    let (_, sent) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent, body);
}

#[tokio::test]
async fn what_was_read_as_json_goes_up_as_json() {
    let mut up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let body = r#"{"model":"gpt-x","x":"&model=other&"}"#;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let response = bed.asked(CHAT, "/v1/chat/completions", &form, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let request = within(up.requests.recv()).await.unwrap();
    assert!(
        request.contains("content-type: application/json\r\n"),
        "{request}"
    );
    assert!(!request.contains("urlencoded"), "{request}");
}

#[tokio::test]
async fn credentials_in_a_query_never_go_up() {
    let mut up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, "query = [\"expand\"]")).await;
    let body = r#"{"model":"gpt-x"}"#;
    for query in [
        "key=x",
        "beta=true&access_token=x",
        "api%5Fkey=x",
        "X-Amz-Signature=x",
        "what",
    ] {
        for called in [CHAT, at("acme", "chat/completions")] {
            let response = bed.asked(called, &format!("/x?{query}"), &[], body).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
            let document = document(response).await;
            assert_eq!(document["error"]["code"], "query_not_served", "{query}");
            let message = document["error"]["message"].as_str().unwrap();
            assert!(message.contains("providers.query"), "{message}");
        }
    }
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
    let uri = "/x?api-version=1&expand=a%20b";
    let response = bed
        .asked(at("acme", "chat/completions"), uri, &[], body)
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let request = within(up.requests.recv()).await.unwrap();
    assert!(
        request.starts_with("POST /v1/chat/completions?api-version=1&expand=a%20b HTTP/1.1\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn what_is_compressed_goes_neither_up_nor_down() {
    let up = upstream(&["HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"])
        .await;
    let bed = Bed::new(&provider("acme", &up.base, "retries = 0")).await;
    let body = r#"{"model":"gpt-x"}"#;
    for coding in ["gzip", "identity, br", "GZIP"] {
        let headers = [("content-encoding", coding)];
        let response = bed.asked(CHAT, "/", &headers, body).await;
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(text(response).await.contains("Content-Encoding"));
    }
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
    let response = bed
        .asked(CHAT, "/", &[("content-encoding", "identity")], body)
        .await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(text(response).await.contains("compressed"));
    assert_eq!(up.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_over_its_bound_does_not_bother_the_provider() {
    let up = upstream(&[OK]).await;
    let toml = provider("acme", &up.base, "") + "[gateway]\nmax_request_bytes = 1024\n";
    let bed = Bed::new(&toml).await;
    let body = format!(r#"{{"model":"gpt-x","messages":"{}"}}"#, "x".repeat(1024));
    for announced in [true, false] {
        let length = body.len().to_string();
        let headers: &[_] = if announced {
            &[("content-length", length.as_str())]
        } else {
            &[]
        };
        let response = bed.asked(CHAT, "/", headers, &body).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(text(response).await.contains("gateway.max_request_bytes"));
    }
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn configured_headers_pass_and_no_others() {
    let mut up = upstream(&[
        "HTTP/1.1 200 OK\r\nX-Trace: down\r\nX-Other: no\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok",
    ])
    .await;
    let more = "headers_up = [\"X-Request-Tag\"]\nheaders_down = [\"X-Trace\"]";
    let bed = Bed::new(&provider("acme", &up.base, more)).await;
    let headers = [
        ("x-request-tag", "up"),
        ("x-other", "secret"),
        ("x-forwarded-for", "10.0.0.1"),
        ("authorization", "Bearer choirgw_secret"),
        ("api-key", "choirgw_secret"),
    ];
    let response = bed.asked(CHAT, "/", &headers, r#"{"model":"gpt-x"}"#).await;
    assert_eq!(response.headers()["x-trace"], "down");
    assert!(!response.headers().contains_key("x-other"));
    assert!(!response.headers().contains_key("set-cookie"));
    let request = within(up.requests.recv()).await.unwrap();
    assert!(request.contains("x-request-tag: up\r\n"), "{request}");
    for absent in ["secret", "10.0.0.1", "api-key"] {
        assert!(!request.contains(absent), "{absent}: {request}");
    }
}

#[tokio::test]
async fn a_configured_list_replaces_the_headers_of_the_kind() {
    let mut up = upstream(&[
        "HTTP/1.1 200 OK\r\nX-RateLimit-Limit-Tokens: 9\r\nX-Trace: down\r\nRequest-Id: r\r\nContent-Length: 2\r\n\r\nok",
    ])
    .await;
    let more = "only_headers_up = [\"X-Request-Tag\"]\nonly_headers_down = [\"X-Trace\"]";
    let bed = Bed::new(&provider("acme", &up.base, more)).await;
    let headers = [
        ("x-request-tag", "up"),
        ("openai-beta", "narrowed"),
        ("accept", "text/narrowed"),
        ("authorization", "Bearer choirgw_secret"),
    ];
    let response = bed.asked(CHAT, "/", &headers, r#"{"model":"gpt-x"}"#).await;
    assert_eq!(response.headers()["x-trace"], "down");
    for absent in ["x-ratelimit-limit-tokens", "request-id"] {
        assert!(!response.headers().contains_key(absent), "{absent}");
    }
    assert_eq!(text(response).await, "ok");
    let request = within(up.requests.recv()).await.unwrap();
    assert!(request.contains("x-request-tag: up\r\n"), "{request}");
    for absent in ["narrowed", "secret"] {
        assert!(!request.contains(absent), "{absent}: {request}");
    }
}

fn form(parts: &[(&str, &str)]) -> String {
    let parts = parts.iter().map(|(head, content)| {
        format!("--xyz\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    });
    parts.collect::<String>() + "--xyz--\r\n"
}

#[tokio::test]
async fn a_form_is_held_to_the_models_the_bounds_and_the_budget() {
    const SAID: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"text\":\"hi\"}";
    let mut up = upstream(&[SAID, OK, SAID]).await;
    // 1,024 tokens are reserved, at ten dollars for a million.
    let more = "paths = [\"POST audio/transcriptions\"]\naliases = { ears = \"gpt-x\" }\n\
                prices = { gpt-x = { input = 1.0, output = 10.0, call = 0.5 } }";
    let toml = provider("acme", &up.base, more) + "[gateway.user]\ndaily_budget = 1.2\n";
    let bed = Bed::new(&toml).await;
    let sound = "RIFF".repeat(1000);
    let file = ("name=\"file\"; filename=\"a.wav\"", sound.as_str());
    let called = at("acme", "audio/transcriptions");
    let post = async |body: &str| {
        let kind = [("content-type", "multipart/form-data; boundary=xyz")];
        bed.asked(called, "/", &kind, body).await
    };
    for (body, status, code) in [
        (
            form(&[file, ("name=\"model\"", "gpt-9")]),
            404,
            "model_not_found",
        ),
        (form(&[file]), 400, "invalid_request"),
        (
            form(&[("name=\"model\"", "gpt-x"), ("name=\"model\"", "gpt-9")]),
            400,
            "invalid_request",
        ),
        (
            form(&[("name=\"model\"", "gpt-x"), ("name=\"fallbacks\"", "[]")]),
            400,
            "invalid_request",
        ),
        (r#"{"model":"gpt-x"}"#.to_owned(), 400, "invalid_request"),
    ] {
        let response = post(&body).await;
        assert_eq!(response.status().as_u16(), status, "{body}");
        assert_eq!(document(response).await["error"]["code"], code, "{body}");
    }
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);

    // The first reply tells nothing and costs a call, the second one tells its tokens.
    let body = form(&[file, ("name=\"model\"", "ears")]);
    for _ in 0..2 {
        let response = post(&body).await;
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
        let request = within(up.requests.recv()).await.unwrap();
        let (_, sent) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(sent, body.replace("ears", "gpt-x"));
    }
    let rows = bed.usage(UsageBy::Model).await;
    assert_eq!(rows[0].model.as_deref(), Some("gpt-x"));
    assert_eq!(rows[0].calls, 2);
    assert_eq!((rows[0].input_tokens, rows[0].output_tokens), (1000, 100));
    // Half a dollar, and 1000 × 1 + 100 × 10 micro-dollars.
    assert_eq!(rows[0].cost, 502_000_000);
    text(post(&body).await).await;
    let response = post(&body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "daily_budget");
}

#[tokio::test]
async fn a_form_without_a_price_by_the_call_is_not_free() {
    const SAID: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let up = upstream(&[SAID]).await;
    let more = "paths = [\"POST audio/transcriptions\"]\n\
                prices = { gpt-x = { input = 0.0, output = 1000.0 } }";
    // 1,024 tokens are taken to be written, at a thousand dollars for a million.
    let toml = provider("acme", &up.base, more) + "[gateway.user]\ndaily_budget = 1.5\n";
    let bed = Bed::new(&toml).await;
    let body = form(&[("name=\"model\"", "gpt-x")]);
    let kind = [("content-type", "multipart/form-data; boundary=xyz")];
    let called = at("acme", "audio/transcriptions");
    let first = bed.asked(called, "/", &kind, &body).await;
    assert_eq!(first.status(), StatusCode::OK);
    text(first).await;
    assert_eq!(bed.usage(UsageBy::Model).await[0].cost, 1_024_000_000);
    let second = bed.asked(called, "/", &kind, &body).await;
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()["x-choir-limit"], "daily_budget");
}

#[tokio::test]
async fn a_configured_path_is_served_by_those_that_have_it_however_they_are_found() {
    let (plain, mut configured) = (upstream(&[OK]).await, upstream(&[BUSY, OK]).await);
    let speech = "paths = [\"POST audio/speech\"]\nfallback = [\"other\"]\nretries = 0";
    let unchecked = "paths = [{ path = \"POST audio/speech\", model = \"unchecked\" }]";
    let toml = provider("plain", &plain.base, "").replace("gpt-x", "gpt-a")
        + &provider("acme", &configured.base, speech)
        + &provider("other", &plain.base, "");
    let bed = Bed::new(&toml).await;
    let stock = Called::Model {
        kind: ProviderKind::OpenAi,
        rest: "audio/speech",
    };
    let call = async |called, model: &str| {
        let body = format!(r#"{{"model":{model:?}}}"#);
        bed.asked(called, "/", &[], &body).await
    };
    // The path is not in the table of the fallback.
    let response = call(at("acme", "audio/speech"), "gpt-x").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let response = call(stock, "gpt-x").await;
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await;
    for _ in 0..2 {
        let request = within(configured.requests.recv()).await.unwrap();
        assert!(
            request.starts_with("POST /v1/audio/speech HTTP/1.1\r\n"),
            "{request}"
        );
    }
    let unread = provider("acme", &plain.base, unchecked);
    for (toml, called, model) in [
        (&toml, stock, "gpt-a"),
        (&toml, at("plain", "audio/speech"), "gpt-a"),
        (&unread, stock, "gpt-x"),
    ] {
        bed.providers.reload(&config(&bed.dir, toml)).unwrap();
        let response = call(called, model).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(document(response).await["error"]["code"], "path_not_served");
    }
    assert_eq!(plain.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_form_on_a_path_of_the_kind_is_no_json() {
    let up = upstream(&[OK]).await;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let kind = [("content-type", "multipart/form-data; boundary=xyz")];
    let body = form(&[("name=\"model\"", "gpt-x")]);
    let response = bed.asked(CHAT, "/", &kind, &body).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_configured_query_goes_up_however_the_provider_is_called() {
    let (mut plain, mut asked) = (upstream(&[OK]).await, upstream(&[BUSY, OK]).await);
    let toml = provider("plain", &plain.base, "").replace("gpt-x", "gpt-a")
        + &provider(
            "acme",
            &asked.base,
            "query = [\"expand\"]\nfallback = [\"other\"]\nretries = 0",
        )
        + &provider("other", &plain.base, "");
    let bed = Bed::new(&toml).await;
    let call = async |called, model: &str| {
        let body = format!(r#"{{"model":{model:?}}}"#);
        bed.asked(called, "/x?expand=1", &[], &body).await
    };
    // A fallback that does not take the query does not get the call.
    let response = call(CHAT, "gpt-x").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    for called in [CHAT, at("acme", "chat/completions")] {
        let response = call(called, "gpt-x").await;
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
    }
    for _ in 0..3 {
        let request = within(asked.requests.recv()).await.unwrap();
        assert!(
            request.starts_with("POST /v1/chat/completions?expand=1 HTTP/1.1\r\n"),
            "{request}"
        );
    }
    for called in [CHAT, at("plain", "chat/completions")] {
        let response = call(called, "gpt-a").await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            document(response).await["error"]["code"],
            "query_not_served"
        );
    }
    assert!(plain.requests.try_recv().is_err());
}

#[tokio::test]
async fn models_are_listed_from_the_table_in_the_format_of_the_api() {
    let up = upstream(&[OK]).await;
    let dir = tempfile::tempdir().unwrap();
    let alias = "aliases = { fast = \"m-1\" }";
    let toml = ["openai", "anthropic", "gemini"]
        .map(|name| kind(name, &up.base, &dir, alias))
        .concat();
    let bed = Bed::new(&toml).await;
    let get = async |name: &str, rest: &str| {
        let request = Request::get("/?client_version=1&key=x");
        let request = request.body(Body::empty()).unwrap();
        bed.send(at(name, rest), request).await
    };
    let all = document(get("openai", "models").await).await;
    assert_eq!(all["object"], "list");
    assert_eq!(all["data"][0]["id"], "m-1");
    assert_eq!(all["data"][1]["id"], "fast");
    assert_eq!(all["data"].as_array().unwrap().len(), 2);
    let all = document(get("anthropic", "v1/models").await).await;
    assert_eq!(
        (&all["first_id"], &all["last_id"]),
        (&json!("m-1"), &json!("fast"))
    );
    let all = document(get("gemini", "v1beta/models").await).await;
    assert_eq!(all["models"][0]["name"], "models/m-1");
    let one = document(get("openai", "models/m%2D1").await).await;
    assert_eq!(
        (&one["id"], &one["object"]),
        (&json!("m-1"), &json!("model"))
    );
    let response = get("anthropic", "v1/models/ft-private").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(document(response).await["error"]["type"], "not_found_error");
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_configured_path_has_its_method_and_keeps_the_check_of_the_model() {
    let mut up = upstream(&[OK]).await;
    let dir = tempfile::tempdir().unwrap();
    let paths = "paths = [\"audio/speech\", { path = \"POST files\", model = \"unchecked\" }]";
    let toml = kind("openai", &up.base, &dir, paths)
        + &kind("gemini", &up.base, &dir, "paths = [\"v1beta/models/*\"]");
    let bed = Bed::new(&toml).await;
    let form = "--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x--\r\n";
    let of_form = [("content-type", "multipart/form-data; boundary=x")];
    let of_json = [("content-type", "application/json")];

    for (name, rest, headers, body, status) in [
        (
            "openai",
            "audio/speech",
            &of_json,
            r#"{"model":"m-1"}"#,
            200,
        ),
        (
            "openai",
            "audio/speech",
            &of_json,
            r#"{"model":"m-2"}"#,
            404,
        ),
        ("openai", "audio/speech", &of_form, form, 400),
        ("openai", "files", &of_form, form, 200),
        // A model that can be read is held to the table even there.
        ("openai", "files", &of_json, r#"{"model":"m-2"}"#, 404),
        (
            "openai",
            "files",
            &of_json,
            r#"{"model":"m-2","model":"m-1"}"#,
            400,
        ),
        ("gemini", "v1beta/models/m-1:predict", &of_json, "{}", 200),
        ("gemini", "v1beta/models/m-2:predict", &of_json, "{}", 404),
        (
            "gemini",
            "v1beta/models/m-1:predict",
            &of_json,
            r#"{"model":"models/m-1"}"#,
            200,
        ),
        (
            "gemini",
            "v1beta/models/m-1:predict",
            &of_json,
            r#"{"model":"models/m-2"}"#,
            400,
        ),
        (
            "gemini",
            "v1beta/models/m-2%3AgenerateContent",
            &of_json,
            "{}",
            404,
        ),
        ("gemini", "v1beta/models/m-2", &of_json, "{}", 404),
    ] {
        let before = up.calls.load(Ordering::SeqCst);
        let response = bed.asked(at(name, rest), "/", headers, body).await;
        assert_eq!(response.status().as_u16(), status, "{rest} {body}");
        text(response).await;
        let went_up = up.calls.load(Ordering::SeqCst) - before;
        assert_eq!(went_up, usize::from(status == 200), "{rest} {body}");
    }
    while let Ok(request) = up.requests.try_recv() {
        if request.starts_with("POST /files ") {
            assert!(request.ends_with(form), "{request}");
        }
    }
    for method in ["GET", "DELETE"] {
        let request = Request::builder().method(method);
        let request = request.body(Body::empty()).unwrap();
        let response = bed.send(at("openai", "files"), request).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{method}");
    }
}

#[tokio::test]
async fn a_router_chooses_no_model_unless_the_provider_lets_it() {
    let up = upstream(&[OK]).await;
    let body = r#"{"model":"gpt-x","models":["gpt-9"]}"#;
    let bed = Bed::new(&provider("acme", &up.base, "")).await;
    let response = bed.chat(body).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(text(response).await.contains("providers.routing"));
    assert_eq!(up.calls.load(Ordering::SeqCst), 0);
    let more = "routing = \"past_the_model_list\"";
    let bed = Bed::new(&provider("acme", &up.base, more)).await;
    assert_eq!(bed.chat(body).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn gemini_gets_its_key_in_its_own_header_plain_and_streamed() {
    let mut up = upstream(&[
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"candidates\":[1]}",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
         1c\r\ndata: {\"candidates\":[1]}\r\n\r\n\r\n0\r\n\r\n",
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::new(&kind("gemini", &up.base, &dir, "")).await;
    let headers = [
        ("x-goog-api-key", "choirgw_secret"),
        ("x-goog-user-project", "theirs"),
    ];
    for (call, query, reply) in [
        ("generateContent", "", "{\"candidates\":[1]}"),
        (
            "streamGenerateContent",
            "?alt=sse",
            "data: {\"candidates\":[1]}\r\n\r\n",
        ),
    ] {
        let rest = format!("v1beta/models/m-1:{call}");
        let response = bed
            .asked(at("gemini", &rest), &format!("/{query}"), &headers, "{}")
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(text(response).await, reply);
        let request = within(up.requests.recv()).await.unwrap();
        let line = format!("POST /v1beta/models/m-1:{call}{query} HTTP/1.1\r\n");
        assert!(request.starts_with(&line), "{request}");
        assert!(
            request.contains("x-goog-api-key: real-key/+=\r\n"),
            "{request}"
        );
        for absent in ["authorization", "choirgw", "theirs"] {
            assert!(!request.contains(absent), "{absent}: {request}");
        }
    }
}

#[tokio::test]
async fn bedrock_gets_its_key_as_a_bearer_and_its_events_come_down_as_they_are() {
    // A frame of application/vnd.amazon.eventstream has lengths and sums that are no text.
    let mut up = upstream(&[
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Amzn-RequestId: r-1\r\nContent-Length: 13\r\n\r\n{\"output\":{}}",
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n\
         10\r\n\0\0\0\x10\0\0\0\0\x05\x02\x48\x2b\x7d\x18\x09\x11\r\n0\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\nX-Amzn-ErrorType: AccessDeniedException\r\nContent-Length: 36\r\n\r\n\
         {\"m\":\"key real-key\\/\\u002b= is bad\"}",
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::new(&kind("bedrock", &up.base, &dir, "")).await;
    let headers = [
        ("authorization", "AWS4-HMAC-SHA256 choirgw"),
        ("x-amz-date", "theirs"),
    ];
    for (call, reply) in [
        ("converse", &b"{\"output\":{}}"[..]),
        (
            "converse-stream",
            b"\0\0\0\x10\0\0\0\0\x05\x02\x48\x2b\x7d\x18\x09\x11",
        ),
        ("invoke", b"{\"m\":\"key ***************** is bad\"}"),
    ] {
        let rest = format!("model/m-1/{call}");
        let response = bed.asked(at("bedrock", &rest), "/", &headers, "{}").await;
        let head = response.headers().clone();
        let body = within(response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(body, reply, "{call}");
        match call {
            "converse" => assert_eq!(head["x-amzn-requestid"], "r-1"),
            "invoke" => assert_eq!(head["x-amzn-errortype"], "AccessDeniedException"),
            _ => assert_eq!(head["content-type"], "application/vnd.amazon.eventstream"),
        }
        let request = within(up.requests.recv()).await.unwrap();
        let line = format!("POST /model/m-1/{call} HTTP/1.1\r\n");
        assert!(request.starts_with(&line), "{request}");
        assert!(
            request.contains("authorization: Bearer real-key/+=\r\n"),
            "{request}"
        );
        for absent in ["AWS4", "choirgw", "theirs"] {
            assert!(!request.contains(absent), "{absent}: {request}");
        }
    }
}

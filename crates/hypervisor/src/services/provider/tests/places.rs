//! Several keys and places of one provider, their health, and the providers that stand in.

use super::*;

const CALL: &str = r#"{"model":"gpt-x"}"#;
const DEAD: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nkey";
const SLOW: &str =
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 8\r\nContent-Length: 4\r\n\r\nslow";

/// One provider with several places and their weights.
fn places(places: &[(&Upstream, u32)], more: &str) -> String {
    let places: Vec<String> = places
        .iter()
        .map(|(place, weight)| format!("{{ base_url = {:?}, weight = {weight} }}", place.base))
        .collect();
    format!(
        "[[providers]]\nname = \"acme\"\nkind = \"openai\"\nmodels = [\"gpt-x\"]\n\
         addresses = \"private_network_too\"\nupstreams = [{}]\n{more}\n",
        places.join(", ")
    )
}

fn calls(upstream: &Upstream) -> usize {
    upstream.calls.load(Ordering::SeqCst)
}

impl Bed {
    async fn answered(&self, status: u16) {
        let response = self.chat(CALL).await;
        assert_eq!(response.status().as_u16(), status);
        text(response).await;
    }

    fn later(&self, seconds: u64) {
        self.providers.clock.advance(Duration::from_secs(seconds));
    }
}

#[tokio::test]
async fn places_get_calls_by_their_weights() {
    let (one, two) = (upstream(&[OK]).await, upstream(&[OK]).await);
    let bed = Bed::new(&places(&[(&one, 3), (&two, 1)], "")).await;
    for _ in 0..8 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&one), calls(&two)), (6, 2));
}

#[tokio::test]
async fn a_dead_key_fails_no_call_and_is_left_alone_for_a_while() {
    let (dead, good) = (upstream(&[DEAD]).await, upstream(&[OK]).await);
    let bed = Bed::new(&places(&[(&dead, 3), (&good, 1)], "retries = 0")).await;
    for _ in 0..4 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&dead), calls(&good)), (1, 4));
    bed.later(60);
    for _ in 0..4 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&dead), calls(&good)), (2, 8));
}

#[tokio::test]
async fn a_key_at_its_limit_is_passed_over_at_once_for_as_long_as_it_asks() {
    let (slow, good) = (upstream(&[SLOW, OK]).await, upstream(&[OK]).await);
    let bed = Bed::new(&places(&[(&slow, 3), (&good, 1)], "")).await;
    let began = std::time::Instant::now();
    bed.answered(200).await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "it waited for a place that it did not need"
    );
    bed.later(7);
    bed.answered(200).await;
    assert_eq!((calls(&slow), calls(&good)), (1, 2));
    bed.later(2);
    bed.answered(200).await;
    assert_eq!((calls(&slow), calls(&good)), (2, 2));
}

#[tokio::test]
async fn that_one_of_several_keys_is_dead_is_not_told_while_there_is_another_answer() {
    let (slow, dead) = (upstream(&[SLOW]).await, upstream(&[DEAD]).await);
    let toml = places(&[(&slow, 1), (&dead, 1)], "retries = 0");
    let bed = Bed::new(&toml).await;
    let response = bed.chat(CALL).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "8");
    assert_eq!((calls(&slow), calls(&dead)), (1, 1));
}

#[tokio::test]
async fn three_failures_put_a_place_to_rest_and_it_is_tried_again_later() {
    let bad = upstream(&[BUSY, BUSY, BUSY, OK]).await;
    let good = upstream(&[OK]).await;
    let bed = Bed::new(&places(&[(&bad, 1), (&good, 1)], "retries = 0")).await;
    for _ in 0..10 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&bad), calls(&good)), (3, 10));
    bed.later(2);
    for _ in 0..4 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&bad), calls(&good)), (5, 12), "it is up again");
}

#[tokio::test]
async fn a_provider_whose_places_all_rest_is_passed_over_for_its_fallback() {
    let (bad, good) = (upstream(&[BUSY]).await, upstream(&[OK]).await);
    let toml = provider("bad", &bad.base, "retries = 0\nfallback = [\"good\"]")
        + &provider("good", &good.base, "");
    let bed = Bed::new(&toml).await;
    for _ in 0..6 {
        bed.answered(200).await;
    }
    assert_eq!((calls(&bad), calls(&good)), (3, 6));
    bed.later(2);
    bed.answered(200).await;
    assert_eq!((calls(&bad), calls(&good)), (4, 7));
}

#[tokio::test]
async fn what_an_answer_cost_is_taken_from_the_account_of_whoever_gave_it() {
    const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 57\r\n\r\n\
        {\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":1000}}";
    const DEAD: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nkey";
    let (dear, dead) = (upstream(&[FAILED]).await, upstream(&[DEAD]).await);
    let bounds = "retries = 0\nfallback = [\"dead\"]\nlimits = { tokens_per_minute = 2000 }";
    let toml = provider("dear", &dear.base, bounds) + &provider("dead", &dead.base, "");
    let bed = Bed::new(&toml).await;
    bed.answered(500).await;
    assert_eq!((calls(&dear), calls(&dead)), (1, 1));
    bed.answered(401).await;
    assert_eq!((calls(&dear), calls(&dead)), (1, 2), "its tokens are spent");
}

#[tokio::test]
async fn a_silent_place_is_not_waited_for_a_second_time() {
    let silent = upstream(&[""]).await;
    let good = upstream(&[OK]).await;
    let silent_one = provider("silent", &silent.base, "first_byte_timeout = \"1s\"");
    let bed = Bed::new(&silent_one).await;
    let response = bed.chat(CALL).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(calls(&silent), 1);

    let toml = silent_one + "fallback = [\"good\"]\n" + &provider("good", &good.base, "");
    let bed = Bed::new(&toml).await;
    bed.answered(200).await;
    assert_eq!((calls(&silent), calls(&good)), (2, 1));
}

#[tokio::test]
async fn a_short_pause_is_made_and_the_same_place_asked_again() {
    let up = upstream(&[
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After-Ms: 300\r\nContent-Length: 4\r\n\r\nslow",
        OK,
    ])
    .await;
    let bed = Bed::new(&provider("acme", &up.base, "retries = 1")).await;
    let began = std::time::Instant::now();
    bed.answered(200).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(calls(&up), 2);
}

#[tokio::test]
async fn an_outage_of_all_places_does_not_multiply_their_load() {
    let (one, two) = (upstream(&[BUSY]).await, upstream(&[BUSY]).await);
    let bed = Bed::new(&places(&[(&one, 1), (&two, 1)], "retries = 0")).await;
    for _ in 0..100 {
        bed.answered(503).await;
    }
    let sent = calls(&one) + calls(&two);
    // Twenty that were saved up, and a tenth of the calls.
    assert!((110..=131).contains(&sent), "{sent}");
}

#[tokio::test]
async fn when_every_provider_is_at_its_own_limit_the_soonest_one_is_named() {
    let (one, two) = (upstream(&[OK]).await, upstream(&[OK]).await);
    let toml = provider(
        "one",
        &one.base,
        "fallback = [\"two\"]\nlimits = { daily_budget = 0.0 }\n\
         prices = { gpt-x = { input = 1.0, output = 1.0 } }",
    ) + &provider("two", &two.base, "limits = { requests_per_minute = 1 }");
    let bed = Bed::new(&toml).await;
    bed.answered(200).await;
    let response = bed.chat(CALL).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "requests_per_minute");
    let seconds: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let document: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(document["error"]["code"], "requests_per_minute");
    assert_eq!(document["error"]["type"], "rate_limit_error");
    assert_eq!((calls(&one), calls(&two)), (0, 1));
}

#[tokio::test]
async fn more_calls_than_a_place_has_connections_are_told_so() {
    let up = upstream(&[STREAM]).await;
    let bed = Bed::new(&provider("acme", &up.base, "connections = 1")).await;
    let open = bed.chat(CALL).await;
    assert_eq!(open.status(), StatusCode::OK);
    // One may wait, and so it is the other one that is refused.
    let response = tokio::select! {
        response = bed.chat(CALL) => response,
        response = bed.chat(CALL) => response,
    };
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-choir-limit"], "connections");
    assert!(text(response).await.contains("provider.connections"));
    assert_eq!(calls(&up), 1);
}

#[tokio::test]
async fn the_configured_bounds_in_time_are_those_of_a_reply() {
    // Falls silent after its first event.
    let up = upstream(&[STREAM]).await;
    for (bound, expected) in [("idle_timeout", "idle"), ("whole_timeout", "too_long")] {
        let bed = Bed::new(&provider("acme", &up.base, &format!("{bound} = \"1s\""))).await;
        let response = bed.chat(r#"{"model":"gpt-x","stream":true}"#).await;
        assert_eq!(response.status(), StatusCode::OK);
        let error = within(response.into_body().collect()).await.unwrap_err();
        let said = std::error::Error::source(&error).map(ToString::to_string);
        let said = said.unwrap_or_else(|| error.to_string());
        let words = match expected {
            "idle" => "sent nothing for 1s",
            _ => "not complete after 1s",
        };
        assert!(said.contains(words), "{bound}: {said}");
    }
}

/// Answers over TLS with the certificate of the gateway's own tests.
async fn tls_upstream() -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/tests/engine/tls");
    let chain = CertificateDer::pem_file_iter(format!("{files}/server.pem"))
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{files}/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        }
    });
    format!("https://localhost:{port}/v1")
}

#[tokio::test]
async fn only_the_configured_certificates_are_trusted() {
    let base = tls_upstream().await;
    let ca = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../gateway/tests/engine/tls/ca.pem"
    );
    let trusted = provider("acme", &base, &format!("retries = 0\nca_file = {ca:?}"));
    Bed::new(&trusted).await.answered(200).await;
    let others = provider("acme", &base, "retries = 0");
    let response = Bed::new(&others).await.chat(CALL).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(text(response).await.contains("TLS"));
}

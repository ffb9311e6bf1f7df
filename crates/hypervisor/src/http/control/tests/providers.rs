//! `POST /admin/providers/{name}/test` against providers that are wrong in each way.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use http::{Method, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::world::{ORIGIN, World};

/// Answers every request, over TLS or not, until the test ends.
async fn answer(status: &'static str, body: &'static str, tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => reply(stream, status, body).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            reply(stream, status, body).await;
                        }
                    }
                }
            });
        }
    });
    port
}

async fn reply(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: &str, body: &str) {
    let mut seen = vec![0; 64 << 10];
    let _ = stream.read(&mut seen).await;
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// The provider's place, and whatever else its section says.
async fn tested(place: &str, more: &str) -> (World, Value) {
    let world = World::with(&format!(
        "[[providers]]\nname = \"acme\"\nkind = \"openai\"\nbase_url = \"{place}/v1\"\nmodels = [\"large\"]\n\
         addresses = \"private_network_too\"\nprices = {{ large = {{ input = 1.0, output = 1.0 }} }}\n{more}"
    ))
    .await;
    let alice = world.person("alice", true, "admin").await;
    let headers = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    let path = "/admin/providers/acme/test";
    let (status, _, body) = world
        .ask(Method::POST, path, &headers, Some(json!({})))
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let (status, _, usage) = world.get("/admin/usage?by=user", &headers).await;
    assert_eq!(status, StatusCode::OK, "{usage}");
    let result = json!({ "test": body["results"][0], "usage": usage["usage"] });
    (world, result)
}

/// What the test says, and that it counts as one call of the one who made it.
async fn said(place: &str, more: &str) -> String {
    let (_world, told) = tested(place, more).await;
    assert_eq!(told["test"]["ok"], false, "{told}");
    assert!(told["test"]["hint"].is_string(), "{told}");
    assert_eq!(told["usage"][0]["user"], "alice", "{told}");
    assert_eq!(told["usage"][0]["calls"], 1, "{told}");
    assert_eq!(told["usage"][0]["failures"], 1, "{told}");
    told["test"]["message"].as_str().unwrap().to_owned()
}

const GOOD: &str =
    r#"{"choices":[{}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;

#[tokio::test]
async fn a_test_of_a_provider_that_works_is_a_call_like_any_other() {
    let port = answer("200 OK", GOOD, None).await;
    let (world, told) = tested(&format!("http://127.0.0.1:{port}"), "").await;
    assert_eq!(told["test"]["ok"], true, "{told}");
    let usage = &told["usage"][0];
    assert_eq!(
        (&usage["calls"], &usage["failures"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&json!(7), &json!(2))
    );
    assert!(usage["cost_usd"].as_f64().unwrap() > 0.0, "{told}");
    let text = world.app.metrics.text();
    assert!(text.contains("choir_provider_calls_total{provider=\"acme\",status=\"2xx\"} 1"));
}

#[tokio::test]
async fn a_test_does_not_pass_the_bounds_of_the_provider() {
    let port = answer("200 OK", GOOD, None).await;
    let limits = "[providers.limits]\ntokens_per_minute = 1000\ndaily_budget = 0.0\n";
    let (_world, told) = tested(&format!("http://127.0.0.1:{port}"), limits).await;
    assert_eq!(told["test"]["ok"], false, "{told}");
    let message = told["test"]["message"].as_str().unwrap();
    assert!(message.contains("daily_budget"), "{message}");
    assert_eq!(told["usage"], json!([]), "nothing was called");
}

#[tokio::test]
async fn what_answers_and_is_no_model_does_not_pass_for_one() {
    let port = answer("200 OK", "<html>Welcome to nginx!</html>", None).await;
    let (_world, told) = tested(&format!("http://127.0.0.1:{port}"), "").await;
    assert_eq!(told["test"]["ok"], false, "{told}");
    let message = told["test"]["message"].as_str().unwrap();
    assert!(
        message.contains("not as the API of openai does"),
        "{message}"
    );

    let refused = r#"{"error":{"message":"Incorrect API key provided"}}"#;
    let port = answer("401 Unauthorized", refused, None).await;
    let message = said(&format!("http://127.0.0.1:{port}"), "").await;
    assert!(
        message.starts_with("it refuses the key (status 401): Incorrect"),
        "{message}"
    );
}

#[tokio::test]
async fn names_ports_and_silence_are_told_apart() {
    let message = said("http://no-such-host.invalid", "").await;
    assert!(
        message.starts_with("its name cannot be resolved (DNS)"),
        "{message}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let message = said(&format!("http://127.0.0.1:{port}"), "").await;
    assert!(message.starts_with("nothing listens there"), "{message}");

    // The kernel takes the connection, and nobody reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let message = said(
        &format!("http://127.0.0.1:{port}"),
        "first_byte_timeout = \"1s\"",
    )
    .await;
    assert!(
        message.starts_with("it takes the request and does not answer"),
        "{message}"
    );
    let message = said(
        &format!("https://127.0.0.1:{port}"),
        "connect_timeout = \"1s\"",
    )
    .await;
    assert!(
        message.starts_with("it does not take the connection in time"),
        "{message}"
    );
}

/// A certificate for a name, good from now for so many days, and the CA that signed it.
fn certificate(dir: &Path, name: &str, days: &str) -> TlsAcceptor {
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl")
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .expect("openssl");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let ec = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let files = |files: [&'static str; 4]| [&["req"][..], &ec, &files].concat();
    let ca = ["-subj", "/CN=CA", "-keyout", "ca.key"];
    openssl(&[&files(ca)[..], &["-x509", "-days", "1", "-out", "ca.pem"]].concat());
    let server = ["-subj", "/CN=x", "-keyout", "server.key"];
    openssl(&[&files(server)[..], &["-out", "server.csr"]].concat());
    std::fs::write(dir.join("names"), format!("subjectAltName=DNS:{name}\n")).unwrap();
    let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem -days";
    let sign: Vec<&str> = sign.split(' ').chain([days]).collect();
    openssl(&sign);
    let chain: Vec<_> = CertificateDer::pem_file_iter(dir.join("server.pem"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_told_apart() {
    for (name, days, trusted, expected) in [
        ("localhost", "1", false, "its certificate is not trusted"),
        ("localhost", "-1", true, "its certificate has expired"),
        (
            "elsewhere.example",
            "1",
            true,
            "its certificate is for another name",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let tls = certificate(dir.path(), name, days);
        let port = answer("200 OK", GOOD, Some(tls)).await;
        let trust = format!("ca_file = {:?}", dir.path().join("ca.pem"));
        let more = if trusted { trust.as_str() } else { "" };
        let message = said(&format!("https://localhost:{port}"), more).await;
        assert!(message.starts_with(expected), "{message} is not {expected}");
    }
    let dir = tempfile::tempdir().unwrap();
    let tls = certificate(dir.path(), "localhost", "1");
    let port = answer("200 OK", GOOD, Some(tls)).await;
    let trust = format!("ca_file = {:?}", dir.path().join("ca.pem"));
    let (_world, told) = tested(&format!("https://localhost:{port}"), &trust).await;
    assert_eq!(told["test"]["ok"], true, "{told}");

    let port = answer("400 Bad Request", "what?", None).await;
    let message = said(&format!("https://localhost:{port}"), "").await;
    assert!(
        message.starts_with("it does not speak TLS there"),
        "{message}"
    );
}

//! A collector of telemetry that is reached over TLS.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use system_tests::Setup;
use system_tests::certificates::Authority;
use system_tests::wait::{until, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, rustls};

/// Takes what it is told; tells its port and the head of each request.
async fn collector(certificate: &Authority) -> (u16, mpsc::UnboundedReceiver<String>) {
    let chain = CertificateDer::pem_file_iter(certificate.chain()).unwrap();
    let chain: Vec<_> = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(certificate.key()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = tell.send(String::from_utf8_lossy(&head).into_owned());
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, told)
}

fn telling(port: u16, authority: &Authority) -> Setup {
    let roots = authority.authority();
    Setup::default().config(&format!(
        "[telemetry.otlp]\nendpoint = \"https://localhost:{port}\"\nca_file = {roots:?}\ninterval = \"1s\""
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_told_over_tls_when_its_own_ca_is_named_and_only_then() {
    let (own, foreign) = (
        Authority::new(&["localhost"]),
        Authority::new(&["localhost"]),
    );
    let (port, mut told) = collector(&own).await;

    let refusing = telling(port, &foreign).start().await;
    let log = until("the refusal in the log", async || {
        let log = refusing.log();
        log.contains("does not take what it is told").then_some(log)
    })
    .await;
    for words in ["its certificate is not trusted", "telemetry.otlp.ca_file"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    drop(refusing);
    assert!(told.try_recv().is_err(), "nothing was told to a stranger");

    let trusting = telling(port, &own).start().await;
    let head = within("what the collector is told", told.recv()).await;
    let head = head.unwrap();
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(!trusting.log().contains("does not take what it is told"));
}

//! A model provider that costs next to nothing: what is measured in front of it is measured
//! alone. One thread, fixed replies.

use std::io::Write as _;
use std::path::Path;

use system_tests::certificates;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Events of a streamed reply, its usage and `[DONE]` included.
pub(crate) const EVENTS: usize = 22;

/// A request that is larger is none of ours.
const MAX_REQUEST: usize = 1 << 20;

/// Serves until it is ended, over TLS when there is a certificate and its key. Prints its port.
pub(crate) async fn run(certificate: Option<(&Path, &Path)>) {
    let tls = certificate.map(|(chain, key)| certificates::acceptor(chain, key));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    std::io::stdout().flush().expect("a reader");
    let plain = plain();
    let events = events();
    let (plain, events): (&'static [u8], &'static [Vec<u8>]) = (plain.leak(), events.leak());
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            tokio::spawn(serve(stream, plain, events));
            continue;
        };
        tokio::spawn(async move { serve(tls.accept(stream).await.ok()?, plain, events).await });
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    plain: &[u8],
    events: &[Vec<u8>],
) -> Option<()> {
    let mut seen = Vec::with_capacity(16 << 10);
    loop {
        let end = loop {
            if let Some(end) = end_of_request(&seen) {
                break end;
            }
            if seen.len() > MAX_REQUEST || stream.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        };
        let streamed = find(&seen[..end], br#""stream":true"#).is_some();
        seen.drain(..end);
        if !streamed {
            stream.write_all(plain).await.ok()?;
            stream.flush().await.ok()?;
            continue;
        }
        // Each event on its own, as a model makes them.
        for event in events {
            stream.write_all(event).await.ok()?;
            stream.flush().await.ok()?;
        }
    }
}

/// Where the first request ends, once it is whole.
fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let length: usize = text
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        })
        .unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

fn plain() -> Vec<u8> {
    let body = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1800000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog."},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":10,"total_tokens":22}}"#;
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head with the first event, and the others, each in a chunk of its own.
fn events() -> Vec<Vec<u8>> {
    let event = |delta: &str, rest: &str| {
        format!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1800000000,"model":"bench","choices":[{delta}]{rest}}}"#
        )
    };
    let mut texts: Vec<String> = (0..EVENTS - 2)
        .map(|number| {
            let delta = format!(r#"{{"index":0,"delta":{{"content":" word{number}"}}}}"#);
            event(&delta, "")
        })
        .collect();
    let usage = r#","usage":{"prompt_tokens":12,"completion_tokens":20,"total_tokens":32}"#;
    texts.push(event("", usage));
    texts.push("data: [DONE]".to_owned());
    let mut events: Vec<Vec<u8>> = texts
        .iter()
        .map(|text| format!("{:x}\r\n{text}\n\n\r\n", text.len() + 2).into_bytes())
        .collect();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    events[0].splice(0..0, head.iter().copied());
    events[EVENTS - 1].extend_from_slice(b"0\r\n\r\n");
    events
}

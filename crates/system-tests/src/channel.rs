//! Speaking on a sandbox's channel, as somebody inside would.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::Response;
use crate::wait::within;

/// A GET with this token.
///
/// # Panics
/// There is no answer.
pub async fn get(socket: &Path, target: &str, token: Option<&str>) -> Response {
    send(socket, "GET", target, token, None).await
}

/// A request with this token, and JSON.
///
/// # Panics
/// There is no answer.
pub async fn send(
    socket: &Path,
    method: &str,
    target: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Response {
    attempt(socket, method, target, token, body)
        .await
        .expect("an answer")
}

/// As [`send`], for who has to expect that the channel is cut meanwhile.
///
/// # Errors
/// The connection broke before the whole answer was there.
pub async fn attempt(
    socket: &Path,
    method: &str,
    target: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> hyper::Result<Response> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connect(socket).await))
            .await
            .expect("a handshake");
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "channel");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = match body {
        Some(json) => {
            request = request.header("content-type", "application/json");
            json.to_string()
        }
        None => String::new(),
    };
    let request = request
        .body(Full::new(Bytes::from(body)))
        .expect("a request that can be sent");
    let answer = within(target, sender.send_request(request)).await?;
    let (head, body) = answer.into_parts();
    Ok(Response {
        status: head.status.as_u16(),
        headers: head.headers,
        body: within(target, body.collect()).await?.to_bytes(),
    })
}

/// Sends bytes as they are and returns what came back until the end.
pub async fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = connect(socket).await;
    within("an answer to raw bytes", async {
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = (&mut stream).take(1 << 20).read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// Connects through a directory descriptor: the name may be longer than a socket address.
///
/// # Panics
/// Nobody listens.
pub async fn connect(socket: &Path) -> UnixStream {
    let dir =
        std::fs::File::open(socket.parent().expect("a directory")).expect("the socket's directory");
    let name = socket.file_name().expect("a name").to_string_lossy();
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
        .await
        .expect("the socket")
}

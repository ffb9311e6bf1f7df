//! A port of a workbench as a WebSocket, for `choir port forward`: binary messages are the
//! bytes of one TCP connection, a text message says that a side sends no more.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;
use types::PortControl;

use super::commands::websocket_key;
use crate::error::Error;
use crate::services::ports::Tunnel;

/// Largest message of a client.
const MAX_MESSAGE: usize = 256 << 10;

/// Bytes read from the port at once, and so the largest message to a client.
const READ_SIZE: usize = 32 << 10;

/// A silent tunnel is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(30);

/// How long a message may take to be taken by either side; a tunnel whose client stopped
/// reading does not keep its place for ever.
const SEND_WITHIN: Duration = Duration::from_secs(60);

/// Checks that a request opens a WebSocket, before a connection is made for it.
///
/// # Errors
/// It does not.
pub(crate) fn check(request: &Request<Body>) -> Result<HeaderValue, Error> {
    websocket_key(request.headers())
}

/// Answers the upgrade and carries the bytes in a task of its own. `ended` cuts it, and is
/// cancelled when it is over.
pub(crate) fn tunnel(
    mut request: Request<Body>,
    key: HeaderValue,
    tunnel: Tunnel,
    ended: CancellationToken,
) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _over = ended.clone().drop_guard();
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a tunnel's upgrade failed"),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                .await;
        carry(socket, tunnel, &ended).await;
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    response
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn carry(socket: Socket, tunnel: Tunnel, ended: &CancellationToken) {
    let Tunnel { stream, place } = tunnel;
    let (mut sink, mut source) = socket.split();
    let (mut from_port, mut to_port) = stream.into_split();
    let upward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => {
                    let sent = tokio::time::timeout(SEND_WITHIN, to_port.write_all(&bytes)).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return Some(CloseCode::Away);
                    }
                }
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(PortControl::End) => {
                        // It may be gone already; reading says so.
                        let _ = to_port.shutdown().await;
                    }
                    Err(_) => return Some(CloseCode::Unsupported),
                },
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        None
    };
    let downward = async {
        let mut buffer = vec![0; READ_SIZE];
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.reset();
        loop {
            let (message, last) = tokio::select! {
                read = from_port.read(&mut buffer) => match read {
                    Ok(0) => (end(), true),
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        (Message::Binary(Bytes::copy_from_slice(bytes)), false)
                    }
                    Err(_) => return CloseCode::Away,
                },
                _ = pings.tick() => (Message::Ping(Bytes::new()), false),
            };
            let sent = tokio::time::timeout(SEND_WITHIN, sink.send(message)).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return CloseCode::Normal;
            }
        }
    };
    // The port's end is the end of the tunnel: who answers no more has no use for more.
    let code = tokio::select! {
        code = upward => code,
        code = downward => Some(code),
        () = ended.cancelled() => Some(CloseCode::Away),
    };
    let close = code.map(|code| CloseFrame {
        code,
        reason: "".into(),
    });
    let _ = tokio::time::timeout(SEND_WITHIN, sink.send(Message::Close(close))).await;
    drop(place);
}

fn end() -> Message {
    Message::Text(
        serde_json::to_string(&PortControl::End)
            .unwrap_or_default()
            .into(),
    )
}

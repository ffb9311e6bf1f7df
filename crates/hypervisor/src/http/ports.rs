//! A port of a workbench as a WebSocket, for `choir port forward`: binary messages are the
//! bytes of one TCP connection, a text message says that a side sends no more.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;
use types::PortControl;

use super::websocket::{self, Handshake, Socket};
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

/// Answers the upgrade and carries the bytes in a task of its own. `ended` cuts it, and is
/// cancelled when it is over.
pub(crate) fn tunnel(
    request: Request<Body>,
    handshake: Handshake,
    tunnel: Tunnel,
    ended: CancellationToken,
) -> Response {
    let over = ended.clone().drop_guard();
    handshake.answer(request, MAX_MESSAGE, |socket| async move {
        carry(socket, tunnel, &ended).await;
        drop(over);
    })
}

async fn carry(socket: Socket, tunnel: Tunnel, ended: &CancellationToken) {
    let Tunnel { stream, place } = tunnel;
    let (mut sink, mut source) = socket.split();
    let (mut from_port, mut to_port) = stream.into_split();
    let upward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => {
                    match tokio::time::timeout(SEND_WITHIN, to_port.write_all(&bytes)).await {
                        Ok(Ok(())) => {}
                        // It takes no more; the other direction carries what it says last.
                        Ok(Err(_)) => return std::future::pending().await,
                        Err(_) => return CloseCode::Away,
                    }
                }
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(PortControl::End) => {
                        // It may be gone already; reading says so.
                        let _ = to_port.shutdown().await;
                    }
                    Err(_) => return CloseCode::Unsupported,
                },
                Message::Close(_) => return CloseCode::Normal,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        CloseCode::Normal
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
        code = downward => code,
        () = ended.cancelled() => CloseCode::Away,
    };
    websocket::say_goodbye(sink, source, code).await;
    drop(place);
}

fn end() -> Message {
    Message::Text(
        serde_json::to_string(&PortControl::End)
            .unwrap_or_default()
            .into(),
    )
}

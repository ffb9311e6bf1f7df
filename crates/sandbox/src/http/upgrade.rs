//! WebSockets (RFC 6455) over hyper: taken up with bounds, and closed so that what was said last
//! is read.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use types::ErrorCode;

use super::problem::ApiError;

/// How long a client may take to read the Close and to answer it.
const GOODBYE: Duration = Duration::from_secs(2);

/// A WebSocket to a client.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Bounds of a WebSocket whose messages have at most `message` bytes.
pub(crate) fn bounds(message: usize) -> WebSocketConfig {
    let mut config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(16 * 1024)
        .max_write_buffer_size(2 * message + 1024 * 1024);
    config.max_message_size = Some(message);
    config.max_frame_size = Some(message);
    config
}

/// Answers 101 and gives the socket to `serve`, which runs on its own.
///
/// # Errors
/// When the request is no WebSocket handshake, or there are too many WebSockets.
pub(crate) fn upgrade<F>(
    mut request: Request,
    places: &Arc<Semaphore>,
    config: WebSocketConfig,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = ()> + Send,
{
    let accept = handshake(request.method(), request.headers())?;
    let place = place(places)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = WebSocketStream::from_raw_socket(
                    TokioIo::new(upgraded),
                    Role::Server,
                    Some(config),
                )
                .await;
                serve(socket).await;
            }
            Err(error) => tracing::debug!(%error, "a WebSocket was not taken up"),
        }
        drop(place);
    });
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Sends the Close, and reads until the client's own (RFC 6455 §7.1.1). A connection that is
/// dropped with something unread is reset, and a client that writes to one that is gone is
/// told of that before it has read what was said last.
pub(crate) async fn say_goodbye(socket: &mut Socket, code: CloseCode, reason: &'static str) {
    let goodbye = async {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        socket.close(Some(frame)).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<_, tungstenite::Error>(())
    };
    // A client that is gone, or does not answer, has nothing more to hear.
    let _closed = tokio::time::timeout(GOODBYE, goodbye).await;
}

fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    places.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "too many WebSockets are open",
        )
        .with_hint("close some windows of the desktop")
    })
}

fn handshake(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let lists = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(wanted))
    };
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let valid = method == Method::GET
        && lists(CONNECTION, "upgrade")
        && lists(UPGRADE, "websocket")
        && headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
    key.filter(|_| valid)
        .and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok())
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::UPGRADE_REQUIRED,
                ErrorCode::BadRequest,
                "this address speaks WebSocket (RFC 6455, version 13)",
            )
        })
}

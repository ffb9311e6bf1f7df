//! The hypervisor's own WebSockets (RFC 6455) over hyper: taken up with bounds, and closed so
//! that what was said last is read.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt;
use futures_util::stream::{SplitSink, SplitStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::error::Error;

/// How long a client may take to read the Close and to answer it.
const GOODBYE: Duration = Duration::from_secs(2);

/// A WebSocket to a client.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A handshake that is as it should be, and not answered yet.
pub(crate) struct Handshake {
    accept: HeaderValue,
}

impl Handshake {
    /// Checks a request (RFC 6455 §4.2.1).
    ///
    /// # Errors
    /// It asks for no WebSocket.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let lists = |name: HeaderName, wanted: &str| {
            headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .any(|value| {
                    value
                        .split(',')
                        .any(|token| token.trim().eq_ignore_ascii_case(wanted))
                })
        };
        let version = headers
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_some_and(|value| value == "13");
        if !lists(header::CONNECTION, "upgrade") || !lists(header::UPGRADE, "websocket") || !version
        {
            return Err(Error::bad_request(
                "this is a WebSocket (RFC 6455, version 13)",
            ));
        }
        let key = headers
            .get(header::SEC_WEBSOCKET_KEY)
            .filter(|key| {
                BASE64
                    .decode(key.as_bytes())
                    .is_ok_and(|nonce| nonce.len() == 16)
            })
            .ok_or_else(|| {
                Error::bad_request("Sec-WebSocket-Key is not sixteen bytes in base64")
            })?;
        let accept =
            HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Error::internal)?;
        Ok(Self { accept })
    }

    /// Answers it, and gives the WebSocket to `serve` in a task of its own. What a client
    /// sends has at most `most` bytes a message.
    pub(crate) fn answer<F>(
        self,
        mut request: Request<Body>,
        most: usize,
        serve: impl FnOnce(Socket) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "a WebSocket was not taken up"),
            };
            let bounds = WebSocketConfig::default()
                .max_message_size(Some(most))
                .max_frame_size(Some(most));
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(bounds));
            serve(socket.await).await;
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

/// Sends the Close, and reads until the client's own (RFC 6455 §7.1.1). A connection that is
/// dropped with something unread is reset, and a client that writes to one that is gone is
/// told of that before it has read what was said last.
pub(crate) async fn say_goodbye<S>(
    sink: SplitSink<WebSocketStream<S>, Message>,
    source: SplitStream<WebSocketStream<S>>,
    code: CloseCode,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut socket) = sink.reunite(source) else {
        return;
    };
    let goodbye = async {
        let frame = CloseFrame {
            code,
            reason: "".into(),
        };
        socket.close(Some(frame)).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<_, tungstenite::Error>(())
    };
    // A client that is gone, or does not answer, has nothing more to hear.
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use http::HeaderMap;
    use tokio::io::DuplexStream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

    use super::{GOODBYE, Handshake, say_goodbye};

    async fn pair() -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (client, server) = tokio::io::duplex(1 << 10);
        (
            WebSocketStream::from_raw_socket(client, Role::Client, None).await,
            WebSocketStream::from_raw_socket(server, Role::Server, None).await,
        )
    }

    #[tokio::test]
    async fn whoever_types_on_meets_no_socket_that_is_gone() {
        let (mut client, server) = pair().await;
        let (sink, source) = server.split();
        let closing = tokio::spawn(say_goodbye(sink, source, CloseCode::Away));
        // More than fits between the two.
        for _ in 0..8 {
            client
                .send(Message::binary(vec![0; 1 << 10]))
                .await
                .unwrap();
        }
        let last = client.next().await.unwrap().unwrap();
        assert!(matches!(last, Message::Close(Some(frame)) if frame.code == CloseCode::Away));
        assert!(client.next().await.is_none());
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_a_close_is_let_go() {
        let (_client, server) = pair().await;
        let (sink, source) = server.split();
        let began = tokio::time::Instant::now();
        say_goodbye(sink, source, CloseCode::Normal).await;
        assert_eq!(began.elapsed(), GOODBYE);
    }

    #[test]
    fn a_websocket_has_to_be_asked_for_properly() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        // The example of RFC 6455 §1.3.
        assert_eq!(
            Handshake::of(&headers).unwrap().accept,
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        for name in [
            "connection",
            "upgrade",
            "sec-websocket-version",
            "sec-websocket-key",
        ] {
            let mut without = headers.clone();
            without.remove(name);
            assert!(Handshake::of(&without).is_err(), "{name}");
        }
    }
}

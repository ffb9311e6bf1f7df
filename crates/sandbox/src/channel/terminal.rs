//! The WebSocket on which a terminal's bytes come and go.

use http::header::{AUTHORIZATION, HOST};
use http::{Request, StatusCode};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use types::CommandId;

use super::{ANSWER_TIMEOUT, Channel, ChannelError, problem};

/// The channel's end of a terminal.
pub type TerminalSocket = WebSocketStream<UnixStream>;

impl Channel {
    /// Attaches to a command's output, from the byte `from` on or from the oldest kept one.
    ///
    /// # Errors
    /// When the channel fails, or there is no such command.
    pub async fn attach(
        &self,
        id: CommandId,
        from: Option<u64>,
        config: WebSocketConfig,
    ) -> Result<TerminalSocket, ChannelError> {
        let query = from.map(|from| format!("?from={from}")).unwrap_or_default();
        let request = Request::builder()
            .uri(format!("ws://choir/commands/{id}/stream{query}"))
            .header(HOST, "choir")
            .header(AUTHORIZATION, self.authorization.clone())
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .body(())
            .map_err(ChannelError::Request)?;
        let stream = self.connect().await?;
        let handshake = client_async_with_config(request, stream, Some(config));
        let (socket, _) = tokio::time::timeout(ANSWER_TIMEOUT, handshake)
            .await
            .map_err(|_| ChannelError::Timeout(ANSWER_TIMEOUT))?
            .map_err(refusal)?;
        Ok(socket)
    }
}

fn refusal(error: Error) -> ChannelError {
    match error {
        Error::Http(response) => {
            let status =
                StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
            let body = response.body().clone().unwrap_or_default();
            ChannelError::Refused(Box::new(problem(status, &body)))
        }
        Error::Io(error) => ChannelError::Connect(error),
        // It went away in the middle of its answer.
        Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            ChannelError::Connect(std::io::ErrorKind::UnexpectedEof.into())
        }
        error => ChannelError::Answer(error.to_string()),
    }
}

//! `choir run --tty`: the command gets this terminal, through a WebSocket.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use types::{CommandExit, CommandRequest, CommandView, TerminalControl};

use super::Signal;
use crate::Error;
use crate::client::{Client, Socket};
use crate::context::Context;
use crate::terminal::Terminal;

/// Starts the command in a terminal and hands this one over until it has ended.
pub(super) async fn follow(
    client: &Client,
    commands: &str,
    mut request: CommandRequest,
    context: &mut Context,
) -> Result<CommandExit, Error> {
    let enter = context.terminal.as_ref().ok_or(Error::NoTerminal(None))?;
    // Dropped on every way out, so that an error is printed to a terminal in its old mode.
    let mut terminal = enter().map_err(|error| Error::NoTerminal(Some(error)))?;
    request.terminal = Some(terminal.size);
    let started: CommandView = client.post(commands, &request).await?;
    let command = format!("{commands}/{}", started.id);
    let carried = async {
        let socket = client
            .websocket(&format!("{command}/stream?from=0"))
            .await?;
        carry(client, socket, &mut terminal, context).await
    }
    .await;
    if carried.is_err() {
        // Nobody would see it any more. That we cannot reach it is the error to tell.
        let _ = client
            .tell(&format!("{command}/signal"), &Signal { signal: "kill" })
            .await;
    }
    carried
}

async fn carry(
    client: &Client,
    mut socket: Socket,
    terminal: &mut Terminal,
    context: &mut Context,
) -> Result<CommandExit, Error> {
    let lost = |error| Error::TerminalLost {
        server: client.server().clone(),
        source: Box::new(error),
    };
    // Who takes no more may have said how it ended, which is still to be read.
    let mut takes = true;
    loop {
        tokio::select! {
            message = socket.next() => match message.transpose().map_err(lost)? {
                Some(Message::Binary(bytes)) => context.io.print_bytes(&bytes)?,
                Some(Message::Text(text)) => {
                    if let TerminalControl::Exited(exit) = client.parse(text.as_bytes())? {
                        return Ok(exit);
                    }
                }
                Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Some(Message::Close(_)) | None => {
                    return Err(Error::CutOff(client.server().clone()));
                }
            },
            Some(typed) = terminal.input.recv(), if takes => {
                takes = socket.send(Message::Binary(typed.into())).await.is_ok();
            }
            Some(size) = terminal.resizes.recv(), if takes => {
                let control = TerminalControl::Resize(size);
                // Our own type, which always has a JSON form.
                let text = serde_json::to_string(&control).unwrap_or_default();
                takes = socket.send(Message::Text(text.into())).await.is_ok();
            }
        }
    }
}

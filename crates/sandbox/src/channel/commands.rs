//! The command router's routes of the channel (arch §6).

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use types::{CommandEvent, CommandId, CommandRequest, CommandView};

use super::{ANSWER_TIMEOUT, Channel, ChannelError, accepted};

/// Longest line of a command's event stream.
pub const MAX_EVENT_LINE: usize = 1024 * 1024;

/// The events of one command. Dropping it ends the command.
#[derive(Debug)]
pub struct CommandStream {
    body: Incoming,
    buffer: BytesMut,
}

impl CommandStream {
    /// The next event; `None` after the last. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the stream breaks or a line is not an event or too long.
    pub async fn next(&mut self) -> Result<Option<CommandEvent>, ChannelError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| ChannelError::Answer(error.to_string()));
            }
            if self.buffer.len() > MAX_EVENT_LINE {
                return Err(ChannelError::Answer("a line that does not end".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ChannelError::Transport)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

impl Channel {
    /// Runs a command; its events stream.
    ///
    /// # Errors
    /// When the channel fails or the router refuses.
    pub async fn run_command(
        &self,
        command: &CommandRequest,
    ) -> Result<CommandStream, ChannelError> {
        let request = self.request(Method::POST, "/commands", Some(encode(command)?))?;
        let response = accepted(self.send(request, ANSWER_TIMEOUT).await?).await?;
        Ok(CommandStream {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    /// Starts a command that outlives the request: a terminal or a service.
    ///
    /// # Errors
    /// When the channel fails or the router refuses.
    pub async fn start_command(
        &self,
        command: &CommandRequest,
    ) -> Result<CommandView, ChannelError> {
        self.json(Method::POST, "/commands", Some(encode(command)?))
            .await
    }

    /// The sandbox's commands, ended ones included as long as they are kept.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn commands(&self) -> Result<Vec<CommandView>, ChannelError> {
        #[derive(Deserialize)]
        struct Listing {
            commands: Vec<CommandView>,
        }
        let listing: Listing = self.json(Method::GET, "/commands", None).await?;
        Ok(listing.commands)
    }

    /// Kills a command and everything that it started.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn kill_command(&self, id: CommandId) -> Result<(), ChannelError> {
        let body = Bytes::from(json!({"signal": "kill"}).to_string());
        let request = self.request(Method::POST, &format!("/commands/{id}/signal"), Some(body))?;
        accepted(self.send(request, ANSWER_TIMEOUT).await?)
            .await
            .map(drop)
    }
}

fn encode(command: &CommandRequest) -> Result<Bytes, ChannelError> {
    serde_json::to_vec(command)
        .map(Bytes::from)
        .map_err(|error| ChannelError::Answer(error.to_string()))
}

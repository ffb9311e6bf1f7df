//! The command router's routes of the channel (arch §6).

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use types::{CommandId, CommandRequest, CommandView, PortsView};

use super::{ANSWER_TIMEOUT, Channel, ChannelError, accepted};

impl Channel {
    /// Starts a command that outlives the request: a terminal, a service, or one that its
    /// caller comes back for.
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

    /// The ports on which commands listen.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn ports(&self) -> Result<PortsView, ChannelError> {
        self.json(Method::GET, "/ports", None).await
    }

    /// Kills a command and everything that it started.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn kill_command(&self, id: CommandId) -> Result<(), ChannelError> {
        self.signal(id, "kill").await
    }

    /// Asks a command, and everything that it started, to end.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn end_command(&self, id: CommandId) -> Result<(), ChannelError> {
        self.signal(id, "term").await
    }

    async fn signal(&self, id: CommandId, signal: &str) -> Result<(), ChannelError> {
        let body = Bytes::from(json!({"signal": signal}).to_string());
        let request = self.request(Method::POST, &format!("/commands/{id}/signal"), Some(body))?;
        accepted(self.send(request, ANSWER_TIMEOUT).await?)
            .await
            .map(drop)
    }

    /// Lets go of an ended command and its output.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn forget_command(&self, id: CommandId) -> Result<(), ChannelError> {
        let request = self.request(Method::DELETE, &format!("/commands/{id}"), None)?;
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

//! Keeps the gateway token alive: it is dead 15 minutes after its last renewal (arch §5).

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Channel, ChannelError};

/// Time between renewals: two may fail before the token dies.
pub const RENEW_EVERY: Duration = Duration::from_secs(300);
/// Time until the next try after a renewal failed.
const RETRY_AFTER: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Renewed {
    expires_in_seconds: u64,
}

impl Channel {
    async fn renew(&self) -> Result<u64, ChannelError> {
        let renewed: Renewed = self.json(Method::POST, "/token/renew", None).await?;
        Ok(renewed.expires_in_seconds)
    }
}

/// Renews the token at once and then every `every` until cancelled. A failure is logged
/// and tried again sooner: the hypervisor may be restarting.
pub async fn keep_token(channel: Channel, every: Duration, cancelled: CancellationToken) {
    loop {
        let wait = match channel.renew().await {
            // Never longer than half of what is left, should the hypervisor shorten it.
            Ok(seconds) => every.min(Duration::from_secs((seconds / 2).max(1))),
            Err(error) => {
                tracing::warn!(%error, "the gateway token was not renewed; trying again soon");
                RETRY_AFTER.min(every)
            }
        };
        tokio::select! {
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

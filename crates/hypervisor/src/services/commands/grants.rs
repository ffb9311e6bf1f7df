//! Runners with a channel of their own: served while they run, found again after a restart
//! of the hypervisor.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use crypto::TokenHash;
use runtime::Instance;
use serde::{Deserialize, Serialize};
use types::{CommandId, CommandState};

use super::leash::wait_for_exit;
use crate::actor::Grant;
use crate::error::Error;
use crate::http::channel;
use crate::services::sandboxes::Plane;

/// What a later hypervisor has to know of a runner's channel. Lies in a file: hashes only.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Of the token that it shows, when it was given one.
    pub(super) token_hash: TokenHash,
    pub(super) grant: Grant,
}

/// Keeps the hash of a runner's token, and what it was granted, where a later hypervisor finds it: beside the start's
/// other records, which no sandbox sees and which go with the start.
///
/// # Errors
/// It cannot be written; then the runner must not be started.
pub(super) async fn keep(
    plane: &Plane,
    instance: &Instance,
    id: CommandId,
    kept: Kept,
) -> Result<(), Error> {
    let file = file(plane, instance, id);
    if let Some(dir) = file.parent() {
        tokio::fs::create_dir_all(dir)
            .await
            .map_err(Error::internal)?;
    }
    let text = serde_json::to_vec(&kept).map_err(Error::internal)?;
    tokio::fs::write(file, text).await.map_err(Error::internal)
}

fn file(plane: &Plane, instance: &Instance, id: CommandId) -> PathBuf {
    let run = plane.config.data_dir.join("run");
    run.join(instance.start_id.to_string())
        .join("grants")
        .join(id.to_string())
}

/// Serves a runner's channel until the runner is gone.
pub(super) fn serve(
    plane: &Arc<Plane>,
    instance: &Arc<Instance>,
    id: CommandId,
    kept: Kept,
    listener: UnixListener,
) {
    // Not with the guest: one that crashes is started again next to its runners.
    let ended = instance.start_ended().child_token();
    let Kept {
        token_hash,
        mut grant,
    } = kept;
    // The configuration may have become narrower since it was granted.
    grant.network = grant.network.min(plane.config.network.max);
    let network = plane
        .networks
        .admit(instance.sandbox_id, id, grant.network)
        .map(Arc::new);
    let peer = channel::Peer {
        instance: Arc::clone(instance),
        command: Some(id),
        grant,
        network,
        slot: plane.tokens.runner(instance.sandbox_id, token_hash),
        ended: ended.clone(),
    };
    channel::serve(Arc::clone(plane), peer, listener);
    let (plane, instance) = (Arc::clone(plane), Arc::clone(instance));
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            // A later hypervisor serves it again.
            () = plane.closing.cancelled() => ended.cancel(),
            // The runner's channel and token end with it.
            () = wait_for_exit(&instance, id) => {
                ended.cancel();
                // It may be gone with its start already.
                let _ = tokio::fs::remove_file(file(&plane, &instance, id)).await;
            }
        }
    });
}

/// Serves the channels of a start's runners again after a restart of the hypervisor.
pub(crate) async fn take_over(plane: &Arc<Plane>, instance: &Arc<Instance>) {
    let runners = match instance.runners().await {
        Ok(runners) => runners,
        Err(error) => {
            tracing::warn!(start = %instance.start_id, %error, "the runners could not be listed");
            return;
        }
    };
    for runner in runners {
        if !runner.channel || runner.view.state != CommandState::Running {
            continue;
        }
        let id = runner.view.id;
        let kept = tokio::fs::read_to_string(file(plane, instance, id)).await;
        let Some(kept) = kept.ok().and_then(|text| serde_json::from_str(&text).ok()) else {
            tracing::warn!(command = %id, "a runner's grant is lost; it runs on without gateway and network");
            continue;
        };
        match instance.runner_channel(id).await {
            Ok(listener) => serve(plane, instance, id, kept, listener),
            Err(error) => tracing::warn!(command = %id, %error, "a runner's channel is lost"),
        }
    }
}

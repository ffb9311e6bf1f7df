//! Runners with a channel of their own: served while they run, found again after a restart
//! of the hypervisor.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use crypto::TokenHash;
use runtime::Instance;
use types::{CommandId, CommandState};

use super::leash::wait_for_exit;
use crate::error::Error;
use crate::http::channel;
use crate::services::sandboxes::Plane;

/// Keeps the hash of a runner's token where a later hypervisor finds it: beside the start's
/// other records, which no sandbox sees and which go with the start.
///
/// # Errors
/// It cannot be written; then the runner must not be started.
pub(super) async fn keep(
    plane: &Plane,
    instance: &Instance,
    id: CommandId,
    hash: TokenHash,
) -> Result<(), Error> {
    let file = file(plane, instance, id);
    if let Some(dir) = file.parent() {
        tokio::fs::create_dir_all(dir)
            .await
            .map_err(Error::internal)?;
    }
    tokio::fs::write(file, hash.to_string())
        .await
        .map_err(Error::internal)
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
    hash: TokenHash,
    listener: UnixListener,
) {
    let ended = instance.ended().child_token();
    let peer = channel::Peer {
        instance: Arc::clone(instance),
        command: Some(id),
        slot: plane.tokens.runner(instance.sandbox_id, hash),
        ended: ended.clone(),
    };
    channel::serve(Arc::clone(plane), peer, listener);
    let (plane, instance) = (Arc::clone(plane), Arc::clone(instance));
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
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
        let Some(hash) = kept.ok().and_then(|text| text.trim().parse().ok()) else {
            tracing::warn!(command = %id, "a runner's grant is lost; it runs on without the gateway");
            continue;
        };
        match instance.runner_channel(id).await {
            Ok(listener) => serve(plane, instance, id, hash, listener),
            Err(error) => tracing::warn!(command = %id, %error, "a runner's channel is lost"),
        }
    }
}

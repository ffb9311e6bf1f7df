//! Holding a request until it is whole: aliases, limits and retries need it that way.
//!
//! What all sandboxes hold together is bounded, and what each of them holds, and what does not
//! get room within a short wait is refused, so that large bodies cost the process no more than
//! the configured memory, and nobody more than their share of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use super::answer::CallError;
use super::limits::{Limited, Scope};
use crate::error::Error;

/// The unit in which memory is counted, in bytes.
const UNIT: u64 = 1024;

/// Longest wait for room.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// Longest silence in a request body.
const BODY_IDLE: Duration = Duration::from_secs(30);

/// Room for request bodies.
#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    largest: u64,
    /// Of one sandbox, in units.
    share: usize,
    /// The shares that are in use. Held for one look-up.
    shares: Mutex<HashMap<SandboxId, Weak<Semaphore>>>,
}

/// What one sandbox may hold.
pub(super) type Share = Arc<Semaphore>;

/// A whole request body; gives its room back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) body: Bytes,
    _taken: Taken,
}

/// Room that was taken.
#[derive(Debug, Default)]
struct Taken {
    of_share: Option<OwnedSemaphorePermit>,
    of_all: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for `most` bytes in all, for `share` of them of one sandbox, and for `largest` in
    /// one body.
    pub(super) fn new(most: u64, share: u64, largest: u64) -> Self {
        let units = |bytes: u64| {
            let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(Semaphore::MAX_PERMITS);
            units.min(Semaphore::MAX_PERMITS)
        };
        Self {
            free: Arc::new(Semaphore::new(units(most))),
            largest,
            share: units(share),
            shares: Mutex::default(),
        }
    }

    /// The share of a sandbox, the same one for all its channels.
    pub(super) fn share(&self, sandbox: SandboxId) -> Share {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&sandbox).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
        shares.insert(sandbox, Arc::downgrade(&share));
        share
    }

    /// Reads a body of a sandbox to its end. `announced` is its `Content-Length`.
    ///
    /// # Errors
    /// It is too large, there is no room for it, it stalls or breaks off, or the caller's
    /// right ended.
    pub(super) async fn hold(
        &self,
        body: Body,
        announced: Option<u64>,
        share: &Share,
        cancel: &CancellationToken,
    ) -> Result<Held, CallError> {
        tokio::select! {
            // Most bodies are there already, and nothing has to be waited for.
            biased;
            held = self.read(body, announced, share) => match held {
                Ok(_) if cancel.is_cancelled() => Err(Error::SandboxNotRunning.into()),
                held => held,
            },
            () = cancel.cancelled() => Err(Error::SandboxNotRunning.into()),
        }
    }

    async fn read(
        &self,
        mut body: Body,
        announced: Option<u64>,
        share: &Share,
    ) -> Result<Held, CallError> {
        let announced = announced.unwrap_or(0);
        if announced > self.largest {
            return Err(self.too_large().into());
        }
        let mut taken = Taken::default();
        self.widen(&mut taken, share, announced).await?;
        let mut bytes = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
        loop {
            let frame = tokio::time::timeout(BODY_IDLE, body.frame())
                .await
                .map_err(|_| Error::bad_request("the request body stalled; send it in one go"))?;
            let data = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    return Err(Error::bad_request("the request body broke off").into());
                }
            };
            let length = bytes.len() as u64 + data.len() as u64;
            if length > self.largest {
                return Err(self.too_large().into());
            }
            self.widen(&mut taken, share, length).await?;
            bytes.extend_from_slice(&data);
        }
        Ok(Held {
            body: bytes.freeze(),
            _taken: taken,
        })
    }

    /// Takes room until there is enough for `bytes`.
    async fn widen(&self, taken: &mut Taken, share: &Share, bytes: u64) -> Result<(), CallError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        // First of its own: whoever waits for that keeps nobody else waiting.
        if !take(share, &mut taken.of_share, units).await {
            return Err(CallError::Limited(Limited {
                scope: Scope::Sandbox,
                bound: "held_bytes",
                retry_after: Duration::from_secs(1),
            }));
        }
        if !take(&self.free, &mut taken.of_all, units).await {
            let busy = "too many large requests are on their way; try again shortly";
            return Err(Error::Unavailable(busy.to_owned()).into());
        }
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::TooLarge(format!(
            "the request body is larger than {} bytes (gateway.max_request_bytes)",
            self.largest
        ))
    }
}

/// Takes what is missing to `wanted` units. `false`: it was not to be had in time.
async fn take(
    free: &Arc<Semaphore>,
    taken: &mut Option<OwnedSemaphorePermit>,
    wanted: u32,
) -> bool {
    let have = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = wanted.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
    if more == 0 {
        return true;
    }
    let permits = Arc::clone(free).acquire_many_owned(more);
    match tokio::time::timeout(ROOM_WITHIN, permits).await {
        Ok(Ok(permits)) => {
            match taken {
                Some(taken) => taken.merge(permits),
                none => *none = Some(permits),
            }
            true
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_held_up_to_its_bound_and_gives_its_room_back() {
        let room = Room::new(8192, 8192, 4096);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let held = room
            .hold(Body::from(vec![1; 4096]), Some(4096), &share, &right)
            .await
            .unwrap();
        assert_eq!(held.body.len(), 4096);
        assert_eq!(room.free.available_permits(), 4);
        for announced in [Some(4097), None] {
            let refused = room
                .hold(Body::from(vec![1; 4097]), announced, &share, &right)
                .await
                .unwrap_err();
            assert!(
                matches!(refused, CallError::Ours(Error::TooLarge(_))),
                "{refused:?}"
            );
        }
        assert_eq!(room.free.available_permits(), 4);
        drop(held);
        assert_eq!(room.free.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_a_caller_is_told_to_come_back() {
        let room = Room::new(8192, 4096, 4096);
        let right = CancellationToken::new();
        let shares: Vec<_> = (0..3).map(|_| room.share(SandboxId::generate())).collect();
        let hold = async |share| {
            let body = Body::from(vec![1; 3000]);
            room.hold(body, None, share, &right).await
        };
        let first = hold(&shares[0]).await.unwrap();
        // Its own share is full, whatever the others have left.
        let refused = hold(&shares[0]).await.unwrap_err();
        assert_eq!(refused.code(), "held_bytes");
        let second = hold(&shares[1]).await.unwrap();
        let refused = hold(&shares[2]).await.unwrap_err();
        assert!(
            matches!(refused, CallError::Ours(Error::Unavailable(_))),
            "{refused:?}"
        );
        drop(second);
        hold(&shares[2]).await.unwrap();
        drop(first);
        hold(&shares[0]).await.unwrap();
    }

    #[test]
    fn the_channels_of_a_sandbox_have_one_share_and_none_stays_behind() {
        let room = Room::new(8192, 4096, 4096);
        let sandbox = SandboxId::generate();
        let share = room.share(sandbox);
        assert!(Arc::ptr_eq(&share, &room.share(sandbox)));
        drop(share);
        room.share(SandboxId::generate());
        assert_eq!(room.shares.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_whose_right_ends_is_given_up() {
        let room = Room::new(4096, 4096, 4096);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let stalled = || {
            Body::from_stream(futures_util::stream::pending::<
                Result<Bytes, std::convert::Infallible>,
            >())
        };
        let refused = room
            .hold(stalled(), None, &share, &right)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, CallError::Ours(Error::BadRequest(_))),
            "{refused:?}"
        );
        right.cancel();
        let refused = room
            .hold(stalled(), None, &share, &right)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, CallError::Ours(Error::SandboxNotRunning)),
            "{refused:?}"
        );
    }
}

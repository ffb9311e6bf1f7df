//! Holding a request until it is whole: aliases, limits and retries need it that way.
//!
//! What all sandboxes hold together is bounded, and what does not get room within a short
//! wait is refused, so that large bodies cost the process no more than the configured memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

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
}

/// A whole request body; gives its room back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) body: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for `most` bytes in all, and for `largest` in one body.
    pub(super) fn new(most: u64, largest: u64) -> Self {
        let units = usize::try_from(most / UNIT).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            largest,
        }
    }

    /// Reads a body to its end. `announced` is its `Content-Length`.
    ///
    /// # Errors
    /// It is too large, there is no room for it, it stalls or breaks off, or the caller's
    /// right ended.
    pub(super) async fn hold(
        &self,
        body: Body,
        announced: Option<u64>,
        cancel: &CancellationToken,
    ) -> Result<Held, Error> {
        tokio::select! {
            () = cancel.cancelled() => Err(Error::SandboxNotRunning),
            held = self.read(body, announced) => held,
        }
    }

    async fn read(&self, mut body: Body, announced: Option<u64>) -> Result<Held, Error> {
        let announced = announced.unwrap_or(0);
        if announced > self.largest {
            return Err(self.too_large());
        }
        let mut room = None;
        self.widen(&mut room, announced).await?;
        let mut bytes = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
        loop {
            let frame = tokio::time::timeout(BODY_IDLE, body.frame())
                .await
                .map_err(|_| Error::bad_request("the request body stalled; send it in one go"))?;
            let data = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    return Err(Error::bad_request("the request body broke off"));
                }
            };
            let length = bytes.len() as u64 + data.len() as u64;
            if length > self.largest {
                return Err(self.too_large());
            }
            self.widen(&mut room, length).await?;
            bytes.extend_from_slice(&data);
        }
        Ok(Held {
            body: bytes.freeze(),
            _room: room,
        })
    }

    /// Takes room until there is enough for `bytes`.
    async fn widen(
        &self,
        room: &mut Option<OwnedSemaphorePermit>,
        bytes: u64,
    ) -> Result<(), Error> {
        let wanted = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let have = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = wanted.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
        if more == 0 {
            return Ok(());
        }
        let taken = Arc::clone(&self.free).acquire_many_owned(more);
        let taken = tokio::time::timeout(ROOM_WITHIN, taken)
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| {
                Error::Unavailable(
                    "too many large requests are on their way; try again shortly".to_owned(),
                )
            })?;
        match room {
            Some(room) => room.merge(taken),
            none => *none = Some(taken),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_held_up_to_its_bound_and_gives_its_room_back() {
        let room = Room::new(8192, 4096);
        let right = CancellationToken::new();
        let held = room
            .hold(Body::from(vec![1; 4096]), Some(4096), &right)
            .await
            .unwrap();
        assert_eq!(held.body.len(), 4096);
        assert_eq!(room.free.available_permits(), 4);
        for announced in [Some(4097), None] {
            let refused = room
                .hold(Body::from(vec![1; 4097]), announced, &right)
                .await
                .unwrap_err();
            assert!(matches!(refused, Error::TooLarge(_)), "{refused:?}");
        }
        assert_eq!(room.free.available_permits(), 4);
        drop(held);
        assert_eq!(room.free.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_a_caller_is_told_to_come_back() {
        let room = Room::new(4096, 4096);
        let right = CancellationToken::new();
        let first = room
            .hold(Body::from(vec![1; 3000]), None, &right)
            .await
            .unwrap();
        let refused = room
            .hold(Body::from(vec![1; 3000]), None, &right)
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
        drop(first);
        room.hold(Body::from(vec![1; 3000]), None, &right)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_whose_right_ends_is_given_up() {
        let room = Room::new(4096, 4096);
        let right = CancellationToken::new();
        let stalled = || {
            Body::from_stream(futures_util::stream::pending::<
                Result<Bytes, std::convert::Infallible>,
            >())
        };
        let refused = room.hold(stalled(), None, &right).await.unwrap_err();
        assert!(matches!(refused, Error::BadRequest(_)), "{refused:?}");
        right.cancel();
        let refused = room.hold(stalled(), None, &right).await.unwrap_err();
        assert!(matches!(refused, Error::SandboxNotRunning), "{refused:?}");
    }
}

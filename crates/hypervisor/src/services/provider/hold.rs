//! Holding a request until it is whole: aliases, limits and retries need it that way.
//!
//! What all sandboxes hold together is bounded, and what each of them holds, and what does not
//! get room within a short wait is refused, so that large bodies cost the process no more than
//! the configured memory, and nobody more than their share of it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
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

/// The pace at which a body buys more time: whoever sends it sits on this machine, so what is
/// slower for long keeps room on purpose. Bytes in a second.
const BODY_PACE: u64 = 64 << 10;

/// Room that is taken ahead of what has arrived, in bytes; never more than has arrived already
/// of a larger body. What is only announced takes no room from anybody.
const AHEAD: u64 = 64 << 10;

/// Room for request bodies.
#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    /// Bytes in one body.
    largest: AtomicU64,
    /// Held for one look-up, and for a reload.
    shares: Mutex<Shares>,
}

/// The parts of sandboxes.
#[derive(Debug)]
struct Shares {
    /// Of all of them together, in units.
    most: usize,
    /// Of one sandbox, in units.
    each: usize,
    /// Those that are in use.
    of: HashMap<SandboxId, Weak<Semaphore>>,
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

impl Taken {
    /// Gives back what is not needed for `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let needed = units(bytes as u64);
        for taken in [&mut self.of_share, &mut self.of_all].into_iter().flatten() {
            let beyond = taken.num_permits().saturating_sub(needed);
            drop(taken.split(beyond));
        }
    }
}

impl Room {
    /// Room for `most` bytes in all, for `share` of them of one sandbox, and for `largest` in
    /// one body.
    pub(super) fn new(most: u64, share: u64, largest: u64) -> Self {
        Self {
            free: Arc::new(Semaphore::new(units(most))),
            largest: AtomicU64::new(largest),
            shares: Mutex::new(Shares {
                most: units(most),
                each: units(share),
                of: HashMap::new(),
            }),
        }
    }

    /// Other bounds for what is still to arrive. What is held stays, and counts.
    pub(super) fn resize(&self, most: u64, share: u64, largest: u64) {
        let (most, each) = (units(most), units(share));
        self.largest.store(largest, Ordering::Relaxed);
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        resize(&self.free, shares.most, most);
        for share in shares.of.values().filter_map(Weak::upgrade) {
            resize(&share, shares.each, each);
        }
        (shares.most, shares.each) = (most, each);
    }

    /// The share of a sandbox, the same one for all its channels.
    pub(super) fn share(&self, sandbox: SandboxId) -> Share {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.of.get(&sandbox).and_then(Weak::upgrade) {
            return share;
        }
        shares.of.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(shares.each));
        shares.of.insert(sandbox, Arc::downgrade(&share));
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
        body: Body,
        announced: Option<u64>,
        share: &Share,
    ) -> Result<Held, CallError> {
        let mut taken = Taken::default();
        let mut bytes = self.gather(body, announced, share, &mut taken).await?;
        if bytes.capacity() > bytes.len() {
            bytes.shrink_to_fit();
            taken.shrink(bytes.len());
        }
        Ok(Held {
            body: bytes.into(),
            _taken: taken,
        })
    }

    /// Gathers a body. Room is taken for what is allocated, not only for what has arrived.
    async fn gather(
        &self,
        mut body: Body,
        announced: Option<u64>,
        share: &Share,
        taken: &mut Taken,
    ) -> Result<Vec<u8>, CallError> {
        let largest = self.largest.load(Ordering::Relaxed);
        let announced = announced.unwrap_or(0);
        if announced > largest {
            return Err(too_large(largest).into());
        }
        let mut bytes = Vec::new();
        let mut pace = Pace { left: BODY_IDLE };
        loop {
            let arrived = bytes.len() as u64;
            let room = announced.min(arrived + arrived.max(AHEAD));
            self.grow(&mut bytes, taken, share, room).await?;
            let data = match pace.next(&mut body).await? {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    return Err(Error::bad_request("the request body broke off").into());
                }
            };
            let length = arrived + data.len() as u64;
            if length > largest {
                return Err(too_large(largest).into());
            }
            if length > bytes.capacity() as u64 {
                // Of a body of unknown length as much again, as long as nobody lacks it: not
                // every piece is to move all that came before it.
                let ahead = if announced == 0 {
                    (bytes.capacity() as u64)
                        .min(largest - length)
                        .min(self.spare(share).saturating_sub(length - arrived))
                } else {
                    0
                };
                self.grow(&mut bytes, taken, share, length + ahead).await?;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    /// Takes room for `capacity` bytes in all, and allocates as many and no more.
    async fn grow(
        &self,
        bytes: &mut Vec<u8>,
        taken: &mut Taken,
        share: &Share,
        capacity: u64,
    ) -> Result<(), CallError> {
        self.widen(taken, share, capacity).await?;
        let missing = capacity.saturating_sub(bytes.len() as u64);
        bytes.reserve_exact(usize::try_from(missing).unwrap_or(0));
        Ok(())
    }

    /// Bytes that may be taken now without waiting.
    fn spare(&self, share: &Share) -> u64 {
        let units = share.available_permits().min(self.free.available_permits());
        (units as u64).saturating_mul(UNIT)
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
}

/// How long the next piece of a body is waited for: each piece buys more, up to the bound.
#[derive(Debug)]
struct Pace {
    left: Duration,
}

impl Pace {
    async fn next(
        &mut self,
        body: &mut Body,
    ) -> Result<Option<Result<Frame<Bytes>, axum::Error>>, Error> {
        // Most pieces are there already; of those no time is taken.
        let mut frame = body.frame();
        let ready = poll_fn(|cx| Poll::Ready(frame.poll_unpin(cx))).await;
        let frame = match ready {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let began = Instant::now();
                let frame = tokio::time::timeout(self.left, frame).await;
                self.left = self.left.saturating_sub(began.elapsed());
                frame.map_err(|_| {
                    Error::bad_request(
                        "the request body stalled or came too slowly; send it in one go",
                    )
                })?
            }
        };
        if let Some(Ok(piece)) = &frame {
            let bytes = piece.data_ref().map_or(0, Bytes::len) as u64;
            let bought = Duration::from_micros(bytes.saturating_mul(1_000_000) / BODY_PACE);
            self.left = (self.left + bought).min(BODY_IDLE);
        }
        Ok(frame)
    }
}

fn units(bytes: u64) -> usize {
    let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(Semaphore::MAX_PERMITS);
    units.min(Semaphore::MAX_PERMITS)
}

/// Changes how many units there are. What is held beyond fewer is taken as soon as it is given
/// back, before anybody who waits later.
fn resize(free: &Arc<Semaphore>, from: usize, to: usize) {
    free.add_permits(to.saturating_sub(from));
    let fewer = from.saturating_sub(to);
    let left = fewer - free.forget_permits(fewer).min(fewer);
    if left == 0 {
        return;
    }
    let free = Arc::clone(free);
    tokio::spawn(async move {
        let mut left = left;
        while left > 0 {
            let some = u32::try_from(left).unwrap_or(u32::MAX);
            let Ok(permits) = free.acquire_many(some).await else {
                return;
            };
            permits.forget();
            left = left.saturating_sub(usize::try_from(some).unwrap_or(left));
        }
    });
}

fn too_large(largest: u64) -> Error {
    Error::TooLarge(format!(
        "the request body is larger than {largest} bytes (gateway.max_request_bytes)"
    ))
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
    // Mostly there is room, and no time is taken.
    let permits = match Arc::clone(free).try_acquire_many_owned(more) {
        Ok(permits) => permits,
        Err(_) => {
            let permits = Arc::clone(free).acquire_many_owned(more);
            let Ok(Ok(permits)) = tokio::time::timeout(ROOM_WITHIN, permits).await else {
                return false;
            };
            permits
        }
    };
    match taken {
        Some(taken) => taken.merge(permits),
        none => *none = Some(permits),
    }
    true
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

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
        assert_eq!(room.shares.lock().unwrap().of.len(), 1);
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

    /// What keeps the pace, in a second.
    const PIECE: &[u8] = &[b'x'; BODY_PACE as usize];

    /// A body of which nothing has come but its first byte, and nothing more comes.
    fn begun() -> Body {
        let first = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(
            Bytes::from_static(b"{"),
        )]);
        Body::from_stream(first.chain(futures_util::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_announced_takes_no_room_from_others() {
        let (mib, announced) = (1 << 20, 4 << 20);
        let room = Arc::new(Room::new(8 * mib, 4 * mib, 4 * mib));
        let right = CancellationToken::new();
        let (slow, other) = (
            room.share(SandboxId::generate()),
            room.share(SandboxId::generate()),
        );
        let dripping: Vec<_> = [&slow, &slow, &slow, &other]
            .map(|share| {
                let (room, share) = (Arc::clone(&room), Arc::clone(share));
                let right = right.clone();
                tokio::spawn(
                    async move { room.hold(begun(), Some(announced), &share, &right).await },
                )
            })
            .into();
        tokio::task::yield_now().await;
        for share in [&slow, &other] {
            let body = Body::from(vec![1; 3 << 20]);
            let began = Instant::now();
            room.hold(body, Some(3 << 20), share, &right).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
        }
        for dripping in dripping {
            dripping.await.unwrap().unwrap_err();
        }
        assert_eq!(room.free.available_permits() as u64, 8 * mib / UNIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up_and_one_that_keeps_its_pace_is_not() {
        let room = Room::new(8 << 20, 8 << 20, 4 << 20);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let every = |seconds, bytes: &'static [u8], times: usize| {
            let pieces = futures_util::stream::iter(0..times).then(move |_| async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok::<_, std::convert::Infallible>(Bytes::from_static(bytes))
            });
            Body::from_stream(pieces)
        };
        // What came fast at first buys no time for what drips then.
        let first = Body::from(vec![b'x'; 1 << 20]).into_data_stream();
        let fast_first = Body::from_stream(first.chain(every(20, b"x", 1000).into_data_stream()));
        for drips in [every(20, b"x", 1000), fast_first] {
            let began = Instant::now();
            let refused = room
                .hold(drips, Some(4 << 20), &share, &right)
                .await
                .unwrap_err();
            assert_eq!(refused.code(), "bad_request");
            assert!(began.elapsed() <= BODY_IDLE + Duration::from_secs(1));
        }
        assert_eq!(room.free.available_permits() as u64, (8 << 20) / UNIT);
        let held = room
            .hold(every(1, PIECE, 60), None, &share, &right)
            .await
            .unwrap();
        assert_eq!(held.body.len(), 60 * PIECE.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_allocated_is_what_was_counted() {
        let room = Room::new(16 << 20, 8 << 20, 4 << 20);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let whole = room.free.available_permits();
        for length in [1_usize, 100_000, 1 << 20, (1 << 20) + 1, 3_000_000] {
            for piece in [1 << 10, 50_000, 300_000] {
                for announced in [None, Some(length as u64)] {
                    let pieces = vec![b'x'; length];
                    let pieces: Vec<_> = pieces
                        .chunks(piece)
                        .map(|piece| {
                            Ok::<_, std::convert::Infallible>(Bytes::copy_from_slice(piece))
                        })
                        .collect();
                    let body = || Body::from_stream(futures_util::stream::iter(pieces.clone()));
                    let mut taken = Taken::default();
                    let gathered = room.gather(body(), announced, &share, &mut taken);
                    let gathered = gathered.await.unwrap();
                    assert_eq!(gathered.len(), length);
                    assert_eq!(
                        whole - room.free.available_permits(),
                        units(gathered.capacity() as u64)
                    );
                    drop(taken);
                    let held = room.hold(body(), announced, &share, &right).await.unwrap();
                    assert_eq!(whole - room.free.available_permits(), units(length as u64));
                    drop(held);
                    assert_eq!(room.free.available_permits(), whole);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_unknown_length_may_fill_its_share() {
        let room = Room::new(8192, 4096, 4096);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let pieces =
            (0..4).map(|_| Ok::<_, std::convert::Infallible>(Bytes::from_static(&[0; 1024])));
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let held = room.hold(body, None, &share, &right).await.unwrap();
        assert_eq!(held.body.len(), 4096);
        assert_eq!(share.available_permits(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn other_bounds_count_what_is_held_already() {
        let room = Room::new(8192, 8192, 4096);
        let right = CancellationToken::new();
        let share = room.share(SandboxId::generate());
        let hold = async |bytes: usize| {
            let body = Body::from(vec![1; bytes]);
            room.hold(body, None, &share, &right).await
        };
        let held = hold(4096).await.unwrap();
        room.resize(4096, 4096, 2048);
        let refused = hold(2049).await.unwrap_err();
        assert!(matches!(refused, CallError::Ours(Error::TooLarge(_))));
        assert_eq!(hold(1024).await.unwrap_err().code(), "held_bytes");
        drop(held);
        let held = hold(2048).await.unwrap();
        let full = hold(2048).await.unwrap();
        assert_eq!(hold(1024).await.unwrap_err().code(), "held_bytes");
        room.resize(16384, 16384, 8192);
        drop((held, full));
        drop(hold(8192).await.unwrap());
        assert_eq!(share.available_permits(), 16);
        assert_eq!(room.free.available_permits(), 16);
    }
}

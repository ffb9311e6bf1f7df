//! Copying the bytes of an open WebSocket, and closing it at a frame boundary.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::CloseNotice;
use super::frame::FrameTracker;
use super::registry::Registration;
use crate::Upstream;
use crate::last_words::LastWords;

/// Bytes held per direction.
const BUFFER: usize = 16 << 10;

/// How long both ends have to let a frame finish, read the Close and answer it.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The same when the start has ended: the app is gone, only the client is told.
const ENDED_GRACE: Duration = Duration::from_secs(1);

/// The two ends of an open WebSocket.
pub(crate) struct TunnelEnds<C, A> {
    pub(crate) client: C,
    pub(crate) app: A,
    /// What the app had sent behind its `101`.
    pub(crate) early: Bytes,
}

/// An open WebSocket of one start.
pub(crate) struct Tunnel {
    pub(crate) upstream: Upstream,
    pub(crate) registration: Registration,
    pub(crate) counts: bool,
}

/// What both directions share.
struct Shared {
    upstream: Upstream,
    counts: bool,
    base: Instant,
    /// Milliseconds after `base` at which a byte last moved.
    last: AtomicU64,
    last_words: LastWords,
}

/// Which way a pump pumps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Towards {
    Client,
    App,
}

impl Tunnel {
    /// Copies until both directions are closed, the close order has been carried out, or
    /// the start ends. What an app says last reaches the client also when it takes no more.
    pub(crate) async fn run<C, A>(self, ends: TunnelEnds<C, A>)
    where
        C: AsyncRead + AsyncWrite + Unpin,
        A: AsyncRead + AsyncWrite + Unpin,
    {
        let Self {
            upstream,
            mut registration,
            counts,
        } = self;
        let ended = upstream.ended().clone();
        let silence = upstream.limits().websocket_idle;
        let shared = Shared {
            upstream,
            counts,
            base: Instant::now(),
            last: AtomicU64::new(0),
            last_words: LastWords::default(),
        };
        shared.upstream.activity().websocket_opened();
        let _open = Open(&shared.upstream);

        let (announce, announced) = watch::channel(None);
        let (client_read, client_write) = tokio::io::split(ends.client);
        let (app_read, app_write) = tokio::io::split(ends.app);
        let app_read = io::Cursor::new(ends.early).chain(app_read);
        let down = pump(
            app_read,
            client_write,
            Towards::Client,
            &shared,
            announced.clone(),
        );
        let up = pump(client_read, app_write, Towards::App, &shared, announced);
        let down = async {
            let ended = down.await;
            shared.last_words.said();
            ended
        };
        let both = async {
            // An error in one direction is the end of both.
            tokio::try_join!(down, up)
        };
        let closing = async {
            let grace = tokio::select! {
                biased;
                () = ended.cancelled() => {
                    announce.send_replace(Some(sandbox_stopped()));
                    ENDED_GRACE
                }
                Some(notice) = ordered(&mut registration, &ended) => {
                    announce.send_replace(Some(notice));
                    CLOSE_GRACE
                }
                () = shared.silent_for(silence) => {
                    let notice = CloseNotice::new(CloseNotice::GOING_AWAY, "idle for too long");
                    announce.send_replace(Some(Arc::new(notice)));
                    CLOSE_GRACE
                }
            };
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            result = both => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a WebSocket broke off");
                }
            }
            () = closing => tracing::debug!("a WebSocket was cut after its grace"),
        }
    }
}

/// Counts a WebSocket while it is open.
struct Open<'a>(&'a Upstream);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.activity().websocket_closed();
    }
}

fn sandbox_stopped() -> Arc<CloseNotice> {
    Arc::new(CloseNotice::new(
        CloseNotice::GOING_AWAY,
        "the sandbox stopped",
    ))
}

/// The notice of a close order, when its moment has come. A start that ends meanwhile wins.
async fn ordered(
    registration: &mut Registration,
    ended: &CancellationToken,
) -> Option<Arc<CloseNotice>> {
    let order = (&mut registration.order).await.ok()?;
    tokio::select! {
        biased;
        () = ended.cancelled() => Some(sandbox_stopped()),
        () = tokio::time::sleep(order.after) => Some(order.notice),
    }
}

impl Shared {
    fn moved(&self, data: bool) {
        let now = Instant::now();
        let millis = now.saturating_duration_since(self.base).as_millis();
        self.last
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
        let connecting =
            now.saturating_duration_since(self.base) < self.upstream.limits().websocket_greeting;
        if data && self.counts && !connecting {
            self.upstream.activity().touch(now);
        }
    }

    /// Ends when no byte has moved for `bound`.
    async fn silent_for(&self, bound: Duration) {
        loop {
            let last = self.base + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let until = last + bound;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }
}

/// Copies one direction until its end, which it passes on as a half-close.
async fn pump<R, W>(
    mut reader: R,
    mut writer: W,
    towards: Towards,
    shared: &Shared,
    mut announced: watch::Receiver<Option<Arc<CloseNotice>>>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut tracker = FrameTracker::new();
    let mut buffer = vec![0_u8; BUFFER];
    let mut closing: Option<Arc<CloseNotice>> = None;
    loop {
        if let Some(notice) = &closing
            && tracker.at_boundary()
        {
            if !tracker.close_seen() {
                writer
                    .write_all(&notice.frame(towards == Towards::App))
                    .await?;
            }
            writer.flush().await?;
            writer.shutdown().await?;
            return drain(reader, &mut buffer).await;
        }
        let count = tokio::select! {
            biased;
            Ok(()) = announced.changed(), if closing.is_none() => {
                closing.clone_from(&announced.borrow_and_update());
                continue;
            }
            count = reader.read(&mut buffer) => match count {
                // Whatever way an app goes, it has said its last.
                Err(_) if towards == Towards::Client => 0,
                count => count?,
            },
        };
        if count == 0 {
            return match writer.shutdown().await {
                Err(_) if towards == Towards::App => Ok(()),
                ended => ended,
            };
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        let tracked = tracker.feed(bytes, closing.is_some());
        shared.moved(tracked.data);
        let bytes = bytes.get(..tracked.consumed).unwrap_or_default();
        let written = match writer.write_all(bytes).await {
            Ok(()) => writer.flush().await,
            broken => broken,
        };
        match written {
            Ok(()) => {}
            // The app is gone. What it said last, its Close for one, still goes down.
            Err(_) if towards == Towards::App => {
                return shared.last_words.hear_out(reader, &mut buffer).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads what still comes, so that the other end can finish writing and see our Close.
async fn drain<R: AsyncRead + Unpin>(mut reader: R, buffer: &mut [u8]) -> io::Result<()> {
    while reader.read(buffer).await? != 0 {}
    Ok(())
}

//! Lanes: the connections of one sandbox's channels are worked on in a few tasks of the
//! sandbox's own, not in a task each. A sandbox that makes calls over a hundred connections
//! then stands in the scheduler's queue as often as one that makes them over two, and a
//! neighbour waits for a few pieces of its work instead of for all of it.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use types::SandboxId;

/// Pieces of work, each some microseconds long, that a lane does before others have a turn.
const AT_A_TIME: u32 = 4;

/// The lanes of all sandboxes.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Of one sandbox: as many as there are processors, so that it can use all that nobody
    /// else wants.
    each: usize,
    /// Those in use. Held for one look-up.
    of: Mutex<HashMap<SandboxId, Weak<Set>>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            each: std::thread::available_parallelism().map_or(1, usize::from),
            of: Mutex::default(),
        }
    }
}

impl Lanes {
    /// A place for connections of a sandbox. All its channels share its lanes.
    pub(super) fn connections(&self, sandbox: SandboxId) -> Connections {
        let mut all = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = all.get(&sandbox).and_then(Weak::upgrade);
        let lanes = lanes.unwrap_or_else(|| {
            all.retain(|_, lanes| lanes.strong_count() > 0);
            let lanes = Arc::new(Set::begin(self.each));
            all.insert(sandbox, Arc::downgrade(&lanes));
            lanes
        });
        Connections {
            lanes,
            cut: Arc::default(),
        }
    }
}

/// The lanes of one sandbox; they end with their last connection.
struct Set {
    lanes: Vec<mpsc::UnboundedSender<News>>,
    next: AtomicUsize,
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").finish_non_exhaustive()
    }
}

impl Set {
    fn begin(count: usize) -> Self {
        let lanes = (0..count)
            .map(|_| {
                // Bounded by the connections that a channel accepts.
                let (sender, news) = mpsc::unbounded_channel();
                tokio::spawn(Lane::new(news));
                sender
            })
            .collect();
        Self {
            lanes,
            next: AtomicUsize::new(0),
        }
    }
}

/// Connections that are cut together, at the latest when this is dropped.
pub(super) struct Connections {
    lanes: Arc<Set>,
    cut: Arc<AtomicBool>,
}

impl Connections {
    /// Works on a connection from now on.
    pub(super) fn add(&self, work: impl Future<Output = ()> + Send + 'static) {
        let number =
            self.lanes.next.fetch_add(1, Ordering::Relaxed) % self.lanes.lanes.len().max(1);
        let work = Work {
            cut: Arc::clone(&self.cut),
            // A connection that panics takes no other with it.
            work: Box::pin(AssertUnwindSafe(work).catch_unwind().map(drop)),
        };
        if let Some(lane) = self.lanes.lanes.get(number) {
            // A lane ends after the last of its senders.
            let _ = lane.send(News::Work(work));
        }
    }

    /// Ends all of them at once; what is added later goes on.
    pub(super) fn cut(&mut self) {
        self.cut.store(true, Ordering::Release);
        for lane in &self.lanes.lanes {
            let _ = lane.send(News::Cut);
        }
        self.cut = Arc::default();
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.cut();
    }
}

enum News {
    Work(Work),
    /// Some of the connections are to be ended.
    Cut,
}

struct Work {
    cut: Arc<AtomicBool>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// One task with the connections that are its own.
struct Lane {
    news: mpsc::UnboundedReceiver<News>,
    connections: FuturesUnordered<Piece>,
    /// Pieces that may still be done in this turn.
    left: Arc<AtomicU32>,
}

impl Lane {
    fn new(news: mpsc::UnboundedReceiver<News>) -> Self {
        Self {
            news,
            connections: FuturesUnordered::new(),
            left: Arc::default(),
        }
    }
}

impl Future for Lane {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let over = loop {
            match this.news.poll_recv(cx) {
                Poll::Ready(Some(News::Work(work))) => this.connections.push(Piece {
                    left: Arc::clone(&this.left),
                    work,
                }),
                Poll::Ready(Some(News::Cut)) => {
                    let all = std::mem::take(&mut this.connections);
                    let stay = all
                        .into_iter()
                        .filter(|piece| !piece.work.cut.load(Ordering::Acquire));
                    this.connections.extend(stay);
                }
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        this.left.store(AT_A_TIME, Ordering::Relaxed);
        while let Poll::Ready(Some(())) = this.connections.poll_next_unpin(cx) {}
        if over && this.connections.is_empty() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A connection in its lane.
struct Piece {
    left: Arc<AtomicU32>,
    work: Work,
}

impl Future for Piece {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(1) else {
            // Next time; the lane sees that somebody asked again at once, and stops for now.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        self.left.store(left, Ordering::Relaxed);
        self.work.work.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn lanes() -> Lanes {
        Lanes {
            each: 2,
            of: Mutex::default(),
        }
    }

    /// Goes to the end of the scheduler's queue.
    async fn queue() {
        let mut queued = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut queued, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn many_connections_of_one_sandbox_leave_a_neighbour_its_turn() {
        let lanes = lanes();
        let done = Arc::new(AtomicUsize::new(0));
        let loud = lanes.connections(SandboxId::generate());
        for _ in 0..100 {
            let done = Arc::clone(&done);
            loud.add(async move {
                for _ in 0..50 {
                    done.fetch_add(1, Ordering::Relaxed);
                    queue().await;
                }
            });
        }
        let quiet = lanes.connections(SandboxId::generate());
        let (tell, told) = oneshot::channel();
        let seen = Arc::clone(&done);
        quiet.add(async move {
            let mut longest = 0;
            for _ in 0..20 {
                let before = seen.load(Ordering::Relaxed);
                queue().await;
                longest = longest.max(seen.load(Ordering::Relaxed) - before);
            }
            let _ = tell.send(longest);
        });
        // In a task each the other hundred would all have worked in between.
        let longest = told.await.unwrap();
        assert!(longest <= 4 * AT_A_TIME as usize, "{longest}");
        while done.load(Ordering::Relaxed) < 100 * 50 {
            queue().await;
        }
    }

    /// Tells when it is dropped.
    async fn forever(guard: oneshot::Sender<()>) {
        std::future::pending::<()>().await;
        drop(guard);
    }

    #[tokio::test]
    async fn connections_are_cut_together_and_others_go_on() {
        let lanes = lanes();
        let sandbox = SandboxId::generate();
        let mut first = lanes.connections(sandbox);
        let second = lanes.connections(sandbox);
        let mut ended = Vec::new();
        for _ in 0..5 {
            let (guard, gone) = oneshot::channel();
            first.add(forever(guard));
            ended.push(gone);
        }
        let (guard, mut other) = oneshot::channel();
        second.add(forever(guard));
        first.cut();
        for gone in ended {
            gone.await.unwrap_err();
        }
        let (guard, later) = oneshot::channel();
        first.add(forever(guard));
        first.add(async { panic!("on purpose") });
        drop(first);
        later.await.unwrap_err();
        assert!(
            other
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
        drop(second);
        other.await.unwrap_err();
    }

    #[tokio::test]
    async fn lanes_of_sandboxes_that_are_gone_are_forgotten() {
        let lanes = lanes();
        for _ in 0..1000 {
            drop(lanes.connections(SandboxId::generate()));
        }
        assert!(lanes.of.lock().unwrap().len() <= 1);
    }
}

//! Lanes: the connections of one sandbox's channels are worked on in one task, not in a task
//! each. A sandbox that makes calls over a hundred connections then stands in a scheduler's
//! queue as often as one that makes them over two, and a neighbour waits for one piece of its
//! work instead of for all of it.
//!
//! Lanes have threads of their own, one for each processor, and never leave them: a call's
//! connections on either side, its timers and its wake-ups all stay on one thread. A sandbox
//! has one lane, so whatever it does it takes one of these threads and leaves the others to its
//! neighbours. The other work of the process goes on beside them, on the runtime that
//! everything else has.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::SandboxId;

/// Pieces of work, each some dozen microseconds long, that a lane does before others have a turn.
const AT_A_TIME: u32 = 1;

/// Turns of lanes between two looks at what the kernel has to tell.
const DRIVER_EVERY: u32 = 2;

/// Threads for long work beside each of the lanes' own: what is more waits in turn.
const LONG_WORK: usize = 2;

/// The lanes of all sandboxes.
#[derive(Debug)]
pub(crate) struct Lanes {
    threads: Vec<Thread>,
    /// Those in use. Held for one look-up.
    of: Mutex<HashMap<SandboxId, Weak<Entry>>>,
    /// Ends the threads, and what they work on.
    _ended: DropGuard,
}

impl Lanes {
    /// As many threads as there are processors.
    ///
    /// # Errors
    /// A thread or its event loop cannot be had.
    pub(crate) fn begin() -> io::Result<Self> {
        Self::on(std::thread::available_parallelism().map_or(1, usize::from))
    }

    pub(super) fn on(threads: usize) -> io::Result<Self> {
        let ended = CancellationToken::new();
        // Those that have begun end with this when the next one cannot.
        let guard = ended.clone().drop_guard();
        let threads = (0..threads)
            .map(|_| Thread::begin(ended.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            threads,
            of: Mutex::default(),
            _ended: guard,
        })
    }

    /// A place for connections of a sandbox. All its channels share its lane.
    pub(super) fn connections(&self, sandbox: SandboxId) -> Connections {
        let mut all = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = all.get(&sandbox).and_then(Weak::upgrade);
        let lane = lane.filter(|lane| !lane.news.is_closed());
        let lane = lane.unwrap_or_else(|| {
            all.retain(|_, lane| lane.strong_count() > 0);
            let lane = Arc::new(Entry::begin(&self.threads));
            all.insert(sandbox, Arc::downgrade(&lane));
            lane
        });
        Connections {
            lane,
            cut: Arc::default(),
        }
    }
}

/// A thread that works on lanes.
#[derive(Debug)]
struct Thread {
    handle: Handle,
    /// Cloned for each of its lanes.
    lanes: Arc<()>,
}

impl Thread {
    /// Works until `ended`.
    fn begin(ended: CancellationToken) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(DRIVER_EVERY)
            .max_blocking_threads(LONG_WORK)
            .build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("lanes".to_owned())
            .spawn(move || runtime.block_on(ended.cancelled_owned()))?;
        Ok(Self {
            handle,
            lanes: Arc::default(),
        })
    }
}

/// Where a lane is given work. It ends after its last connection.
struct Entry {
    news: mpsc::UnboundedSender<News>,
    _on: Option<Arc<()>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

impl Entry {
    /// A lane on the thread that has the fewest.
    fn begin(threads: &[Thread]) -> Self {
        // Bounded by the connections that a channel accepts.
        let (news, received) = mpsc::unbounded_channel();
        let thread = threads
            .iter()
            .min_by_key(|thread| Arc::strong_count(&thread.lanes));
        if let Some(thread) = thread {
            thread.handle.spawn(Lane::new(received));
        }
        Self {
            news,
            _on: thread.map(|thread| Arc::clone(&thread.lanes)),
        }
    }
}

/// Connections that are cut together, at the latest when this is dropped.
pub(super) struct Connections {
    lane: Arc<Entry>,
    cut: Arc<AtomicBool>,
}

impl Connections {
    /// Works on a connection from now on, on the lane's own thread from the first poll.
    pub(super) fn add(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = Work {
            cut: Arc::clone(&self.cut),
            // A connection that panics takes no other with it.
            work: Box::pin(AssertUnwindSafe(work).catch_unwind().map(drop)),
        };
        // A lane ends after the last of its senders.
        let _ = self.lane.news.send(News::Work(work));
    }

    /// Ends all of them at once; what is added later goes on.
    pub(super) fn cut(&mut self) {
        self.cut.store(true, Ordering::Release);
        let _ = self.lane.news.send(News::Cut);
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

/// One task with the connections that are its own. Those that have something to do stand in a
/// queue, so that none of them waits for longer than each of the others takes once.
struct Lane {
    news: mpsc::UnboundedReceiver<News>,
    connections: Slab<Connection>,
    queue: Arc<Queue>,
}

/// A connection, and what wakes it.
struct Connection {
    work: Work,
    place: Arc<Place>,
    waker: Waker,
}

/// The connections of one lane that have something to do, by their keys.
#[derive(Default)]
struct Queue {
    ready: Mutex<VecDeque<usize>>,
    lane: AtomicWaker,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<usize>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the queue: at most one.
struct Place {
    key: usize,
    taken: AtomicBool,
    queue: Arc<Queue>,
}

thread_local! {
    /// While wake-ups by this thread are kept: whether there was one.
    static KEPT: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Does something by which this thread wakes no connection, and says whether it would have. What
/// other threads do meanwhile wakes them as ever.
pub(super) fn without_waking<T>(work: impl FnOnce() -> T) -> (T, bool) {
    /// Also when the work panics: a thread that kept everything would work on nothing any more.
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            KEPT.set(self.0);
        }
    }
    let _restore = Restore(KEPT.replace(Some(false)));
    let done = work();
    (done, KEPT.get().unwrap_or_default())
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if KEPT.get().is_some() {
            KEPT.set(Some(true));
        } else if !self.taken.swap(true, Ordering::AcqRel) {
            self.queue.lock().push_back(self.key);
            self.queue.lane.wake();
        }
    }
}

impl Lane {
    fn new(news: mpsc::UnboundedReceiver<News>) -> Self {
        Self {
            news,
            connections: Slab::new(),
            queue: Arc::default(),
        }
    }

    fn add(&mut self, work: Work) {
        let entry = self.connections.vacant_entry();
        let place = Arc::new(Place {
            key: entry.key(),
            taken: AtomicBool::new(false),
            queue: Arc::clone(&self.queue),
        });
        place.wake_by_ref();
        entry.insert(Connection {
            work,
            waker: Arc::clone(&place).into(),
            place,
        });
    }

    /// Works on the connection that has waited longest. `false`: none has anything to do.
    fn work(&mut self) -> bool {
        loop {
            let Some(key) = self.queue.lock().pop_front() else {
                return false;
            };
            // A key that was left behind may be another one's now, which then looks for nothing.
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            // Before the work: what comes up meanwhile is a reason to come back.
            connection.place.taken.store(false, Ordering::Release);
            let mut cx = Context::from_waker(&connection.waker);
            if connection.work.work.as_mut().poll(&mut cx).is_ready() {
                self.connections.remove(key);
            }
            return true;
        }
    }
}

impl Future for Lane {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.queue.lane.register(cx.waker());
        let over = loop {
            match this.news.poll_recv(cx) {
                Poll::Ready(Some(News::Work(work))) => this.add(work),
                Poll::Ready(Some(News::Cut)) => this
                    .connections
                    .retain(|_, connection| !connection.work.cut.load(Ordering::Acquire)),
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        let mut left = AT_A_TIME;
        while left > 0 && this.work() {
            left -= 1;
        }
        if over && this.connections.is_empty() {
            return Poll::Ready(());
        }
        if !this.queue.lock().is_empty() {
            // After the others.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{Barrier, oneshot};

    use super::*;

    fn lanes() -> Lanes {
        Lanes::on(1).unwrap()
    }

    #[tokio::test]
    async fn sandboxes_are_spread_over_the_threads_and_each_stays_on_one() {
        let lanes = Lanes::on(2).unwrap();
        let thread_of = async |connections: &Connections| {
            let (tell, told) = oneshot::channel();
            connections.add(async move {
                let _ = tell.send(std::thread::current().id());
            });
            told.await.unwrap()
        };
        let loud = lanes.connections(SandboxId::generate());
        let quiet = lanes.connections(SandboxId::generate());
        let (on, other) = (thread_of(&loud).await, thread_of(&quiet).await);
        assert_ne!(on, other);
        for _ in 0..10 {
            assert_eq!(thread_of(&loud).await, on);
        }
        // Its place is the next one's.
        drop(loud);
        let next = lanes.connections(SandboxId::generate());
        assert_eq!(thread_of(&next).await, on);
    }

    #[test]
    fn wake_ups_are_kept_while_something_is_done_and_no_longer() {
        let place = Arc::new(Place {
            key: 7,
            taken: AtomicBool::new(false),
            queue: Arc::default(),
        });
        let waker = Waker::from(Arc::clone(&place));
        let queued = || place.queue.lock().len();
        assert!(!without_waking(|| ()).1);
        assert!(without_waking(|| waker.wake_by_ref()).1);
        assert_eq!(queued(), 0);
        std::thread::scope(|scope| {
            without_waking(|| scope.spawn(|| waker.wake_by_ref()).join().unwrap());
        });
        assert_eq!(queued(), 1, "another thread's is heard");
        place.taken.store(false, Ordering::Release);
        std::panic::catch_unwind(|| without_waking(|| panic!("on purpose"))).unwrap_err();
        waker.wake_by_ref();
        assert_eq!(queued(), 2);
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
        assert!(longest <= 2 * AT_A_TIME as usize, "{longest}");
        while done.load(Ordering::Relaxed) < 100 * 50 {
            queue().await;
        }
    }

    #[tokio::test]
    async fn connections_of_one_sandbox_take_turns() {
        const EACH: usize = 50;
        let lanes = lanes();
        // For each number of them: a queue that lets some pass others does so at some.
        for connections in 2..10 {
            let done: Arc<Vec<AtomicUsize>> =
                Arc::new((0..connections).map(|_| 0.into()).collect());
            let all = lanes.connections(SandboxId::generate());
            let (tell, mut told) = mpsc::unbounded_channel();
            let begun = Arc::new(Barrier::new(connections));
            for mine in 0..connections {
                let (done, tell, begun) = (Arc::clone(&done), tell.clone(), Arc::clone(&begun));
                all.add(async move {
                    begun.wait().await;
                    for _ in 0..EACH {
                        done[mine].fetch_add(1, Ordering::Relaxed);
                        queue().await;
                        let all = done.iter().map(|done| done.load(Ordering::Relaxed));
                        let (least, most) = (all.clone().min(), all.max());
                        tell.send(most.unwrap() - least.unwrap()).unwrap();
                    }
                });
            }
            drop(tell);
            while let Some(apart) = told.recv().await {
                assert!(
                    apart <= 1,
                    "{apart} of {EACH} apart, {connections} connections"
                );
            }
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

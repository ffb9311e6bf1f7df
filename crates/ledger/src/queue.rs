//! The bounded queue between those who append and the one thread that writes, and the
//! tickets that tell them how it went.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crypto::Digest;

use crate::AppendError;

/// Most records that are written and synced as one group.
const GROUP_RECORDS: usize = 512;
/// Most bytes of payload in one group; a group has at least one record.
const GROUP_BYTES: usize = 1024 * 1024;

/// The place of an acknowledged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Digest,
}

/// The answer to an append, as a future for async code or through [`Ticket::wait`].
///
/// It is always answered, at the latest when the deadline has passed. Dropping it takes
/// nothing back.
#[must_use = "the act that the record is for must wait for the answer"]
pub struct Ticket {
    slot: Arc<Slot>,
}

impl Ticket {
    /// A ticket that is answered already.
    pub(crate) fn refused(error: AppendError) -> Self {
        let slot = Arc::new(Slot::default());
        slot.resolve(Err(error));
        Self { slot }
    }

    /// Waits, blocking the thread.
    ///
    /// # Errors
    /// The record was not acknowledged; the act must not happen.
    pub fn wait(self) -> Result<Receipt, AppendError> {
        let mut answer = lock(&self.slot.answer);
        loop {
            if let Some(result) = answer.result.clone() {
                return result;
            }
            answer = self
                .slot
                .ready
                .wait(answer)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Ticket {
    type Output = Result<Receipt, AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = lock(&self.slot.answer);
        match answer.result.clone() {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket")
            .field(&lock(&self.slot.answer).result)
            .finish()
    }
}

#[derive(Default)]
struct Slot {
    answer: Mutex<Answer>,
    ready: Condvar,
}

#[derive(Default)]
struct Answer {
    result: Option<Result<Receipt, AppendError>>,
    waker: Option<Waker>,
}

impl Slot {
    /// The first answer stands.
    fn resolve(&self, result: Result<Receipt, AppendError>) {
        let mut answer = lock(&self.answer);
        if answer.result.is_none() {
            answer.result = Some(result);
        }
        let waker = answer.waker.take();
        drop(answer);
        self.ready.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Waiting {
    payload: Vec<u8>,
    slot: Arc<Slot>,
    deadline: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The group that is being written: who waits for it, and until when.
    in_flight: Vec<(Instant, Arc<Slot>)>,
    /// The group in flight has passed its deadline: nothing new is taken until it is done.
    stalled: bool,
    broken: Option<String>,
    closed: bool,
    writer_done: bool,
}

/// How the queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Open,
    Stalled,
    Broken(String),
    Closed,
}

pub(crate) struct Queue {
    state: Mutex<State>,
    /// There is something to write, or to close.
    work: Condvar,
    /// There is a new earliest deadline, or the end.
    watch: Condvar,
    bound: usize,
    deadline: Duration,
}

impl Queue {
    pub(crate) fn new(bound: usize, deadline: Duration) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            watch: Condvar::new(),
            bound,
            deadline,
        }
    }

    /// Queues an encoded record, or refuses it at once.
    pub(crate) fn push(&self, payload: Vec<u8>) -> Ticket {
        let mut state = lock(&self.state);
        let refusal = if state.closed {
            Some(AppendError::Closed)
        } else if let Some(why) = &state.broken {
            Some(AppendError::Broken(why.clone()))
        } else if state.stalled {
            Some(AppendError::Deadline(self.deadline))
        } else if state.waiting.len() >= self.bound {
            Some(AppendError::QueueFull { bound: self.bound })
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(state);
            return Ticket::refused(error);
        }
        let slot = Arc::new(Slot::default());
        let was_idle = state.waiting.is_empty();
        let unwatched = was_idle && state.in_flight.is_empty();
        let deadline = Instant::now() + self.deadline;
        state.waiting.push_back(Waiting {
            payload,
            slot: Arc::clone(&slot),
            deadline,
        });
        drop(state);
        if was_idle {
            self.work.notify_one();
        }
        if unwatched {
            self.watch.notify_one();
        }
        Ticket { slot }
    }

    /// Takes the next group to write; `None` once the queue is closed and empty. What is
    /// taken has to be answered with [`Queue::answer`].
    pub(crate) fn take_group(&self) -> Option<Vec<Vec<u8>>> {
        let mut state = lock(&self.state);
        while state.waiting.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.waiting.front() {
            bytes += next.payload.len();
            if group.len() >= GROUP_RECORDS || (bytes > GROUP_BYTES && !group.is_empty()) {
                break;
            }
            let Some(Waiting {
                payload,
                slot,
                deadline,
            }) = state.waiting.pop_front()
            else {
                break;
            };
            group.push(payload);
            state.in_flight.push((deadline, slot));
        }
        Some(group)
    }

    /// Answers the group that was taken, in its order.
    pub(crate) fn answer(&self, result: Result<Vec<Receipt>, AppendError>) {
        let mut state = lock(&self.state);
        state.stalled = false;
        let slots = mem::take(&mut state.in_flight);
        let mut waiting = VecDeque::new();
        if let Err(AppendError::Broken(why)) = &result {
            state.broken = Some(why.clone());
            waiting = mem::take(&mut state.waiting);
        }
        drop(state);
        match result {
            Ok(receipts) => {
                for ((_, slot), receipt) in slots.iter().zip(receipts) {
                    slot.resolve(Ok(receipt));
                }
            }
            Err(error) => {
                let slots = slots.into_iter().map(|(_, slot)| slot);
                for slot in slots.chain(waiting.into_iter().map(|waiting| waiting.slot)) {
                    slot.resolve(Err(error.clone()));
                }
            }
        }
    }

    /// Answers with an error whatever passes its deadline, until the writer is done.
    pub(crate) fn watch(&self) {
        let mut state = lock(&self.state);
        while !state.writer_done {
            let earliest = state
                .in_flight
                .first()
                .filter(|_| !state.stalled)
                .map(|(deadline, _)| *deadline)
                .or_else(|| state.waiting.front().map(|waiting| waiting.deadline));
            let Some(earliest) = earliest else {
                state = self
                    .watch
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = Instant::now();
            if let Some(left) = earliest
                .checked_duration_since(now)
                .filter(|left| !left.is_zero())
            {
                (state, _) = self
                    .watch
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let mut late = Vec::new();
            if state
                .in_flight
                .first()
                .is_some_and(|(deadline, _)| *deadline <= now)
            {
                state.stalled = true;
                late.extend(state.in_flight.iter().map(|(_, slot)| Arc::clone(slot)));
            }
            // What waits behind a stalled group is taken back: it will not be written.
            while state
                .waiting
                .front()
                .is_some_and(|w| w.deadline <= now || state.stalled)
            {
                late.extend(state.waiting.pop_front().map(|waiting| waiting.slot));
            }
            drop(state);
            for slot in late {
                slot.resolve(Err(AppendError::Deadline(self.deadline)));
            }
            state = lock(&self.state);
        }
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_one();
    }

    /// The writer ends: nothing can be answered any more.
    pub(crate) fn writer_done(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.writer_done = true;
        let waiting = mem::take(&mut state.waiting);
        let in_flight = mem::take(&mut state.in_flight);
        drop(state);
        self.watch.notify_all();
        for slot in waiting
            .into_iter()
            .map(|w| w.slot)
            .chain(in_flight.into_iter().map(|(_, s)| s))
        {
            slot.resolve(Err(AppendError::Closed));
        }
    }

    /// Waits until the writer is done; whether it was within `patience`.
    pub(crate) fn wait_done(&self, patience: Duration) -> bool {
        let state = lock(&self.state);
        let (state, _) = self
            .watch
            .wait_timeout_while(state, patience, |state| !state.writer_done)
            .unwrap_or_else(PoisonError::into_inner);
        state.writer_done
    }

    pub(crate) fn condition(&self) -> Condition {
        let state = lock(&self.state);
        if state.closed {
            Condition::Closed
        } else if let Some(why) = &state.broken {
            Condition::Broken(why.clone())
        } else if state.stalled {
            Condition::Stalled
        } else {
            Condition::Open
        }
    }
}

/// The state behind these locks stays consistent at every point where a panic could leave
/// it, so a poisoned lock is as good as another.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

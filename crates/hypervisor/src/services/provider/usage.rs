//! The usage table's writer: calls are written behind, in groups, and none is lost on
//! shutdown. A call is admitted only when there is room for its record, so that nothing has
//! to be dropped later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::{Clock, millis};
use crate::error::Error;
use crate::store::{CallRow, Store, StoreError};

/// Records that wait to be written, those of calls under way included.
const BACKLOG: usize = 32_768;

/// Most records of one transaction.
const GROUP: usize = 4096;

/// How long a record waits for others; what a power cut can lose at most, together with the
/// time of one transaction.
const WAIT: Duration = Duration::from_millis(200);

/// Pause after the database failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a call waits for room: a disk that stands still for a moment is no reason to refuse it.
const ROOM_WITHIN: Duration = Duration::from_secs(3);

/// How often single calls that are too old are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

enum Message {
    Call(CallRow),
    Flush(oneshot::Sender<()>),
}

/// Room for one record.
pub(super) struct Slot(mpsc::OwnedPermit<Message>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    /// Hands a record over; it is written within a second.
    pub(super) fn record(self, call: CallRow) {
        self.0.send(Message::Call(call));
    }
}

/// Hands records to the writer.
#[derive(Debug, Clone)]
pub(super) struct UsageLog {
    sender: mpsc::Sender<Message>,
    writer: Arc<Writer>,
}

/// What the writer and those who hand records to it tell each other.
#[derive(Debug, Default)]
struct Writer {
    /// The last attempt to write failed: what is called now would wait for longer than a second.
    fails: AtomicBool,
    /// Somebody waits for what was handed over so far.
    hurry: Notify,
    /// For how long single calls are kept, in milliseconds.
    kept: AtomicI64,
    /// That has changed.
    forget: Notify,
}

impl UsageLog {
    /// Begins to write. Single calls are forgotten when they are older than `kept`; `refused` is
    /// told of each that the database does not take.
    pub(super) fn begin(
        store: Store,
        clock: Clock,
        kept: Duration,
        refused: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let writer = Arc::<Writer>::default();
        let log = Self { sender, writer };
        log.keep(kept);
        let writer = Arc::clone(&log.writer);
        tokio::spawn(write(receiver, writer, store, clock, refused));
        log
    }

    /// Keeps single calls for another length of time; what is too old then is forgotten now.
    pub(super) fn keep(&self, kept: Duration) {
        self.writer.kept.store(millis(kept), Ordering::Relaxed);
        self.writer.forget.notify_one();
    }

    /// Room for one more record, when there is some or will be shortly.
    ///
    /// # Errors
    /// The database fails or does not keep up, so that a call could not be accounted for.
    pub(super) async fn slot(&self) -> Result<Slot, Error> {
        let refused = || {
            Error::Unavailable(
                "the usage table does not keep up, and calls are not made unaccounted".to_owned(),
            )
        };
        if self.writer.fails.load(Ordering::Relaxed) {
            return Err(refused());
        }
        let sender = match self.sender.clone().try_reserve_owned() {
            Ok(room) => return Ok(Slot(room)),
            Err(TrySendError::Full(sender) | TrySendError::Closed(sender)) => sender,
        };
        match tokio::time::timeout(ROOM_WITHIN, sender.reserve_owned()).await {
            Ok(Ok(room)) => Ok(Slot(room)),
            Ok(Err(_)) | Err(_) => Err(refused()),
        }
    }

    /// Waits until every call that has a slot has ended, and is in the database.
    pub(super) async fn settle(&self) {
        // All room there is: nobody holds any of it, and nothing waits in it. An error means
        // that the writer is gone.
        if self.sender.reserve_many(BACKLOG).await.is_ok() {
            self.flush().await;
        }
    }

    /// Waits until everything handed over so far is in the database.
    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).await.is_ok() {
            self.writer.hurry.notify_one();
            // An error means that the writer is gone, and with it whom to wait for.
            let _ = flushed.await;
        }
    }
}

async fn write(
    mut receiver: mpsc::Receiver<Message>,
    writer: Arc<Writer>,
    store: Store,
    clock: Clock,
    refused: impl Fn(),
) {
    let mut messages = Vec::new();
    let mut calls: Vec<CallRow> = Vec::new();
    let mut flushes = Vec::new();
    let first = tokio::time::Instant::now() + FORGET_EVERY;
    let mut forget = tokio::time::interval_at(first, FORGET_EVERY);
    loop {
        let received = tokio::select! {
            biased;
            () = writer.forget.notified() => None,
            _ = forget.tick() => None,
            received = receiver.recv_many(&mut messages, GROUP) => Some(received),
        };
        let Some(received) = received else {
            let before = clock
                .now_ms()
                .saturating_sub(writer.kept.load(Ordering::Relaxed));
            if let Err(error) = store.forget_calls(before).await {
                tracing::warn!(%error, "old model calls could not be forgotten");
            }
            continue;
        };
        if received == 0 {
            return;
        }
        if received < GROUP {
            tokio::select! {
                () = tokio::time::sleep(WAIT) => {}
                () = writer.hurry.notified() => {}
            }
            let more = receiver.len().min(GROUP - received);
            if more > 0 {
                receiver.recv_many(&mut messages, more).await;
            }
        }
        for message in messages.drain(..) {
            match message {
                Message::Call(call) => calls.push(call),
                Message::Flush(done) => flushes.push(done),
            }
        }
        if record(&calls, &writer, &store).await.is_err() {
            // One of them, so that the others have to be written without it.
            for call in &calls {
                if let Err(error) = record(std::slice::from_ref(call), &writer, &store).await {
                    tracing::error!(
                        request_id = %call.request_id,
                        error = &error as &dyn std::error::Error,
                        "the database refuses a model call; it is missing from the usage table"
                    );
                    refused();
                }
            }
        }
        calls.clear();
        for flushed in flushes.drain(..) {
            let _ = flushed.send(());
        }
    }
}

/// Writes calls, all or none, however long the database fails.
///
/// # Errors
/// It refuses one of them.
async fn record(calls: &[CallRow], writer: &Writer, store: &Store) -> Result<(), StoreError> {
    let mut again = false;
    let written = loop {
        match store.record_calls(calls, again).await {
            Err(error) if !error.is_refusal() => {
                again = true;
                writer.fails.store(true, Ordering::Relaxed);
                tracing::error!(%error, waiting = calls.len(), "model calls could not be recorded yet");
                tokio::time::sleep(PAUSE).await;
            }
            written => break written,
        }
    };
    writer.fails.store(false, Ordering::Relaxed);
    written
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_call_waits_for_room_for_its_record_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("hypervisor.db"))
            .await
            .unwrap();
        tokio::time::pause();
        let log = UsageLog::begin(store, Clock::fixed(0), PAUSE, || {});
        let mut taken = Vec::new();
        for _ in 0..BACKLOG {
            taken.push(log.slot().await.unwrap());
        }
        {
            let mut next = pin!(log.slot());
            let waits = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await;
            assert!(waits);
            taken.pop();
            taken.push(next.await.unwrap());
        }
        let began = tokio::time::Instant::now();
        let refused = log.slot().await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
        let waited = began.elapsed();
        assert!(
            ROOM_WITHIN <= waited && waited < ROOM_WITHIN * 2,
            "{waited:?}"
        );
    }
}

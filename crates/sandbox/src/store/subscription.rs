//! A reader's place in the store: every event after its cursor, once and in order.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Event, EventStore, Fragment, Live, StoreError};

/// Events read at once while catching up. With the bound on an event's data this holds
/// at most 8 MiB for a reader.
const REPLAY_PAGE: u32 = 32;

/// What a subscription yields.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The next event.
    Event(Arc<Event>),
    /// Everything that was stored has been delivered up to this position; what follows is
    /// live. Yielded once.
    CaughtUp(i64),
    /// A piece of something unfinished; may be missed by a slow reader.
    Fragment(Arc<Fragment>),
}

/// Reads the store from a cursor, then follows the live relay. A reader that is too slow
/// for the relay goes back to reading the store from its cursor, so it neither skips an
/// event nor sees one that was not committed.
#[derive(Debug)]
pub struct Subscription {
    store: EventStore,
    receiver: broadcast::Receiver<Live>,
    /// The last event that was delivered.
    cursor: i64,
    backlog: VecDeque<Event>,
    /// Whether the store may hold events after the cursor that the relay will not bring.
    behind: bool,
    announced: bool,
}

impl Subscription {
    pub(super) const fn new(
        store: EventStore,
        receiver: broadcast::Receiver<Live>,
        cursor: i64,
    ) -> Self {
        Self {
            store,
            receiver,
            cursor,
            backlog: VecDeque::new(),
            behind: true,
            announced: false,
        }
    }

    /// The next delivery; `None` when the store is closed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Delivery>, StoreError> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                self.cursor = event.seq;
                return Ok(Some(Delivery::Event(Arc::new(event))));
            }
            if self.behind {
                let page = self
                    .store
                    .page(self.cursor, REPLAY_PAGE, None, None)
                    .await?;
                // A page that is not full reached the end of what is committed, and what
                // is committed later is in the receiver.
                self.behind = page.len() >= REPLAY_PAGE as usize;
                self.backlog = page.into();
                continue;
            }
            if !self.announced {
                self.announced = true;
                return Ok(Some(Delivery::CaughtUp(self.cursor)));
            }
            match self.receiver.recv().await {
                // Already delivered from the store.
                Ok(Live::Event(event)) if event.seq <= self.cursor => {}
                Ok(Live::Event(event)) if event.seq == self.cursor + 1 => {
                    self.cursor = event.seq;
                    return Ok(Some(Delivery::Event(event)));
                }
                Ok(Live::Fragment(fragment)) => return Ok(Some(Delivery::Fragment(fragment))),
                Ok(Live::Event(_)) | Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }
}

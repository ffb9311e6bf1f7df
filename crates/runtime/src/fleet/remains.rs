//! A start that could not be taken down, or not be taken over.

use std::sync::{MutexGuard, PoisonError};

use types::StartId;

use super::{Entry, Fleet};
use crate::control::Control;
use crate::driver::{Adopted, StartError};
use crate::instance::Instance;

/// What is left of a start, and may use the sandbox's files.
#[derive(Clone)]
pub(super) struct Remains {
    pub(super) start: StartId,
    pub(super) control: Control,
    pub(super) why: StartError,
}

impl Remains {
    pub(super) const fn new(start: StartId, control: Control, why: StartError) -> Self {
        Self {
            start,
            control,
            why,
        }
    }
}

impl Entry {
    pub(super) fn remains(&self) -> MutexGuard<'_, Option<Remains>> {
        // A look or an assignment leaves it valid.
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet {
    /// Takes a start down; what does not end is remembered.
    pub(super) async fn take_down(&self, instance: &Instance) {
        instance.start_ended().cancel();
        let control = instance.control().clone();
        let driver = &self.inner.driver;
        let stopped = driver
            .stop(instance.start_id, control.clone(), self.stop_grace_ms())
            .await;
        if let Err(why) = stopped {
            tracing::error!(sandbox = %instance.sandbox_id, start = %instance.start_id, error = %why, "a sandbox could not be taken down");
            *self.entry(instance.sandbox_id).remains() =
                Some(Remains::new(instance.start_id, control, why));
        }
    }

    pub(super) fn stop_grace_ms(&self) -> u64 {
        u64::try_from(self.inner.options.stop_grace.as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends a second start of one sandbox.
    pub(super) async fn end_second(&self, adopted: Adopted) {
        let driver = &self.inner.driver;
        let grace = self.stop_grace_ms();
        let stopped = driver.stop(adopted.start_id, adopted.control, grace).await;
        if let Err(error) = stopped {
            tracing::error!(start = %adopted.start_id, %error, "a second start of one sandbox is still there");
        }
    }

    /// Takes down what an earlier attempt left.
    ///
    /// # Errors
    /// It is still there.
    pub(super) async fn clear_remains(&self, entry: &Entry) -> Result<(), StartError> {
        let Some(remains) = entry.remains().clone() else {
            return Ok(());
        };
        let driver = &self.inner.driver;
        let stopped = driver
            .stop(remains.start, remains.control.clone(), self.stop_grace_ms())
            .await;
        *entry.remains() = stopped.as_ref().err().map(|why| Remains {
            why: why.clone(),
            ..remains
        });
        stopped
    }
}

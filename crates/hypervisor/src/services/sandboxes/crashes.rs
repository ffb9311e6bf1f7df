//! Crashes: kept in the database, so that a restart of the hypervisor does not begin to
//! count anew, and told to whom they concern.

use runtime::{Crashed, StartError};
use types::{NoticeKind, SandboxId};

use super::{Plane, Sandboxes};
use crate::actor::Actor;
use crate::services::audit::Entry;
use crate::store::GivenUp;

impl Plane {
    pub(super) async fn crashed(&self, sandbox: SandboxId, crash: Crashed) {
        let failed = crash.restarts_in.is_none();
        let now = self.clock.now_ms();
        let words = failed.then(|| GivenUp {
            message: crash.error.message.clone(),
            hint: crash.error.hint.clone(),
            log: crash.error.log.clone(),
        });
        if let Err(error) = self
            .store
            .keep_crash(sandbox, crash.crashes, words, now)
            .await
        {
            tracing::error!(%sandbox, %error, "a crash is not kept: after a restart it is not counted");
        }
        let action = if failed {
            "sandbox.failed"
        } else {
            "sandbox.crash"
        };
        let entry = Entry::allowed(action, sandbox.to_string())
            .in_sandbox(sandbox, self.role_of(sandbox))
            .with("crashes", crash.crashes.to_string());
        // It has happened already, whether or not it can be recorded.
        if let Err(error) = self.audit.record(&Actor::internal(), entry).await {
            tracing::error!(%sandbox, %error, "a crash has no record");
        }
        let message = match crash.restarts_in {
            Some(pause) => format!(
                "{}; it is started again in {} ms (crash {} in a row)",
                crash.error.message,
                pause.as_millis(),
                crash.crashes
            ),
            None => crash.error.message.clone(),
        };
        let hint = crash.error.hint.as_deref();
        self.notices
            .note(sandbox, NoticeKind::Crash, "guest", &message, hint);
    }

    pub(super) async fn crashes_settled(&self, sandbox: SandboxId) {
        if let Err(error) = self.store.forget_crashes(sandbox).await {
            tracing::warn!(%sandbox, %error, "crashes could not be forgotten");
        }
    }

    pub(super) async fn crashes_kept(&self, sandbox: SandboxId) -> u32 {
        match self.store.crashes(sandbox).await {
            Ok(kept) => kept.map_or(0, |kept| kept.crashes),
            Err(error) => {
                tracing::warn!(%sandbox, %error, "crashes could not be read");
                0
            }
        }
    }
}

impl Sandboxes {
    /// Shows again what an earlier hypervisor gave up, so that a visit does not wake it into
    /// its next crash.
    pub(super) async fn recall_failures(&self) -> Result<(), crate::error::Error> {
        for kept in self.plane.store.failures().await? {
            let mut error = StartError::new("crash_loop", kept.message);
            error.hint = kept.hint;
            error.log = kept.log;
            self.fleet.give_up(kept.sandbox_id, error);
        }
        Ok(())
    }
}

//! Starts runs, knows which ones work, cancels them; `resume` goes on with those that an
//! earlier process left unfinished.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::RunId;

use super::history::Conversation;
use super::model::{ModelClient, RetryPolicy};
use super::providers::Choice;
use super::run::{self, Agent, Beginning};
use super::task::{Bounds, Task, TaskError};
use super::tools::Tools;
use crate::channel::{Channel, ChannelError};
use crate::files::Workspace;
use crate::store::{EventStore, NewEvent, RunStatus, StoreError};

/// Runs that work at a time.
pub const MAX_RUNS: usize = 4;

/// Why a run was not started or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum ConductorError {
    /// The task is not acceptable.
    #[error("{0}")]
    Task(TaskError),
    /// There is no such model.
    #[error("there is no model {asked:?}; expected provider/model, one of: {known}")]
    Model {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: String,
    },
    /// The gateway offers it, in a wire format that the agent does not speak.
    #[error(
        "the agent does not speak the wire format of {others}; models that it can use: {known}"
    )]
    Format {
        /// Which providers.
        others: String,
        /// What there is beside them.
        known: String,
    },
    /// The gateway offers nothing.
    #[error("no model provider is configured")]
    NoModel,
    /// All places are taken.
    #[error("too many runs are working")]
    Busy,
    /// It has ended already.
    #[error("the run has ended already")]
    NotRunning,
    /// The gateway cannot be asked.
    #[error("the gateway cannot be asked for its models")]
    Channel(#[source] ChannelError),
    /// The run cannot be recorded.
    #[error("the run cannot be recorded")]
    Store(#[source] StoreError),
}

impl From<StoreError> for ConductorError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The agent's front; clones share it.
#[derive(Debug, Clone)]
pub struct Conductor {
    pub(super) store: EventStore,
    pub(super) channel: Channel,
    workspace: Workspace,
    file_operations: Arc<Semaphore>,
    pub(super) retries: RetryPolicy,
    pub(super) places: Arc<Semaphore>,
    working: Arc<Mutex<HashMap<RunId, CancellationToken>>>,
    tasks: TaskTracker,
    pub(super) cancelled: CancellationToken,
}

impl Conductor {
    /// A conductor without runs.
    #[must_use]
    pub fn new(
        store: EventStore,
        channel: Channel,
        workspace: Workspace,
        file_operations: Arc<Semaphore>,
        cancelled: CancellationToken,
    ) -> Self {
        Self {
            store,
            channel,
            workspace,
            file_operations,
            retries: RetryPolicy::default(),
            places: Arc::new(Semaphore::new(MAX_RUNS)),
            working: Arc::default(),
            tasks: TaskTracker::new(),
            cancelled,
        }
    }

    /// The same with other times between retries.
    #[must_use]
    pub fn with_retries(mut self, retries: RetryPolicy) -> Self {
        self.retries = retries;
        self
    }

    /// Starts a run; it works on by itself.
    ///
    /// # Errors
    /// When the task or the model is not acceptable, all places are taken, or the gateway
    /// or the store fails. Nothing has begun then.
    pub async fn start(&self, task: Task) -> Result<RunId, ConductorError> {
        let bounds = task.bounds().map_err(ConductorError::Task)?;
        let place = self
            .places
            .clone()
            .try_acquire_owned()
            .map_err(|_| ConductorError::Busy)?;
        let offered = self
            .channel
            .providers()
            .await
            .map_err(ConductorError::Channel)?;
        let choice = offered.choose(task.model.as_deref())?;
        let run_id = RunId::generate();
        let cancelled = self.enrol(run_id);
        // Everything that a resumption needs.
        let started = json!({
            "prompt": task.prompt,
            "model": choice.name(),
            "max_steps": bounds.steps,
            "max_seconds": bounds.time.as_secs(),
            "max_tokens": bounds.tokens,
        });
        if let Err(error) = self
            .store
            .append(NewEvent::of_run(run_id, "run.started", started))
            .await
        {
            self.working().remove(&run_id);
            return Err(error.into());
        }
        let agent = self.agent(run_id, choice, bounds, cancelled);
        let from = Beginning {
            conversation: Conversation::new(task.prompt.clone()),
            recalled: None,
            worked: Duration::ZERO,
        };
        self.supervise(run_id, Some(place), run::work(agent, task.prompt, from));
        Ok(run_id)
    }

    /// Makes a run known, before anybody can hear of it, so that it can be cancelled at once.
    pub(super) fn enrol(&self, run_id: RunId) -> CancellationToken {
        let cancelled = self.cancelled.child_token();
        self.working().insert(run_id, cancelled.clone());
        cancelled
    }

    pub(super) fn agent(
        &self,
        run_id: RunId,
        choice: Choice,
        bounds: Bounds,
        cancelled: CancellationToken,
    ) -> Agent {
        Agent {
            run_id,
            store: self.store.clone(),
            model: ModelClient::new(self.channel.clone(), choice, self.retries),
            tools: Tools::new(
                run_id,
                self.store.clone(),
                self.channel.clone(),
                self.workspace.clone(),
                self.file_operations.clone(),
                self.retries,
            ),
            bounds,
            cancelled,
            stopping: self.cancelled.clone(),
        }
    }

    /// Lets a run work in the background and records its end.
    pub(super) fn supervise(
        &self,
        run_id: RunId,
        place: Option<OwnedSemaphorePermit>,
        work: impl Future<Output = NewEvent> + Send + 'static,
    ) {
        let (working, store) = (self.working.clone(), self.store.clone());
        self.tasks.spawn(async move {
            // A task of its own: even a fault of ours gives the place back and ends the run.
            let end = tokio::spawn(work).await.unwrap_or_else(|error| {
                tracing::error!(%error, %run_id, "a run met a fault");
                let error = "the run met a fault of the sandbox; its log has the details";
                run::finished(run_id, RunStatus::Failed, None, Some(error))
            });
            // Before the end is told: who hears of it may start the next one at once.
            working
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&run_id);
            drop(place);
            if let Err(error) = store.append(end).await {
                tracing::error!(%error, %run_id, "the end of a run was not recorded");
            }
        });
    }

    /// Cancels a run. Its last event tells when it has ended.
    ///
    /// # Errors
    /// [`ConductorError::NotRunning`] when it has ended already.
    pub fn cancel(&self, run_id: RunId) -> Result<(), ConductorError> {
        self.working()
            .get(&run_id)
            .map(CancellationToken::cancel)
            .ok_or(ConductorError::NotRunning)
    }

    /// Resolves when no run works any more; none is started from now on.
    pub async fn drained(&self) {
        self.places.close();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn working(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, CancellationToken>> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

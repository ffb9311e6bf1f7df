//! Goes on with runs that were cut off: by the death of this process, of its sandbox, or
//! of the machine. A run goes on from its last committed event; how often is bounded,
//! because it may be the run itself that ends the process.

use serde_json::json;
use tokio_util::sync::CancellationToken;
use types::{CommandId, RunId};

use super::conductor::Conductor;
use super::history::{History, Reader, Unreadable};
use super::outage::Outage;
use super::providers::Choice;
use super::run::{self, Beginning};
use crate::store::{MAX_PAGE, NewEvent, RunStatus, StoreError};

/// Resumptions of one run in a row that finished nothing. The fleet lets a sandbox crash
/// a little more often before it gives the sandbox up: the run goes first.
pub const MAX_FRUITLESS: u32 = 3;
/// Resumptions of one run in all.
pub const MAX_RESUMPTIONS: u32 = 20;

/// Why a run is not resumed, in words for people with what to do.
#[derive(Debug, thiserror::Error)]
enum NotResumed {
    #[error("the run was interrupted and cannot be resumed: {0}; start it again")]
    Unreadable(#[from] Unreadable),
    #[error(
        "the run was cut off {0} times in a row without finishing anything, so it is not resumed \
         again; the sandbox's log says why it ended"
    )]
    Fruitless(u32),
    #[error(
        "the run was cut off {0} times, so it is not resumed again; start another one to go on"
    )]
    Often(u32),
    #[error("the run was interrupted and its record cannot be read or written: {0}")]
    Store(#[from] StoreError),
    #[error(
        "the run was interrupted, and its model {0:?} is not there any more; start it again with another"
    )]
    Model(String),
    #[error("the run was interrupted, and the gateway could not be asked for its model: {0}")]
    Channel(#[from] crate::channel::ChannelError),
}

impl Conductor {
    /// Goes on with the runs that an earlier process left unfinished, each in the
    /// background; they can be cancelled from now on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn resume_interrupted(&self) -> Result<(), StoreError> {
        for run_id in self.store.unfinished_runs().await? {
            let cancelled = self.enrol(run_id);
            let place = self.places.clone().try_acquire_owned().ok();
            let conductor = self.clone();
            self.supervise(run_id, place, async move {
                conductor.carry_on(run_id, cancelled).await
            });
        }
        Ok(())
    }

    async fn carry_on(self, run_id: RunId, cancelled: CancellationToken) -> NewEvent {
        let history = match self.history(run_id).await {
            Ok(history) => history,
            Err(error) => return failed(run_id, &error),
        };
        let command = begun_command(&history);
        let prepared = tokio::select! {
            biased;
            () = cancelled.cancelled() => {
                self.end(command).await;
                return run::cut_short(run_id, self.cancelled.is_cancelled());
            }
            prepared = self.prepare(run_id, &history) => prepared,
        };
        let choice = match prepared {
            Ok(choice) => choice,
            Err(error) => {
                self.end(command).await;
                return failed(run_id, &error);
            }
        };
        let agent = self.agent(run_id, choice, history.bounds, cancelled);
        let from = Beginning {
            conversation: history.conversation,
            recalled: history.recalled,
            worked: history.worked,
        };
        run::work(agent, history.prompt, from).await
    }

    async fn history(&self, run_id: RunId) -> Result<History, NotResumed> {
        let mut reader = Reader::default();
        let mut seq = 0;
        loop {
            let page = self.store.page(seq, MAX_PAGE, None, Some(run_id)).await?;
            let Some(last) = page.last() else { break };
            seq = last.seq;
            for event in page {
                reader.push(event)?;
            }
        }
        Ok(reader.finish()?)
    }

    /// Bounds the resumptions, commits this one, and finds the run's model again.
    async fn prepare(&self, run_id: RunId, history: &History) -> Result<Choice, NotResumed> {
        if history.fruitless >= MAX_FRUITLESS {
            return Err(NotResumed::Fruitless(history.fruitless + 1));
        }
        if history.resumptions >= MAX_RESUMPTIONS {
            return Err(NotResumed::Often(history.resumptions + 1));
        }
        let data = json!({
            "attempt": history.resumptions + 1,
            "step": history.conversation.step,
            "tokens": history.conversation.tokens,
            "worked_seconds": history.worked.as_secs(),
        });
        self.store
            .append(NewEvent::of_run(run_id, "run.resumed", data))
            .await?;
        tracing::info!(%run_id, step = history.conversation.step, "a run is resumed");
        let mut outage = Outage::new(self.retries);
        let offered = loop {
            let error = match self.channel.providers().await {
                Ok(offered) => break offered,
                Err(error) => error,
            };
            match outage.pause().filter(|_| error.is_outage()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error.into()),
            }
        };
        offered
            .choose(Some(&history.model))
            .map_err(|_| NotResumed::Model(history.model.clone()))
    }

    /// Ends the command of a run that does not go on.
    async fn end(&self, command: Option<CommandId>) {
        if let Some(id) = command
            && let Ok(Err(error)) =
                tokio::time::timeout(run::CANCEL_GRACE, self.channel.kill_command(id)).await
        {
            tracing::debug!(%error, command = %id, "a command was not killed");
        }
    }
}

fn failed(run_id: RunId, error: &NotResumed) -> NewEvent {
    tracing::warn!(%run_id, %error, "a run is not resumed");
    run::finished(
        run_id,
        RunStatus::Failed,
        None,
        Some(error.to_string().as_str()),
    )
}

fn begun_command(history: &History) -> Option<CommandId> {
    history.conversation.open.as_ref()?.begun.as_ref()?.command
}

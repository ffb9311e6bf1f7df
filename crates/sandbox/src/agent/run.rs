//! One run, from its prompt, or from where it was cut off, to its end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::{CommandId, RunId};

use super::history::{Begun, Calls, Conversation, reply_events};
use super::model::{ModelClient, ModelError, Reply, Stop, ToolCall, ToolResult};
use super::output::{bounded, printable};
use super::prompt;
use super::task::Bounds;
use super::tools::{Answer, Tools};
use crate::memory::{self, Memory};
use crate::store::{EventStore, Fragment, NewEvent, RunStatus, StoreError};

/// Tool calls of one answer that are carried out.
const MAX_CALLS: usize = 16;
/// Longest text of an answer that is kept as an event.
const MAX_TEXT: usize = 48 * 1024;
/// What the model is told of a call whose end nobody saw.
pub(super) const INTERRUPTED: &str = "interrupted: the sandbox was restarted while this was \
    being done, so it may have happened, in part or not at all; look before doing it again";
/// Longest arguments of a tool call that are kept as an event, as JSON.
const MAX_ARGUMENTS: usize = 96 * 1024;
/// How long a cancelled run may take to kill its command.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Everything that one run needs.
pub(crate) struct Agent {
    pub(crate) run_id: RunId,
    pub(crate) store: EventStore,
    pub(crate) model: ModelClient,
    pub(crate) tools: Tools,
    pub(crate) bounds: Bounds,
    pub(crate) cancelled: CancellationToken,
    /// Cancelled when the whole process ends, which is no wish of the user's.
    pub(crate) stopping: CancellationToken,
}

/// Where a run begins to work.
pub(crate) struct Beginning {
    pub(super) conversation: Conversation,
    /// The memories of its system prompt; `None` when they are still to be chosen.
    pub(super) recalled: Option<Vec<String>>,
    /// How long it has worked already.
    pub(super) worked: Duration,
}

/// How a run ended.
struct End {
    status: RunStatus,
    answer: Option<String>,
    error: Option<String>,
}

impl End {
    fn done(answer: String) -> Self {
        Self {
            status: RunStatus::Done,
            answer: Some(answer),
            error: None,
        }
    }

    fn of(status: RunStatus, error: impl Into<String>) -> Self {
        Self {
            status,
            answer: None,
            error: Some(error.into()),
        }
    }
}

/// Works until the run has ended; the answer is its last event, still to be recorded.
pub(crate) async fn work(agent: Agent, prompt: String, from: Beginning) -> NewEvent {
    let deadline = Instant::now() + agent.bounds.time.saturating_sub(from.worked);
    let end = tokio::select! {
        biased;
        () = agent.cancelled.cancelled() => {
            let _late = tokio::time::timeout(CANCEL_GRACE, agent.tools.kill_running()).await;
            return cut_short(agent.run_id, agent.stopping.is_cancelled());
        }
        () = tokio::time::sleep_until(deadline) => End::of(
            RunStatus::Bounded,
            format!(
                "the run met its bound of {} seconds; start another one to go on, or raise max_seconds",
                agent.bounds.time.as_secs()
            ),
        ),
        end = converse(&agent, &prompt, from) => end.unwrap_or_else(|error| {
            End::of(RunStatus::Failed, format!("the run cannot be recorded: {error}"))
        }),
    };
    // What was dropped above took its model stream with it; a command goes on without its
    // follower, so it is killed by name.
    let _late = tokio::time::timeout(CANCEL_GRACE, agent.tools.kill_running()).await;
    finished(
        agent.run_id,
        end.status,
        end.answer.as_deref(),
        end.error.as_deref(),
    )
}

/// The last event of a run that somebody cancelled, or whose sandbox was stopped in good
/// order: who stops a sandbox wants its runs stopped too, not resumed some other day.
pub(super) fn cut_short(run_id: RunId, stopping: bool) -> NewEvent {
    let (status, error) = if stopping {
        let error = "the sandbox was stopped while the run worked; start it again";
        (RunStatus::Failed, error)
    } else {
        (RunStatus::Cancelled, "the run was cancelled")
    };
    finished(run_id, status, None, Some(error))
}

/// The last event of a run.
pub(crate) fn finished(
    run_id: RunId,
    status: RunStatus,
    answer: Option<&str>,
    error: Option<&str>,
) -> NewEvent {
    let mut data = json!({"status": status.as_str()});
    if let Some(fields) = data.as_object_mut() {
        for (name, text) in [("answer", answer), ("error", error)] {
            if let Some(text) = text {
                fields.insert(name.to_owned(), text.into());
            }
        }
    }
    NewEvent::of_run(run_id, "run.finished", data)
}

async fn converse(agent: &Agent, prompt: &str, from: Beginning) -> Result<End, StoreError> {
    let system = prompt::system(&agent.memories(prompt, from.recalled).await?);
    let mut conversation = from.conversation;
    loop {
        if let Some(open) = conversation.open.take() {
            let results = agent.carry_out(open).await?;
            conversation.results(results);
        }
        match conversation.ended() {
            Some((Stop::Refused, _)) => {
                return Ok(End::of(
                    RunStatus::Failed,
                    "the model refused to go on; say the task differently or choose another model",
                ));
            }
            Some((_, text)) => return Ok(End::done(cut(text))),
            None => {}
        }
        if conversation.tokens >= agent.bounds.tokens {
            return Ok(End::of(
                RunStatus::Bounded,
                format!(
                    "the run used {} tokens and met its bound of {}; start another one to go on, \
                     or raise max_tokens",
                    conversation.tokens, agent.bounds.tokens
                ),
            ));
        }
        // A step that was begun before the run was cut off is not counted twice.
        if !conversation.unanswered {
            if conversation.step >= agent.bounds.steps {
                return Ok(End::of(
                    RunStatus::Bounded,
                    format!(
                        "the run met its bound of {} steps; start another one to go on, or raise max_steps",
                        agent.bounds.steps
                    ),
                ));
            }
            conversation.begin_step(conversation.step + 1);
            agent
                .record("run.step", json!({"step": conversation.step}))
                .await?;
        }
        let reply = match agent.ask(&system, &conversation).await? {
            Ok(reply) => reply,
            Err(error) => return Ok(End::of(RunStatus::Failed, error.to_string())),
        };
        agent.commit(conversation.step, &reply).await?;
        conversation.tokens += reply.usage.input + reply.usage.output;
        conversation.reply(reply);
    }
}

impl Agent {
    async fn record(&self, kind: &'static str, data: Value) -> Result<(), StoreError> {
        self.store
            .append(NewEvent::of_run(self.run_id, kind, data))
            .await
            .map(drop)
    }

    /// The memories that the run begins with, which stay the same when it is resumed.
    async fn memories(
        &self,
        prompt: &str,
        recalled: Option<Vec<String>>,
    ) -> Result<Vec<Memory>, StoreError> {
        let chosen = recalled.is_some();
        let found = match recalled {
            Some(ids) => memory::by_ids(&self.store, &ids).await,
            None => memory::recall(&self.store, prompt, None, prompt::MEMORIES).await,
        };
        let memories = match found {
            Ok(memories) => memories,
            Err(error) => {
                tracing::warn!(%error, "a run works without memories");
                Vec::new()
            }
        };
        if !chosen && !memories.is_empty() {
            let ids: Vec<_> = memories.iter().map(|memory| memory.id.as_str()).collect();
            self.record("run.recalled", json!({"memories": ids}))
                .await?;
        }
        Ok(memories)
    }

    /// Commits a reply, whole, before anything that it asks for is done.
    async fn commit(&self, step: u32, reply: &Reply) -> Result<(), StoreError> {
        let mut events = reply_events(self.run_id, step, reply);
        let usage = json!({
            "input_tokens": reply.usage.input,
            "output_tokens": reply.usage.output,
            "estimated": reply.usage.estimated,
        });
        events.push(NewEvent::of_run(self.run_id, "run.usage", usage));
        let text = cut(&reply.text);
        if !text.is_empty() {
            events.push(NewEvent::of_run(
                self.run_id,
                "run.text",
                json!({"text": text}),
            ));
        }
        self.store.append_all(events).await.map(drop)
    }

    /// Calls the model; text is relayed as it comes, and each retry is an event.
    async fn ask(
        &self,
        system: &str,
        conversation: &Conversation,
    ) -> Result<Result<Reply, ModelError>, StoreError> {
        let request = self
            .model
            .request(system, conversation.messages(), Tools::specifications());
        let mut attempt = 1;
        let mut outage = self.model.outage();
        loop {
            let relay = |text: &str| {
                self.store.relay(Fragment::Text {
                    run_id: self.run_id,
                    text: text.to_owned(),
                });
            };
            let error = match self.model.attempt(&request, relay).await {
                Ok(reply) => return Ok(Ok(reply)),
                Err(error) => error,
            };
            // An absent hypervisor is waited for; it is no attempt of the provider's.
            let is_outage = ModelClient::is_outage(&error);
            let told = is_outage && !outage.is_new();
            let wait = if is_outage {
                outage.pause()
            } else {
                outage.over();
                self.model.wait(&error, attempt)
            };
            let Some(wait) = wait else {
                return Ok(Err(error));
            };
            if !told {
                let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                self.record(
                    "run.retry",
                    json!({"attempt": attempt, "wait_ms": milliseconds, "reason": error.to_string()}),
                )
                .await?;
            }
            tokio::time::sleep(wait).await;
            attempt += u32::from(!is_outage);
        }
    }

    /// Carries out the calls that have no result yet.
    async fn carry_out(&self, open: Calls) -> Result<Vec<ToolResult>, StoreError> {
        let Calls {
            calls,
            mut results,
            mut begun,
        } = open;
        for (at, call) in calls.into_iter().enumerate().skip(results.len()) {
            let (outcome, command) = match begun.take() {
                Some(begun) => {
                    let command = begun.command;
                    (self.take_up(&call, begun).await, command)
                }
                None => self.begin(at, &call).await?,
            };
            let (ok, (output, truncated)) = match outcome {
                Ok(output) => (output.ok, bounded(&output.text)),
                Err(error) => (false, bounded(&format!("error: {error}"))),
            };
            let data = json!({
                "call_id": call.id, "name": call.name, "ok": ok,
                "output": output, "truncated": truncated,
            });
            self.record("run.tool_result", data).await?;
            if let Some(command) = command {
                self.tools.let_go(command);
            }
            results.push(ToolResult {
                call_id: call.id,
                output,
                ok,
            });
        }
        Ok(results)
    }

    /// Commits that a call begins, with the id of its command, and carries it out.
    async fn begin(
        &self,
        at: usize,
        call: &ToolCall,
    ) -> Result<(Result<Answer, String>, Option<CommandId>), StoreError> {
        let command = Tools::is_command(call).then(CommandId::generate);
        let arguments = serde_json::from_str(&call.arguments)
            .unwrap_or_else(|_| Value::String(bounded(&call.arguments).0));
        let mut data =
            json!({"call_id": call.id, "name": call.name, "arguments": presentable(arguments)});
        if let (Some(command), Some(fields)) = (command, data.as_object_mut()) {
            fields.insert("command_id".to_owned(), command.to_string().into());
        }
        self.record("run.tool_call", data).await?;
        let outcome = if at < MAX_CALLS {
            self.tools.call(call, command).await
        } else {
            Err(format!(
                "at most {MAX_CALLS} calls are carried out at once; ask again for this one"
            ))
        };
        Ok((outcome, command))
    }

    /// Finds out about a call that was begun before the run was cut off. Whatever may have
    /// had an effect is not done again.
    async fn take_up(&self, call: &ToolCall, begun: Begun) -> Result<Answer, String> {
        match begun {
            Begun {
                command: Some(command),
                ..
            } => self.tools.rejoin_command(call, command).await,
            Begun {
                effect: Some(effect),
                ..
            } => Ok(Answer::good(effect)),
            _ if Tools::only_looks(call) => self.tools.call(call, None).await,
            _ => Err(INTERRUPTED.to_owned()),
        }
    }
}

/// Arguments as an event carries them: long texts are cut, the file itself has the whole.
fn presentable(arguments: Value) -> Value {
    let arguments = match arguments {
        Value::String(text) => Value::String(bounded(&text).0),
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| match value {
                    Value::String(text) => (name, Value::String(bounded(&text).0)),
                    value if value.to_string().len() > 8 * 1024 => {
                        (name, Value::String("[…]".to_owned()))
                    }
                    value => (name, value),
                })
                .collect(),
        ),
        other => other,
    };
    if arguments.to_string().len() > MAX_ARGUMENTS {
        return Value::String("[too long to keep]".to_owned());
    }
    arguments
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    printable(text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "é".repeat(super::MAX_TEXT);
        assert!(cut(&text).len() <= super::MAX_TEXT);
        assert_eq!(cut("short"), "short");
    }
}

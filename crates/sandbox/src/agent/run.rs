//! One run, from its prompt to its end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::RunId;

use super::model::{Message, ModelClient, ModelError, Reply, Stop, ToolResult};
use super::output::{bounded, printable};
use super::prompt;
use super::task::Bounds;
use super::tools::Tools;
use crate::memory;
use crate::store::{EventStore, Fragment, NewEvent, RunStatus, StoreError};

/// Bytes of tool results that a conversation carries; the oldest are left out beyond it.
const MAX_CONVERSATION: usize = 400 * 1024;
/// Tool calls of one answer that are carried out.
const MAX_CALLS: usize = 16;
/// Longest text of an answer that is kept as an event.
const MAX_TEXT: usize = 48 * 1024;
/// Longest arguments of a tool call that are kept as an event, as JSON.
const MAX_ARGUMENTS: usize = 96 * 1024;
/// How long a cancelled run may take to kill its command.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

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
pub(crate) async fn work(agent: Agent, prompt: String) -> NewEvent {
    let deadline = Instant::now() + agent.bounds.time;
    let end = tokio::select! {
        biased;
        () = agent.cancelled.cancelled() => {
            if agent.stopping.is_cancelled() {
                End::of(RunStatus::Failed, "the sandbox was stopped while the run worked; start it again")
            } else {
                End::of(RunStatus::Cancelled, "the run was cancelled")
            }
        }
        () = tokio::time::sleep_until(deadline) => End::of(
            RunStatus::Bounded,
            format!(
                "the run met its bound of {} seconds; start another one to go on, or raise max_seconds",
                agent.bounds.time.as_secs()
            ),
        ),
        end = converse(&agent, prompt) => end.unwrap_or_else(|error| {
            End::of(RunStatus::Failed, format!("the run cannot be recorded: {error}"))
        }),
    };
    // What was dropped above took its model stream and its command's stream with it; the
    // command is killed by name as well, should the hypervisor not notice at once.
    let _late = tokio::time::timeout(CANCEL_GRACE, agent.tools.kill_running()).await;
    finished(
        agent.run_id,
        end.status,
        end.answer.as_deref(),
        end.error.as_deref(),
    )
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

async fn converse(agent: &Agent, prompt: String) -> Result<End, StoreError> {
    let memories = match memory::recall(&agent.store, &prompt, None, prompt::MEMORIES).await {
        Ok(memories) => memories,
        Err(error) => {
            tracing::warn!(%error, "a run starts without memories");
            Vec::new()
        }
    };
    if !memories.is_empty() {
        let ids: Vec<_> = memories.iter().map(|memory| memory.id.as_str()).collect();
        agent
            .record("run.recalled", json!({"memories": ids}))
            .await?;
    }
    let system = prompt::system(&memories);
    let mut messages = vec![Message::User(prompt)];
    let mut tokens = 0;
    for step in 1..=agent.bounds.steps {
        agent.record("run.step", json!({"step": step})).await?;
        let reply = match agent.ask(&system, &messages).await? {
            Ok(reply) => reply,
            Err(error) => return Ok(End::of(RunStatus::Failed, error.to_string())),
        };
        tokens += reply.usage.input + reply.usage.output;
        agent
            .record(
                "run.usage",
                json!({
                    "input_tokens": reply.usage.input,
                    "output_tokens": reply.usage.output,
                    "estimated": reply.usage.estimated,
                }),
            )
            .await?;
        let text = cut(&reply.text);
        if !text.is_empty() {
            agent.record("run.text", json!({"text": text})).await?;
        }
        let stop = reply.stop;
        let calls = reply.calls.clone();
        messages.push(Message::Assistant(reply));
        if calls.is_empty() {
            match stop {
                Stop::Refused => {
                    return Ok(End::of(
                        RunStatus::Failed,
                        "the model refused to go on; say the task differently or choose another model",
                    ));
                }
                // Cut off in the middle: it goes on where it stopped.
                Stop::Length => messages.push(Message::User(
                    "Your answer was cut off because of its length. Go on where it stopped."
                        .to_owned(),
                )),
                Stop::Done => return Ok(End::done(text)),
            }
        } else {
            let results = agent.carry_out(calls).await?;
            messages.push(Message::Results(results));
            shorten(&mut messages);
        }
        if tokens >= agent.bounds.tokens {
            return Ok(End::of(
                RunStatus::Bounded,
                format!(
                    "the run used {tokens} tokens and met its bound of {}; start another one to go on, \
                     or raise max_tokens",
                    agent.bounds.tokens
                ),
            ));
        }
    }
    Ok(End::of(
        RunStatus::Bounded,
        format!(
            "the run met its bound of {} steps; start another one to go on, or raise max_steps",
            agent.bounds.steps
        ),
    ))
}

impl Agent {
    async fn record(&self, kind: &'static str, data: Value) -> Result<(), StoreError> {
        self.store
            .append(NewEvent::of_run(self.run_id, kind, data))
            .await
            .map(drop)
    }

    /// Calls the model; text is relayed as it comes, and each retry is an event.
    async fn ask(
        &self,
        system: &str,
        messages: &[Message],
    ) -> Result<Result<Reply, ModelError>, StoreError> {
        let request = self
            .model
            .request(system, messages, Tools::specifications());
        let mut attempt = 1;
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
            let Some(wait) = self.model.wait(&error, attempt) else {
                return Ok(Err(error));
            };
            let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            self.record(
                "run.retry",
                json!({"attempt": attempt, "wait_ms": milliseconds, "reason": error.to_string()}),
            )
            .await?;
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn carry_out(
        &self,
        calls: Vec<super::model::ToolCall>,
    ) -> Result<Vec<ToolResult>, StoreError> {
        let mut results = Vec::with_capacity(calls.len());
        for (at, call) in calls.into_iter().enumerate() {
            let arguments = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| Value::String(bounded(&call.arguments).0));
            let data =
                json!({"call_id": call.id, "name": call.name, "arguments": presentable(arguments)});
            self.record("run.tool_call", data).await?;
            let outcome = if at < MAX_CALLS {
                self.tools.call(&call).await
            } else {
                Err(format!(
                    "at most {MAX_CALLS} calls are carried out at once; ask again for this one"
                ))
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
            results.push(ToolResult {
                call_id: call.id,
                output,
                ok,
            });
        }
        Ok(results)
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

/// Leaves out the oldest tool results while the conversation is too long for a model.
fn shorten(messages: &mut [Message]) {
    const LEFT_OUT: &str = "[left out because the conversation became long; ask again if needed]";
    let mut length: usize = messages.iter().map(Message::length).sum();
    for message in messages {
        let Message::Results(results) = message else {
            continue;
        };
        for result in results {
            if length <= MAX_CONVERSATION {
                return;
            }
            if result.output.len() > LEFT_OUT.len() {
                length -= result.output.len() - LEFT_OUT.len();
                LEFT_OUT.clone_into(&mut result.output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Message, ToolResult};
    use super::{MAX_CONVERSATION, cut, shorten};

    #[test]
    fn a_long_conversation_loses_its_oldest_results_first() {
        let result = |n: usize| {
            Message::Results(vec![ToolResult {
                call_id: n.to_string(),
                output: "x".repeat(MAX_CONVERSATION / 4),
                ok: true,
            }])
        };
        let mut messages: Vec<_> = (0..6).map(result).collect();
        shorten(&mut messages);
        let lengths: Vec<_> = messages.iter().map(Message::length).collect();
        assert!(
            lengths[0] < 100 && lengths[5] == MAX_CONVERSATION / 4,
            "{lengths:?}"
        );
        assert!(lengths.iter().sum::<usize>() <= MAX_CONVERSATION);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "é".repeat(super::MAX_TEXT);
        assert!(cut(&text).len() <= super::MAX_TEXT);
        assert_eq!(cut("short"), "short");
    }
}

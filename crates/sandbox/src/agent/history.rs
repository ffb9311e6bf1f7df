//! A run as its events tell it. The EventStore is the single source of truth (arch §7), so
//! a run that was cut off goes on from here: what is committed has happened, what is not
//! has not, or nobody knows.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use types::{CommandId, RunId};

use super::model::{Message, Reply, Stop, ToolCall, ToolResult};
use super::task::Bounds;
use crate::store::{Event, NewEvent};

/// Bytes of tool results that a conversation carries; the oldest are left out beyond it.
const MAX_CONVERSATION: usize = 400 * 1024;
/// Bytes of a reply's JSON that one event carries. As a string within JSON it is at most
/// twice as long, which stays below the store's bound.
const MAX_PIECE: usize = 96 * 1024;
/// What is said to a model whose answer was cut off because of its length.
const GO_ON: &str = "Your answer was cut off because of its length. Go on where it stopped.";

/// What the events of a run add up to.
#[derive(Debug)]
pub(super) struct History {
    /// What was asked.
    pub(super) prompt: String,
    /// The model, as `provider/model`.
    pub(super) model: String,
    pub(super) bounds: Bounds,
    /// The memories that its system prompt holds; `None` when they were not chosen yet.
    pub(super) recalled: Option<Vec<String>>,
    pub(super) conversation: Conversation,
    /// How long it worked, as far as its events show.
    pub(super) worked: Duration,
    /// How often it was resumed, and how often in a row without finishing anything.
    pub(super) resumptions: u32,
    pub(super) fruitless: u32,
}

/// The conversation with the model, and where in it the run stands.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// The present step; 0 before the first.
    pub(super) step: u32,
    /// The present step has no reply yet.
    pub(super) unanswered: bool,
    /// Tokens read and written.
    pub(super) tokens: u64,
    /// The last reply's calls, until all have their results.
    pub(super) open: Option<Calls>,
    ended: Option<(Stop, String)>,
}

/// The tool calls of one reply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    pub(super) calls: Vec<ToolCall>,
    /// Results of the first of them.
    pub(super) results: Vec<ToolResult>,
    /// What is known of the call after those, when it was begun and has no result.
    pub(super) begun: Option<Begun>,
}

/// A call that was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// The command that it is, known by this id outside the sandbox.
    pub(super) command: Option<CommandId>,
    /// What it did, when that was committed before its result.
    pub(super) effect: Option<String>,
}

impl Conversation {
    pub(super) fn new(prompt: String) -> Self {
        Self {
            messages: vec![Message::User(prompt)],
            ..Self::default()
        }
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// How the model's last reply ended the conversation, if it did.
    pub(super) const fn ended(&self) -> Option<&(Stop, String)> {
        self.ended.as_ref()
    }

    pub(super) const fn begin_step(&mut self, step: u32) {
        self.step = step;
        self.unanswered = true;
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        self.unanswered = false;
        let (stop, text, calls) = (reply.stop, reply.text.clone(), reply.calls.clone());
        self.messages.push(Message::Assistant(reply));
        if !calls.is_empty() {
            self.open = Some(Calls {
                calls,
                ..Calls::default()
            });
        } else if stop == Stop::Length {
            // Cut off in the middle: it goes on where it stopped.
            self.messages.push(Message::User(GO_ON.to_owned()));
        } else {
            self.ended = Some((stop, text));
        }
    }

    pub(super) fn results(&mut self, results: Vec<ToolResult>) {
        self.messages.push(Message::Results(results));
        shorten(&mut self.messages);
    }
}

/// What is committed of a reply before anything that it asks for is done.
pub(super) fn reply_events(run_id: RunId, step: u32, reply: &Reply) -> Vec<NewEvent> {
    let written = json!(reply);
    let text = written.to_string();
    if text.len() <= MAX_PIECE {
        let data = json!({"step": step, "reply": written});
        return vec![NewEvent::of_run(run_id, "run.reply", data)];
    }
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let mut end = rest.len().min(MAX_PIECE);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    let parts = pieces.len();
    pieces
        .into_iter()
        .zip(1..)
        .map(|(piece, part): (_, usize)| {
            let data = json!({"step": step, "part": part, "parts": parts, "piece": piece});
            NewEvent::of_run(run_id, "run.reply", data)
        })
        .collect()
}

/// Why a run cannot be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreadable(&'static str);

/// Reads a run's events, in their order.
#[derive(Debug, Default)]
pub(super) struct Reader {
    history: Option<History>,
    /// The pieces of a reply so far.
    pieces: String,
    replies: u64,
    usages: u64,
    segment: Option<(Timestamp, Timestamp)>,
}

#[derive(Deserialize)]
struct Started {
    prompt: String,
    model: String,
    max_steps: u32,
    max_seconds: u64,
    max_tokens: u64,
}

#[derive(Deserialize)]
struct Answered {
    call_id: String,
    ok: bool,
    output: String,
}

const OLDER: Unreadable = Unreadable("it was started by an older version, which kept less of it");
const DAMAGED: Unreadable = Unreadable("its events do not fit together");

impl Reader {
    /// Takes the next event in.
    pub(super) fn push(&mut self, event: Event) -> Result<(), Unreadable> {
        let at: Timestamp = event.ts.parse().map_err(|_| DAMAGED)?;
        if event.kind == "run.started" {
            self.start(event.data)?;
            self.segment = Some((at, at));
            return Ok(());
        }
        let history = self.history.as_mut().ok_or(DAMAGED)?;
        if event.kind == "run.resumed" {
            history.worked += self.segment.map_or(Duration::ZERO, length);
            history.resumptions += 1;
            history.fruitless += 1;
            self.segment = Some((at, at));
            return Ok(());
        }
        if let Some((_, last)) = &mut self.segment {
            *last = at;
        }
        let data = event.data;
        let conversation = &mut history.conversation;
        match event.kind.as_str() {
            "run.recalled" => {
                let ids = data.get("memories").cloned().unwrap_or_default();
                history.recalled = Some(serde_json::from_value(ids).map_err(|_| DAMAGED)?);
            }
            "run.step" => {
                if let Some(open) = conversation.open.take() {
                    if open.results.len() != open.calls.len() {
                        return Err(DAMAGED);
                    }
                    conversation.results(open.results);
                }
                history.recalled.get_or_insert_default();
                conversation.begin_step(number(&data, "step").try_into().map_err(|_| DAMAGED)?);
            }
            "run.reply" => {
                let reply = if let Some(reply) = data.get("reply") {
                    serde_json::from_value(reply.clone()).map_err(|_| DAMAGED)?
                } else {
                    let piece = data.get("piece").and_then(Value::as_str).ok_or(DAMAGED)?;
                    self.pieces.push_str(piece);
                    if number(&data, "part") != number(&data, "parts") {
                        return Ok(());
                    }
                    let text = std::mem::take(&mut self.pieces);
                    serde_json::from_str(&text).map_err(|_| DAMAGED)?
                };
                self.replies += 1;
                history.fruitless = 0;
                conversation.reply(reply);
            }
            "run.usage" => {
                self.usages += 1;
                conversation.tokens +=
                    number(&data, "input_tokens") + number(&data, "output_tokens");
            }
            "run.tool_call" => {
                let open = conversation.open.as_mut().ok_or(OLDER)?;
                let command = data.get("command_id").and_then(Value::as_str);
                open.begun = Some(Begun {
                    command: command.map(str::parse).transpose().map_err(|_| DAMAGED)?,
                    effect: None,
                });
            }
            "run.tool_result" => {
                let open = conversation.open.as_mut().ok_or(OLDER)?;
                let Answered {
                    call_id,
                    ok,
                    output,
                } = serde_json::from_value(data).map_err(|_| DAMAGED)?;
                open.begun = None;
                open.results.push(ToolResult {
                    call_id,
                    output,
                    ok,
                });
                history.fruitless = 0;
            }
            "file.changed" | "memory.remembered" => {
                let begun = conversation
                    .open
                    .as_mut()
                    .and_then(|open| open.begun.as_mut());
                if let Some(begun) = begun {
                    let text = |name| data.get(name).and_then(Value::as_str);
                    begun.effect = match (text("op"), text("path"), text("id")) {
                        (Some(op), Some(path), _) => Some(format!("{op} {path}")),
                        (_, _, Some(id)) => Some(format!("remembered as {id}")),
                        _ => None,
                    };
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, data: Value) -> Result<(), Unreadable> {
        let started: Started = serde_json::from_value(data).map_err(|_| OLDER)?;
        self.history = Some(History {
            conversation: Conversation::new(started.prompt.clone()),
            prompt: started.prompt,
            model: started.model,
            bounds: Bounds {
                steps: started.max_steps,
                time: Duration::from_secs(started.max_seconds),
                tokens: started.max_tokens,
            },
            recalled: None,
            worked: Duration::ZERO,
            resumptions: 0,
            fruitless: 0,
        });
        Ok(())
    }

    /// What they add up to.
    pub(super) fn finish(self) -> Result<History, Unreadable> {
        let mut history = self.history.ok_or(DAMAGED)?;
        // A reply and its usage are committed together, whole.
        if self.replies != self.usages || !self.pieces.is_empty() {
            return Err(OLDER);
        }
        history.worked += self.segment.map_or(Duration::ZERO, length);
        Ok(history)
    }
}

fn length((from, to): (Timestamp, Timestamp)) -> Duration {
    // A clock that was set back makes no negative work.
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn number(data: &Value, name: &str) -> u64 {
    data.get(name).and_then(Value::as_u64).unwrap_or_default()
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
mod tests;

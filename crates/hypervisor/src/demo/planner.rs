//! Plans by replay: the plan is ordinary straight-line code that is run from the beginning
//! on every turn. Calls whose results are already in the conversation return at once; the
//! first one that has none becomes the answer. The same conversation therefore always gets
//! the same answer, and the provider keeps no state.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::fix;
use super::grammar::{self, Instruction};
use super::wire::{Answer, FunctionCall, Message, ToolCall};

/// Every answer begins with this, so that nobody takes the demo for a model.
pub(super) const SIGNATURE: &str = "Demo provider (no language model):";

/// Characters of a tool's output that an answer repeats.
const QUOTED_OUTPUT: usize = 2_000;

const GRAMMAR_HELP: &str = "\
I do not understand free text. I follow these instructions, one on a line or joined by `then`:

- run: <command>
- create <path>: <content>
- change \"<old>\" to \"<new>\" in <path>
- read <path>
- fix the failing test [with <command>]
- remember: <text>
- recall <words>

Configure a provider to talk to a real model.";

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Its output.
    pub(super) text: String,
    /// Whether it did what was asked; for a command, whether it exited with 0.
    pub(super) ok: bool,
}

/// Why a plan does not go on in this turn.
#[derive(Debug)]
pub(super) enum Stop {
    /// A tool has to be called first.
    Call(String, ToolCall),
    /// It cannot be done; the sentence says why.
    GiveUp(String),
}

/// The conversation since the task was given, consumed call by call.
pub(super) struct Replay {
    results: VecDeque<(ToolCall, String)>,
    offered: Vec<String>,
    calls: usize,
}

impl Replay {
    /// The outcome of a call, from the conversation if it is there.
    pub(super) fn call(
        &mut self,
        say: &str,
        name: &str,
        arguments: &Value,
    ) -> Result<Outcome, Stop> {
        self.calls += 1;
        if let Some((call, text)) = self.results.pop_front() {
            if call.function.name != name {
                let other = call.function.name;
                return Err(Stop::GiveUp(format!(
                    "the conversation shows a call of {other} where I planned {name}; please ask again"
                )));
            }
            return Ok(outcome(&text));
        }
        if !self.offered.iter().any(|offered| offered == name) {
            return Err(Stop::GiveUp(format!(
                "this needs the tool {name}, which I was not offered"
            )));
        }
        let call = ToolCall {
            id: format!("call_demo_{}", self.calls),
            kind: "function".to_owned(),
            function: FunctionCall {
                name: name.to_owned(),
                arguments: arguments.to_string(),
            },
        };
        Err(Stop::Call(say.to_owned(), call))
    }

    pub(super) fn run(&mut self, say: &str, command: &str) -> Result<Outcome, Stop> {
        self.call(say, "run_command", &json!({"command": command}))
    }

    pub(super) fn read(&mut self, path: &str) -> Result<Outcome, Stop> {
        self.call(
            &format!("I read {path}."),
            "read_file",
            &json!({"path": path}),
        )
    }

    pub(super) fn patch(
        &mut self,
        say: &str,
        path: &str,
        old: &str,
        new: &str,
    ) -> Result<Outcome, Stop> {
        self.call(
            say,
            "patch_file",
            &json!({"path": path, "old": old, "new": new}),
        )
    }
}

/// The answer to a conversation.
pub(super) fn answer(messages: &[Message], offered: Vec<String>) -> Answer {
    let Some(task_at) = messages.iter().rposition(|message| message.role == "user") else {
        return closing(format!("there is no request yet.\n\n{GRAMMAR_HELP}"));
    };
    let (task, since) = match messages.split_at_checked(task_at).map(|(_, rest)| rest) {
        Some([task, since @ ..]) => (task.text(), since),
        _ => (String::new(), messages),
    };
    let instructions = match grammar::parse(&task) {
        Ok(instructions) => instructions,
        Err(piece) if piece.is_empty() => return closing(GRAMMAR_HELP.to_owned()),
        Err(piece) => {
            return closing(format!(
                "I stopped at: {}\n\n{GRAMMAR_HELP}",
                shorten(&piece, 200)
            ));
        }
    };
    let mut replay = Replay {
        results: results(since),
        offered,
        calls: 0,
    };
    let mut report = Vec::new();
    let count = instructions.len();
    for (at, instruction) in instructions.iter().enumerate() {
        match follow(&mut replay, instruction) {
            Ok(line) => report.push(line),
            Err(Stop::Call(say, call)) => {
                return Answer {
                    text: format!("{SIGNATURE} {say}"),
                    call: Some(call),
                };
            }
            Err(Stop::GiveUp(why)) => {
                report.push(why);
                let left = count - at - 1;
                if left > 0 {
                    report.push(format!(
                        "I stopped there; {left} of {count} instructions were not begun."
                    ));
                }
                break;
            }
        }
    }
    closing(report.join("\n\n"))
}

fn closing(text: String) -> Answer {
    Answer {
        text: format!("{SIGNATURE} {text}"),
        call: None,
    }
}

/// Pairs the calls made since the task with their results, in the order of the calls.
fn results(since: &[Message]) -> VecDeque<(ToolCall, String)> {
    let mut paired = VecDeque::new();
    for call in since.iter().flat_map(|message| &message.tool_calls) {
        let result = since.iter().find(|message| {
            message.role == "tool" && message.tool_call_id.as_ref() == Some(&call.id)
        });
        if let Some(result) = result {
            paired.push_back((call.clone(), result.text()));
        }
    }
    paired
}

fn follow(replay: &mut Replay, instruction: &Instruction) -> Result<String, Stop> {
    match instruction {
        Instruction::Run(command) => {
            let outcome = replay.run(&format!("I run `{command}`."), command)?;
            done(
                &outcome,
                format!("`{command}` succeeded:"),
                format!("`{command}` failed:"),
            )
        }
        Instruction::Create { path, content } => {
            let arguments = json!({"path": path, "content": content});
            let outcome = replay.call(&format!("I write {path}."), "write_file", &arguments)?;
            plain(
                &outcome,
                format!("Wrote {path} ({} bytes).", content.len()),
                &format!("writing {path}"),
            )
        }
        Instruction::Change { path, old, new } => {
            let outcome = replay.patch(&format!("I change {path}."), path, old, new)?;
            plain(
                &outcome,
                format!("Changed {path}: {old:?} is {new:?} now."),
                &format!("changing {path}"),
            )
        }
        Instruction::Read(path) => {
            let outcome = replay.read(path)?;
            done(
                &outcome,
                format!("{path} holds:"),
                format!("Reading {path} failed:"),
            )
        }
        Instruction::FixTest { command } => fix::fix(replay, command.as_deref()),
        Instruction::Remember(text) => {
            let arguments = json!({"text": text, "tags": []});
            let outcome = replay.call("I remember that.", "remember", &arguments)?;
            plain(&outcome, format!("I will remember: {text}"), "remembering")
        }
        Instruction::Recall(query) => {
            let outcome =
                replay.call("I look in my memory.", "recall", &json!({"query": query}))?;
            done(
                &outcome,
                format!("I recall about {query}:"),
                "Recalling failed:".to_owned(),
            )
        }
    }
}

fn done(outcome: &Outcome, good: String, bad: String) -> Result<String, Stop> {
    let text = outcome.text.trim_end();
    let quoted = if text.is_empty() {
        "(no output)".to_owned()
    } else {
        shorten(text, QUOTED_OUTPUT)
    };
    let opening = if outcome.ok { good } else { bad };
    let line = format!("{opening}\n```\n{quoted}\n```");
    if outcome.ok {
        Ok(line)
    } else {
        Err(Stop::GiveUp(line))
    }
}

fn plain(outcome: &Outcome, good: String, doing: &str) -> Result<String, Stop> {
    if outcome.ok {
        Ok(good)
    } else {
        Err(Stop::GiveUp(format!(
            "{doing} failed: {}",
            shorten(outcome.text.trim(), QUOTED_OUTPUT)
        )))
    }
}

pub(super) fn shorten(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
    }
}

/// Reads a tool's result: JSON with `exit_code`/`error`, or text with an exit line.
fn outcome(text: &str) -> Outcome {
    if let Ok(Value::Object(fields)) = serde_json::from_str(text) {
        let number = |name: &str| fields.get(name).and_then(Value::as_i64);
        let failed = fields.get("error").is_some_and(|error| !error.is_null())
            || fields.get("ok").and_then(Value::as_bool) == Some(false)
            || number("exit_code")
                .or_else(|| number("code"))
                .is_some_and(|code| code != 0);
        let parts: Vec<_> = [
            "output", "stdout", "stderr", "content", "text", "error", "message",
        ]
        .iter()
        .filter_map(|name| fields.get(*name).and_then(Value::as_str))
        .filter(|part| !part.is_empty())
        .collect();
        let body = if parts.is_empty() {
            text.to_owned()
        } else {
            parts.join("\n")
        };
        return Outcome {
            text: body,
            ok: !failed,
        };
    }
    let mut exit = None;
    let mut kept = Vec::new();
    let lines: Vec<_> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let edge = at == 0 || at + 2 >= lines.len();
        match exit_line(line).filter(|_| edge && exit.is_none()) {
            Some(code) => exit = Some(code),
            None => kept.push(*line),
        }
    }
    let ok = match exit {
        Some(code) => code == 0,
        None => !text.trim_start().to_ascii_lowercase().starts_with("error"),
    };
    Outcome {
        text: kept.join("\n"),
        ok,
    }
}

/// The code of a line such as `exit code: 1`, `[exit code 1]` or `exited with status 101`.
/// A command that a signal or its time limit ended counts as failed.
fn exit_line(line: &str) -> Option<i64> {
    let line = line
        .trim()
        .trim_matches(['[', ']', '(', ')'])
        .to_ascii_lowercase();
    if line.starts_with("timed out")
        || line.starts_with("killed by signal")
        || line.starts_with("signal:")
    {
        return Some(-1);
    }
    [
        "exited with code",
        "exited with status",
        "exit code",
        "exit status",
        "exit_code",
        "exit",
    ]
    .iter()
    .find_map(|opening| line.strip_prefix(opening))
    .and_then(|rest| rest.trim_matches([':', '=', ' ', '.']).parse().ok())
}

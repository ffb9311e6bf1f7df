//! What a request asks for, and what is done about it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// What the two families of formats have in common.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ask {
    /// The model.
    pub(crate) model: String,
    /// The last text of the user.
    pub(crate) text: String,
    /// The result of a tool, when that is the last thing said.
    pub(crate) result: Option<String>,
    /// The names of the client's tools.
    pub(crate) tools: Vec<String>,
    /// Whether the reply is to be a stream.
    pub(crate) stream: bool,
    /// Chat completions: whether the stream ends with its usage.
    pub(crate) with_usage: bool,
    /// Bytes of the request.
    pub(crate) bytes: usize,
}

impl Ask {
    /// What the user said: the line that leaves a call without an end, when there is one,
    /// because agents put texts of their own around it.
    pub(crate) fn said(&self) -> &str {
        let endless = |line: &&str| line.starts_with("slow ") || line.starts_with("silent ");
        let mut lines = self.text.lines().map(str::trim);
        lines.find(endless).unwrap_or(&self.text)
    }
}

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    Say(String),
    Call {
        tool: String,
        arguments: Value,
    },
    Fail {
        status: u16,
        retry_after: Option<u64>,
    },
    /// Says the key that it was sent.
    Echo,
    Slow,
    Silent,
    Break,
}

/// How often each text that fails a number of times has failed.
pub(crate) type Failures = Mutex<HashMap<String, u32>>;

/// Tools that run commands, by the names that agents have for them, and their arguments.
fn run(tool: &str, command: &str) -> Option<Value> {
    Some(match tool {
        "exec_command" => json!({ "cmd": command }),
        "shell_command" | "run_command" => json!({ "command": command }),
        "shell" => json!({ "command": ["bash", "-lc", command] }),
        "Bash" => json!({ "command": command, "description": "as it was told" }),
        _ => return None,
    })
}

pub(crate) fn plan(ask: &Ask, failures: &Failures) -> Act {
    if let Some(result) = &ask.result {
        return Act::Say(format!("the tool said: {}", result.trim()));
    }
    for line in ask.text.lines().map(str::trim) {
        if let Some(act) = instruction(ask, line, failures) {
            return act;
        }
    }
    let start: String = ask.text.chars().take(40).collect();
    Act::Say(format!("received {} bytes: {start}", ask.bytes))
}

fn instruction(ask: &Ask, line: &str, failures: &Failures) -> Option<Act> {
    if let Some(command) = line.strip_prefix("run: ") {
        return ask.tools.iter().find_map(|tool| {
            let arguments = run(tool, command)?;
            Some(Act::Call {
                tool: tool.clone(),
                arguments,
            })
        });
    }
    let mut words = line.split_whitespace();
    match words.next()? {
        "echo" => Some(Act::Echo),
        "slow" => Some(Act::Slow),
        "silent" => Some(Act::Silent),
        "break" => Some(Act::Break),
        "tool" => {
            let tool = ask.tools.first()?.clone();
            Some(Act::Call {
                tool,
                arguments: json!({ "city": "Paris" }),
            })
        }
        "fail" => {
            let status = words.next()?.parse().ok()?;
            let rest: Vec<&str> = words.collect();
            let times = rest
                .iter()
                .find_map(|word| word.strip_prefix('x')?.parse::<u32>().ok());
            let after = rest.iter().position(|word| *word == "after");
            let retry_after = after.and_then(|at| rest.get(at + 1)?.parse().ok());
            if let Some(times) = times {
                let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                let failed = failures.entry(line.to_owned()).or_default();
                *failed += 1;
                if *failed > times {
                    return Some(Act::Say(format!("after {times} failures")));
                }
            }
            Some(Act::Fail {
                status,
                retry_after,
            })
        }
        _ => None,
    }
}

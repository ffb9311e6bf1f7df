//! The tools of the agent.

mod command;
mod edit;
mod files;
mod patch;
mod specification;

use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use types::{CommandId, RunId};

use super::model::{RetryPolicy, ToolCall, ToolSpecification};
use crate::app::blocking;
use crate::channel::Channel;
use crate::files::{FileError, Workspace};
use crate::memory;
use crate::store::EventStore;

/// What a tool answered; an `Err` of a tool is a text for the model too.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Whether it did what was asked: for a command, whether it exited with 0.
    pub(crate) ok: bool,
}

impl Answer {
    pub(crate) fn good(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ok: true,
        }
    }
}

/// The tools of one run.
#[derive(Debug)]
pub(crate) struct Tools {
    run_id: RunId,
    store: EventStore,
    channel: Channel,
    workspace: Workspace,
    file_operations: Arc<Semaphore>,
    retries: RetryPolicy,
    /// The command that runs at the moment.
    running: Mutex<Option<CommandId>>,
}

#[derive(Deserialize)]
struct Remember {
    text: String,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Recall {
    query: String,
    tag: Option<String>,
    limit: Option<u32>,
}

/// The tool that runs commands.
const RUN_COMMAND: &str = "run_command";

/// Memories that one recall shows the model.
const RECALLED: u32 = 10;

impl Tools {
    pub(crate) fn new(
        run_id: RunId,
        store: EventStore,
        channel: Channel,
        workspace: Workspace,
        file_operations: Arc<Semaphore>,
        retries: RetryPolicy,
    ) -> Self {
        Self {
            run_id,
            store,
            channel,
            workspace,
            file_operations,
            retries,
            running: Mutex::default(),
        }
    }

    /// The tools as they are described to the model.
    pub(crate) fn specifications() -> &'static [ToolSpecification] {
        specification::all()
    }

    /// Whether a call runs a command, which then has an id of its own.
    pub(crate) fn is_command(call: &ToolCall) -> bool {
        call.name == RUN_COMMAND
    }

    /// Whether a call changes nothing, so that it may be done again.
    pub(crate) fn only_looks(call: &ToolCall) -> bool {
        ["read_file", "list_files", "search_files", "recall"].contains(&call.name.as_str())
            || Self::specifications()
                .iter()
                .all(|tool| tool.name != call.name)
    }

    /// Carries out a call; `command` is the id of the command that it runs, if it runs one.
    pub(crate) async fn call(
        &self,
        call: &ToolCall,
        command: Option<CommandId>,
    ) -> Result<Answer, String> {
        match (call.name.as_str(), command) {
            (RUN_COMMAND, Some(id)) => {
                self.run_command(&call.id, parse(&call.arguments)?, id)
                    .await
            }
            (name, _) => self.look_or_change(name, call).await,
        }
    }

    async fn look_or_change(&self, name: &str, call: &ToolCall) -> Result<Answer, String> {
        match name {
            "read_file" => self.read_file(parse(&call.arguments)?).await,
            "write_file" => self.write_file(parse(&call.arguments)?).await,
            "patch_file" => self.patch_file(parse(&call.arguments)?).await,
            "list_files" => self.list_files(parse(&call.arguments)?).await,
            "search_files" => self.search_files(parse(&call.arguments)?).await,
            "remember" => self.remember(parse(&call.arguments)?).await,
            "recall" => self.recall(parse(&call.arguments)?).await,
            other => {
                let names: Vec<_> = Self::specifications()
                    .iter()
                    .map(|tool| tool.name)
                    .collect();
                let other: String = other.chars().take(100).collect();
                Err(format!(
                    "there is no tool {other:?}; the tools are {}",
                    names.join(", ")
                ))
            }
        }
    }

    /// Kills the command that runs at the moment, if any.
    pub(crate) async fn kill_running(&self) {
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(id) = running
            && let Err(error) = self.channel.kill_command(id).await
        {
            // It may have ended with its stream.
            tracing::debug!(%error, command = %id, "a command was not killed");
        }
    }

    async fn remember(&self, arguments: Remember) -> Result<Answer, String> {
        memory::remember(
            &self.store,
            &arguments.text,
            &arguments.tags,
            Some(self.run_id),
        )
        .await
        .map(|memory| Answer::good(format!("remembered as {}", memory.id)))
        .map_err(|error| error.to_string())
    }

    async fn recall(&self, arguments: Recall) -> Result<Answer, String> {
        let limit = arguments.limit.unwrap_or(RECALLED).clamp(1, RECALLED);
        let memories = memory::recall(
            &self.store,
            &arguments.query,
            arguments.tag.as_deref(),
            limit,
        )
        .await
        .map_err(|error| error.to_string())?;
        if memories.is_empty() {
            return Ok(Answer::good("nothing is remembered about that"));
        }
        let lines: Vec<_> = memories
            .iter()
            .map(|memory| format!("- {} (remembered {})", memory.text, memory.created_at))
            .collect();
        Ok(Answer::good(lines.join("\n")))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let workspace = self.workspace.clone();
        blocking(&self.file_operations, move || operation(&workspace)).await
    }
}

fn parse<T: DeserializeOwned>(arguments: &str) -> Result<T, String> {
    serde_json::from_str(arguments)
        .map_err(|error| format!("the arguments are not what the tool takes: {error}"))
}

/// A path as models write it: `/workspace/x` and `./x` are `x`.
fn relative(path: &str) -> &str {
    let path = match path.strip_prefix("/workspace") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    };
    let mut path = path;
    while let Some(rest) = path.strip_prefix("./") {
        path = rest.trim_start_matches('/');
    }
    if path == "." { "" } else { path }
}

#[cfg(test)]
mod tests {
    use super::relative;

    #[test]
    fn paths_are_taken_as_models_write_them() {
        for (written, meant) in [
            ("src/a.rs", "src/a.rs"),
            ("./src/a.rs", "src/a.rs"),
            ("/workspace/src/a.rs", "src/a.rs"),
            ("/workspace", ""),
            (".", ""),
            ("/workspaces/x", "/workspaces/x"),
            ("/etc/passwd", "/etc/passwd"),
        ] {
            assert_eq!(relative(written), meant);
        }
    }
}

//! `run_command`: over the channel to the hypervisor's router, which decides and runs it
//! outside this process (arch §6).

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use types::{CommandEvent, CommandExit, CommandId, CommandLimits, CommandRequest};

use super::{Answer, Tools, relative};
use crate::agent::output::{BoundedOutput, printable};
use crate::channel::ChannelError;
use crate::http::terminals::shell;
use crate::store::Fragment;

const DEFAULT_SECONDS: u64 = 120;
const MOST_SECONDS: u64 = 1800;
/// Longest command text.
const MAX_COMMAND: usize = 64 * 1024;
/// Bytes of a command's output that are relayed to those who watch; the transcript keeps
/// beginning and end, a terminal shows everything.
const MAX_RELAYED: usize = 256 * 1024;
/// Bytes of one relayed piece.
const MAX_FRAGMENT: usize = 16 * 1024;
/// What the router gets beyond the command's own time to report its end.
const GRACE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
pub(super) struct RunCommand {
    command: String,
    cwd: Option<String>,
    timeout_seconds: Option<u64>,
}

impl Tools {
    pub(super) async fn run_command(
        &self,
        call_id: &str,
        arguments: RunCommand,
    ) -> Result<Answer, String> {
        if arguments.command.trim().is_empty() || arguments.command.len() > MAX_COMMAND {
            return Err("a command has 1 to 65536 bytes".to_owned());
        }
        let seconds = arguments
            .timeout_seconds
            .unwrap_or(DEFAULT_SECONDS)
            .clamp(1, MOST_SECONDS);
        let request = CommandRequest {
            argv: vec![shell().to_owned(), "-c".to_owned(), arguments.command],
            cwd: arguments.cwd.map(|path| directory(&path)),
            env: Vec::new(),
            stdin: None,
            terminal: None,
            detach: false,
            capabilities: Vec::new(),
            limits: CommandLimits {
                wall_ms: Some(seconds * 1000),
                ..CommandLimits::default()
            },
            label: Some("agent".to_owned()),
        };
        let time = Duration::from_secs(seconds) + GRACE;
        let result = tokio::time::timeout(time, self.follow(call_id, &request)).await;
        let Ok(outcome) = result else {
            self.kill_running().await;
            return Err(format!(
                "the command did not end within {seconds} seconds and was killed"
            ));
        };
        match outcome {
            Ok((output, exit)) => Ok(answer(output, exit)),
            Err(ChannelError::Refused(problem)) => Err(match problem.hint {
                Some(hint) => format!("the command was refused: {} ({hint})", problem.detail),
                None => format!("the command was refused: {}", problem.detail),
            }),
            Err(error) => Err(format!("the command could not be run: {error}")),
        }
    }

    async fn follow(
        &self,
        call_id: &str,
        request: &CommandRequest,
    ) -> Result<(BoundedOutput, Option<CommandExit>), ChannelError> {
        let mut stream = self.channel.run_command(request).await?;
        let mut output = BoundedOutput::default();
        let mut relayed = 0;
        while let Some(event) = stream.next().await? {
            match event {
                CommandEvent::Started { id } => *self.running() = Some(id),
                CommandEvent::Output { data, .. } => {
                    let bytes = STANDARD
                        .decode(data)
                        .map_err(|error| ChannelError::Answer(error.to_string()))?;
                    output.push(&bytes);
                    for piece in bytes.chunks(MAX_FRAGMENT) {
                        if relayed >= MAX_RELAYED {
                            break;
                        }
                        relayed += piece.len();
                        self.store.relay(Fragment::Output {
                            run_id: self.run_id,
                            call_id: call_id.to_owned(),
                            text: printable(&String::from_utf8_lossy(piece)),
                        });
                    }
                }
                CommandEvent::Exited(exit) => {
                    *self.running() = None;
                    return Ok((output, Some(exit)));
                }
            }
        }
        Ok((output, None))
    }

    fn running(&self) -> MutexGuard<'_, Option<CommandId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn directory(path: &str) -> String {
    match relative(path) {
        path if path.starts_with('/') => path.to_owned(),
        "" => "/workspace".to_owned(),
        path => format!("/workspace/{path}"),
    }
}

/// The outcome in its first line, then the output.
fn answer(mut output: BoundedOutput, exit: Option<CommandExit>) -> Answer {
    let Some(exit) = exit else {
        let (text, _) = output.finish();
        return Answer {
            text: format!("killed by signal: the stream of the command broke off\n{text}"),
            ok: false,
        };
    };
    output.dropped(exit.dropped_bytes);
    let (text, _) = output.finish();
    let line = match &exit {
        CommandExit {
            error: Some(error), ..
        } => format!("error: it could not be started: {error}"),
        CommandExit {
            timed_out: true,
            wall_ms,
            ..
        } => {
            format!("timed out after {} seconds and was killed", wall_ms / 1000)
        }
        CommandExit {
            code: Some(code), ..
        } => format!("exit code: {code}"),
        CommandExit {
            signal: Some(signal),
            ..
        } => format!("killed by signal {signal}"),
        _ => "killed by signal: it ended without an exit code".to_owned(),
    };
    let ok = exit.code == Some(0) && !exit.timed_out && exit.error.is_none();
    Answer {
        text: format!("{line}\n{text}"),
        ok,
    }
}

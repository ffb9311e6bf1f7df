//! `run_command`: over the channel to the hypervisor's router, which decides and runs it
//! outside this process (arch §6). The command is known by an id that was committed before
//! it began, and goes on when this process or the hypervisor dies: whoever comes back
//! follows it from where they stopped, and nobody starts it twice.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use types::{CommandExit, CommandId, CommandLimits, CommandRequest, NetworkMode, TerminalControl};

use super::{Answer, Tools, parse, relative};
use crate::agent::model::ToolCall;
use crate::agent::outage::Outage;
use crate::agent::output::{BoundedOutput, printable};
use crate::agent::run::INTERRUPTED;
use crate::channel::{ChannelError, TerminalSocket};
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
/// Largest message of a command's stream; a piece of output has 64 KiB at most.
const MAX_MESSAGE: usize = 256 * 1024;
/// Statuses with which a router says that it cannot be asked just now.
const AWAY: &[u16] = &[502, 504];
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

#[derive(Deserialize)]
pub(super) struct RunCommand {
    command: String,
    cwd: Option<String>,
    timeout_seconds: Option<u64>,
    network: Option<NetworkMode>,
}

/// A command that is followed.
#[derive(Default)]
struct Followed {
    output: BoundedOutput,
    /// Bytes of its output that came, or are known to be gone.
    offset: u64,
    relayed: usize,
}

impl Tools {
    pub(super) async fn run_command(
        &self,
        call_id: &str,
        arguments: RunCommand,
        id: CommandId,
    ) -> Result<Answer, String> {
        if arguments.command.trim().is_empty() || arguments.command.len() > MAX_COMMAND {
            return Err("a command has 1 to 65536 bytes".to_owned());
        }
        let seconds = seconds(&arguments);
        let request = CommandRequest {
            id: Some(id),
            rejoin: true,
            argv: vec![shell().to_owned(), "-c".to_owned(), arguments.command],
            cwd: arguments.cwd.map(|path| directory(&path)),
            env: Vec::new(),
            stdin: None,
            terminal: None,
            detach: false,
            capabilities: Vec::new(),
            network: arguments.network,
            limits: CommandLimits {
                wall_ms: Some(seconds * 1000),
                ..CommandLimits::default()
            },
            label: Some("agent".to_owned()),
        };
        let work = async {
            self.start(&request).await?;
            self.follow(call_id, id).await
        };
        self.within(seconds, id, work)
            .await
            .map_err(|error| explain(&error))?
            .ok_or_else(|| overdue(seconds))
    }

    /// Comes back for a command that was begun before the run was cut off.
    pub(crate) async fn rejoin_command(
        &self,
        call: &ToolCall,
        id: CommandId,
    ) -> Result<Answer, String> {
        let seconds = seconds(&parse(&call.arguments)?);
        match self.within(seconds, id, self.follow(&call.id, id)).await {
            Ok(answer) => answer.ok_or_else(|| overdue(seconds)),
            // It never began, or its supervisor ended with it: nobody can tell any more.
            Err(ChannelError::Refused(problem)) if problem.status == NOT_FOUND => {
                Err(INTERRUPTED.to_owned())
            }
            Err(error) => Err(explain(&error)),
        }
    }

    /// Lets go of a command whose result is committed.
    pub(crate) fn let_go(&self, id: CommandId) {
        let channel = self.channel.clone();
        tokio::spawn(async move {
            if let Err(error) = channel.forget_command(id).await {
                // It may never have begun; the router drops the oldest by itself.
                tracing::debug!(%error, command = %id, "a command was not let go of");
            }
        });
    }

    /// Bounds the work on a command; `None` when the command had to be killed.
    async fn within(
        &self,
        seconds: u64,
        id: CommandId,
        work: impl Future<Output = Result<Answer, ChannelError>>,
    ) -> Result<Option<Answer>, ChannelError> {
        *self.running() = Some(id);
        let time = Duration::from_secs(seconds) + GRACE + self.retries.patience;
        let Ok(outcome) = tokio::time::timeout(time, work).await else {
            self.kill_running().await;
            return Ok(None);
        };
        *self.running() = None;
        outcome.map(Some)
    }

    /// Starts the command, once: a router that lost its answer knows the id.
    async fn start(&self, request: &CommandRequest) -> Result<(), ChannelError> {
        let mut outage = Outage::new(self.retries);
        loop {
            match self.channel.start_command(request).await {
                Ok(_) => return Ok(()),
                Err(error) if error.refusal() == Some(CONFLICT) => return Ok(()),
                Err(error) => wait(&mut outage, error).await?,
            }
        }
    }

    /// Follows the command until it ends, over as many connections as it takes.
    async fn follow(&self, call_id: &str, id: CommandId) -> Result<Answer, ChannelError> {
        let mut followed = Followed::default();
        let mut outage = Outage::new(self.retries);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        loop {
            match self.channel.attach(id, Some(followed.offset), config).await {
                Ok(socket) => {
                    if let Some(exit) = self
                        .listen(call_id, socket, &mut followed, &mut outage)
                        .await
                    {
                        return Ok(answer(followed, &exit));
                    }
                    let broke = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                    wait(&mut outage, ChannelError::Connect(broke)).await?;
                }
                Err(error) => wait(&mut outage, error).await?,
            }
        }
    }

    /// Takes in what one connection brings; `None` when it broke before the command's end.
    async fn listen(
        &self,
        call_id: &str,
        mut socket: TerminalSocket,
        followed: &mut Followed,
        outage: &mut Outage,
    ) -> Option<CommandExit> {
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => {
                    outage.over();
                    self.take_in(call_id, &bytes, followed);
                }
                Message::Text(text) => match serde_json::from_str(&text).ok()? {
                    TerminalControl::Attached { offset } => {
                        followed
                            .output
                            .dropped(offset.saturating_sub(followed.offset));
                        followed.offset = offset.max(followed.offset);
                    }
                    TerminalControl::Exited(exit) => {
                        let _closed = socket.close(None).await;
                        return Some(exit);
                    }
                    TerminalControl::Resize(_) => {}
                },
                Message::Close(_) => return None,
                // Answers what was asked for.
                Message::Ping(_) => socket.flush().await.ok()?,
                Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        None
    }

    fn take_in(&self, call_id: &str, bytes: &[u8], followed: &mut Followed) {
        followed.output.push(bytes);
        followed.offset += bytes.len() as u64;
        for piece in bytes.chunks(MAX_FRAGMENT) {
            if followed.relayed >= MAX_RELAYED {
                break;
            }
            followed.relayed += piece.len();
            self.store.relay(Fragment::Output {
                run_id: self.run_id,
                call_id: call_id.to_owned(),
                text: printable(&String::from_utf8_lossy(piece)),
            });
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<CommandId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits while the hypervisor is away; gives any other error back, and this one as well
/// once patience is at its end.
async fn wait(outage: &mut Outage, error: ChannelError) -> Result<(), ChannelError> {
    let away = error.is_outage() || error.refusal().is_some_and(|status| AWAY.contains(&status));
    let pause = if away { outage.pause() } else { None };
    let Some(pause) = pause else {
        return Err(error);
    };
    tokio::time::sleep(pause).await;
    Ok(())
}

fn seconds(arguments: &RunCommand) -> u64 {
    arguments
        .timeout_seconds
        .unwrap_or(DEFAULT_SECONDS)
        .clamp(1, MOST_SECONDS)
}

fn overdue(seconds: u64) -> String {
    format!("the command did not end within {seconds} seconds and was killed")
}

fn explain(error: &ChannelError) -> String {
    match error {
        ChannelError::Refused(problem) => match &problem.hint {
            Some(hint) => format!("the command was refused: {} ({hint})", problem.detail),
            None => format!("the command was refused: {}", problem.detail),
        },
        error => format!("the command could not be run: {error}"),
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
fn answer(followed: Followed, exit: &CommandExit) -> Answer {
    let Followed {
        mut output, offset, ..
    } = followed;
    output.dropped(exit.dropped_bytes.saturating_sub(offset));
    let (text, _) = output.finish();
    let line = match exit {
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

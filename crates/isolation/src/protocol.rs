//! What is spoken on a supervisor's control socket: messages and their framing.
//!
//! A frame is `u32 length (big endian) | u8 kind | body`, where the length counts kind and
//! body. Kind `J` is a JSON message, kind `D` is `u8 stream | u64 offset (big endian) | bytes`.
//! Descriptors ride with the first byte of a `J` frame (SCM_RIGHTS). Everything here is
//! pure: bytes in, bytes out.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use types::{
    CommandExit, CommandId, CommandState, CommandView, LimitReached, ListeningPort, SandboxId,
    StartId, TerminalSize,
};

use crate::spec::{Nonce, RunnerSpec};

/// Told in the answer to `hello`; a client that knows another one must not go on.
pub const VERSION: u32 = 1;

/// Longest body of a `J` frame, in bytes: a spec whose standard input is all escapes fits.
pub const MAX_JSON: usize = 8 << 20;

/// Most bytes of output or input in one `D` frame.
pub const MAX_DATA: usize = 64 << 10;

/// The longest that a sandbox can be frozen at once, in milliseconds.
pub const MAX_FREEZE_MS: u64 = 30_000;

/// Length field and kind.
const HEADER: usize = 5;

/// Stream and offset at the beginning of a `D` body.
const DATA_HEADER: usize = 9;

/// Why bytes are not a conversation of ours.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is longer than its kind allows.
    #[error("a frame of {length} bytes is too long")]
    TooLong {
        /// Its length as announced.
        length: usize,
    },
    /// A frame is too short to have a kind, or a `D` frame to have an offset.
    #[error("a frame is too short")]
    TooShort,
    /// Neither `J` nor `D`.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Neither standard input, nor output, nor error.
    #[error("unknown stream {0}")]
    Stream(u8),
    /// The JSON is not one of ours.
    #[error("malformed message")]
    Json(#[source] serde_json::Error),
}

/// What the bytes of a `D` frame belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Input of the command, or keys of the terminal.
    Stdin,
    /// Standard output, or a terminal's only stream.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, ProtocolError> {
        match byte {
            0 => Ok(Self::Stdin),
            1 => Ok(Self::Stdout),
            2 => Ok(Self::Stderr),
            other => Err(ProtocolError::Stream(other)),
        }
    }
}

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A JSON message, not yet parsed: see [`Request::parse`] and [`Message::parse`].
    Json(Vec<u8>),
    /// Bytes of a stream.
    Data {
        /// Which one.
        stream: Stream,
        /// Offset of the first byte in the combined output log; 0 for input.
        offset: u64,
        /// At most [`MAX_DATA`].
        bytes: Vec<u8>,
    },
}

/// A signal that can be sent to a whole runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// SIGINT.
    Int,
    /// SIGTERM.
    Term,
    /// SIGKILL, by ending the runner's pid namespace.
    Kill,
}

/// What a client asks. The first request on a connection is `hello`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Proves that the client may speak. Answered by [`Reply::Hello`].
    Hello {
        /// The nonce of the start.
        nonce: Nonce,
    },
    /// Asks for the guest's channel listener. [`Reply::Channel`] with one descriptor.
    Channel {},
    /// Starts a runner. [`Reply::Spawned`], with one descriptor when `spec.channel`.
    Spawn {
        /// What to run.
        spec: Box<RunnerSpec>,
    },
    /// Asks for a runner's channel listener again. [`Reply::Channel`] with one descriptor.
    RunnerChannel {
        /// The runner.
        command_id: CommandId,
    },
    /// Follows a runner's output; takes the connection over. [`Reply::Attached`], data
    /// frames, and at last [`Reply::Exited`].
    Attach {
        /// The runner.
        command_id: CommandId,
        /// Offset to begin at; the oldest byte kept when that is later.
        from: u64,
    },
    /// After `attach`, to a terminal: the window changed. Not answered.
    Resize(TerminalSize),
    /// After `attach`: no more input. Not answered.
    CloseStdin {},
    /// Sends a signal to every process of a runner. [`Reply::Done`].
    Signal {
        /// The runner.
        command_id: CommandId,
        /// The signal.
        signal: Signal,
    },
    /// Lists runners. [`Reply::Runners`].
    Runners {},
    /// Drops an exited runner and its output. [`Reply::Done`], also when there is none.
    Forget {
        /// The runner.
        command_id: CommandId,
    },
    /// Asks for a connection to a port of the workbench's loopback. [`Reply::Connected`] with
    /// one descriptor; refused with `nothing_listens`, `timeout`, `busy`, `reserved_port`.
    Connect {
        /// 1 to 65535, and no relay's.
        port: u16,
    },
    /// Lists the ports of the workbench on which somebody listens. [`Reply::Ports`].
    Ports {},
    /// Takes the connection over: [`Event`]s, those that already happened first.
    Watch {},
    /// Follows the guest's output; takes the connection over. [`Reply::Attached`], then
    /// data frames until the guest is gone and all was sent, then the end of the stream.
    GuestLog {
        /// Offset to begin at; the oldest byte kept when that is later.
        from: u64,
    },
    /// Makes everything in the sandbox stand still. [`Reply::Frozen`] once it does; until
    /// then the connection waits. It goes on at [`Request::Thaw`], when this connection
    /// ends, when the sandbox is stopped, and after `limit_ms` in any case. Commands that
    /// are spawned meanwhile begin when it goes on.
    Freeze {
        /// The longest that it may stand still, in milliseconds; at most
        /// [`MAX_FREEZE_MS`] counts.
        limit_ms: u64,
    },
    /// Lets what this connection froze go on. [`Reply::Thawed`].
    Thaw {},
    /// Starts the guest's program again, which has ended, behind the same walls and next to
    /// the same runners. [`Reply::Done`] once that is under way; refused where only a new
    /// sandbox helps.
    RestartGuest {},
    /// Takes the sandbox down. [`Reply::Done`] once nothing of it runs; then the
    /// supervisor exits.
    Stop {
        /// Between TERM and KILL of the guest, in milliseconds; at most a minute counts.
        grace_ms: u64,
    },
}

/// Whether the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Running or exited.
    pub state: CommandState,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<CommandExit>,
}

/// One runner, as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerStatus {
    /// What a user may see of it.
    #[serde(flatten)]
    pub view: CommandView,
    /// Whether it has a channel of its own.
    pub channel: bool,
    /// When it was started, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Offset after the last byte of its output so far.
    pub output_end: u64,
    /// A terminal's shell runs something in the foreground, rather than waiting for input.
    #[serde(default)]
    pub foreground_job: bool,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ok", rename_all = "snake_case")]
pub enum Reply {
    /// To `hello`.
    Hello {
        /// [`VERSION`] of the supervisor.
        version: u32,
        /// Its process id, in the pid namespace it was started in.
        pid: u32,
        /// The sandbox it keeps.
        sandbox_id: SandboxId,
        /// The start it keeps.
        start_id: StartId,
        /// The guest.
        guest: GuestStatus,
        /// The runners, exited ones that were not forgotten included.
        runners: Vec<RunnerStatus>,
        /// It is being taken down: whoever asked for that may be gone, and it goes on.
        #[serde(default)]
        stopping: bool,
        /// Denied system calls are refused and not counted: that none was told means nothing.
        #[serde(default)]
        uncounted: bool,
    },
    /// To `channel` and `runner_channel`; one descriptor rides with it.
    Channel,
    /// To `spawn`; one descriptor rides with it when the runner has a channel.
    Spawned {
        /// The runner.
        command_id: CommandId,
    },
    /// To `attach` and `guest_log`.
    Attached {
        /// Offset of the next byte that will be sent.
        offset: u64,
        /// Offset after the last byte that was written so far.
        #[serde(default)]
        end: u64,
    },
    /// Last message of an attachment to a runner.
    Exited {
        /// The runner.
        command_id: CommandId,
        /// How it ended.
        exit: CommandExit,
    },
    /// To `runners`.
    Runners {
        /// All that are known.
        runners: Vec<RunnerStatus>,
    },
    /// To `freeze`: everything stands still.
    Frozen {
        /// How many processes that are.
        processes: u32,
    },
    /// To `thaw`.
    Thawed {
        /// Whether everything stood still all the time; if not, it went on by itself.
        held: bool,
        /// For how long it stood still, in milliseconds.
        frozen_ms: u64,
    },
    /// To `connect`; the connected TCP socket rides with it.
    Connected,
    /// To `ports`.
    Ports {
        /// Lowest first, at most a hundred; relays are left out.
        ports: Vec<ListeningPort>,
    },
    /// It is done.
    Done,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The guest is gone.
    GuestExited {
        /// How it ended.
        exit: CommandExit,
    },
    /// The sandbox went over what it may have on disk, or came back under it.
    Disk {
        /// Bytes in use, as measured.
        bytes: u64,
        /// Files, directories and links.
        entries: u64,
        /// The limit it is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        over: Option<LimitReached>,
    },
    /// A runner is gone.
    RunnerExited {
        /// Which.
        command_id: CommandId,
        /// How it ended.
        exit: CommandExit,
    },
    /// The seccomp filter refused system calls. Told at most once per second.
    Denied {
        /// Each pair of task and call once.
        denials: Vec<Denial>,
    },
}

/// How often a task was denied a system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The runner, or none for the guest.
    pub command_id: Option<CommandId>,
    /// The runner's program as its command named it, at most 100 characters of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The name of the call; `unknown` when no profile names it, `others` for what exceeds the
    /// pairs that are counted apart.
    pub call: String,
    /// How often since it was told last.
    pub count: u64,
}

/// A refusal, on the control socket and, when a start fails, on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable code, such as `wall_missing`, `not_found`, `bad_request`.
    #[serde(rename = "error")]
    pub code: String,
    /// What happened, for people.
    pub message: String,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The one line on a supervisor's standard output when the sandbox runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Always true; tells the line from a [`Refusal`].
    pub ready: bool,
    /// The supervisor's process id.
    pub pid: u32,
    /// The start.
    pub start_id: StartId,
}

/// Anything that a supervisor sends as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// An answer.
    Reply(Reply),
    /// News for a watcher.
    Event(Event),
    /// A refusal.
    Refusal(Refusal),
}

impl Request {
    /// Parses the body of a `J` frame.
    ///
    /// # Errors
    /// It is not a request.
    pub fn parse(body: &[u8]) -> Result<Self, ProtocolError> {
        parse(body)
    }
}

impl Message {
    /// Parses the body of a `J` frame.
    ///
    /// # Errors
    /// It is nothing that a supervisor says.
    pub fn parse(body: &[u8]) -> Result<Self, ProtocolError> {
        parse(body)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(ProtocolError::Json)
}

/// Frames a JSON message.
///
/// # Errors
/// It is longer than [`MAX_JSON`].
pub fn encode_json<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let body = serde_json::to_vec(message).map_err(ProtocolError::Json)?;
    if body.len() > MAX_JSON {
        return Err(ProtocolError::TooLong { length: body.len() });
    }
    Ok(frame(b'J', &[&body]))
}

/// Frames bytes of a stream.
///
/// # Errors
/// There are more than [`MAX_DATA`].
pub fn encode_data(stream: Stream, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    if bytes.len() > MAX_DATA {
        return Err(ProtocolError::TooLong {
            length: bytes.len(),
        });
    }
    Ok(frame(
        b'D',
        &[&[stream.to_byte()], &offset.to_be_bytes(), bytes],
    ))
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    // Both callers bound the length far below 4 GiB.
    let announced = u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&announced.to_be_bytes());
    bytes.push(kind);
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Takes bytes as they arrive and gives frames back.
///
/// Holds at most one frame more than was fed: feed, then take frames until there is none.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are held and belong to no complete frame yet, or to frames not yet taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Takes the next complete frame.
    ///
    /// # Errors
    /// The bytes break the framing; the connection is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let held = self.buffer.get(self.start..).unwrap_or_default();
        let Some((announced, rest)) = held.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*announced)).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(ProtocolError::TooShort);
        }
        if length > 1 + MAX_JSON {
            return Err(ProtocolError::TooLong { length });
        }
        let Some((&kind, rest)) = rest.split_first() else {
            return Ok(None);
        };
        match kind {
            b'J' => {}
            b'D' if length < HEADER + DATA_HEADER - 4 => return Err(ProtocolError::TooShort),
            b'D' if length > 1 + DATA_HEADER + MAX_DATA => {
                return Err(ProtocolError::TooLong { length });
            }
            b'D' => {}
            other => return Err(ProtocolError::Kind(other)),
        }
        let Some(body) = rest.get(..length - 1) else {
            return Ok(None);
        };
        let frame = if kind == b'J' {
            Frame::Json(body.to_vec())
        } else {
            data(body)?
        };
        self.start += 4 + length;
        Ok(Some(frame))
    }
}

fn data(body: &[u8]) -> Result<Frame, ProtocolError> {
    let (&stream, rest) = body.split_first().ok_or(ProtocolError::TooShort)?;
    let (offset, bytes) = rest
        .split_first_chunk::<8>()
        .ok_or(ProtocolError::TooShort)?;
    Ok(Frame::Data {
        stream: Stream::from_byte(stream)?,
        offset: u64::from_be_bytes(*offset),
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;

//! Commands: what is asked of the command router and what it answers (arch §6).

use serde::{Deserialize, Serialize};

use crate::{CommandId, LimitReached, NetworkMode};

/// Bounds of one command. Every field has a default and a maximum in the hypervisor's config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct CommandLimits {
    /// Wall time in milliseconds, after which the whole tree is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// Bytes of output kept; older bytes are dropped and counted. Of a command that is no
    /// terminal and no service this many are passed on while it runs, and at its end the last
    /// ones that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Memory of the whole tree in bytes, where the host gives cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time in thousandths of a core, where the host gives cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Size of one file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
}

/// The size of a terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns, 1 to 1000.
    pub cols: u16,
    /// Rows, 1 to 1000.
    pub rows: u16,
}

/// A request to run one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// Program and arguments; the program is looked up in the runner's `PATH`.
    pub argv: Vec<String>,
    /// Working directory beneath `/workspace`; `/workspace` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables added to the runner's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// What the command reads from standard input; nothing when absent. At most 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Run in a pseudo-terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Keep running when the caller goes away: a listed, stoppable service.
    #[serde(default)]
    pub detach: bool,
    /// The id that it will have, so that a caller can write it down before the command
    /// begins; chosen by the router when absent. A request with an id that is known is
    /// refused as a conflict, so asking again starts nothing twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<CommandId>,
    /// Keep running when the caller goes away because the caller, or its successor, comes
    /// back for it: within its limits, and listed as an ordinary command. Answered like
    /// `detach`, with the command's view at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rejoin: bool,
    /// Capabilities asked for, such as `provider:call`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What it may reach; the installation's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Bounds.
    #[serde(default)]
    pub limits: CommandLimits,
    /// What this is, for people: `agent`, `terminal`, `cli`; at most 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output, or a terminal's only stream.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct CommandExit {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    pub signal: Option<i32>,
    /// Its wall time ran out.
    #[serde(default)]
    pub timed_out: bool,
    /// Bytes of output dropped because of the bound: in the stream that answers
    /// `POST …/commands` those that are missing in it, elsewhere those that are not kept.
    #[serde(default)]
    pub dropped_bytes: u64,
    /// Wall time in milliseconds.
    #[serde(default)]
    pub wall_ms: u64,
    /// Why it could not be started, when it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The limit that ended it, or that made calls of it fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitReached>,
}

/// One line of the `application/x-ndjson` stream that answers `POST …/commands`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CommandEvent {
    /// The command runs.
    Started {
        /// Its id.
        id: CommandId,
    },
    /// It wrote something.
    Output {
        /// Where to.
        stream: OutputStream,
        /// The bytes, base64 (standard alphabet, padded).
        data: String,
    },
    /// It ended; always the last line of a complete stream.
    Exited(CommandExit),
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandState {
    /// It runs.
    Running,
    /// It ended.
    Exited,
}

/// One command, as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandView {
    /// Its id.
    pub id: CommandId,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether it runs in a terminal.
    pub terminal: bool,
    /// Whether it outlives its caller.
    pub detach: bool,
    /// What it may reach through a channel of its own.
    #[serde(default)]
    pub network: NetworkMode,
    /// Running or exited.
    pub state: CommandState,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<CommandExit>,
    /// When it was started, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
}

/// A text frame on a terminal WebSocket. Binary frames carry bytes in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TerminalControl {
    /// Client: the window changed.
    Resize(TerminalSize),
    /// Server: what follows begins at this byte of the output; sent first, and again where bytes
    /// are missing that were dropped before they could be sent.
    Attached {
        /// Offset of the next byte, counted from the command's first.
        offset: u64,
    },
    /// Server: the command ended; sent last.
    Exited(CommandExit),
}

//! Typed ids, roles, DTOs and error codes that cross a process boundary.
//!
//! Nothing here does I/O; everything here is `serde` data. A type stands in this
//! crate when two processes (hypervisor, guest, CLI, supervisor) have to agree on it.

mod command;
mod explanation;
mod id;
pub mod keyless;
mod limits;
mod name;
mod network;
mod notice;
mod port;
mod problem;
mod role;
mod sandbox;
mod snapshot;
mod swap;
mod usage;
mod user;

pub use command::{
    CommandEvent, CommandExit, CommandLimits, CommandRequest, CommandState, CommandView,
    OutputStream, TerminalControl, TerminalSize,
};
pub use explanation::{ExplainedPoint, ExplainedTopic, SandboxExplanation, Verdict};
pub use id::{
    CommandId, ID_LENGTH, InviteId, NetworkRuleId, ParseIdError, PasskeyId, RequestId, RunId,
    SandboxId, SessionId, SnapshotId, StartId, TokenId, UserId,
};
pub use limits::{LimitReached, LimitScope, LimitedResource, format_bytes, parse_bytes};
pub use name::{UserName, UserNameError};
pub use network::{
    NetworkMode, NetworkRuleSource, NetworkRuleView, NetworkView, ParseNetworkModeError,
};
pub use notice::{NoticeKind, SandboxNotice};
pub use port::{ListeningPort, PortAddress, PortControl, PortView, PortsView};
pub use problem::{ErrorCode, Problem};
pub use role::{ParseRoleError, Role};
pub use sandbox::{ParseStateError, SandboxState, SandboxView};
pub use snapshot::{
    CopyKind, CopyOutcome, CopyPhase, CopyProgress, CopyUpdate, ParseReasonError, SnapshotReason,
    SnapshotView, SnapshotsView,
};
pub use swap::{ParseSwapOutcomeError, SwapOutcome, SwapRequest, SwapStatus, SwapView};
pub use usage::UsageView;
pub use user::{DisabledView, UserView};

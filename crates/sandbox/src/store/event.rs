//! What the EventStore holds.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::RunId;
use utoipa::ToSchema;

/// Something that happened, as committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position in the store: 1 for the first event, without gaps.
    pub seq: i64,
    /// When it was committed, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    pub ts: String,
    /// What happened, such as `run.started` or `file.changed`.
    pub kind: String,
    /// The run it belongs to.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub run_id: Option<RunId>,
    /// Particulars; their shape follows from `kind`.
    #[schema(value_type = Object)]
    pub data: Value,
}

/// Something to commit; the store adds position and time.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// What happened: dotted lower-case words, one of the fixed kinds of this crate.
    pub kind: &'static str,
    /// The run it belongs to.
    pub run_id: Option<RunId>,
    /// Particulars; at most [`super::MAX_DATA_BYTES`] as JSON.
    pub data: Value,
}

impl NewEvent {
    /// An event that belongs to no run.
    #[must_use]
    pub const fn new(kind: &'static str, data: Value) -> Self {
        Self {
            kind,
            run_id: None,
            data,
        }
    }

    /// An event of a run.
    #[must_use]
    pub const fn of_run(run_id: RunId, kind: &'static str, data: Value) -> Self {
        Self {
            kind,
            run_id: Some(run_id),
            data,
        }
    }
}

/// A piece of something that is still being made. Relayed to those who watch at this
/// moment, never stored: the event that follows carries the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fragment {
    /// Assistant text of a run.
    Text {
        /// The run.
        run_id: RunId,
        /// The next characters.
        text: String,
    },
    /// Output of a command that a run executes.
    Output {
        /// The run.
        run_id: RunId,
        /// The tool call that runs it.
        call_id: String,
        /// The next characters.
        text: String,
    },
}

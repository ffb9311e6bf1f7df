//! What a sandbox may and may not do, in plain words.

use serde::{Deserialize, Serialize};

use crate::{NetworkMode, Role, SandboxNotice, SandboxState};

/// Whether something is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    May,
    /// It may not.
    MayNot,
    /// How it is, and neither.
    Fact,
    /// It is less safe than it could be, because the configuration says so.
    Warning,
}

/// One thing, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedPoint {
    /// Whether it is possible.
    pub verdict: Verdict,
    /// The sentence.
    pub text: String,
}

/// Things that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedTopic {
    /// Stable name: `files`, `network`, `commands`, `limits`, `reach`, `agents`, `walls`.
    pub topic: String,
    /// A heading for people.
    pub title: String,
    /// What there is to say.
    pub points: Vec<ExplainedPoint>,
}

/// The answer of `GET /me/sandboxes/{role}/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxExplanation {
    /// The sandbox's present role.
    pub role: Role,
    /// Where it stands.
    pub state: SandboxState,
    /// What it can reach at the moment.
    pub network: NetworkMode,
    /// Topic by topic.
    pub topics: Vec<ExplainedTopic>,
    /// What was denied, limited or broke lately, the latest last, each with its remedy.
    pub denied: Vec<SandboxNotice>,
}

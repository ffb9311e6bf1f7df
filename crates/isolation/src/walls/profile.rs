//! The seccomp profiles as the build compiled them from `profiles/*.toml`, where each rule says
//! who needs it.

pub(crate) use compiled::{DENIED, RUNNER, SANDBOX, SUPERVISOR};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is carried out, if one line of [`Rule::only`] holds or there is none.
    Allow,
    /// It fails with ENOSYS, so that libraries use what came before it.
    Absent,
    /// It fails with EPERM and is counted, as everything that no rule names.
    Deny,
}

/// What one argument of a call must be. The low 32 bits alone count (see `runner.toml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Test {
    /// Which, from 0.
    pub(crate) argument: u8,
    /// The bits that count.
    pub(crate) mask: u32,
    /// What they are compared with.
    pub(crate) value: u32,
    /// Whether they must be equal to it, or must differ.
    pub(crate) equal: bool,
}

/// Calls that share a verdict and a reason.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Number and name of each.
    pub(crate) calls: &'static [(u32, &'static str)],
    /// What happens to them.
    pub(crate) verdict: Verdict,
    /// When they are allowed: when every test of any one line holds. Empty: always.
    pub(crate) only: &'static [&'static [Test]],
    /// Who needs them, or why the verdict is what it is.
    pub(crate) reason: &'static str,
}

/// For whom a filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// One command, and all it starts.
    Runner,
    /// A guest.
    Sandbox,
}

impl Profile {
    /// The rules that are in force for it.
    pub(crate) fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let further = match self {
            Self::Runner => &[],
            Self::Sandbox => SANDBOX,
        };
        RUNNER.iter().chain(further)
    }
}

/// What a call is named, for people.
pub(crate) fn name(number: u32) -> Option<&'static str> {
    all()
        .flat_map(|rule| rule.calls)
        .find_map(|&(known, name)| (known == number).then_some(name))
}

/// The name of a call as the profiles have it, and their reason for what happens to it.
pub(crate) fn describe(name: &str) -> Option<(&'static str, &'static str)> {
    all().find_map(|rule| {
        let (_, known) = rule.calls.iter().find(|(_, known)| *known == name)?;
        Some((*known, rule.reason))
    })
}

fn all() -> impl Iterator<Item = &'static Rule> {
    RUNNER.iter().chain(SANDBOX).chain(DENIED)
}

mod compiled {
    #![expect(
        clippy::unnecessary_cast,
        reason = "constants of libc have several types"
    )]

    use super::{Rule, Test, Verdict};

    include!(concat!(env!("OUT_DIR"), "/profiles.rs"));
}

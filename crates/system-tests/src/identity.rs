//! As whom the programs run.

use std::path::Path;
use std::process::Command;

/// The ordinary user that root runs programs as; no account is needed for it.
const ORDINARY: u32 = 61_234;

/// As whom a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// As whoever runs the tests.
    Caller,
    /// As an ordinary user; root becomes one through `setpriv`.
    Ordinary,
}

impl Identity {
    /// Every identity that can be taken here: an ordinary user cannot become root.
    #[must_use]
    pub fn available() -> Vec<Self> {
        if caller_is_root() {
            vec![Self::Caller, Self::Ordinary]
        } else {
            vec![Self::Caller]
        }
    }

    /// What this identity is, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller if caller_is_root() => "root",
            Self::Caller | Self::Ordinary => "ordinary user",
        }
    }

    /// Whether programs of this identity are another user than we are.
    #[must_use]
    pub fn is_other(self) -> bool {
        self == Self::Ordinary && caller_is_root()
    }

    /// A command that runs `program` as this identity, with the same process id that the
    /// child gets (`setpriv` replaces itself).
    #[must_use]
    pub fn command(self, program: &Path) -> Command {
        if !self.is_other() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={ORDINARY}"))
            .arg(format!("--regid={ORDINARY}"))
            .args(["--clear-groups", "--inh-caps=-all", "--"])
            .arg(program);
        command
    }

    /// Gives a path to this identity.
    ///
    /// # Panics
    /// The path cannot be given away.
    pub fn own(self, path: &Path) {
        if self.is_other() {
            std::os::unix::fs::chown(path, Some(ORDINARY), Some(ORDINARY)).expect("chown");
        }
    }
}

/// Whether the tests run as root.
#[must_use]
pub fn caller_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

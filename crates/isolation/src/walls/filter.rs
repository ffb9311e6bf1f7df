//! Compiles the seccomp table into BPF programs.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::WallError;
use super::filter_table::{ARCH_TABLE, Entry, Gate, TABLE, Test, Who};

/// The two programs of one profile. They are installed in this order; the kernel takes
/// the sterner verdict, and of two errors that of the program installed last.
#[derive(Debug)]
pub(crate) struct Filter {
    /// ENOSYS for what shall look absent; lets everything else through.
    absent: BpfProgram,
    /// The allowlist, which lets the absent calls through to the verdict of the other.
    allowed: BpfProgram,
}

impl Filter {
    /// Compiles the profile of guests or of runners.
    pub(crate) fn compile(profile: Who) -> Result<Self, WallError> {
        let chosen = || {
            TABLE
                .iter()
                .chain(ARCH_TABLE)
                .filter(|entry| entry.who == Who::Both || profile == Who::Guest)
        };
        let mut allowed = BTreeMap::new();
        let mut absent = BTreeMap::new();
        for entry in chosen() {
            let rules = rules(entry)?;
            for &call in entry.calls {
                if matches!(entry.gate, Gate::Missing) {
                    absent.insert(call, Vec::new());
                }
                allowed.insert(call, rules.clone());
            }
        }
        let eperm = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let enosys = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        Ok(Self {
            absent: program(absent, SeccompAction::Allow, enosys)?,
            allowed: program(allowed, eperm, SeccompAction::Allow)?,
        })
    }

    /// Locks this process and all it will fork in. Needs `no_new_privs`.
    pub(crate) fn install(&self) -> std::io::Result<()> {
        crate::sys::install_filter(&self.absent)?;
        crate::sys::install_filter(&self.allowed)
    }
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, WallError> {
    let arch = std::env::consts::ARCH.try_into().map_err(|e| broken(&e))?;
    SeccompFilter::new(rules, otherwise, matched, arch)
        .and_then(TryInto::try_into)
        .map_err(|e| broken(&e))
}

fn rules(entry: &Entry) -> Result<Vec<SeccompRule>, WallError> {
    let Gate::Args(lines) = entry.gate else {
        return Ok(Vec::new());
    };
    lines
        .iter()
        .map(|line| {
            let conditions = line.iter().map(condition).collect::<Result<_, _>>()?;
            SeccompRule::new(conditions).map_err(|e| broken(&e))
        })
        .collect()
}

fn condition(test: &Test) -> Result<SeccompCondition, WallError> {
    let (argument, operator, value) = match *test {
        Test::Equal(argument, value) => (argument, SeccompCmpOp::Eq, value),
        Test::NotEqual(argument, value) => (argument, SeccompCmpOp::Ne, value),
        Test::MaskedZero(argument, mask) => (argument, SeccompCmpOp::MaskedEq(mask.into()), 0),
        Test::Masked(argument, mask, value) => {
            (argument, SeccompCmpOp::MaskedEq(mask.into()), value)
        }
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
        .map_err(|e| broken(&e))
}

fn broken(error: &dyn std::fmt::Display) -> WallError {
    WallError {
        step: "compile the seccomp filter".into(),
        reason: error.to_string(),
        errno: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::filter_table::{ARCH_TABLE, LEFT_OUT, TABLE, Who};
    use super::Filter;

    #[test]
    fn every_entry_has_a_reason_and_stands_once() {
        let mut seen = HashSet::new();
        for entry in TABLE.iter().chain(ARCH_TABLE) {
            assert!(entry.why.len() > 10);
            for call in entry.calls {
                assert!(seen.insert(*call), "syscall {call} stands twice");
            }
        }
        for (call, why) in LEFT_OUT {
            assert!(!seen.contains(call), "syscall {call} must stay out: {why}");
        }
    }

    #[test]
    fn both_profiles_fit_the_kernel() {
        // BPF_MAXINSNS
        for profile in [Who::Both, Who::Guest] {
            let filter = Filter::compile(profile).unwrap();
            assert!(filter.allowed.len() < 4096 && filter.absent.len() < 4096);
        }
    }
}

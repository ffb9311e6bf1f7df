//! Compiles a profile into the BPF program that the kernel runs on each system call.
//!
//! The program first ends whoever calls through a foreign architecture, then finds the call by
//! bisection. The kernel runs it once for every possible call while it is installed, to remember
//! which need no look at all, so that a short way through it also makes runners start faster.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::profile::{DENIED, Profile, Rule, SUPERVISOR, Test, Verdict};
use super::{Step, WallError};
use crate::sys::{self, BpfInstruction};

/// What the kernel takes at most (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;

/// The architecture of this program's calls, as `seccomp_data.arch` names it (audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// The architecture of this program's calls, as `seccomp_data.arch` names it (audit.h).
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// The architecture of this program's calls, as `seccomp_data.arch` names it (audit.h).
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;

/// Calls of x32 have this bit. They carry the architecture of x86-64 and reach other code.
const X32_BIT: u32 = 0x4000_0000;

/// No call at all: what a tracer leaves, and what some programs probe with.
const NO_CALL: u32 = u32::MAX;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

// Operations (bpf_common.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// Verdicts (seccomp.h).
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = ERRNO | libc::EPERM.cast_unsigned();
const ENOSYS: u32 = ERRNO | libc::ENOSYS.cast_unsigned();

/// A compiled profile.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Holds denied calls until the supervisor has refused and counted them.
    counting: Vec<BpfInstruction>,
    /// Refuses denied calls by itself.
    silent: Vec<BpfInstruction>,
}

impl Filter {
    /// Compiles the profile of guests or of runners.
    pub(crate) fn compile(profile: Profile) -> Result<Self, WallError> {
        Ok(Self {
            counting: program(profile.rules(), NOTIFY, NOTIFY)?,
            silent: program(profile.rules(), EPERM, EPERM)?,
        })
    }

    /// Locks this process and all it will fork in. Needs `no_new_privs`.
    ///
    /// Returns the descriptor on which denied calls arrive; it must leave this process before
    /// anything untrusted runs. Without a listener the kernel refuses such calls by itself
    /// (seccomp_unotify(2)), so that they are denied whatever becomes of it. `None`: this kernel,
    /// or a filter around us that listens already, allows no listener, and denied calls are
    /// refused without being counted.
    pub(crate) fn install(&self) -> io::Result<Option<OwnedFd>> {
        match sys::install_listening_filter(&self.counting) {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL)) => {
                sys::install_filter(&self.silent).map(|()| None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Refuses this process for good what a supervisor does not need. Needs `no_new_privs`.
pub(crate) fn lock_supervisor() -> Result<(), WallError> {
    let program = supervisor()?;
    sys::install_filter(&program).step(|| "install the supervisor's seccomp filter".into())
}

fn supervisor() -> Result<Vec<BpfInstruction>, WallError> {
    program(DENIED.iter().chain(SUPERVISOR), EPERM, ALLOW)
}

/// What is done with one call.
#[derive(Clone, Copy, PartialEq)]
enum Leaf {
    Return(u32),
    Check(&'static [&'static [Test]]),
}

/// The program for these rules: what they deny meets `denied`, what none names `otherwise`.
fn program<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    denied: u32,
    otherwise: u32,
) -> Result<Vec<BpfInstruction>, WallError> {
    let mut leaves = BTreeMap::new();
    for rule in rules {
        for &(number, _) in rule.calls {
            let leaf = match rule.verdict {
                Verdict::Allow if rule.only.is_empty() => Leaf::Return(ALLOW),
                Verdict::Allow => Leaf::Check(rule.only),
                Verdict::Absent => Leaf::Return(ENOSYS),
                Verdict::Deny => Leaf::Return(denied),
            };
            leaves.insert(number, leaf);
        }
    }
    let ranges = ranges(&leaves, otherwise);
    let mut code = vec![
        load(ARCH),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        ret(KILL),
        load(NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        code.extend([
            jump(JUMP_AT_LEAST, X32_BIT, 0, 3),
            jump(JUMP_EQUAL, NO_CALL, 0, 1),
            ret(otherwise),
            ret(KILL),
        ]);
    }
    code.extend(bisect(&ranges, denied)?);
    if code.len() > MOST_INSTRUCTIONS {
        return Err(broken("it is longer than the kernel takes"));
    }
    Ok(code)
}

/// Neighbouring calls with the same verdict as one: where each range begins.
fn ranges(leaves: &BTreeMap<u32, Leaf>, otherwise: u32) -> Vec<(u32, Leaf)> {
    let mut ranges = vec![(0, Leaf::Return(otherwise))];
    let mut begin = |number: u32, leaf: Leaf| match ranges.last_mut() {
        Some(last) if last.0 == number => last.1 = leaf,
        Some(last) if last.1 == leaf => {}
        _ => ranges.push((number, leaf)),
    };
    for (&number, &leaf) in leaves {
        begin(number, leaf);
        begin(number + 1, Leaf::Return(otherwise));
    }
    // Two that met at the same number may have become equal to their neighbours.
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}

/// A search among ranges: half of them lie before the middle one.
fn bisect(ranges: &[(u32, Leaf)], denied: u32) -> Result<Vec<BpfInstruction>, WallError> {
    let (before, after) = ranges.split_at(ranges.len() / 2);
    let Some(&(middle, leaf)) = after.first() else {
        return Err(broken("it has no rules"));
    };
    if before.is_empty() {
        return check(leaf, denied);
    }
    let (low, high) = (bisect(before, denied)?, bisect(after, denied)?);
    let over = u32::try_from(low.len()).map_err(|_| broken("a jump is too far"))?;
    let mut code = match u8::try_from(low.len()) {
        Ok(near) => vec![jump(JUMP_AT_LEAST, middle, near, 0)],
        // A conditional jump reaches 255 instructions; an unconditional one reaches all.
        Err(_) => vec![jump(JUMP_AT_LEAST, middle, 0, 1), op(JUMP, over)],
    };
    code.extend(low);
    code.extend(high);
    Ok(code)
}

fn check(leaf: Leaf, denied: u32) -> Result<Vec<BpfInstruction>, WallError> {
    let lines = match leaf {
        Leaf::Return(verdict) => return Ok(vec![ret(verdict)]),
        Leaf::Check(lines) => lines,
    };
    let mut code = Vec::new();
    for line in lines {
        // Each test is at most three instructions; the line closes with one.
        let mut rest = line.iter().map(length).sum::<usize>() + 1;
        for test in *line {
            rest -= length(test);
            code.push(load(ARGUMENTS + 8 * u32::from(test.argument)));
            if test.mask != u32::MAX {
                code.push(op(AND, test.mask));
            }
            let next_line = u8::try_from(rest).map_err(|_| broken("a line is too long"))?;
            let (yes, no) = if test.equal {
                (0, next_line)
            } else {
                (next_line, 0)
            };
            code.push(jump(JUMP_EQUAL, test.value, yes, no));
        }
        code.push(ret(ALLOW));
    }
    code.push(ret(denied));
    Ok(code)
}

const fn length(test: &Test) -> usize {
    if test.mask == u32::MAX { 2 } else { 3 }
}

const fn op(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn load(offset: u32) -> BpfInstruction {
    op(LOAD, offset)
}

const fn ret(verdict: u32) -> BpfInstruction {
    op(RETURN, verdict)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

fn broken(reason: &str) -> WallError {
    WallError {
        step: "compile the seccomp filter".into(),
        reason: reason.into(),
        errno: None,
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;

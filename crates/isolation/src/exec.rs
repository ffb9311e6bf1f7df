//! The last steps of a process before its program: descriptors, limits, lookup, exec.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Resource, Rlimit, chdir, getrlimit, setrlimit, setsid};
use serde::{Deserialize, Serialize};

use crate::spec::Rlimits;
use crate::sys;

/// Exit code of a shell, and ours, when a program was found and could not be executed.
const CANNOT_EXECUTE: i32 = 126;

/// Exit code of a shell, and ours, when a program was not found.
const NOT_FOUND: i32 = 127;

/// Where programs are looked up when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What standard input, output and error will be.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// Pipes or files.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// The far end of a pseudo-terminal, which becomes the controlling terminal.
    Terminal(OwnedFd),
}

/// A program that is ready to run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) rlimits: Rlimits,
    pub(crate) stdio: Stdio,
}

/// Why a program did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecFailure {
    /// What a shell would exit with.
    pub(crate) code: i32,
    /// A sentence for people.
    pub(crate) error: String,
}

impl ExecFailure {
    fn new(code: i32, error: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
        }
    }
}

impl Program {
    /// Turns this (freshly forked) process into the program. Returns only to say why not.
    pub(crate) fn exec(&self) -> ExecFailure {
        match self.try_exec() {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    fn try_exec(&self) -> Result<std::convert::Infallible, ExecFailure> {
        let prepare = |what: &str, error: io::Error| {
            ExecFailure::new(CANNOT_EXECUTE, format!("cannot {what}: {error}"))
        };
        // A session of its own: no other terminal can become its controlling one by accident.
        setsid().map_err(|e| prepare("start a session", e.into()))?;
        self.connect()
            .map_err(|e| prepare("connect standard input and output", e))?;
        limit(&self.rlimits).map_err(|e| prepare("set limits", e))?;
        sys::reset_signals().map_err(|e| prepare("reset signals", e))?;
        sys::close_all_on_exec().map_err(|e| prepare("close descriptors", e))?;
        chdir(self.cwd.as_str()).map_err(|e| {
            ExecFailure::new(
                CANNOT_EXECUTE,
                format!("cannot enter {}: {}", self.cwd, io::Error::from(e)),
            )
        })?;
        let argv = strings(self.argv.iter().cloned())?;
        let env = strings(
            self.env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        )?;
        let name = self.argv.first().map(String::as_str).unwrap_or_default();
        let path = self
            .env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.as_str());
        Err(run(name, path.unwrap_or(DEFAULT_PATH), &argv, &env))
    }

    fn connect(&self) -> io::Result<()> {
        match &self.stdio {
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            } => {
                // Copies above 2 first, so that none is overwritten before it is used.
                let copies =
                    [stdin, stdout, stderr].map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
                for (number, copy) in (0..).zip(copies) {
                    sys::dup_to_standard(copy?.as_fd(), number)?;
                }
            }
            Stdio::Terminal(terminal) => {
                sys::take_terminal(terminal)?;
                for number in 0..3 {
                    sys::dup_to_standard(terminal.as_fd(), number)?;
                }
            }
        }
        Ok(())
    }
}

/// Tries the places where a program may be, as execvp does.
fn run(name: &str, path: &str, argv: &[CString], env: &[CString]) -> ExecFailure {
    if name.is_empty() {
        return ExecFailure::new(NOT_FOUND, "no program was named");
    }
    if name.contains('/') {
        return attempt(name, argv, env)
            .unwrap_or_else(|| ExecFailure::new(NOT_FOUND, format!("{name}: no such file")));
    }
    let mut refused = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        if let Some(failure) = attempt(&format!("{dir}/{name}"), argv, env) {
            refused = Some(failure);
        }
    }
    refused.unwrap_or_else(|| {
        ExecFailure::new(
            NOT_FOUND,
            format!("{name}: command not found in PATH ({path})"),
        )
    })
}

/// Executes one file. `None` when there is none.
fn attempt(file: &str, argv: &[CString], env: &[CString]) -> Option<ExecFailure> {
    let found = fs::metadata(file).ok()?;
    if found.is_dir() {
        return Some(ExecFailure::new(
            CANNOT_EXECUTE,
            format!("{file}: is a directory"),
        ));
    }
    if found.permissions().mode() & 0o111 == 0 {
        return Some(ExecFailure::new(
            CANNOT_EXECUTE,
            format!("{file}: is not executable"),
        ));
    }
    let path = CString::new(file).ok()?;
    let error = sys::exec(&path, argv, env);
    let error = match error.raw_os_error() {
        Some(libc::ENOENT) => format!("{file}: its interpreter does not exist"),
        Some(libc::ENOEXEC) => format!("{file}: is no program that this machine can run"),
        Some(libc::E2BIG) => format!("{file}: arguments and environment are too long"),
        _ => format!("{file}: {error}"),
    };
    Some(ExecFailure::new(CANNOT_EXECUTE, error))
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, ExecFailure> {
    texts
        .map(CString::new)
        .collect::<Result<_, _>>()
        .map_err(|_| {
            ExecFailure::new(
                CANNOT_EXECUTE,
                "an argument or variable contains a NUL byte",
            )
        })
}

/// Applies limits, never above the hard ones in force.
fn limit(limits: &Rlimits) -> io::Result<()> {
    let set = |resource: Resource, wanted: u64| {
        let wanted = getrlimit(resource)
            .maximum
            .map_or(wanted, |maximum| wanted.min(maximum));
        setrlimit(
            resource,
            Rlimit {
                current: Some(wanted),
                maximum: Some(wanted),
            },
        )
    };
    set(Resource::Nofile, limits.open_files)?;
    set(Resource::Nproc, limits.processes)?;
    if let Some(bytes) = limits.file_bytes {
        set(Resource::Fsize, bytes)?;
    }
    if let Some(bytes) = limits.memory_bytes {
        set(Resource::As, bytes)?;
    }
    // One byte, not none: with a limit of 0 the kernel still runs a core_pattern program of
    // the host over a crashed process; with 1 it does not, and a file is never that short.
    Ok(set(Resource::Core, 1)?)
}

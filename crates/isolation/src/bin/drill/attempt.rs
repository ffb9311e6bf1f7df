//! Running one attempt in a process of its own and judging what came back.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// What the walls answered.
pub(crate) enum Outcome {
    /// Refused; how that looked.
    Denied(String),
    /// It worked, or got past the walls to the code behind them; what was seen.
    Open(String),
}

impl Outcome {
    pub(crate) fn seen(&self) -> &str {
        match self {
            Self::Denied(seen) | Self::Open(seen) => seen,
        }
    }

    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_))
    }

    /// Denied on any error: for attempts whose target does not exist inside.
    pub(crate) fn any_error<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Open("succeeded".to_owned()),
            Err(error) => Self::Denied(name(&error)),
        }
    }

    /// Denied only on an error that says "you may not" or "there is no such call". Any
    /// other error comes from the code behind the wall: the wall is open.
    pub(crate) fn refusal<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Open("succeeded".to_owned()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EAFNOSUPPORT) => {
                    Self::Denied(name(&error))
                }
                _ => Self::Open(format!("{} from behind the wall", name(&error))),
            },
        }
    }

    /// Open when any of several attempts is.
    pub(crate) fn all(outcomes: impl IntoIterator<Item = (String, Self)>) -> Self {
        let mut denied = String::from("nothing to try");
        for (what, outcome) in outcomes {
            match outcome {
                Self::Open(seen) => return Self::Open(format!("{what}: {seen}")),
                Self::Denied(seen) => denied = seen,
            }
        }
        Self::Denied(denied)
    }
}

/// The symbolic name of an error, as far as drills meet them.
fn name(error: &io::Error) -> String {
    let Some(errno) = error.raw_os_error() else {
        return error.to_string();
    };
    let known = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EACCES => "EACCES",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::EINVAL => "EINVAL",
        libc::EROFS => "EROFS",
        libc::ENOSYS => "ENOSYS",
        libc::EFAULT => "EFAULT",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ETIMEDOUT => "ETIMEDOUT",
        _ => return format!("errno {errno}"),
    };
    known.to_owned()
}

/// Runs an attempt in a child. A child that is killed was denied by the killer.
pub(crate) fn in_child(attempt: impl FnOnce() -> Outcome) -> Outcome {
    match try_in_child(attempt) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Open(format!("the drill could not be run: {error}")),
    }
}

fn try_in_child(attempt: impl FnOnce() -> Outcome) -> io::Result<Outcome> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            report(write, &attempt());
            // SAFETY: ends the child at once; it has nothing to clean up.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(write);
            let mut text = String::new();
            std::fs::File::from(read).read_to_string(&mut text)?;
            Ok(judge(pid, &text))
        }
    }
}

fn report(pipe: OwnedFd, outcome: &Outcome) {
    let mark = if outcome.is_denied() { 'd' } else { 'o' };
    let mut pipe = std::fs::File::from(pipe);
    let _ = write!(pipe, "{mark}{}", outcome.seen());
}

fn judge(pid: libc::pid_t, text: &str) -> Outcome {
    let pid = rustix::process::Pid::from_raw(pid);
    let status = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    if let Some(seen) = text.strip_prefix('d') {
        return Outcome::Denied(seen.to_owned());
    }
    if let Some(seen) = text.strip_prefix('o') {
        return Outcome::Open(seen.to_owned());
    }
    match status {
        Ok(Some((_, status))) => match status.terminating_signal() {
            Some(libc::SIGSYS) => Outcome::Denied("killed by SIGSYS".to_owned()),
            Some(libc::SIGSEGV) => Outcome::Denied("killed by SIGSEGV".to_owned()),
            other => Outcome::Open(format!("ended without an answer (signal {other:?})")),
        },
        _ => Outcome::Open("ended without an answer".to_owned()),
    }
}

/// A raw system call.
pub(crate) fn call(number: libc::c_long, arguments: [usize; 6]) -> io::Result<libc::c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: every drill passes either numbers, null, or pointers to values that outlive
    // the call, and runs in a process made for it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The address of a value, as a system call wants it.
pub(crate) fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

/// The number of a descriptor, as a system call wants it.
pub(crate) fn number(fd: impl AsFd) -> usize {
    use std::os::fd::AsRawFd;
    usize::try_from(fd.as_fd().as_raw_fd()).unwrap_or_default()
}

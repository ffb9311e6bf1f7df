//! The first process of a guest's or a runner's pid namespace: it locks itself in, starts
//! the program, reaps what the program leaves behind, and dies with its supervisor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, set_dumpable_behavior,
    set_parent_process_death_signal, wait,
};
use serde::{Deserialize, Serialize};

use crate::exec::{ExecFailure, Program};
use crate::freeze::{self, Frozen};
use crate::packet;
use crate::relay::Relay;
use crate::sys::{self, Forked};
use crate::walls::filter::Filter;
use crate::walls::plan::Reach;
use crate::walls::{Step, WallError, capabilities, landlock};

/// What a first process tells its supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// A wall could not be built; the process is gone.
    Failed(WallError),
    /// From here on system calls are denied. The descriptor that tells which rides along; none
    /// does where the kernel cannot tell.
    Guarded,
    /// A runner's relay listens on this port of the workbench, which nobody is connected to
    /// from outside.
    Relay {
        /// The port.
        port: u16,
    },
    /// Everything stands and the program runs. For a terminal, its near end rides along.
    Started,
    /// Everything but this process stands still, as asked.
    Frozen {
        /// How many processes that are.
        processes: u32,
    },
    /// It could not be made to stand still; everything goes on.
    NotFrozen {
        /// What still moved.
        reason: String,
    },
    /// The program is gone, and so is everything it left behind.
    Exited {
        /// Exit code, when it exited.
        code: Option<i32>,
        /// Signal, when one ended it.
        signal: Option<i32>,
        /// Why it could not be started, when it could not.
        error: Option<String>,
    },
}

/// What a supervisor tells a first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Deliver a signal, by its number.
    Signal(i32),
    /// Make everything stand still within so many milliseconds; answered by
    /// [`News::Frozen`] or [`News::NotFrozen`].
    Freeze(u64),
    /// Let everything go on.
    Thaw,
    /// Start the program again, which has ended. Only a guest's first process does, the
    /// others end with their program.
    Restart,
}

/// Whom a delivered signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The program alone, which then ends its own children in good order.
    Program,
    /// Every process of the pid namespace.
    Everyone,
}

/// A runner's terminal, as its first process holds it.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// What the supervisor reads and writes.
    pub(crate) near: OwnedFd,
    /// Kept open, so that a program may let go of its terminal and open it again without
    /// the supervisor taking that for the end.
    pub(crate) _far: OwnedFd,
}

/// What a process may do once it is locked in.
#[derive(Debug)]
pub(crate) struct Locks<'a> {
    pub(crate) reach: &'a [(PathBuf, Reach)],
    pub(crate) filter: &'a Filter,
    pub(crate) scopes: bool,
}

impl Locks<'_> {
    /// Gives everything up for good, for this process and all it will fork. Returns where the
    /// calls arrive that are denied from now on, if this kernel tells.
    pub(crate) fn close(&self) -> Result<Option<OwnedFd>, WallError> {
        // The program has the same user id as this process; undumpable, this one's memory,
        // descriptors and root stay out of its reach (proc(5)).
        hide()?;
        landlock_first(self)?;
        self.filter
            .install()
            .step(|| "install the seccomp filter".into())
    }
}

fn landlock_first(locks: &Locks<'_>) -> Result<(), WallError> {
    capabilities::drop_all().step(|| "drop all capabilities".into())?;
    landlock::lock_in(locks.reach, locks.scopes)
}

/// Names this process for people who list processes on the host.
pub(crate) fn name(name: &std::ffi::CStr) {
    // The name is not needed for anything.
    let _ = rustix::thread::set_name(name);
}

/// Keeps processes of the same user out of this one's memory and descriptors.
pub(crate) fn hide() -> Result<(), WallError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "become undumpable".into())
}

/// Lets this process write its own id maps, which belong to root while it is undumpable.
/// Nothing untrusted runs yet that could use it.
pub(crate) fn show() -> Result<(), WallError> {
    set_dumpable_behavior(DumpableBehavior::Dumpable).step(|| "become dumpable".into())
}

/// Ends this process when its parent ends.
pub(crate) fn die_with_parent() -> Result<(), WallError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .step(|| "tie this process to its parent".into())
}

/// Reports a wall that could not be built, and ends.
pub(crate) fn fail(control: &OwnedFd, error: WallError) -> ! {
    // If nobody listens any more there is nobody to tell.
    let _ = packet::send(control, &News::Failed(error), &[]);
    sys::exit(1)
}

/// Starts the program and looks after it until it ends; then ends.
///
/// `denials` is where denied calls arrive. It is the supervisor's, and leaves this process
/// before there is a program that could reach for it.
pub(crate) fn run(
    program: Program,
    control: OwnedFd,
    denials: Option<OwnedFd>,
    terminal: Option<Terminal>,
    relay: Option<Relay>,
    delivery: Delivery,
) -> ! {
    let riders: Vec<_> = denials.iter().map(AsFd::as_fd).collect();
    if packet::send(&control, &News::Guarded, &riders).is_err() {
        sys::exit(1);
    }
    drop(denials);
    let near = terminal.as_ref().map(|terminal| &terminal.near);
    let code = match Keeper::start(program, control, near, relay, delivery) {
        Ok(mut keeper) => keeper.keep(),
        Err(_) => 1,
    };
    sys::exit(code)
}

struct Keeper {
    control: OwnedFd,
    children: OwnedFd,
    /// The program's process, as long as it runs.
    program: Option<Pid>,
    /// The program, to be started again: a guest's alone.
    again: Option<Program>,
    relay: Option<Relay>,
    delivery: Delivery,
    frozen: Option<Frozen>,
}

impl Keeper {
    fn start(
        program: Program,
        control: OwnedFd,
        terminal: Option<&OwnedFd>,
        relay: Option<Relay>,
        delivery: Delivery,
    ) -> io::Result<Self> {
        let children = sys::signal_descriptor(&[libc::SIGCHLD])?;
        let pid = match launch(&program)? {
            Ok(pid) => pid,
            Err(news) => {
                let _ = packet::send(&control, &news, &[]);
                sys::exit(0);
            }
        };
        let near_end: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
        packet::send(&control, &News::Started, &near_end)?;
        Ok(Self {
            control,
            children,
            program: Some(pid),
            again: (delivery == Delivery::Program).then_some(program),
            relay,
            delivery,
            frozen: None,
        })
    }

    fn keep(&mut self) -> i32 {
        loop {
            let mut fds = vec![
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.children, PollFlags::IN),
            ];
            let interest = self.relay.as_ref().map(Relay::interest).unwrap_or_default();
            fds.extend(
                interest
                    .iter()
                    .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
            );
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return 1,
            }
            let seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            let (own, relayed) = seen.split_at_checked(2).unwrap_or_default();
            if own.first().is_some_and(|flags| !flags.is_empty()) && !self.obey() {
                return 1;
            }
            if own.last().is_some_and(|flags| !flags.is_empty()) {
                while sys::next_signal(&self.children).is_some() {}
                if let Some(status) = self.reap()
                    && let Some(code) = self.finish(status)
                {
                    return code;
                }
            }
            if let Some(relay) = &mut self.relay {
                relay.handle(relayed);
            }
        }
    }

    /// Does what the supervisor says. `false` when it is gone.
    fn obey(&mut self) -> bool {
        match packet::receive::<Command>(&self.control, false) {
            Ok(Some((Command::Signal(signal), _))) => self.deliver(signal),
            Ok(Some((Command::Freeze(within), _))) => {
                let news = match freeze::freeze(Duration::from_millis(within)) {
                    Ok((frozen, processes)) => {
                        self.frozen = Some(frozen);
                        News::Frozen { processes }
                    }
                    Err(reason) => News::NotFrozen { reason },
                };
                return packet::send(&self.control, &news, &[]).is_ok();
            }
            Ok(Some((Command::Thaw, _))) => {
                if let Some(frozen) = self.frozen.take() {
                    freeze::thaw(&frozen);
                }
            }
            Ok(Some((Command::Restart, _))) => return self.restart(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return false,
        }
        true
    }

    fn deliver(&self, signal: i32) {
        match self.delivery {
            Delivery::Everyone => sys::signal_all(signal),
            Delivery::Program => {
                if let (Some(program), Some(signal)) =
                    (self.program, Signal::from_named_raw(signal))
                {
                    // It may have ended this moment; then its exit is what counts.
                    let _ = rustix::process::kill_process(program, signal);
                }
            }
        }
    }

    /// Reaps whoever ended; the program's status when it is among them.
    fn reap(&self) -> Option<WaitStatus> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.program {
                ended = Some(status);
            }
        }
        ended
    }

    /// Ends what the program left behind, waits for it, and reports. The exit code of this
    /// process, unless it stays for a program that may be started again.
    fn finish(&mut self, status: WaitStatus) -> Option<i32> {
        sys::signal_all(libc::SIGKILL);
        while wait(WaitOptions::empty()).is_ok() {}
        self.program = None;
        self.frozen = None;
        let news = News::Exited {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            error: None,
        };
        let told = packet::send(&self.control, &news, &[]).is_ok();
        (self.again.is_none() || !told).then(|| i32::from(!told))
    }

    /// Starts the program again behind the same walls. `false` when the supervisor is gone.
    fn restart(&mut self) -> bool {
        let Some(program) = self.again.as_ref().filter(|_| self.program.is_none()) else {
            return true;
        };
        let news = match launch(program) {
            Ok(Ok(pid)) => {
                self.program = Some(pid);
                News::Started
            }
            Ok(Err(news)) => news,
            Err(error) => News::Exited {
                code: None,
                signal: None,
                error: Some(error.to_string()),
            },
        };
        packet::send(&self.control, &news, &[]).is_ok()
    }
}

/// Forks and executes a program; the inner error is what there is to tell when it could
/// not be executed.
fn launch(program: &Program) -> io::Result<Result<Pid, News>> {
    let (failure_reader, failure_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let pid = match sys::fork()? {
        Forked::Child => {
            let failure = program.exec();
            if let Ok(text) = serde_json::to_vec(&failure) {
                let _ = rustix::io::write(&failure_writer, &text);
            }
            sys::exit(failure.code)
        }
        Forked::Parent(pid, _) => pid,
    };
    drop(failure_writer);
    // Ends at once when exec succeeded, because that closed the other end.
    Ok(match read_failure(&failure_reader)? {
        None => Ok(pid),
        Some(ExecFailure { code, error }) => Err(News::Exited {
            code: Some(code),
            signal: None,
            error: Some(error),
        }),
    })
}

/// Longest failure that a program's start can report.
const MAX_FAILURE: usize = 8 << 10;

fn read_failure(from: &OwnedFd) -> io::Result<Option<ExecFailure>> {
    let mut text = vec![0; MAX_FAILURE];
    let length = loop {
        match rustix::io::read(from, text.as_mut_slice()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let failure = serde_json::from_slice(text.get(..length).unwrap_or_default());
    Ok(Some(failure.unwrap_or_else(|_| ExecFailure {
        code: 126,
        error: "the program could not be started".into(),
    })))
}

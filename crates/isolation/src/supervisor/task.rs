//! One supervised process tree: a guest or a runner, with its output, input and end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use rustix::termios::{tcgetpgrp, tcgetsid};
use types::{CommandExit, LimitReached, TerminalSize};

use super::denials::Denials;
use super::log::Log;
use crate::init::{Command, News};
use crate::namespaces::winsize;
use crate::packet;
use crate::protocol::Stream;
use crate::walls::WallError;

/// Bytes of input that wait for a process; beyond it the sender is not read any more.
const MAX_PENDING_INPUT: usize = 256 << 10;

/// Most bytes read from one descriptor before others have their turn.
const READ_SLICE: usize = 64 << 10;

/// Most bytes that are still read from a pipe once its process is gone. Enough for what a
/// pipe can hold; a stranger who was handed the write end cannot keep us reading.
const MAX_REMAINDER: usize = 4 << 20;

/// What a terminal takes for the end of input (Ctrl-D).
const END_OF_TRANSMISSION: u8 = 4;

/// What is waited for on behalf of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Process,
    News,
    Output(usize),
    Input,
    Denials,
}

/// What came of reading a task's news.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Nothing,
    /// The walls stand. Not counted: this kernel does not tell which calls it denies.
    Guarded {
        counted: bool,
    },
    Started,
    Failed(WallError),
    /// It stands still, or why it does not.
    Froze(Result<u32, String>),
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) log: Log,
    /// How it ended, once nothing of it is left.
    pub(crate) exit: Option<CommandExit>,
    /// When its time is up.
    pub(crate) deadline: Option<Instant>,
    /// The system calls that it was denied.
    pub(crate) denials: Denials,
    /// This kernel does not tell which calls it denies.
    pub(crate) uncounted: bool,
    process: Option<OwnedFd>,
    control: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Stream)>,
    input: Option<Input>,
    terminal: bool,
    started: Instant,
    report: Option<CommandExit>,
    timed_out: bool,
    /// Why it was ended by its supervisor, when that was no order of anybody.
    ended_because: Option<&'static str>,
    /// Its program has ended and its first process waits: a guest's alone.
    resting: bool,
    /// Where its relay listens in the workbench.
    pub(crate) relay_port: Option<u16>,
}

/// Input on its way to a process.
#[derive(Debug)]
struct Input {
    to: Option<OwnedFd>,
    pending: Vec<u8>,
    ends: bool,
}

impl Task {
    /// A task whose output arrives on `outputs` (none yet for a terminal).
    pub(crate) fn new(
        control: OwnedFd,
        outputs: Vec<(OwnedFd, Stream)>,
        log_bytes: u64,
        now: Instant,
        wall: Option<Duration>,
    ) -> Self {
        // Should the other side ever stop reading, orders to it fail instead of blocking
        // everybody. The call cannot fail on a socket.
        let _ = rustix::io::ioctl_fionbio(&control, true);
        Self {
            log: Log::new(log_bytes),
            exit: None,
            deadline: wall.map(|wall| now + wall),
            denials: Denials::new(now),
            uncounted: false,
            process: None,
            control: Some(control),
            terminal: outputs.is_empty(),
            outputs,
            input: None,
            started: now,
            report: None,
            timed_out: false,
            ended_because: None,
            resting: false,
            relay_port: None,
        }
    }

    /// Sets what it will read. `to` is `None` for a terminal, whose near end comes later.
    pub(crate) fn set_input(&mut self, to: Option<OwnedFd>, pending: Vec<u8>, ends: bool) {
        self.input = Some(Input { to, pending, ends });
    }

    pub(crate) fn set_process(&mut self, pidfd: OwnedFd) {
        self.process = Some(pidfd);
    }

    /// Whether it has, or had, a process.
    pub(crate) const fn is_born(&self) -> bool {
        self.process.is_some() || self.exit.is_some()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> Vec<(Part, BorrowedFd<'_>, PollFlags)> {
        let mut wanted = Vec::with_capacity(6);
        if self.exit.is_some() && !self.resting {
            return wanted;
        }
        if let Some(process) = &self.process {
            wanted.push((Part::Process, process.as_fd(), PollFlags::IN));
        }
        if let Some(control) = &self.control {
            wanted.push((Part::News, control.as_fd(), PollFlags::IN));
        }
        if let Some(listener) = self.denials.interest() {
            wanted.push((Part::Denials, listener, PollFlags::IN));
        }
        for (index, (fd, _)) in self.outputs.iter().enumerate() {
            wanted.push((Part::Output(index), fd.as_fd(), PollFlags::IN));
        }
        if let Some(Input {
            to: Some(fd),
            pending,
            ..
        }) = &self.input
            && !pending.is_empty()
        {
            wanted.push((Part::Input, fd.as_fd(), PollFlags::OUT));
        }
        wanted
    }

    /// Reads one slice of output. A descriptor at its end is closed.
    pub(crate) fn read_output(&mut self, index: usize) {
        let Some((fd, stream)) = self.outputs.get(index) else {
            return;
        };
        let mut buffer = vec![0; READ_SLICE];
        match rustix::io::read(fd, buffer.as_mut_slice()) {
            Ok(length) if length > 0 => {
                self.log
                    .append(*stream, buffer.get(..length).unwrap_or_default());
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: the last process let go of the terminal. It may be opened again, but
            // then by nobody who can, once the terminal's file system is the runner's own.
            Ok(_) | Err(_) => {
                self.outputs.remove(index);
            }
        }
    }

    /// Reads what the task's first process has to say.
    pub(crate) fn read_news(&mut self) -> Told {
        let Some(control) = &self.control else {
            return Told::Nothing;
        };
        match packet::receive::<News>(control, false) {
            Ok(Some((News::Guarded, fds))) => match fds.into_iter().next() {
                Some(listener) => {
                    self.denials.listen(listener);
                    Told::Guarded { counted: true }
                }
                None => {
                    self.uncounted = true;
                    Told::Guarded { counted: false }
                }
            },
            Ok(Some((News::Relay { port }, _))) => {
                self.relay_port = Some(port);
                Told::Nothing
            }
            Ok(Some((News::Started, fds))) => {
                if let Some(near_end) = fds.into_iter().next() {
                    self.connect_terminal(near_end);
                }
                Told::Started
            }
            Ok(Some((
                News::Exited {
                    code,
                    signal,
                    error,
                },
                _,
            ))) => {
                self.report = Some(CommandExit {
                    code,
                    signal,
                    error,
                    ..CommandExit::default()
                });
                Told::Nothing
            }
            Ok(Some((News::Frozen { processes }, _))) => Told::Froze(Ok(processes)),
            Ok(Some((News::NotFrozen { reason }, _))) => Told::Froze(Err(reason)),
            Ok(Some((News::Failed(error), _))) => {
                let text = format!("the runner could not be built: {error}");
                self.report = Some(CommandExit {
                    error: Some(text),
                    ..CommandExit::default()
                });
                Told::Failed(error)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Told::Nothing,
            Ok(None) | Err(_) => {
                self.control = None;
                Told::Nothing
            }
        }
    }

    /// Why the program could not be started, when it said so.
    pub(crate) fn reported_error(&self) -> Option<&str> {
        self.report.as_ref()?.error.as_deref()
    }

    fn connect_terminal(&mut self, near_end: OwnedFd) {
        let prepared = rustix::io::ioctl_fionbio(&near_end, true)
            .map_err(io::Error::from)
            .and_then(|()| near_end.try_clone());
        if let (Ok(writer), Some(input)) = (prepared, &mut self.input) {
            input.to = Some(writer);
            self.outputs.push((near_end, Stream::Stdout));
        }
    }

    /// Whether more input may be taken in.
    pub(crate) fn takes_input(&self) -> bool {
        self.input
            .as_ref()
            .is_none_or(|input| input.pending.len() < MAX_PENDING_INPUT)
    }

    /// Adds input; what arrives after its end is dropped.
    pub(crate) fn add_input(&mut self, bytes: &[u8]) {
        if let Some(input) = &mut self.input
            && !input.ends
        {
            input.pending.extend_from_slice(bytes);
            self.write_input();
        }
    }

    /// No more input will come.
    pub(crate) fn end_input(&mut self) {
        if self.terminal {
            self.add_input(&[END_OF_TRANSMISSION]);
        } else if let Some(input) = &mut self.input {
            input.ends = true;
            self.write_input();
        }
    }

    /// Writes pending input; closes it once all is written and no more will come.
    pub(crate) fn write_input(&mut self) {
        let Some(input) = &mut self.input else {
            return;
        };
        let Some(fd) = &input.to else {
            return;
        };
        if !input.pending.is_empty() {
            match rustix::io::write(fd, &input.pending) {
                Ok(length) => {
                    input.pending.drain(..length);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Nobody reads any more.
                Err(_) => {
                    self.input = None;
                    return;
                }
            }
        }
        if input.ends && input.pending.is_empty() {
            self.input = None;
        }
    }

    /// Whether another process group than that of the session's leader, the shell, has the
    /// terminal.
    pub(crate) fn has_foreground_job(&self) -> bool {
        self.outputs
            .first()
            .filter(|_| self.terminal)
            .is_some_and(|(near_end, _)| {
                let (group, session) = (tcgetpgrp(near_end), tcgetsid(near_end));
                matches!((group, session), (Ok(group), Ok(session)) if group != session)
            })
    }

    /// Tells a terminal its new size.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some((near_end, _)) = self.outputs.first().filter(|_| self.terminal) {
            // A terminal that is gone has no size.
            let _ = rustix::termios::tcsetwinsize(near_end, winsize(size));
        }
    }

    /// Has a signal delivered within. `false` when nobody is there to do it.
    pub(crate) fn deliver(&self, signal: i32) -> bool {
        self.command(Command::Signal(signal))
    }

    /// Tells the task's first process something. `false` when it is not there.
    pub(crate) fn command(&self, command: Command) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| packet::send(control, &command, &[]).is_ok())
    }

    /// Ends the whole tree: the death of its first process is that of the pid namespace.
    pub(crate) fn kill(&self) {
        if let Some(process) = &self.process {
            // It may have ended this moment.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Ends the whole tree for a reason that its exit will state.
    pub(crate) fn end_because(&mut self, reason: &'static str) {
        if self.exit.is_none() {
            self.ended_because = Some(reason);
            self.kill();
        }
    }

    /// Kills the tree when its time is up.
    pub(crate) fn enforce_deadline(&mut self, now: Instant) {
        if self.exit.is_none()
            && self.process.is_some()
            && self.deadline.is_some_and(|at| at <= now)
        {
            self.timed_out = true;
            self.deadline = None;
            self.kill();
        }
    }

    /// Takes the end of a guest's program in, whose first process stays. `None` while the
    /// program runs.
    pub(crate) fn rest(&mut self, now: Instant) -> Option<CommandExit> {
        let exit = self.report.take().filter(|_| !self.resting)?;
        self.read_waiting();
        self.resting = true;
        Some(self.end(exit, now))
    }

    /// Has a resting program started again. `false` when there is none.
    pub(crate) fn resume(&mut self, now: Instant) -> bool {
        if !self.resting || !self.command(Command::Restart) {
            return false;
        }
        self.resting = false;
        self.exit = None;
        self.report = None;
        self.started = now;
        true
    }

    /// Adds the limit that it met to how it ended.
    pub(crate) fn met(&mut self, limit: Option<LimitReached>) {
        if let Some(exit) = &mut self.exit {
            exit.limit = limit;
        }
    }

    fn end(&mut self, mut exit: CommandExit, now: Instant) -> CommandExit {
        exit.timed_out = self.timed_out;
        if let Some(reason) = self.ended_because {
            exit.error = Some(reason.to_owned());
        }
        exit.dropped_bytes = self.log.dropped();
        exit.wall_ms = u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX);
        self.exit = Some(exit.clone());
        exit
    }

    /// Takes the end in: the process is gone, and with it everything in its namespace.
    pub(crate) fn finish(&mut self, now: Instant) -> CommandExit {
        while self.control.is_some() && self.report.is_none() {
            let before = self.report.clone();
            if self.read_news() == Told::Nothing && self.report == before {
                break;
            }
        }
        self.read_remainder();
        let killed = CommandExit {
            signal: Some(libc::SIGKILL),
            ..CommandExit::default()
        };
        let exit = self.report.take().unwrap_or(killed);
        self.resting = false;
        self.process = None;
        self.control = None;
        self.denials.close();
        self.input = None;
        self.outputs.clear();
        self.deadline = None;
        match self.exit.clone() {
            // It had ended before its first process did.
            Some(earlier) => earlier,
            None => self.end(exit, now),
        }
    }

    /// Reads what is in the pipes, which stay open.
    fn read_waiting(&mut self) {
        let limit = self.log.end() + MAX_REMAINDER as u64;
        for index in (0..self.outputs.len()).rev() {
            while let Some((fd, _)) = self.outputs.get(index) {
                let mut ready = [rustix::event::PollFd::new(fd, PollFlags::IN)];
                let now = rustix::event::Timespec::default();
                if self.log.end() >= limit
                    || !matches!(rustix::event::poll(&mut ready, Some(&now)), Ok(1..))
                {
                    break;
                }
                self.read_output(index);
            }
        }
    }

    fn read_remainder(&mut self) {
        let limit = self.log.end() + MAX_REMAINDER as u64;
        while let Some((fd, _)) = self.outputs.first() {
            let mut ready = [rustix::event::PollFd::new(fd, PollFlags::IN)];
            let now = rustix::event::Timespec::default();
            if self.log.end() >= limit
                || !matches!(rustix::event::poll(&mut ready, Some(&now)), Ok(1..))
            {
                self.outputs.remove(0);
            } else {
                self.read_output(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process may be gone before anything that it said was read.
    #[test]
    fn a_report_behind_other_news_is_not_lost() {
        let (control, far) = packet::pair().unwrap();
        let now = Instant::now();
        let mut task = Task::new(control, Vec::new(), 1024, now, None);
        let exited = News::Exited {
            code: Some(7),
            signal: None,
            error: None,
        };
        let (listener, _writer) = rustix::pipe::pipe().unwrap();
        packet::send(&far, &News::Guarded, &[listener.as_fd()]).unwrap();
        for news in [News::Started, exited] {
            packet::send(&far, &news, &[]).unwrap();
        }
        assert_eq!(task.finish(now).code, Some(7));
    }
}

//! The supervisor's loop: one thread, one `poll`, everything non-blocking.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
use rustix::process::{Signal, WaitOptions, pidfd_send_signal, waitpid};
use types::{CommandExit, CommandId, LimitReached};

use super::connection::{Connection, Mode, Span};
use super::denials::Counts;
use super::disk::Disk;
use super::freezing::Freeze;
use super::runner::Runner;
use super::start::{Built, Workbench};
use super::task::{Part, Task, Told};
use super::{dirs::StartDirs, requests};
use crate::cgroups::{self, Group, Levels};
use crate::protocol::{Event, Refusal, Reply, Stream};
use crate::spec::SandboxSpec;
use crate::sys;

/// Clients at once. Each open terminal and followed command is one.
const MAX_CONNECTIONS: usize = 256;

/// How long a last answer may take to be written.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Grace when the supervisor itself is asked to end by SIGTERM.
const SIGTERM_GRACE: Duration = Duration::from_secs(5);

/// Pause after a client that could not be let in, because there is no descriptor for it: it
/// goes on waiting, and the listener would be ready again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Said once per start, and per command, where it is so.
pub(super) const UNCOUNTED: &str = "denied system calls are refused and not counted: this kernel gives no \
                         notification of them, or a filter around the supervisor has it already";

/// How often is looked whether the start's directory still exists. It is one system call.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A running sandbox.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) spec: SandboxSpec,
    pub(crate) dirs: StartDirs,
    pub(crate) channel: OwnedFd,
    pub(crate) guest: Task,
    pub(crate) runners: BTreeMap<CommandId, Runner>,
    pub(crate) workbench: Option<Workbench>,
    guest_pid: rustix::process::Pid,
    listener: OwnedFd,
    signals: OwnedFd,
    client_uid: u32,
    pub(super) connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    pub(super) next_question: u64,
    stop_at: Option<Instant>,
    /// When the listener is looked at again.
    accept_at: Option<Instant>,
    pub(super) freeze: Option<Freeze>,
    /// System calls that were refused and not told yet.
    denied: Counts,
    look_at: Instant,
    _groups: Vec<OwnedFd>,
    pub(super) disk: Option<Disk>,
    /// Why the guest was stopped from here, if it was.
    pub(super) guest_stopped_for: Option<LimitReached>,
    /// Groups of commands that have ended, until the kernel lets go of them.
    pub(super) emptied: Vec<Group>,
    /// What had happened in the groups of guest and sandbox when the guest last ended.
    counted: (cgroups::Counts, cgroups::Counts),
}

/// Whom a readiness concerns.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Orders,
    Workbench,
    Disk,
    Guest(Part),
    Runner(CommandId, Part),
    Connection(u64),
}

impl Supervisor {
    /// Takes a built sandbox over.
    pub(crate) fn new(spec: SandboxSpec, built: Built) -> io::Result<Self> {
        let signals = sys::signal_descriptor(&[libc::SIGTERM])?;
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE] {
            sys::ignore_signal(signal);
        }
        Ok(Self {
            spec,
            dirs: built.dirs,
            channel: built.channel,
            guest: built.guest,
            runners: BTreeMap::new(),
            workbench: Some(built.workbench),
            guest_pid: built.guest_pid,
            listener: built.listener,
            signals,
            client_uid: built.client_uid,
            connections: BTreeMap::new(),
            next_connection: 0,
            next_question: 0,
            stop_at: None,
            accept_at: None,
            freeze: None,
            denied: Counts::default(),
            look_at: Instant::now() + LOOK_EVERY,
            _groups: built.kept.groups,
            disk: built.kept.disk,
            guest_stopped_for: None,
            emptied: Vec::new(),
            counted: Default::default(),
        })
    }

    /// Serves until the sandbox was stopped and nothing of it is left.
    pub(crate) fn serve(mut self) -> io::Result<()> {
        while !self.has_stopped() {
            let seen = self.wait()?;
            let now = Instant::now();
            for (source, flags) in seen {
                self.handle(source, flags, now);
            }
            self.enforce_deadlines(now);
            self.tell_denials(now);
            self.emptied
                .retain(|group| group.remove(Duration::ZERO).is_err());
            self.feed_connections();
            self.enforce_thaw(now);
        }
        self.end();
        Ok(())
    }

    /// Begins to take the sandbox down; more than one may ask.
    pub(crate) fn stop(&mut self, grace: Duration, now: Instant) {
        let at = now + grace;
        // Who stands still cannot end in good order.
        self.thaw(now);
        if self.stop_at.is_none() {
            for runner in self.runners.values() {
                runner.task.kill();
            }
            if self.guest.exit.is_none() && !self.guest.deliver(libc::SIGTERM) {
                self.guest.kill();
            }
        }
        self.stop_at = Some(self.stop_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(crate) const fn is_stopping(&self) -> bool {
        self.stop_at.is_some()
    }

    fn has_stopped(&self) -> bool {
        let over = |task: &Task| task.exit.is_some();
        self.is_stopping()
            && over(&self.guest)
            && self.runners.values().all(|runner| over(&runner.task))
    }

    /// Waits until something can be done and returns what.
    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(
                &self.listener,
                if self.connections.len() < MAX_CONNECTIONS && self.accept_at.is_none() {
                    PollFlags::IN
                } else {
                    PollFlags::empty()
                },
            ),
        ];
        if let Some(workbench) = &self.workbench {
            sources.extend([Source::Orders, Source::Workbench]);
            fds.push(PollFd::new(&workbench.control, PollFlags::IN));
            fds.push(PollFd::new(&workbench.process, PollFlags::IN));
        }
        if let Some(disk) = &self.disk {
            sources.push(Source::Disk);
            fds.push(PollFd::new(disk.reports(), PollFlags::IN));
        }
        for (part, fd, flags) in self.guest.interest() {
            sources.push(Source::Guest(part));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for (&id, runner) in &self.runners {
            for (part, fd, flags) in runner.task.interest() {
                sources.push(Source::Runner(id, part));
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        for (&id, connection) in &self.connections {
            sources.push(Source::Connection(id));
            let flags = connection.interest(self.takes_input(connection));
            fds.push(PollFd::new(connection.socket(), flags));
        }
        let timeout = self.next_deadline().map(|at| {
            Timespec::try_from(at.saturating_duration_since(Instant::now())).unwrap_or_default()
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let seen = fds.iter().map(PollFd::revents);
        Ok(sources
            .into_iter()
            .zip(seen)
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn takes_input(&self, connection: &Connection) -> bool {
        match connection.mode {
            Mode::Attached(id, ..) => self
                .runners
                .get(&id)
                .is_none_or(|runner| runner.task.takes_input()),
            _ => true,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let runners = self
            .runners
            .values()
            .filter_map(|runner| runner.task.deadline);
        let connections = self.connections.values().filter_map(Connection::deadline);
        let stop = self.stop_at.filter(|_| self.guest.exit.is_none());
        let thaw = self.freeze.as_ref().and_then(Freeze::deadline);
        let look = (!self.is_stopping()).then_some(self.look_at);
        let windows = self
            .runners
            .values()
            .filter_map(|runner| runner.task.denials.deadline())
            .chain(self.guest.denials.deadline());
        let told = self.denied.deadline().filter(|_| self.is_watched());
        runners
            .chain(connections)
            .chain(stop)
            .chain(self.accept_at)
            .chain(windows)
            .chain(told)
            .chain(thaw)
            .chain(look)
            .min()
    }

    fn enforce_deadlines(&mut self, now: Instant) {
        self.accept_at = self.accept_at.filter(|at| *at > now);
        for runner in self.runners.values_mut() {
            runner.task.enforce_deadline(now);
        }
        self.connections
            .retain(|_, connection| connection.deadline().is_none_or(|at| at > now));
        if self.stop_at.is_some_and(|at| at <= now) {
            self.guest.kill();
        }
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            // Without its directory no hypervisor finds it again: it would run for ever.
            if self.dirs.is_gone() && !self.is_stopping() {
                self.stop(SIGTERM_GRACE, now);
            }
        }
    }

    fn handle(&mut self, source: Source, flags: PollFlags, now: Instant) {
        match source {
            Source::Signals => {
                while sys::next_signal(&self.signals).is_some() {
                    self.stop(SIGTERM_GRACE, now);
                }
            }
            Source::Listener => self.accept(now),
            Source::Orders => self.read_workbench(now),
            Source::Workbench => self.lose_workbench(),
            Source::Disk => self.read_disk(now),
            Source::Guest(part) => self.handle_guest(part, now),
            Source::Runner(id, part) => self.handle_runner(id, part, now),
            Source::Connection(id) => self.handle_connection(id, flags, now),
        }
    }

    fn accept(&mut self, now: Instant) {
        while self.connections.len() < MAX_CONNECTIONS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
                Err(_) => {
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            let known = socket_peercred(&socket)
                .is_ok_and(|peer| peer.uid.is_root() || peer.uid.as_raw() == self.client_uid);
            if known {
                self.connections
                    .insert(self.next_connection, Connection::new(socket, now));
                self.next_connection += 1;
            }
        }
    }

    fn handle_guest(&mut self, part: Part, now: Instant) {
        match part {
            Part::Output(index) => self.guest.read_output(index),
            Part::Input => self.guest.write_input(),
            Part::Denials => self.guest.denials.refuse(None, &mut self.denied, now),
            Part::News => {
                if let Told::Froze(froze) = self.guest.read_news() {
                    self.hear_frozen(None, froze, now);
                }
                if let Some(exit) = self.guest.rest(now) {
                    self.lose_guest(exit, now);
                }
            }
            Part::Process => {
                // Reaps the guest's first process, a child of this one.
                let _ = waitpid(Some(self.guest_pid), WaitOptions::NOHANG);
                let known = self.guest.exit.is_some();
                let exit = self.guest.finish(now);
                if !known {
                    self.lose_guest(exit, now);
                }
            }
        }
    }

    fn lose_guest(&mut self, mut exit: CommandExit, now: Instant) {
        exit.limit = self.guest_limit();
        self.guest.met(exit.limit);
        self.check_frozen(now);
        self.note(&format!("guest {}", ending(&exit)));
        // With the guest's end a watcher has heard everything that it will.
        while self.is_watched()
            && let Some(event) = self.denied.rest(now)
        {
            self.tell(&event);
        }
        self.tell(&Event::GuestExited { exit });
    }

    /// Starts the guest's program again. Its runners know nothing of it.
    pub(super) fn restart_guest(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.is_stopping() {
            return Err(Refusal::new("stopping", "the sandbox is being stopped"));
        }
        if self.workbench.is_none() || !self.guest.resume(now) {
            return Err(Refusal::new(
                "conflict",
                "the guest runs, or nothing is left to start it in",
            ));
        }
        self.note("guest started again");
        Ok(())
    }

    fn handle_runner(&mut self, id: CommandId, part: Part, now: Instant) {
        let Some(runner) = self.runners.get_mut(&id) else {
            return;
        };
        match part {
            Part::Output(index) => runner.task.read_output(index),
            Part::Input => runner.task.write_input(),
            Part::Denials => {
                let denials = &mut runner.task.denials;
                denials.refuse(Some(&runner.view), &mut self.denied, now);
            }
            Part::News => match runner.task.read_news() {
                Told::Failed(error) => {
                    self.note(&format!("a runner could not be built: {error}"));
                }
                Told::Froze(froze) => self.hear_frozen(Some(id), froze, now),
                Told::Guarded { counted: false } => self.note(UNCOUNTED),
                Told::Nothing | Told::Guarded { .. } | Told::Started => {}
            },
            Part::Process => {
                let limit = runner.limit();
                let mut exit = runner.task.finish(now);
                exit.limit = limit;
                runner.task.met(limit);
                self.emptied.extend(runner.close(&self.dirs));
                self.check_frozen(now);
                self.tell(&Event::RunnerExited {
                    command_id: id,
                    exit,
                });
                requests::forget_oldest(self);
            }
        }
    }

    fn handle_connection(&mut self, id: u64, flags: PollFlags, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if flags.contains(PollFlags::OUT) {
            connection.write();
        }
        let alive = if flags.contains(PollFlags::IN) {
            connection.read().unwrap_or(false)
        } else {
            !flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
        };
        if alive {
            self.take_frames(id, now);
        } else {
            self.connections.remove(&id);
        }
    }

    /// Handles the frames that arrived on a connection.
    fn take_frames(&mut self, id: u64, now: Instant) {
        // The connection leaves the map while its requests act on the rest.
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        while self.takes_input(&connection) {
            match connection.next_frame() {
                Ok(Some(frame)) => requests::handle(self, id, &mut connection, frame, now),
                Ok(None) => break,
                Err(error) => {
                    connection.refuse(&Refusal::new("bad_request", error.to_string()));
                    connection.close();
                }
            }
        }
        self.connections.insert(id, connection);
    }

    /// Gives each follower the next piece it can take, and closes what is done.
    fn feed_connections(&mut self) {
        let now = Instant::now();
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.take_frames(id, now);
        }
        self.feed_followers();
    }

    fn feed_followers(&mut self) {
        for connection in self.connections.values_mut() {
            match connection.mode {
                Mode::Attached(runner, ..) => {
                    feed_attached(connection, self.runners.get(&runner));
                }
                Mode::GuestLog(_) => feed_guest_log(connection, &self.guest),
                _ => {}
            }
        }
        self.connections
            .retain(|_, connection| !connection.is_done());
    }

    /// The limit that ended the guest, if one did.
    fn guest_limit(&mut self) -> Option<LimitReached> {
        if let Some(reached) = self.guest_stopped_for.take() {
            return Some(reached);
        }
        let start = self.spec.cgroup.as_ref()?;
        let (own, all) = (start.child(cgroups::GUEST).counts(), start.counts());
        let (own_before, all_before) = std::mem::replace(&mut self.counted, (own, all));
        let levels = Levels {
            command: self.spec.limits.of_guest,
            sandbox: self.spec.limits.of_sandbox,
            user: self.spec.limits.of_user,
            before: all_before,
        };
        cgroups::reached(&levels, own.since(own_before), all)
    }

    fn is_watched(&self) -> bool {
        self.connections
            .values()
            .any(|connection| connection.mode == Mode::Watching)
    }

    /// Tells what was denied, if it is time and anybody listens; what nobody listened to is told
    /// to whoever watches next.
    fn tell_denials(&mut self, now: Instant) {
        self.guest.denials.turn_window(now);
        for runner in self.runners.values_mut() {
            runner.task.denials.turn_window(now);
        }
        if self.is_watched()
            && let Some(event) = self.denied.report(now)
        {
            self.tell(&event);
        }
    }

    /// Tells every watcher.
    pub(super) fn tell(&mut self, event: &Event) {
        for connection in self
            .connections
            .values_mut()
            .filter(|c| c.mode == Mode::Watching)
        {
            connection.say(event, Vec::new());
        }
    }

    /// Writes a line of the supervisor's own into the guest's log.
    pub(super) fn note(&mut self, line: &str) {
        self.guest
            .log
            .append(Stream::Stderr, format!("[supervisor] {line}\n").as_bytes());
    }

    /// The last steps: nothing runs any more but the workbench.
    fn end(&mut self) {
        self.guest.kill();
        if let Some(workbench) = self.workbench.take() {
            let _ = pidfd_send_signal(&workbench.process, Signal::KILL);
            let _ = waitpid(Some(workbench.pid), WaitOptions::empty());
        }
        self.dirs.remove();
        for connection in self.connections.values_mut() {
            match connection.mode {
                // They get what is left of the output, and how it ended.
                Mode::Attached(..) | Mode::GuestLog(_) => continue,
                Mode::Stopping => connection.say(&Reply::Done, Vec::new()),
                _ => {}
            }
            connection.close();
        }
        let until = Instant::now() + FLUSH_WITHIN;
        while Instant::now() < until {
            self.feed_followers();
            // Nothing is to come for one that has nothing to write.
            self.connections
                .retain(|_, connection| !connection.is_idle());
            let left = Timespec::try_from(until.saturating_duration_since(Instant::now()));
            let mut fds: Vec<_> = self
                .connections
                .values()
                .map(|connection| PollFd::new(connection.socket(), PollFlags::OUT))
                .collect();
            if fds.is_empty() || !matches!(poll(&mut fds, left.ok().as_ref()), Ok(1..)) {
                return;
            }
            drop(fds);
            for connection in self.connections.values_mut() {
                connection.write();
            }
        }
    }
}

/// Sends a follower what it may have, as long as it takes it; a slow one misses what the ring
/// drops meanwhile, which the offset of the next frame tells it.
fn feed_attached(connection: &mut Connection, runner: Option<&Runner>) {
    while connection.is_idle() {
        let Mode::Attached(id, span) = connection.mode else {
            return;
        };
        let Some(runner) = runner else {
            connection.refuse(&Refusal::new("not_found", "the command was forgotten"));
            connection.close();
            return;
        };
        if let Some((stream, offset, bytes)) = runner.next_for(span) {
            let from = offset + bytes.len() as u64;
            connection.mode = Mode::Attached(id, Span { from, ..span });
            connection.say_data(stream, offset, bytes);
        } else {
            if let Some(exit) = runner.task.exit.clone() {
                connection.say(
                    &Reply::Exited {
                        command_id: id,
                        exit,
                    },
                    Vec::new(),
                );
                connection.close();
            }
            return;
        }
    }
}

fn feed_guest_log(connection: &mut Connection, guest: &Task) {
    while connection.is_idle() {
        let Mode::GuestLog(from) = connection.mode else {
            return;
        };
        if let Some((stream, offset, bytes)) = guest.log.read(from) {
            connection.mode = Mode::GuestLog(offset + bytes.len() as u64);
            connection.say_data(stream, offset, bytes);
        } else {
            if guest.exit.is_some() {
                connection.close();
            }
            return;
        }
    }
}

fn ending(exit: &CommandExit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

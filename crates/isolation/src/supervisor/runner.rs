//! A runner as its supervisor keeps it: births, listing, channel.

use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use types::{CommandId, CommandState, CommandView, LimitReached, TerminalSize};

use super::connection::Span;
use super::dirs::StartDirs;
use super::start::{Workbench, output_pipe, with_path};
use super::task::Task;
use crate::cgroups::{self, Group, GroupLimits, Levels};
use crate::namespaces::{Order, RunnerJob};
use crate::packet;
use crate::protocol::{Refusal, RunnerStatus, Stream};
use crate::spec::{
    DEFAULT_OUTPUT_BYTES, MAX_OUTPUT_BYTES, MAX_STDIN_BYTES, RunnerSpec, SandboxSpec, WORKSPACE,
};

/// Most arguments and variables of a command.
const MAX_STRINGS: usize = 4096;

/// Most bytes of arguments and variables together; the kernel takes about 2 MiB.
const MAX_STRING_BYTES: usize = 1 << 20;

/// Largest terminal, in cells, each way.
const MAX_CELLS: u16 = 1000;

#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) task: Task,
    pub(crate) view: CommandView,
    started_unix_ms: u64,
    channel: Option<OwnedFd>,
    has_channel: bool,
    group: Option<RunnerGroup>,
    ended_for: Option<LimitReached>,
}

/// The group of a command, and what it is judged by.
#[derive(Debug)]
struct RunnerGroup {
    group: Group,
    levels: Levels,
}

impl Runner {
    /// Orders a runner from the workbench. It exists once the workbench has answered.
    pub(crate) fn order(
        spec: RunnerSpec,
        sandbox: &SandboxSpec,
        dirs: &StartDirs,
        workbench: &Workbench,
        now: Instant,
    ) -> Result<Self, Refusal> {
        check(&spec)?;
        let id = spec.command_id;
        let ordered = Self::try_order(spec, sandbox, dirs, workbench, now);
        ordered.map_err(|error| {
            dirs.remove_runner_channel(&id.to_string());
            if let Some(start) = &sandbox.cgroup {
                // Nobody is in it: the order is the last thing that can fail.
                let _ = group_of(start, id).remove(Duration::ZERO);
            }
            Refusal::new(
                "unavailable",
                format!("the command could not be started: {error}"),
            )
            .with_hint("the host may be short of memory, processes or open files; end something and try again")
        })
    }

    fn try_order(
        spec: RunnerSpec,
        sandbox: &SandboxSpec,
        dirs: &StartDirs,
        workbench: &Workbench,
        now: Instant,
    ) -> io::Result<Self> {
        let id = spec.command_id;
        let channel = spec
            .channel
            .then(|| dirs.runner_channel(&id.to_string()))
            .transpose()?;
        let (control, far) = packet::pair()?;
        let group = sandbox
            .cgroup
            .as_ref()
            .map(|start| RunnerGroup::make(&spec, sandbox, start))
            .transpose()?;
        let job = write_job(&spec, sandbox)?;
        let mut riders = vec![job, far];
        let mut outputs = Vec::new();
        let mut input = None;
        if spec.terminal.is_none() {
            let stdin = if spec.stdin.is_some() || spec.stdin_open {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&writer, true)?;
                input = Some(writer);
                reader
            } else {
                crate::sys::null()?
            };
            let (stdout_near, stdout) = output_pipe()?;
            let (stderr_near, stderr) = output_pipe()?;
            riders.extend([stdin, stdout, stderr]);
            outputs = vec![(stdout_near, Stream::Stdout), (stderr_near, Stream::Stderr)];
        }
        let wall = spec.limits.wall_ms.map(Duration::from_millis);
        let log_bytes = spec
            .limits
            .output_bytes
            .unwrap_or(DEFAULT_OUTPUT_BYTES)
            .min(MAX_OUTPUT_BYTES);
        let mut task = Task::new(control, outputs, log_bytes, now, wall);
        if input.is_some() || spec.terminal.is_some() {
            let ends = spec.terminal.is_none() && !spec.stdin_open;
            task.set_input(input, spec.stdin.unwrap_or_default().into_bytes(), ends);
        }
        let entrances = match &group {
            Some(made) => cgroups::entrances(&made.group)?,
            None => Vec::new(),
        };
        let order = Order::Runner {
            command_id: id,
            entrances: entrances.len(),
        };
        let riders: Vec<_> = riders.iter().chain(&entrances).map(AsFd::as_fd).collect();
        packet::send(&workbench.control, &order, &riders)?;
        task.write_input();
        let view = CommandView {
            id,
            argv: spec.argv,
            label: spec.label,
            terminal: spec.terminal.is_some(),
            detach: spec.detach,
            network: spec.network,
            state: CommandState::Running,
            exit: None,
            started_at: None,
        };
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let started_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or_default();
        Ok(Self {
            task,
            view,
            started_unix_ms,
            has_channel: channel.is_some(),
            channel,
            group,
            ended_for: None,
        })
    }

    /// How it stands.
    pub(crate) fn status(&self) -> RunnerStatus {
        let mut view = self.view.clone();
        if let Some(exit) = &self.task.exit {
            view.state = CommandState::Exited;
            view.exit = Some(exit.clone());
        }
        RunnerStatus {
            view,
            channel: self.has_channel,
            started_unix_ms: self.started_unix_ms,
            output_end: self.task.log.end(),
            foreground_job: self.task.has_foreground_job(),
        }
    }

    /// Its channel's listener, to be handed out.
    pub(crate) fn channel(&self) -> io::Result<Option<OwnedFd>> {
        self.channel.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Up to where somebody who begins to follow it now is shown its output while it goes on:
    /// what its bound lets it keep, and what is there already. A terminal and a service, which
    /// may go on for ever, are shown all that they write.
    pub(crate) fn shown_until(&self) -> u64 {
        if self.view.terminal || self.view.detach {
            return u64::MAX;
        }
        self.task.log.bound().max(self.task.log.end())
    }

    /// The next piece for a follower, as [`super::log::Log::read`] has it. What a command writes
    /// beyond its bound is not sent one by one, however fast the follower: it gets the end of it
    /// once the command has ended. No answer is thus longer than twice the bound, give or take
    /// a piece.
    pub(crate) fn next_for(&self, span: Span) -> Option<(Stream, u64, &[u8])> {
        let (stream, offset, bytes) = self.task.log.read(span.from)?;
        if self.task.exit.is_some() {
            return Some((stream, offset, bytes));
        }
        let most = usize::try_from(span.until.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..most).unwrap_or(bytes);
        (!bytes.is_empty()).then_some((stream, offset, bytes))
    }

    /// The limit that it met, if any.
    pub(crate) fn limit(&self) -> Option<LimitReached> {
        if self.ended_for.is_some() {
            return self.ended_for;
        }
        let RunnerGroup { group, levels } = self.group.as_ref()?;
        let start = group.parent().parent();
        cgroups::reached(levels, group.counts(), start.counts())
    }

    /// Ends it because a limit of the sandbox was reached.
    pub(crate) fn end_for(&mut self, reached: LimitReached) {
        if self.task.exit.is_none() {
            self.ended_for = Some(reached);
            self.task.kill();
        }
    }

    /// Takes its channel away, once it has ended. Its group is the caller's to remove.
    pub(crate) fn close(&mut self, dirs: &StartDirs) -> Option<Group> {
        if self.channel.take().is_some() {
            dirs.remove_runner_channel(&self.view.id.to_string());
        }
        self.group.take().map(|made| made.group)
    }
}

impl RunnerGroup {
    fn make(spec: &RunnerSpec, sandbox: &SandboxSpec, start: &Group) -> io::Result<Self> {
        let asked = &spec.limits;
        let of_sandbox = sandbox.limits.of_sandbox;
        let limits = GroupLimits {
            memory_bytes: asked.memory_bytes,
            // The first process of the tree is ours.
            processes: asked.processes.map(|n| u64::from(n).saturating_add(1)),
            // Version 1 refuses a share above the one of the group around it.
            cpu_millis: match (asked.cpu_millis, of_sandbox.cpu_millis) {
                (Some(own), Some(all)) => Some(own.min(all)),
                (own, _) => own,
            },
            weight: None,
        };
        let group = group_of(start, spec.command_id);
        let made = group.create().and_then(|()| {
            group.limit(&limits)?;
            group.end_as_one();
            Ok(())
        });
        made.map_err(|error| {
            // Nothing is in it yet.
            let _ = group.remove(Duration::ZERO);
            io::Error::other(error)
        })?;
        let levels = Levels {
            command: limits,
            sandbox: of_sandbox,
            user: sandbox.limits.of_user,
            before: start.counts(),
        };
        Ok(Self { group, levels })
    }
}

fn group_of(start: &Group, command: CommandId) -> Group {
    start.child(cgroups::COMMANDS).child(&command.to_string())
}

fn check(spec: &RunnerSpec) -> Result<(), Refusal> {
    let bad = |message: &str| Err(Refusal::new("bad_request", message));
    let variables = || spec.env.iter().chain(&spec.relay_env);
    let bytes = spec.argv.iter().map(String::len).sum::<usize>()
        + variables()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
    if spec.argv.first().is_none_or(String::is_empty) {
        return bad("no program was named");
    }
    if spec.argv.len() + variables().count() > MAX_STRINGS || bytes > MAX_STRING_BYTES {
        return bad("too many or too long arguments and variables");
    }
    if variables().any(|(name, _)| name.is_empty() || name.contains(['=', '\0'])) {
        return bad("a variable's name is empty or contains '='");
    }
    if spec.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/')) {
        return bad("the working directory must be an absolute path");
    }
    if spec
        .stdin
        .as_ref()
        .is_some_and(|stdin| stdin.len() > MAX_STDIN_BYTES)
    {
        return bad("standard input is too long");
    }
    if spec.terminal.is_some_and(|size| !is_plausible(size)) {
        return bad("a terminal has 1 to 1000 columns and rows");
    }
    Ok(())
}

/// Whether a terminal may have this size.
pub(crate) fn is_plausible(size: TerminalSize) -> bool {
    (1..=MAX_CELLS).contains(&size.cols) && (1..=MAX_CELLS).contains(&size.rows)
}

/// Puts the job into memory that the runner can read, and nobody else.
fn write_job(spec: &RunnerSpec, sandbox: &SandboxSpec) -> io::Result<OwnedFd> {
    let asked = spec.limits.processes.map_or(u64::MAX, u64::from);
    let mut rlimits = sandbox.rlimits;
    rlimits.processes = rlimits.processes.min(asked);
    if sandbox.cgroup.is_some() {
        // The group's limit is met first, because it tells that it was.
        rlimits.processes = rlimits.processes.saturating_add(1);
    }
    rlimits.file_bytes = match (rlimits.file_bytes, spec.limits.file_bytes) {
        (Some(all), Some(asked)) => Some(all.min(asked)),
        (all, asked) => all.or(asked),
    };
    let job = RunnerJob {
        command_id: spec.command_id,
        argv: spec.argv.clone(),
        env: with_path(&spec.env, &sandbox.path_additions),
        relay_env: spec.relay_env.clone(),
        cwd: spec.cwd.clone().unwrap_or_else(|| WORKSPACE.to_owned()),
        rlimits,
        channel: spec.channel,
        terminal: spec.terminal,
    };
    let mut file = std::fs::File::from(memfd_create("runner", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&job)?)?;
    file.rewind()?;
    Ok(file.into())
}

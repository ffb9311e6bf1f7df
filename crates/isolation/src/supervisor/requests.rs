//! What each request does.

use std::time::{Duration, Instant};

use types::{CommandId, CommandState};

use super::births::workbench_gone;
use super::connection::{Connection, Mode, Span};
use super::disk::Disk;
use super::ports;
use super::runner::{Runner, is_plausible};
use super::serve::Supervisor;
use crate::protocol::{
    Event, Frame, GuestStatus, Refusal, Reply, Request, Signal, Stream, VERSION,
};
use crate::spec::RunnerSpec;

/// Runners at once.
const MAX_RUNNING: usize = 128;

/// Exited runners whose output is kept until somebody forgets them; the oldest go first.
const MAX_EXITED: usize = 64;

/// The longest grace that a stop may ask for.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// Handles one frame of a connection, which is out of the supervisor's map meanwhile.
pub(crate) fn handle(
    supervisor: &mut Supervisor,
    number: u64,
    connection: &mut Connection,
    frame: Frame,
    now: Instant,
) {
    let request = match frame {
        Frame::Data {
            stream: Stream::Stdin,
            bytes,
            ..
        } => {
            return add_input(supervisor, connection, &bytes);
        }
        Frame::Data { .. } => return break_off(connection, "only standard input can be sent"),
        Frame::Json(body) => Request::parse(&body),
    };
    match request {
        Ok(request) => dispatch(supervisor, number, connection, request, now),
        Err(error) => {
            let detail = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            break_off(connection, &format!("{error}: {detail}"));
        }
    }
}

/// Forgets the oldest exited runners beyond the bound.
pub(crate) fn forget_oldest(supervisor: &mut Supervisor) {
    let exited: Vec<CommandId> = supervisor
        .runners
        .iter()
        .filter(|(_, runner)| runner.task.exit.is_some())
        .map(|(&id, _)| id)
        .collect();
    // Ids are ordered by time (UUID version 7).
    for id in exited.iter().take(exited.len().saturating_sub(MAX_EXITED)) {
        supervisor.runners.remove(id);
    }
}

fn dispatch(
    supervisor: &mut Supervisor,
    number: u64,
    connection: &mut Connection,
    request: Request,
    now: Instant,
) {
    match (connection.mode, request) {
        (Mode::New, Request::Hello { nonce }) => {
            if nonce.matches(&supervisor.spec.nonce) {
                connection.mode = Mode::Requests;
                connection.say(&hello(supervisor), Vec::new());
            } else {
                connection.refuse(&Refusal::new("unauthenticated", "the nonce is wrong"));
                connection.close();
            }
        }
        (Mode::New, _) => break_off(connection, "the first request must be hello"),
        (Mode::Attached(id, ..), Request::Resize(size)) => {
            if let Some(runner) = supervisor.runners.get(&id).filter(|_| is_plausible(size)) {
                runner.task.resize(size);
            }
        }
        (Mode::Attached(id, ..), Request::CloseStdin {}) => {
            if let Some(runner) = supervisor.runners.get_mut(&id) {
                runner.task.end_input();
            }
        }
        (Mode::Requests, Request::Freeze { limit_ms }) => {
            supervisor.freeze(number, connection, limit_ms, now);
        }
        (Mode::Requests, Request::Thaw {}) => {
            let reply = supervisor.thaw_for(number, now);
            connection.say(&reply, Vec::new());
        }
        (Mode::Requests, request) => answer(supervisor, connection, request, now),
        (_, _) => break_off(connection, "this request is not possible now"),
    }
}

fn answer(
    supervisor: &mut Supervisor,
    connection: &mut Connection,
    request: Request,
    now: Instant,
) {
    let answered = match request {
        Request::Spawn { spec } => {
            connection.mode = Mode::Spawning(spec.command_id);
            match supervisor.hold(*spec) {
                Some(spec) => spawn(supervisor, spec, now).map(drop),
                None => Ok(()),
            }
        }
        Request::Channel {} => hand_out(connection, supervisor.channel.try_clone().map(Some)),
        Request::RunnerChannel { command_id } => {
            find(supervisor, command_id).and_then(|runner| hand_out(connection, runner.channel()))
        }
        Request::Attach { command_id, from } => find(supervisor, command_id).map(|runner| {
            let log = &runner.task.log;
            let (offset, end) = (next_offset(log, from), log.end());
            let until = runner.shown_until();
            connection.mode = Mode::Attached(
                command_id,
                Span {
                    from: offset,
                    until,
                },
            );
            connection.say(&Reply::Attached { offset, end }, Vec::new());
        }),
        Request::GuestLog { from } => {
            let log = &supervisor.guest.log;
            let (offset, end) = (next_offset(log, from), log.end());
            connection.mode = Mode::GuestLog(offset);
            connection.say(&Reply::Attached { offset, end }, Vec::new());
            Ok(())
        }
        Request::Signal { command_id, signal } => find(supervisor, command_id).map(|runner| {
            deliver(runner, signal);
            connection.say(&Reply::Done, Vec::new());
        }),
        Request::Runners {} => {
            let runners = supervisor.runners.values().map(Runner::status).collect();
            connection.say(&Reply::Runners { runners }, Vec::new());
            Ok(())
        }
        Request::Connect { port } => ports::connect(supervisor, connection, port),
        Request::Ports {} => ports::list(supervisor, connection),
        Request::Forget { command_id } => {
            if supervisor
                .runners
                .get(&command_id)
                .is_some_and(|runner| runner.task.exit.is_some())
            {
                supervisor.runners.remove(&command_id);
            }
            connection.say(&Reply::Done, Vec::new());
            Ok(())
        }
        Request::Watch {} => {
            watch(supervisor, connection);
            Ok(())
        }
        Request::RestartGuest {} => supervisor.restart_guest(now).map(|()| {
            connection.say(&Reply::Done, Vec::new());
        }),
        Request::Stop { grace_ms } => {
            connection.mode = Mode::Stopping;
            supervisor.stop(Duration::from_millis(grace_ms).min(MAX_GRACE), now);
            Ok(())
        }
        Request::Hello { .. }
        | Request::Resize(_)
        | Request::CloseStdin {}
        | Request::Freeze { .. }
        | Request::Thaw {} => Err(Refusal::new(
            "bad_request",
            "this request is not possible now",
        )),
    };
    if let Err(refusal) = answered {
        connection.mode = Mode::Requests;
        connection.refuse(&refusal);
    }
}

fn hello(supervisor: &Supervisor) -> Reply {
    let exit = supervisor.guest.exit.clone();
    let state = if exit.is_some() {
        CommandState::Exited
    } else {
        CommandState::Running
    };
    Reply::Hello {
        version: VERSION,
        pid: std::process::id(),
        sandbox_id: supervisor.spec.sandbox_id,
        start_id: supervisor.spec.start_id,
        guest: GuestStatus { state, exit },
        runners: supervisor.runners.values().map(Runner::status).collect(),
        stopping: supervisor.is_stopping(),
        uncounted: supervisor.guest.uncounted,
    }
}

/// Orders a runner; its birth answers whoever waits for it.
pub(super) fn spawn(
    supervisor: &mut Supervisor,
    spec: RunnerSpec,
    now: Instant,
) -> Result<CommandId, Refusal> {
    let id = spec.command_id;
    if supervisor.is_stopping() {
        return Err(Refusal::new("stopping", "the sandbox is being stopped"));
    }
    if supervisor.runners.contains_key(&id) {
        return Err(Refusal::new("conflict", "there is a command with this id"));
    }
    let running = supervisor
        .runners
        .values()
        .filter(|runner| runner.task.exit.is_none())
        .count();
    if running >= MAX_RUNNING {
        return Err(
            Refusal::new("too_many", format!("{MAX_RUNNING} commands run already"))
                .with_hint("wait for one to end, or end one"),
        );
    }
    let over = supervisor.disk.as_ref().and_then(Disk::over);
    if let Some(reached) = over.filter(|_| spec.terminal.is_none()) {
        // A terminal is the owner's way to delete something.
        return Err(
            Refusal::new("disk_full", format!("no command can be started: {reached}"))
                .with_hint("delete files, in the desktop or in a terminal; the limit is measured every few seconds"),
        );
    }
    let workbench = supervisor.workbench.as_ref().ok_or_else(workbench_gone)?;
    let runner = Runner::order(spec, &supervisor.spec, &supervisor.dirs, workbench, now)?;
    supervisor.runners.insert(id, runner);
    Ok(id)
}

fn find(supervisor: &Supervisor, id: CommandId) -> Result<&Runner, Refusal> {
    supervisor
        .runners
        .get(&id)
        .ok_or_else(|| Refusal::new("not_found", "there is no such command"))
}

fn hand_out(
    connection: &mut Connection,
    listener: std::io::Result<Option<std::os::fd::OwnedFd>>,
) -> Result<(), Refusal> {
    match listener {
        Ok(Some(listener)) => {
            connection.say(&Reply::Channel, vec![listener]);
            Ok(())
        }
        Ok(None) => Err(Refusal::new("not_found", "it has no channel")),
        Err(error) => Err(Refusal::new("internal", error.to_string())),
    }
}

fn next_offset(log: &super::log::Log, from: u64) -> u64 {
    from.clamp(log.dropped(), log.end())
}

fn deliver(runner: &Runner, signal: Signal) {
    let delivered = match signal {
        Signal::Int => runner.task.deliver(libc::SIGINT),
        Signal::Term => runner.task.deliver(libc::SIGTERM),
        Signal::Kill => false,
    };
    if !delivered {
        runner.task.kill();
    }
}

fn watch(supervisor: &Supervisor, connection: &mut Connection) {
    connection.mode = Mode::Watching;
    if let Some(exit) = supervisor.guest.exit.clone() {
        connection.say(&Event::GuestExited { exit }, Vec::new());
    }
    for (&command_id, runner) in &supervisor.runners {
        if let Some(exit) = runner.task.exit.clone() {
            connection.say(&Event::RunnerExited { command_id, exit }, Vec::new());
        }
    }
}

fn add_input(supervisor: &mut Supervisor, connection: &mut Connection, bytes: &[u8]) {
    match connection.mode {
        Mode::Attached(id, ..) => {
            if let Some(runner) = supervisor.runners.get_mut(&id) {
                runner.task.add_input(bytes);
            }
        }
        _ => break_off(connection, "attach to a command before sending it input"),
    }
}

fn break_off(connection: &mut Connection, message: &str) {
    connection.refuse(&Refusal::new("bad_request", message));
    connection.close();
}

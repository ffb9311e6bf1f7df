//! The three kinds of first processes: a guest's, a workbench's, and a runner's within a
//! workbench. Each is forked into its namespaces, builds its view and locks itself in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::system::sethostname;
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use types::{CommandId, ListeningPort, TerminalSize};

use crate::exec::{Program, Stdio};
use crate::init::{self, Delivery, Locks, News, Terminal};
use crate::packet;
use crate::ports::{DialFailure, Dialled, Dials, Runners};
use crate::relay::Relay;
use crate::spec::{CHANNEL_DIR, HostIds, INNER_ID, PORT_PLACEHOLDER, Rlimits};
use crate::sys::{self, Forked};
use crate::walls::filter::Filter;
use crate::walls::plan::{Plan, RUNNER_DIRS};
use crate::walls::{Step, WallError, root};

/// The namespaces of a guest and of a workbench.
pub(crate) const SANDBOX: u64 =
    sys::NEW_USER | sys::NEW_MOUNT | sys::NEW_PID | sys::NEW_NET | sys::NEW_IPC | sys::NEW_UTS;

/// The namespaces of a runner inside its workbench, whose network and host name it shares.
/// The user namespace of its own makes RLIMIT_NPROC count this runner alone, and leaves
/// its first process without power over what belongs to the workbench.
///
/// Not the cgroup namespace, here and above: it begins at the group that a process is in
/// when it makes it, so [`enter_groups`] does that once the process is in its own.
const RUNNER: u64 = sys::NEW_USER | sys::NEW_MOUNT | sys::NEW_PID | sys::NEW_IPC;

/// When memory is short, what the kernel ends first: runners, then guests, then the rest.
const OOM_WORKBENCH: &str = "0";
const OOM_GUEST: &str = "200";
const OOM_RUNNER: &str = "500";

/// What a guest and a workbench are made from.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) hostname: String,
    /// Who the supervisor is by now, which is what the inner user maps to.
    pub(crate) outer: HostIds,
    pub(crate) plan: Plan,
    /// The plan's mounts when root took hold of them; `None` for an ordinary user, whose
    /// right to do so begins inside the namespaces.
    pub(crate) trees: Option<Vec<OwnedFd>>,
    pub(crate) filter: Filter,
    pub(crate) scopes: bool,
    pub(crate) rlimits: Rlimits,
}

/// Everything that a runner is told, in a memfd because it may be long.
#[derive(Serialize, Deserialize)]
pub(crate) struct RunnerJob {
    pub(crate) command_id: CommandId,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) relay_env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) rlimits: Rlimits,
    pub(crate) channel: bool,
    pub(crate) terminal: Option<TerminalSize>,
}

/// What a workbench is told to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// To bear a runner. Rides with the job, the control socket, without a terminal standard
    /// input, output and error, and at last as many entrances of its cgroup as are named.
    Runner {
        command_id: CommandId,
        entrances: usize,
    },
    /// To connect to a port of its loopback.
    Connect { id: u64, port: u16 },
    /// To list the ports on which somebody listens.
    Ports { id: u64 },
}

/// What a workbench answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    /// To `Runner`. The runner's pidfd rides along when there is one.
    Born {
        command_id: CommandId,
        error: Option<WallError>,
    },
    /// To `Connect`. The connected socket rides along when there is one.
    Connected { id: u64, error: Option<DialFailure> },
    /// To `Ports`.
    Ports { id: u64, ports: Vec<ListeningPort> },
}

/// Becomes a guest's first process.
pub(crate) fn guest(
    ground: Ground,
    program: Program,
    control: OwnedFd,
    entrances: Vec<OwnedFd>,
) -> ! {
    init::name(c"choir-guest");
    let built = || -> Result<Option<OwnedFd>, WallError> {
        enter_groups(entrances)?;
        let mut keep = standard(&program.stdio);
        keep.push(control.as_fd());
        let ground = settle(ground, &keep, OOM_GUEST)?;
        root::mask_proc()?;
        let reach = &ground.plan.reach;
        Locks {
            reach,
            filter: &ground.filter,
            scopes: ground.scopes,
        }
        .close()
    };
    match built() {
        Ok(denials) => init::run(program, control, denials, None, None, Delivery::Program),
        Err(error) => init::fail(&control, error),
    }
}

/// Becomes a workbench's first process: forks a runner per order, and does nothing else.
///
/// It keeps its capabilities, which reach no further than its own namespaces, because it
/// needs them to make namespaces for runners. Nothing untrusted runs in its pid namespace
/// itself: each runner has one of its own, from which this process cannot be seen.
pub(crate) fn workbench(ground: Ground, control: OwnedFd) -> ! {
    init::name(c"choir-workbench");
    let settled =
        enter_groups(Vec::new()).and_then(|()| settle(ground, &[control.as_fd()], OOM_WORKBENCH));
    let mut ground = match settled {
        Ok(ground) => ground,
        Err(error) => init::fail(&control, error),
    };
    ground
        .plan
        .reach
        .retain(|(path, _)| !path.starts_with(RUNNER_DIRS));
    if packet::send(&control, &News::Started, &[]).is_err() {
        sys::exit(1);
    }
    // Runners end on their own account; the supervisor learns it from their pidfds.
    sys::ignore_signal(libc::SIGCHLD);
    let mut dials = Dials::default();
    let mut runners = Runners::default();
    loop {
        let Ok((ordered, seen)) = await_orders(&control, &dials) else {
            sys::exit(1);
        };
        for dialled in dials.handle(&seen, Instant::now()) {
            tell_connected(&control, dialled);
        }
        if !ordered {
            continue;
        }
        match packet::receive::<Order>(&control, true) {
            Ok(Some((
                Order::Runner {
                    command_id,
                    entrances,
                },
                fds,
            ))) => {
                let (error, pidfd) = match bear(&ground, fds, entrances, &control) {
                    Ok((pid, pidfd)) => {
                        runners.add(pid, command_id);
                        (None, pidfd)
                    }
                    Err(error) => (Some(error), None),
                };
                let riders: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
                tell(&control, &Done::Born { command_id, error }, &riders);
            }
            Ok(Some((Order::Connect { id, port }, _))) => {
                if let Some(dialled) = dials.begin(id, port, Instant::now()) {
                    tell_connected(&control, dialled);
                }
            }
            Ok(Some((Order::Ports { id }, _))) => {
                let ports = runners.listening();
                tell(&control, &Done::Ports { id, ports }, &[]);
            }
            // The supervisor is gone; runners die with this process.
            Ok(None) | Err(_) => sys::exit(0),
        }
    }
}

/// Waits for an order or for a connection under way; whether there is an order, and what
/// happened to each connection.
fn await_orders(control: &OwnedFd, dials: &Dials) -> io::Result<(bool, Vec<PollFlags>)> {
    let mut fds = vec![PollFd::new(control, PollFlags::IN)];
    fds.extend(
        dials
            .interest()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)),
    );
    let timeout = dials.deadline().map(|at| {
        Timespec::try_from(at.saturating_duration_since(Instant::now())).unwrap_or_default()
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut seen = fds.iter().map(PollFd::revents);
    let ordered = seen.next().is_some_and(|flags| !flags.is_empty());
    Ok((ordered, seen.collect()))
}

fn tell_connected(control: &OwnedFd, (id, dialled): Dialled) {
    match dialled {
        Ok(socket) => tell(
            control,
            &Done::Connected { id, error: None },
            &[socket.as_fd()],
        ),
        Err(error) => tell(
            control,
            &Done::Connected {
                id,
                error: Some(error),
            },
            &[],
        ),
    }
}

/// Answers the supervisor; without it there is nothing to live for.
fn tell(control: &OwnedFd, done: &Done, riders: &[BorrowedFd<'_>]) {
    if packet::send(control, done, riders).is_err() {
        sys::exit(1);
    }
}

/// Moves this process into its groups, and makes what it sees of them begin there. The
/// entrances were opened by the supervisor, whose right to use them counts.
fn enter_groups(entrances: Vec<OwnedFd>) -> Result<(), WallError> {
    for entrance in entrances {
        rustix::io::write(&entrance, b"0").step(|| "enter its cgroup".into())?;
    }
    sys::unshare(sys::NEW_CGROUP).step(|| "create a cgroup namespace".into())
}

/// Builds a guest's or workbench's namespaces up to the finished root.
fn settle(mut ground: Ground, keep: &[BorrowedFd<'_>], oom: &str) -> Result<Ground, WallError> {
    let trees = ground.trees.take();
    let mut keep = keep.to_vec();
    keep.extend(trees.iter().flatten().map(AsFd::as_fd));
    sys::close_all_except(&keep).step(|| "close inherited descriptors".into())?;
    leave_standard_descriptors().step(|| "let go of standard descriptors".into())?;
    init::die_with_parent()?;
    sethostname(ground.hostname.as_bytes()).step(|| "set the host name".into())?;
    become_inner(ground.outer, oom, &ground.rlimits)?;
    root::make_private()?;
    let trees = match trees {
        Some(trees) => trees,
        None => ground.plan.open()?,
    };
    root::enter(&ground.plan, trees)?;
    sys::loopback_up().step(|| "bring loopback up".into())?;
    Ok(ground)
}

/// Lets go of the standard descriptors, which are the hypervisor's.
fn leave_standard_descriptors() -> io::Result<()> {
    let null = sys::null()?;
    (0..3).try_for_each(|number| sys::dup_to_standard(null.as_fd(), number))
}

/// Maps the ids of a fresh user namespace and hides again.
fn become_inner(outer: HostIds, oom: &str, rlimits: &Rlimits) -> Result<(), WallError> {
    init::show()?;
    root::map_ids(outer.uid, outer.gid)?;
    // Of this namespace, whoever mounted the file system through which it is set. Where
    // that is read-only the host's own numbers hold, as for any program of the host user, and
    // `doctor` says so.
    for (name, value) in [
        ("max_inotify_instances", rlimits.inotify_instances),
        ("max_inotify_watches", rlimits.inotify_watches),
    ] {
        match limit_of_user(name, value) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EROFS | libc::ENOENT | libc::EACCES | libc::EPERM)
                ) =>
            {
                return Err(error).step(|| format!("limit user.{name} to {value}"));
            }
            _ => {}
        }
    }
    // Not a wall: where it is refused the kernel just has fewer preferences.
    let _ = fs::write("/proc/self/oom_score_adj", oom);
    init::hide()
}

/// Sets a limit of the user namespace that this process is in.
pub(crate) fn limit_of_user(name: &str, value: u64) -> io::Result<()> {
    fs::write(format!("/proc/sys/user/{name}"), value.to_string())
}

/// Forks one runner.
fn bear(
    ground: &Ground,
    fds: Vec<OwnedFd>,
    entrances: usize,
    control: &OwnedFd,
) -> Result<(Pid, Option<OwnedFd>), WallError> {
    match sys::clone_into(RUNNER).step(|| "create the runner's namespaces".into())? {
        Forked::Parent(pid, pidfd) => Ok((pid, pidfd)),
        Forked::Child => {
            // The supervisor's orders are not for runners.
            let _ = control;
            runner(ground, fds, entrances)
        }
    }
}

/// Becomes a runner's first process.
fn runner(ground: &Ground, mut fds: Vec<OwnedFd>, entrances: usize) -> ! {
    init::name(c"choir-runner");
    let entrances = fds.split_off(fds.len().saturating_sub(entrances));
    let mut fds = fds.into_iter();
    let (Some(job), Some(control)) = (fds.next(), fds.next()) else {
        sys::exit(1);
    };
    let stdio = match (fds.next(), fds.next(), fds.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Some(Stdio::Files {
            stdin,
            stdout,
            stderr,
        }),
        _ => None,
    };
    let built = enter_groups(entrances).and_then(|()| build_runner(ground, &job, &control, stdio));
    match built {
        Ok(Built {
            program,
            denials,
            terminal,
            relay,
        }) => init::run(
            program,
            control,
            denials,
            terminal,
            relay,
            Delivery::Everyone,
        ),
        Err(error) => init::fail(&control, error),
    }
}

/// A runner that only has to start its program.
struct Built {
    program: Program,
    denials: Option<OwnedFd>,
    terminal: Option<Terminal>,
    relay: Option<Relay>,
}

fn build_runner(
    ground: &Ground,
    job: &OwnedFd,
    control: &OwnedFd,
    stdio: Option<Stdio>,
) -> Result<Built, WallError> {
    let mut keep = stdio.as_ref().map(standard).unwrap_or_default();
    keep.extend([job.as_fd(), control.as_fd()]);
    sys::close_all_except(&keep).step(|| "close inherited descriptors".into())?;
    init::die_with_parent()?;
    sys::reset_signals().step(|| "reset signals".into())?;
    let job: RunnerJob = read_job(job).step(|| "read the runner's job".into())?;
    become_inner(
        HostIds {
            uid: INNER_ID,
            gid: INNER_ID,
        },
        OOM_RUNNER,
        &job.rlimits,
    )?;
    let name = job.command_id.to_string();
    root::enter_runner(job.channel.then_some(name.as_str()))?;
    let (stdio, terminal) = match (stdio, job.terminal) {
        (Some(stdio), _) => (stdio, None),
        (None, size) => {
            let (near, far) = open_terminal(size).step(|| "open a terminal".into())?;
            let kept = far.try_clone().step(|| "keep the terminal open".into())?;
            (Stdio::Terminal(far), Some(Terminal { near, _far: kept }))
        }
    };
    let mut env = job.env;
    let mut relay = None;
    if job.channel {
        let target = format!("{CHANNEL_DIR}/channel.sock");
        let (listening, port) = Relay::listen(target).step(|| "listen for the relay".into())?;
        packet::send(control, &News::Relay { port }, &[])
            .step(|| "tell the relay's port".into())?;
        let port = port.to_string();
        env.extend(
            job.relay_env
                .into_iter()
                .map(|(name, value)| (name, value.replace(PORT_PLACEHOLDER, &port))),
        );
        relay = Some(listening);
    }
    let reach = &ground.plan.reach;
    let denials = Locks {
        reach,
        filter: &ground.filter,
        scopes: ground.scopes,
    }
    .close()?;
    let Rlimits { processes, .. } = job.rlimits;
    // This process counts as well.
    let rlimits = Rlimits {
        processes: processes.saturating_add(1),
        ..job.rlimits
    };
    let program = Program {
        argv: job.argv,
        env,
        cwd: job.cwd,
        rlimits,
        stdio,
    };
    Ok(Built {
        program,
        denials,
        terminal,
        relay,
    })
}

fn read_job(from: &OwnedFd) -> io::Result<RunnerJob> {
    let file = fs::File::from(from.try_clone()?);
    Ok(serde_json::from_reader(io::BufReader::new(file))?)
}

/// Opens a terminal in the runner's own terminal file system.
fn open_terminal(size: Option<TerminalSize>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let near = openpt(flags)?;
    unlockpt(&near)?;
    let far = ioctl_tiocgptpeer(&near, flags)?;
    if let Some(size) = size {
        tcsetwinsize(&near, winsize(size))?;
    }
    Ok((near, far))
}

/// The kernel's form of a terminal's size.
pub(crate) const fn winsize(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn standard(stdio: &Stdio) -> Vec<BorrowedFd<'_>> {
    match stdio {
        Stdio::Files {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr].map(AsFd::as_fd).into(),
        Stdio::Terminal(terminal) => vec![terminal.as_fd()],
    }
}

//! Builds a sandbox: directories, sockets, the guest and the workbench.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, getegid, geteuid, getrlimit, setrlimit, umask};

use super::dirs::StartDirs;
use super::disk::{self, Disk};
use super::serve::UNCOUNTED;
use super::task::{Task, Told};
use crate::cgroups;
use crate::exec::{Program, Stdio};
use crate::init;
use crate::namespaces::{self, Ground};
use crate::packet;
use crate::protocol::{Refusal, Stream};
use crate::spec::{HostIds, OptionalWall, SandboxSpec};
use crate::sys::{self, Forked};
use crate::walls::filter::Filter;
use crate::walls::plan::Plan;
use crate::walls::profile::Profile;
use crate::walls::{Step, WallError, capabilities, hints};

/// How long the walls may take to stand.
const BUILD_WITHIN: Duration = Duration::from_secs(15);

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// A workbench, as long as it lives.
#[derive(Debug)]
pub(crate) struct Workbench {
    pub(crate) control: OwnedFd,
    pub(crate) process: OwnedFd,
    pub(crate) pid: Pid,
}

/// A sandbox that stands.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) dirs: StartDirs,
    pub(crate) listener: OwnedFd,
    pub(crate) channel: OwnedFd,
    pub(crate) guest: Task,
    pub(crate) guest_pid: Pid,
    pub(crate) workbench: Workbench,
    /// Who may speak on the control socket: whoever started this supervisor.
    pub(crate) client_uid: u32,
    pub(crate) kept: Kept,
}

/// Builds the sandbox of `spec`, or says why not and leaves nothing behind.
pub(crate) fn build(spec: &mut SandboxSpec, now: Instant) -> Result<Built, Refusal> {
    let owner = check(spec)?;
    let dirs = StartDirs::make(spec, owner).map_err(|e| {
        Refusal::new("directories", e.to_string())
            .with_hint("the data directory must exist and belong to whoever runs the hypervisor")
    })?;
    match build_in(spec, owner, &dirs, now) {
        Ok((listener, channel, guest, guest_pid, workbench, client_uid, kept)) => Ok(Built {
            dirs,
            listener,
            channel,
            guest,
            guest_pid,
            workbench,
            client_uid,
            kept,
        }),
        Err(refusal) => {
            dirs.remove();
            Err(refusal)
        }
    }
}

type Parts = (OwnedFd, OwnedFd, Task, Pid, Workbench, u32, Kept);

/// What keeps the limits of whole trees.
#[derive(Debug)]
pub(crate) struct Kept {
    /// What keeps `SandboxSpec::cgroup` reachable.
    pub(crate) groups: Vec<OwnedFd>,
    pub(crate) disk: Option<Disk>,
}

/// Takes this start's cgroups over while this process may, and names them in the spec so
/// that it still reaches them afterwards.
fn settle(spec: &mut SandboxSpec, owner: Option<HostIds>) -> Result<Vec<OwnedFd>, Refusal> {
    let Some(group) = &spec.cgroup else {
        return Ok(Vec::new());
    };
    let settled = cgroups::settle(group, &spec.limits.of_guest, owner).and_then(|()| group.hold());
    let (group, held) = settled.map_err(|error| {
        let message = format!("the sandbox was not started: {error}");
        Refusal::new("wall_missing", message).with_hint(error.hint())
    })?;
    spec.cgroup = Some(group);
    Ok(held)
}

fn build_in(
    spec: &mut SandboxSpec,
    owner: Option<HostIds>,
    dirs: &StartDirs,
    now: Instant,
) -> Result<Parts, Refusal> {
    let wall = |error: WallError| hints::refusal(&error);
    let client_uid = geteuid().as_raw();
    let listener = dirs
        .control()
        .step(|| "listen on the control socket".into())
        .map_err(wall)?;
    let channel = dirs
        .channel()
        .step(|| "listen on the channel".into())
        .map_err(wall)?;
    let guest_ground = ground(spec, Plan::guest(spec), owner, Profile::Sandbox).map_err(wall)?;
    let bench_ground = ground(spec, Plan::workbench(spec), owner, Profile::Runner).map_err(wall)?;
    let groups = settle(spec, owner)?;
    let roots = disk::roots(spec).map_err(wall)?;
    give_up_privileges(owner)
        .step(|| "give up privileges".into())
        .map_err(wall)?;

    let workbench = start_workbench(spec, bench_ground).map_err(wall)?;
    let (mut guest, guest_pid) = start_guest(spec, guest_ground, now).map_err(wall)?;
    spec.wipe_guest_environment();
    let stands = await_workbench(&workbench, now)
        .map_err(wall)
        .and_then(|()| await_guest(&mut guest, now));
    if let Err(refusal) = stands {
        guest.kill();
        // The supervisor exits now, which ends the workbench as well.
        let _ =
            rustix::process::pidfd_send_signal(&workbench.process, rustix::process::Signal::KILL);
        return Err(refusal);
    }
    let disk = Disk::watch(spec, roots, host_ids(owner)).map_err(wall)?;
    let kept = Kept { groups, disk };
    Ok((
        listener, channel, guest, guest_pid, workbench, client_uid, kept,
    ))
}

/// Refuses what cannot be right, before anything is touched. Returns who the sandbox is
/// on the host when that is somebody else than this process.
fn check(spec: &SandboxSpec) -> Result<Option<HostIds>, Refusal> {
    let bad = |message: &str| {
        Err(Refusal::new("bad_spec", message).with_hint(
            "hypervisor and supervisor may be of different versions; install both from one release",
        ))
    };
    if !spec.nonce.is_well_formed() {
        return bad("the nonce is not 32 to 128 hexadecimal digits");
    }
    if spec.hostname.is_empty()
        || spec.hostname.len() > MAX_HOSTNAME
        || spec.hostname.contains(char::is_whitespace)
    {
        return bad("the host name is empty, too long or contains spaces");
    }
    if spec.guest.argv.first().is_none_or(String::is_empty) {
        return bad("the guest has no program");
    }
    let paths = [
        &spec.run_dir,
        &spec.workspace,
        &spec.home,
        &spec.data,
        &spec.guest_binary,
    ];
    if paths.iter().any(|path| !path.is_absolute()) {
        return bad("every host path must be absolute");
    }
    demand_groups(spec)?;
    let root = geteuid().is_root();
    match spec.host_ids {
        Some(HostIds { uid, gid }) if uid == 0 || gid == 0 => {
            bad("a sandbox never maps to the host's root")
        }
        Some(ids) if root => Ok(Some(ids)),
        Some(_) => bad("host ids can be given only when the supervisor is started by root"),
        None if root => Err(Refusal::new(
            "bad_spec",
            "started by root, and no host ids were given",
        )
        .with_hint(
            "a sandbox never maps to the host's root: give each one an unprivileged uid and gid",
        )),
        None => Ok(None),
    }
}

/// Who the sandbox is on the host.
fn host_ids(owner: Option<HostIds>) -> HostIds {
    owner.unwrap_or(HostIds {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    })
}

/// Limits of whole trees may be missing only if the configuration says so by name (arch §8).
fn demand_groups(spec: &SandboxSpec) -> Result<(), Refusal> {
    let accepts = |wall| spec.accept_missing.contains(&wall);
    let refuse = |what: &str, remedy: &str, name: &str| {
        Err(Refusal::new(
            "wall_missing",
            format!("the sandbox was not started: {what}"),
        )
        .with_hint(format!(
            "{remedy}; to go without, set sandbox.accept_missing = [\"{name}\"]"
        )))
    };
    match &spec.cgroup {
        None if !accepts(OptionalWall::CgroupLimits) => refuse(
            "no cgroup limits its memory, processes and processor time",
            "run `hypervisor doctor` for the cause",
            "cgroup_limits",
        ),
        Some(group) if !group.has_cpu() && !accepts(OptionalWall::CgroupCpu) => refuse(
            "its cgroup cannot limit processor time",
            cgroups::CPU_REMEDY,
            "cgroup_cpu",
        ),
        _ => Ok(()),
    }
}

fn ground(
    spec: &SandboxSpec,
    plan: Result<Plan, WallError>,
    owner: Option<HostIds>,
    profile: Profile,
) -> Result<Ground, WallError> {
    let plan = plan?;
    let trees = owner.map(|_| plan.open()).transpose()?;
    let outer = host_ids(owner);
    let scopes = !spec.accept_missing.contains(&OptionalWall::LandlockScopes);
    Ok(Ground {
        hostname: spec.hostname.clone(),
        outer,
        plan,
        trees,
        filter: Filter::compile(profile)?,
        scopes,
        rlimits: spec.rlimits,
    })
}

/// From here on this process needs nothing that its sandbox's host user may not do.
fn give_up_privileges(owner: Option<HostIds>) -> io::Result<()> {
    // Connections and runners have bounds of their own, which together pass the usual 1024.
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;
    rustix::thread::set_no_new_privs(true)?;
    if let Some(HostIds { uid, gid }) = owner {
        capabilities::drop_bounding_set()?;
        sys::become_host_user(uid, gid)?;
    }
    capabilities::drop_current()?;
    umask(Mode::from_raw_mode(0o022));
    init::hide().map_err(|error| io::Error::other(error.to_string()))
}

fn start_workbench(spec: &mut SandboxSpec, ground: Ground) -> Result<Workbench, WallError> {
    let (control, far) = packet::pair().step(|| "make a socket pair".into())?;
    match namespaces(namespaces::SANDBOX)? {
        Forked::Child => {
            spec.wipe();
            namespaces::workbench(ground, far)
        }
        Forked::Parent(pid, pidfd) => Ok(Workbench {
            control,
            process: pidfd.ok_or_else(no_pidfd)?,
            pid,
        }),
    }
}

fn start_guest(
    spec: &mut SandboxSpec,
    ground: Ground,
    now: Instant,
) -> Result<(Task, Pid), WallError> {
    let (control, far) = packet::pair().step(|| "make a socket pair".into())?;
    let (stdout_near, stdout) = output_pipe().step(|| "make a pipe".into())?;
    let (stderr_near, stderr) = output_pipe().step(|| "make a pipe".into())?;
    let stdin = sys::null().step(|| "open /dev/null".into())?;
    let entrances = match &spec.cgroup {
        Some(group) => cgroups::entrances(&group.child(cgroups::GUEST))
            .step(|| "open the guest's cgroup".into())?,
        None => Vec::new(),
    };
    match namespaces(namespaces::SANDBOX)? {
        Forked::Child => {
            let stdio = Stdio::Files {
                stdin,
                stdout,
                stderr,
            };
            spec.nonce.wipe();
            let program = Program {
                argv: spec.guest.argv.clone(),
                env: with_path(&spec.guest.env, &spec.path_additions),
                cwd: spec.guest.cwd.clone(),
                rlimits: spec.rlimits,
                stdio,
            };
            namespaces::guest(ground, program, far, entrances)
        }
        Forked::Parent(pid, pidfd) => {
            let outputs = vec![(stdout_near, Stream::Stdout), (stderr_near, Stream::Stderr)];
            let mut task = Task::new(control, outputs, spec.log_bytes, now, None);
            task.set_process(pidfd.ok_or_else(no_pidfd)?);
            Ok((task, pid))
        }
    }
}

fn namespaces(flags: u64) -> Result<Forked, WallError> {
    sys::clone_into(flags).step(|| "create user, mount, pid, net, ipc and uts namespaces".into())
}

fn no_pidfd() -> WallError {
    WallError {
        step: "get a pidfd".into(),
        reason: "the kernel gave none".into(),
        errno: None,
    }
}

/// A pipe for output: this end does not block.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&near, true)?;
    Ok((near, far))
}

/// The environment with directories put before its `PATH`.
pub(crate) fn with_path(env: &[(String, String)], additions: &[String]) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    if let Some((_, path)) = env.iter_mut().find(|(name, _)| name == "PATH") {
        *path = additions
            .iter()
            .map(String::as_str)
            .chain([path.as_str()])
            .collect::<Vec<_>>()
            .join(":");
    }
    env
}

fn await_workbench(workbench: &Workbench, now: Instant) -> Result<(), WallError> {
    use crate::init::News;
    await_readable(&workbench.control, now)?;
    match packet::receive::<News>(&workbench.control, false) {
        Ok(Some((News::Started, _))) => Ok(()),
        Ok(Some((News::Failed(error), _))) => Err(error),
        _ => Err(died("the workbench's first process ended without a word")),
    }
}

fn await_guest(guest: &mut Task, now: Instant) -> Result<(), Refusal> {
    loop {
        {
            let control = guest
                .interest()
                .into_iter()
                .find(|(part, ..)| *part == super::task::Part::News);
            let Some((_, control, _)) = control else {
                return Err(hints::refusal(&died(
                    "the guest's first process ended without a word",
                )));
            };
            await_readable(control, now).map_err(|error| hints::refusal(&error))?;
        }
        match guest.read_news() {
            Told::Started => return Ok(()),
            Told::Failed(error) => return Err(hints::refusal(&error)),
            told @ (Told::Nothing | Told::Guarded { .. } | Told::Froze(_)) => {
                if matches!(told, Told::Guarded { counted: false }) {
                    let line = format!("[supervisor] {UNCOUNTED}\n");
                    guest.log.append(Stream::Stderr, line.as_bytes());
                }
                if let Some(error) = guest.reported_error() {
                    return Err(Refusal::new("guest_program", format!("the guest was not started: {error}"))
                        .with_hint("the guest binary must run on this machine; see sandbox.guest in the configuration"));
                }
            }
        }
    }
}

fn await_readable(fd: impl AsFd, since: Instant) -> Result<(), WallError> {
    let left = BUILD_WITHIN.saturating_sub(since.elapsed());
    let timeout = Timespec::try_from(left).unwrap_or_default();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(died("the walls did not stand in time")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).step(|| "wait for the walls".into()),
    }
}

fn died(reason: &str) -> WallError {
    WallError {
        step: "build the walls".into(),
        reason: reason.into(),
        errno: None,
    }
}

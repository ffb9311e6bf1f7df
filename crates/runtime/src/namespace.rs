//! The embedded driver: namespaces on this machine, built by a supervisor process per
//! start, without a daemon and without root (arch §4).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use isolation::protocol::Refusal;
use isolation::spec::{Nonce, OptionalWall, SandboxSpec};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use types::{CommandExit, SandboxId, StartId};

use crate::control::{Control, ControlError};
use crate::driver::{Adopted, BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
use crate::groups::Groups;

/// News of a supervisor that waits for a host that is busy; the oldest goes first.
const MAX_EVENTS: usize = 64;

/// How long a supervisor may take to build its sandbox.
const BUILD_WITHIN: Duration = Duration::from_secs(20);

/// Longest line that a supervisor says about its start.
const REPLY_MAX: usize = 64 * 1024;

/// Beyond the guest's grace: how long a supervisor may take to clean up.
const CLEAN_UP_WITHIN: Duration = Duration::from_secs(5);

/// A start that cannot be reached for a passing reason is tried this often, and between two
/// tries is waited this long, doubled each time.
const ADOPT_TRIES: u32 = 4;
const ADOPT_PAUSE: Duration = Duration::from_millis(250);

/// The file in a start's directory that lets a later hypervisor adopt it.
const RECORD: &str = "start.json";

/// Builds sandboxes with the `supervisor` binary.
#[derive(Debug)]
pub struct NamespaceDriver {
    supervisor: PathBuf,
    run_dir: PathBuf,
    groups: Arc<Groups>,
}

/// What is kept about a start, in a directory that is never mounted into a sandbox.
#[derive(Serialize, Deserialize)]
struct Record {
    sandbox_id: SandboxId,
    start_id: StartId,
    started_at: String,
    nonce: Nonce,
    host_record: String,
    /// The supervisor: its pid, and the start time that tells a reused pid.
    process: Option<Process>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    start_ticks: u64,
}

/// The line that a supervisor writes once it has built its sandbox, or could not.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Ready {
        #[serde(rename = "ready")]
        _ready: bool,
    },
    Refusal(Refusal),
}

impl NamespaceDriver {
    /// A driver that runs `supervisor`, keeps one directory per start in `run_dir`, and
    /// remembers in the file `groups` where its cgroups are. Under cgroups version 2 it
    /// moves this process into a group of its own.
    #[must_use]
    pub fn new(supervisor: PathBuf, run_dir: PathBuf, groups: &Path) -> Self {
        Self {
            supervisor,
            run_dir,
            groups: Arc::new(Groups::open(groups)),
        }
    }

    /// The directory of a start: its sockets and its record.
    #[must_use]
    pub fn start_dir(&self, start: StartId) -> PathBuf {
        self.run_dir.join(start.to_string())
    }

    async fn build(&self, request: StartRequest) -> Result<Started, StartError> {
        let dir = self.start_dir(request.spec.start_id);
        let start = request.spec.start_id;
        let built = self.try_build(&dir, request).await;
        if built.is_err() {
            if let Err(error) = discard(&dir, Duration::ZERO).await {
                tracing::error!(%start, %error, "a start that failed leaves something behind");
            }
            Arc::clone(&self.groups).end(start).await;
        }
        built
    }

    /// Builds in an order that leaves no moment at which a sandbox could stand that nobody
    /// finds again: the record names the supervisor before the supervisor is told what to
    /// build, and one that is told nothing ends.
    async fn try_build(&self, dir: &Path, request: StartRequest) -> Result<Started, StartError> {
        let StartRequest { spec, host_record } = request;
        make_dirs(dir, &spec)
            .map_err(|e| unavailable("cannot create the sandbox's directories", &e))?;
        let mut child = self.spawn_supervisor()?;
        let process = child.id().and_then(|pid| {
            let start_ticks = start_ticks(pid)?;
            Some(Process { pid, start_ticks })
        });
        let record = Record {
            sandbox_id: spec.sandbox_id,
            start_id: spec.start_id,
            started_at: jiff::Timestamp::now().to_string(),
            nonce: spec.nonce.clone(),
            host_record,
            process,
        };
        record
            .write(dir)
            .map_err(|e| unavailable("cannot write the start's record", &e))?;
        let spec = Arc::clone(&self.groups).begin(spec).await?;
        tell(&mut child, &spec).await?;
        let control = Control::new(dir.to_owned(), spec.nonce);
        let greeting = control.hello().await.map_err(unreachable)?;
        if process.is_none_or(|process| process.pid != greeting.pid) {
            return Err(unreachable(ControlError::NotOurs(
                "the supervisor is not the process that was started",
            )));
        }
        take_over(control, dir, record.host_record)
            .await
            .map_err(unreachable)
    }

    /// Runs the supervisor, which waits to be told what to build.
    fn spawn_supervisor(&self) -> Result<Child, StartError> {
        Command::new(&self.supervisor)
            // Sandboxes see this name in their process list; the path is not theirs to know.
            .arg0("supervisor")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(|e| {
                unavailable(&format!("cannot run {}", self.supervisor.display()), &e).with_hint(
                    "the supervisor belongs next to the hypervisor's own binary; reinstall, or set sandbox.binaries_dir",
                )
            })
    }

    async fn take_down(
        &self,
        start: StartId,
        control: Control,
        grace_ms: u64,
    ) -> Result<(), StartError> {
        let dir = self.start_dir(start);
        let within = Duration::from_millis(grace_ms) + CLEAN_UP_WITHIN;
        match tokio::time::timeout(within, control.stop(grace_ms)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%start, %error, "the supervisor did not answer to stop");
            }
            Err(_) => tracing::warn!(%start, "the supervisor did not stop in time"),
        }
        discard(&dir, CLEAN_UP_WITHIN).await?;
        Arc::clone(&self.groups).end(start).await;
        Ok(())
    }

    async fn adopt_all(&self) -> Vec<Adopted> {
        let entries = fs::read_dir(&self.run_dir).into_iter().flatten();
        // All at once: one that is slow, or has to be ended, does not keep the others waiting.
        let mut looks = JoinSet::new();
        for dir in entries.flatten().map(|entry| entry.path()) {
            looks.spawn(async move {
                let error = match adopt_patiently(&dir).await {
                    Ok(adopted) => return Some(adopted),
                    Err(error) => error,
                };
                let left = left_running(&dir, &error);
                if left.is_some() || error.is_passing() {
                    tracing::error!(start = ?dir.file_name(), %error, "a sandbox cannot be taken over; it is left as it is");
                    return left;
                }
                tracing::info!(start = ?dir.file_name(), %error, "removing what is left of a start");
                let stuck = discard(&dir, CLEAN_UP_WITHIN).await.err()?;
                tracing::error!(start = ?dir.file_name(), error = %stuck, "it is still there");
                unadopted(&dir, stuck)
            });
        }
        let found: Vec<Adopted> = looks.join_all().await.into_iter().flatten().collect();
        let alive = found.iter().map(|one| one.start_id.to_string()).collect();
        Arc::clone(&self.groups).sweep(alive).await;
        found
    }
}

impl SandboxRuntime for NamespaceDriver {
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(self.build(request))
    }

    fn restart(
        &self,
        start: StartId,
        control: Control,
    ) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async move {
            let dir = self.start_dir(start);
            let record = Record::read(&dir)
                .map_err(|e| unavailable("cannot read the start's record", &e))?;
            control.restart_guest().await.map_err(unreachable)?;
            take_over(control, &dir, record.host_record)
                .await
                .map_err(unreachable)
        })
    }

    fn stop(
        &self,
        start: StartId,
        control: Control,
        grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(self.take_down(start, control, grace_ms))
    }

    fn adopt(&self) -> BoxFuture<'_, Vec<Adopted>> {
        Box::pin(self.adopt_all())
    }

    fn missing(&self) -> Vec<OptionalWall> {
        let mut missing = self.groups.missing();
        if !isolation::has_landlock_scopes() {
            missing.push(OptionalWall::LandlockScopes);
        }
        missing
    }
}

impl Record {
    fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(RECORD))?)?)
    }

    /// Replaces the record in one step, so that a crash leaves the old one or the new one.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let draft = dir.join("start.json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        serde_json::to_writer(&mut file, self)?;
        file.sync_all()?;
        fs::rename(draft, dir.join(RECORD))
    }
}

impl Process {
    /// Whether the process that was recorded still runs, and is not another with its pid. Where
    /// that cannot be looked up it counts as alive.
    fn is_alive(self) -> bool {
        match fs::read_to_string(stat_file(self.pid)) {
            Ok(stat) => ticks_in(&stat) == Some(self.start_ticks),
            Err(error) => !matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::SRCH)
            ),
        }
    }
}

/// Tells a supervisor what to build, and waits until it has or said why it cannot.
async fn tell(child: &mut Child, spec: &SandboxSpec) -> Result<(), StartError> {
    let json = serde_json::to_vec(spec).map_err(|e| {
        StartError::new("internal", format!("the start cannot be described: {e}")).with_hint(DEFECT)
    })?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(StartError::new("internal", "the supervisor has no pipes").with_hint(DEFECT));
    };
    let exchange = async move {
        stdin.write_all(&json).await?;
        drop(stdin);
        let mut line = Vec::new();
        let mut stdout = BufReader::new(tokio::io::AsyncReadExt::take(stdout, REPLY_MAX as u64));
        stdout.read_until(b'\n', &mut line).await?;
        io::Result::Ok(line)
    };
    let line = match tokio::time::timeout(BUILD_WITHIN, exchange).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(unavailable("the supervisor went away", &error)),
        Err(_) => {
            let within = BUILD_WITHIN.as_secs();
            return Err(StartError::new(
                "build_timeout",
                format!("the sandbox could not be built within {within} s"),
            )
            .with_hint(
                "the host is short of processor time or its disk is slow; stop something and start it again",
            ));
        }
    };
    match serde_json::from_slice(&line) {
        Ok(Answer::Ready { .. }) => Ok(()),
        Ok(Answer::Refusal(Refusal {
            code,
            message,
            hint,
        })) => {
            let error = StartError::new(&code, message);
            Err(match hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
        Err(_) => Err(
            StartError::new("supervisor", "the supervisor ended without saying why")
                .with_hint("look for its last words in the kernel log, or run: choir doctor"),
        ),
    }
}

/// Adopts a start, and tries again when that fails for a reason that passes.
async fn adopt_patiently(dir: &Path) -> Result<Adopted, ControlError> {
    let mut tries = 1;
    loop {
        match adopt_one(dir).await {
            Err(error) if error.is_passing() && tries < ADOPT_TRIES => {
                tracing::warn!(start = ?dir.file_name(), %error, tries, "a sandbox cannot be taken over yet");
                tokio::time::sleep(ADOPT_PAUSE.saturating_mul(1 << tries)).await;
                tries += 1;
            }
            adopted => return adopted,
        }
    }
}

/// A start that was not adopted for a reason that says nothing against it: healthy, as far as
/// anybody knows, and not to be killed for what is not its fault.
fn left_running(dir: &Path, error: &ControlError) -> Option<Adopted> {
    let hint = match error {
        ControlError::Version(_) => {
            "it goes on as it is, and its pages do not answer until then: stop it and start it again (choir sandbox stop), or go back to the version of the hypervisor that started it"
        }
        error if error.is_passing() => {
            "it goes on as it is, and its pages do not answer until then: restart the hypervisor once the machine has room again, or stop it (choir sandbox stop)"
        }
        _ => return None,
    };
    let message = format!("the sandbox runs and could not be taken over: {error}");
    unadopted(
        dir,
        StartError::new("not_taken_over", message).with_hint(hint),
    )
}

fn unadopted(dir: &Path, error: StartError) -> Option<Adopted> {
    let record = Record::read(dir).ok()?;
    if !record.process?.is_alive() {
        return None;
    }
    Some(Adopted {
        sandbox_id: record.sandbox_id,
        start_id: record.start_id,
        started_at: record.started_at,
        control: Control::new(dir.to_owned(), record.nonce),
        started: Err(error),
    })
}

/// Proves that a start's supervisor is the one that was started, and takes it over.
async fn adopt_one(dir: &Path) -> Result<Adopted, ControlError> {
    let record = Record::read(dir).map_err(ControlError::Io)?;
    if dir.file_name() != Some(OsStr::new(&record.start_id.to_string())) {
        return Err(ControlError::NotOurs("the record names another start"));
    }
    let control = Control::new(dir.to_owned(), record.nonce.clone());
    let greeting = control.hello().await?;
    if record
        .process
        .is_none_or(|process| process.pid != greeting.pid || !process.is_alive())
    {
        return Err(ControlError::NotOurs(
            "the supervisor is not the process that was started",
        ));
    }
    if greeting.stopping {
        // Somebody ordered that before the hypervisor died; it is seen through.
        return Err(ControlError::NotOurs("its sandbox is being stopped"));
    }
    Ok(Adopted {
        sandbox_id: record.sandbox_id,
        start_id: record.start_id,
        started_at: record.started_at.clone(),
        control: control.clone(),
        started: Ok(take_over(control, dir, record.host_record).await?),
    })
}

/// Gets a start's descriptors and begins to watch its guest.
async fn take_over(
    control: Control,
    dir: &Path,
    host_record: String,
) -> Result<Started, ControlError> {
    let app_dir: OwnedFd = rustix::fs::open(
        dir.join("app"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| ControlError::Io(errno.into()))?;
    let channel = control.channel().await?;
    let watch = control.watch().await?;
    let events = broadcast::Sender::new(MAX_EVENTS);
    let exited: BoxFuture<'static, CommandExit> = Box::pin(watch.guest_exit(events.clone()));
    Ok(Started {
        events,
        control,
        app_dir,
        channel,
        exited,
        host_record,
    })
}

fn make_dirs(start_dir: &Path, spec: &SandboxSpec) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(start_dir)?;
    for dir in [&spec.workspace, &spec.home, &spec.data] {
        builder.create(dir)?;
    }
    Ok(())
}

/// Removes what is left of a start: its supervisor, which has `grace` to end by itself and
/// takes everything it started along, and its directory.
///
/// # Errors
/// The supervisor is still there, and its directory with it, so that it is found again.
async fn discard(dir: &Path, grace: Duration) -> Result<(), StartError> {
    if let Some(process) = Record::read(dir).ok().and_then(|record| record.process)
        && !end(process, grace).await
    {
        let pid = process.pid;
        let message = format!("the sandbox's supervisor (pid {pid}) was killed and does not end");
        return Err(StartError::new("does_not_end", message).with_hint(
            "it hangs in the kernel, mostly on a disk or a network file system that does not answer; stop the sandbox again once that is mended, or restart the machine",
        ));
    }
    remove_dir(dir).await;
    Ok(())
}

/// Ends a supervisor that did not end by itself, and waits until it is gone; whether it is.
/// The pidfd is opened before the start time is compared, so a reused pid is never signalled.
async fn end(process: Process, grace: Duration) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        // Also when there is no descriptor left: then nobody knows.
        return !process.is_alive();
    };
    if !process.is_alive() {
        return true;
    }
    let waiting = tokio::task::spawn_blocking(move || {
        has_ended(&pidfd, grace) || {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            has_ended(&pidfd, CLEAN_UP_WITHIN)
        }
    });
    waiting.await.unwrap_or_else(|error| {
        tracing::error!(pid = process.pid, %error, "waiting for a supervisor's end failed");
        false
    })
}

/// Waits until a process has ended, which makes its pidfd readable.
fn has_ended(pidfd: &OwnedFd, within: Duration) -> bool {
    let timeout = rustix::event::Timespec {
        tv_sec: within.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    // A signal to this process says nothing about that one.
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))
        .is_ok_and(|ready| ready > 0)
}

fn stat_file(pid: u32) -> String {
    format!("/proc/{pid}/stat")
}

fn start_ticks(pid: u32) -> Option<u64> {
    ticks_in(&fs::read_to_string(stat_file(pid)).ok()?)
}

fn ticks_in(stat: &str) -> Option<u64> {
    // The command name in parentheses may contain anything; fields are counted behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

async fn remove_dir(dir: &Path) {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a start's directory");
        }
        _ => {}
    }
}

/// What to do about what should not happen.
const DEFECT: &str = "this is a defect: restart the hypervisor, and report it with its log";

/// What the host refused, and what helps against that.
fn unavailable(what: &str, error: &io::Error) -> StartError {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk of the data directory is full: delete snapshots or files on it"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the hypervisor may not write there: give its user the data directory (data_dir)"
        }
        io::ErrorKind::NotFound => {
            "something of the installation is missing: run `hypervisor doctor`"
        }
        _ => match error.raw_os_error() {
            // EMFILE and ENFILE; EAGAIN of fork(2).
            Some(23 | 24) => {
                "there are too many open files: raise LimitNOFILE of the hypervisor, or stop sandboxes"
            }
            Some(11) => {
                "there are too many processes: raise TasksMax of the hypervisor, or stop sandboxes"
            }
            _ => "see the hypervisor's log and `hypervisor doctor`, and start it again",
        },
    };
    StartError::new("unavailable", format!("{what}: {error}")).with_hint(hint)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn unreachable(error: ControlError) -> StartError {
    StartError::new(
        "supervisor",
        format!("the supervisor cannot be reached: {error}"),
    )
    .with_hint(
        "it ended, perhaps for want of memory, or does not answer: look into the kernel log, and start the sandbox again",
    )
}

#[cfg(test)]
mod tests;

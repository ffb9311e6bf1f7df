//! One group: its limits, who is in it, what happened in it, its end.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{CgroupError, GroupLimits};
use crate::spec::HostIds;

/// The period of processor limits, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Longest file of a group that is read, in bytes; lists of processes can be long.
const MAX_FILE: u64 = 4 << 20;

/// Processes that are held open at once while they are ended.
const KILLED_AT_ONCE: usize = 128;

/// How long to wait before asking again whether a group has become empty.
const RETRY: Duration = Duration::from_millis(5);

/// A group, by its directories. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Group {
    /// Version 2: one directory.
    V2 {
        /// The directory.
        dir: PathBuf,
        /// Whether the cpu controller is there.
        cpu: bool,
    },
    /// Version 1: one directory per hierarchy.
    V1 {
        /// In the hierarchy of memory.
        memory: PathBuf,
        /// In the hierarchy of pids.
        pids: PathBuf,
        /// In the hierarchy of cpu, if there is one.
        cpu: Option<PathBuf>,
    },
}

/// What happened in a group since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Processes that the kernel ended because memory was short.
    pub oom_kills: u64,
    /// Times that memory met this group's own limit.
    pub memory_limit: u64,
    /// The most memory at once in bytes, where the kernel keeps that.
    pub most_memory: Option<u64>,
    /// Forks that failed for a limit of processes.
    pub failed_forks: u64,
    /// The most processes at once, where the kernel keeps that.
    pub most_processes: Option<u64>,
}

impl Counts {
    /// What happened after `before` was taken.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            oom_kills: self.oom_kills.saturating_sub(before.oom_kills),
            memory_limit: self.memory_limit.saturating_sub(before.memory_limit),
            failed_forks: self.failed_forks.saturating_sub(before.failed_forks),
            ..self
        }
    }
}

impl Group {
    /// A group beneath this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        self.map(|dir| dir.join(name))
    }

    /// The group that this one lies in.
    #[must_use]
    pub fn parent(&self) -> Self {
        self.map(|dir| dir.parent().unwrap_or(dir).to_owned())
    }

    fn map(&self, mut change: impl FnMut(&Path) -> PathBuf) -> Self {
        match self {
            Self::V2 { dir, cpu } => Self::V2 {
                dir: change(dir),
                cpu: *cpu,
            },
            Self::V1 { memory, pids, cpu } => Self::V1 {
                memory: change(memory),
                pids: change(pids),
                cpu: cpu.as_deref().map(&mut change),
            },
        }
    }

    /// Its directories.
    #[must_use]
    pub fn dirs(&self) -> Vec<&Path> {
        match self {
            Self::V2 { dir, .. } => vec![dir],
            Self::V1 { memory, pids, cpu } => [Some(memory), Some(pids), cpu.as_ref()]
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect(),
        }
    }

    fn memory(&self) -> &Path {
        match self {
            Self::V2 { dir, .. } => dir,
            Self::V1 { memory, .. } => memory,
        }
    }

    fn pids(&self) -> &Path {
        match self {
            Self::V2 { dir, .. } => dir,
            Self::V1 { pids, .. } => pids,
        }
    }

    /// Whether processor time can be limited.
    #[must_use]
    pub fn has_cpu(&self) -> bool {
        match self {
            Self::V2 { cpu, .. } => *cpu,
            Self::V1 { cpu, .. } => cpu.is_some(),
        }
    }

    /// Makes it if it is missing. Its parent must exist and, under version 2, be opened up.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn create(&self) -> Result<(), CgroupError> {
        for dir in self.dirs() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::io("make the cgroup", dir)(error));
                }
                _ => {}
            }
        }
        if let Self::V1 { memory, .. } = self {
            // The only behaviour of present kernels; older ones must be told before there
            // are children.
            let _ = write(memory, "memory.use_hierarchy", "1");
        }
        Ok(())
    }

    /// Lets children have limits of their own, and makes it.
    ///
    /// # Errors
    /// The kernel refused: under version 2, for example because processes are in it.
    pub fn create_inner(&self) -> Result<(), CgroupError> {
        self.create()?;
        self.open_up()
    }

    pub(super) fn open_up(&self) -> Result<(), CgroupError> {
        let Self::V2 { dir, cpu } = self else {
            return Ok(());
        };
        let wanted = if *cpu {
            "+memory +pids +cpu"
        } else {
            "+memory +pids"
        };
        write(dir, "cgroup.subtree_control", wanted).map_err(|error| {
            if error.raw_os_error() == Some(libc::EBUSY) {
                CgroupError::Shared { dir: dir.clone() }
            } else {
                CgroupError::io("give controllers to the children of", dir)(error)
            }
        })
    }

    /// Sets limits; those that are absent stay as they are.
    ///
    /// # Errors
    /// The kernel refused one.
    pub fn limit(&self, limits: &GroupLimits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory_bytes {
            self.limit_memory(bytes)?;
        }
        if let Some(processes) = limits.processes {
            let dir = self.pids();
            write(dir, "pids.max", &processes.to_string())
                .map_err(CgroupError::io("limit the processes of", dir))?;
        }
        self.limit_cpu(limits)
    }

    fn limit_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        let dir = self.memory();
        let failed = || CgroupError::io("limit the memory of", dir);
        let bytes = bytes.to_string();
        match self {
            Self::V2 { .. } => {
                write(dir, "memory.max", &bytes).map_err(failed())?;
                // Missing where the kernel has no swap accounting: then swap is not ours to
                // limit. The same below.
                let _ = write(dir, "memory.swap.max", "0");
            }
            Self::V1 { .. } => {
                // Memory may never be above memory and swap together, so a limit that grows
                // starts with the other one.
                if write(dir, "memory.limit_in_bytes", &bytes).is_err() {
                    let _ = write(dir, "memory.memsw.limit_in_bytes", &bytes);
                    write(dir, "memory.limit_in_bytes", &bytes).map_err(failed())?;
                }
                let _ = write(dir, "memory.memsw.limit_in_bytes", &bytes);
            }
        }
        Ok(())
    }

    fn limit_cpu(&self, limits: &GroupLimits) -> Result<(), CgroupError> {
        let quota = limits
            .cpu_millis
            .map(|millis| u64::from(millis) * CPU_PERIOD_US / 1000);
        match self {
            Self::V2 { dir, cpu: true } => {
                if let Some(quota) = quota {
                    write(dir, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))
                        .map_err(CgroupError::io("limit the processor time of", dir))?;
                }
                if let Some(weight) = limits.weight {
                    write(dir, "cpu.weight", &weight.to_string())
                        .map_err(CgroupError::io("set the processor share of", dir))?;
                }
            }
            Self::V1 { cpu: Some(dir), .. } => {
                if let Some(quota) = quota {
                    write(dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())
                        .and_then(|()| write(dir, "cpu.cfs_quota_us", &quota.to_string()))
                        .map_err(CgroupError::io("limit the processor time of", dir))?;
                }
                if let Some(weight) = limits.weight {
                    // 100 of version 2 is 1024 of version 1.
                    let shares = (u64::from(weight) * 1024 / 100).max(2);
                    write(dir, "cpu.shares", &shares.to_string())
                        .map_err(CgroupError::io("set the processor share of", dir))?;
                }
            }
            Self::V2 { cpu: false, .. } | Self::V1 { cpu: None, .. } => {}
        }
        Ok(())
    }

    /// Ends everything in it when memory runs out, not one process only (version 2).
    pub fn end_as_one(&self) {
        if let Self::V2 { dir, .. } = self {
            // Before Linux 4.19 there is no such file, and the kernel picks one process.
            let _ = write(dir, "memory.oom.group", "1");
        }
    }

    /// Gives it to somebody, who may then make groups in it and move own processes among
    /// them, but not change its limits (cgroup-v2, "Delegation Containment").
    ///
    /// # Errors
    /// This process is not root, or the group is gone.
    pub fn delegate(&self, to: HostIds) -> Result<(), CgroupError> {
        for dir in self.dirs() {
            let failed = || CgroupError::io("delegate", dir);
            chown(dir, Some(to.uid), Some(to.gid)).map_err(failed())?;
            for name in [
                "cgroup.procs",
                "tasks",
                "cgroup.threads",
                "cgroup.subtree_control",
            ] {
                match chown(dir.join(name), Some(to.uid), Some(to.gid)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed()(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The same group by descriptors of its directories: it can then be reached through
    /// directories that this process may not pass any more. Good while they are open.
    pub(crate) fn hold(&self) -> Result<(Self, Vec<OwnedFd>), CgroupError> {
        let mut held = Vec::new();
        for dir in self.dirs() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(dir, flags, Mode::empty());
            held.push(opened.map_err(|error| CgroupError::io("open", dir)(error.into()))?);
        }
        let mut descriptors = held.iter();
        let group = self.map(|dir| {
            descriptors.next().map_or_else(
                || dir.to_owned(),
                |fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            )
        });
        Ok((group, held))
    }

    /// What a process has to write `0` to in order to be in it from then on.
    ///
    /// # Errors
    /// The group is gone, or not this process's to fill.
    pub fn entrances(&self) -> Result<Vec<File>, CgroupError> {
        self.dirs()
            .into_iter()
            .map(|dir| {
                OpenOptions::new()
                    .write(true)
                    .open(dir.join("cgroup.procs"))
                    .map_err(CgroupError::io("enter", dir))
            })
            .collect()
    }

    /// Moves this process in.
    ///
    /// # Errors
    /// The group is gone, or not this process's to fill.
    pub fn enter(&self) -> Result<(), CgroupError> {
        for (mut entrance, dir) in self.entrances()?.into_iter().zip(self.dirs()) {
            entrance
                .write_all(b"0")
                .map_err(CgroupError::io("enter", dir))?;
        }
        Ok(())
    }

    /// What happened in it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (memory, pids) = (self.memory(), self.pids());
        let (oom_kills, memory_limit) = match self {
            Self::V2 { .. } => (
                entry(&read(memory, "memory.events"), "oom_kill"),
                entry(&read(memory, "memory.events.local"), "oom"),
            ),
            Self::V1 { .. } => (
                entry(&read(memory, "memory.oom_control"), "oom_kill"),
                // Kernels of today no longer count here, which is what `most_memory` is for.
                read(memory, "memory.failcnt")
                    .trim()
                    .parse()
                    .unwrap_or_default(),
            ),
        };
        let peak = match self {
            Self::V2 { .. } => "memory.peak",
            Self::V1 { .. } => "memory.max_usage_in_bytes",
        };
        Counts {
            oom_kills,
            memory_limit,
            most_memory: read(memory, peak).trim().parse().ok(),
            failed_forks: entry(&read(pids, "pids.events"), "max"),
            most_processes: read(pids, "pids.peak").trim().parse().ok(),
        }
    }

    /// Memory in use, in bytes; `None` when there is no such group.
    #[must_use]
    pub fn memory_used(&self) -> Option<u64> {
        let name = match self {
            Self::V2 { .. } => "memory.current",
            Self::V1 { .. } => "memory.usage_in_bytes",
        };
        read(self.memory(), name).trim().parse().ok()
    }

    /// The processes in it and in every group beneath it.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for dir in self.dirs() {
            collect(dir, &mut found);
        }
        found
    }

    /// Ends every process in it and removes it with everything beneath it. What never was
    /// there is removed already.
    ///
    /// # Errors
    /// Something is still in it after `within`, or the kernel refused.
    pub fn remove(&self, within: Duration) -> Result<(), CgroupError> {
        let until = Instant::now() + within;
        loop {
            let left = self.dirs().into_iter().find_map(|dir| {
                let error = remove_tree(dir).err()?;
                Some((dir, error))
            });
            let Some((dir, error)) = left else {
                return Ok(());
            };
            if Instant::now() >= until {
                return Err(CgroupError::io("remove the cgroup", dir)(error));
            }
            self.kill();
            thread::sleep(RETRY);
        }
    }

    fn kill(&self) {
        if let Self::V2 { dir, .. } = self
            && dir.join("cgroup.kill").exists()
            && write(dir, "cgroup.kill", "1").is_ok()
        {
            return;
        }
        let listed: Vec<u32> = self.processes().into_iter().collect();
        for some in listed.chunks(KILLED_AT_ONCE) {
            let opened = some.iter().filter_map(|listed| {
                let pid = Pid::from_raw(i32::try_from(*listed).ok()?)?;
                // One that has ended needs no signal.
                Some((*listed, pidfd_open(pid, PidfdFlags::empty()).ok()?))
            });
            self.kill_members(&opened.collect::<Vec<_>>());
        }
    }

    /// Ends those of these processes that are in this group. They were opened before it is
    /// looked who is in it: a pid that was used again meanwhile is then no member, and a
    /// stranger is never signalled.
    fn kill_members(&self, opened: &[(u32, OwnedFd)]) {
        let members = self.processes();
        for (pid, process) in opened {
            if members.contains(pid) {
                // It may have ended this moment; the group tells when it is looked at again.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }
}

pub(super) fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(dir.join(name))?
        .write_all(text.as_bytes())
}

pub(super) fn read(dir: &Path, name: &str) -> String {
    let mut text = String::new();
    if let Ok(file) = File::open(dir.join(name)) {
        // What cannot be read counts as nothing.
        let _ = file.take(MAX_FILE).read_to_string(&mut text);
    }
    text
}

/// The value of a key in a file of lines `key value`.
fn entry(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_default()
}

fn collect(dir: &Path, found: &mut BTreeSet<u32>) {
    found.extend(
        read(dir, "cgroup.procs")
            .lines()
            .filter_map(|line| line.parse::<u32>().ok())
            // 0 stands for a process that cannot be seen from here.
            .filter(|pid| *pid != 0),
    );
    for below in subdirectories(dir) {
        collect(&below, found);
    }
}

pub(super) fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for below in subdirectories(dir) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::Group;

    /// What a pid that was listed a moment ago stands for by now.
    #[test]
    fn a_process_that_is_no_member_by_now_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let group = Group::V2 {
            dir: scratch.path().to_owned(),
            cpu: false,
        };
        let sleep = || Command::new("sleep").arg("60").stdin(Stdio::null()).spawn();
        let (mut member, mut stranger) = (sleep().unwrap(), sleep().unwrap());
        let listed = format!("{}\n", member.id());
        std::fs::write(scratch.path().join("cgroup.procs"), listed).unwrap();
        let opened = [&member, &stranger].map(|child| {
            let pid = Pid::from_child(child);
            (child.id(), pidfd_open(pid, PidfdFlags::empty()).unwrap())
        });
        group.kill_members(&opened);
        assert!(!member.wait().unwrap().success());
        // A KILL before this one would have been what ended it.
        pidfd_send_signal(&opened[1].1, Signal::TERM).unwrap();
        let ended = stranger.wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGTERM), "it was let alone");
    }
}

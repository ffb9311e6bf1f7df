//! Keeps a sandbox within what it may have on disk: a process of its own measures, and the
//! supervisor stops writers.
//!
//! How late a measurement is: the file system's free space is looked at every second, and a
//! walk begins when it fell by an eighth of what the sandbox has left, or after ten seconds
//! (longer for large trees: a walk takes at most a quarter of the time). A writer that is
//! alone on a disk is therefore stopped about a second after it passed the limit, plus the
//! time of a walk.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions, waitpid};
use types::{LimitReached, LimitScope, LimitedResource};

use super::serve::Supervisor;
use crate::disk::{Usage, measure};
use crate::protocol::Event;
use crate::spec::{DiskLimits, HostIds, SandboxSpec};
use crate::sys::{self, Forked};
use crate::walls::{Step, WallError, root};
use crate::{init, packet};

/// How often the free space is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest and the shortest time between two walks of a tree that does not change.
const CALM: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// A calm walk may take this part of the time, an urgent one that.
const CALM_SHARE: u32 = 20;
const URGENT_SHARE: u32 = 3;

/// A walk is urgent when this part of what is left was taken, or nothing is left.
const PART_OF_REST: u64 = 8;

/// What a sandbox may grow by before growth counts, in bytes and entries: logs, databases.
const SLACK_BYTES: u64 = 1 << 20;
const SLACK_ENTRIES: u64 = 64;

/// The least distance from the limit to the mark at which the guest is stopped too.
const HARD_BYTES: u64 = 16 << 20;

/// What a guest gets when the disk can be measured no more.
const GRACE: Duration = Duration::from_secs(5);

/// How often a measuring process that ended is replaced. It never ends by itself; where it
/// does all the same, the sandbox is stopped rather than left unmeasured.
const MAX_REPLACEMENTS: u32 = 8;

/// What a supervisor keeps about the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    measurer: Measurer,
    roots: Vec<OwnedFd>,
    ids: HostIds,
    judge: Judge,
    replaced: u32,
    /// The limit that the sandbox is over.
    over: Option<LimitReached>,
}

/// The process that measures.
#[derive(Debug)]
struct Measurer {
    reports: OwnedFd,
    pid: Pid,
}

impl Disk {
    /// Begins to measure, if there is a limit.
    pub(crate) fn watch(
        spec: &mut SandboxSpec,
        roots: Vec<OwnedFd>,
        ids: HostIds,
    ) -> Result<Option<Self>, WallError> {
        if spec.disk == DiskLimits::default() {
            return Ok(None);
        }
        Ok(Some(Self {
            measurer: Measurer::start(spec, &roots, ids)?,
            judge: Judge::new(spec.disk),
            roots,
            ids,
            replaced: 0,
            over: None,
        }))
    }

    /// Where measurements arrive.
    pub(crate) fn reports(&self) -> &OwnedFd {
        &self.measurer.reports
    }

    /// The limit that the sandbox is over.
    pub(crate) const fn over(&self) -> Option<LimitReached> {
        self.over
    }

    fn replace(&mut self, spec: &mut SandboxSpec) -> Result<(), WallError> {
        let _ = waitpid(Some(self.measurer.pid), WaitOptions::empty());
        self.replaced += 1;
        if self.replaced > MAX_REPLACEMENTS {
            return Err(WallError {
                step: "measure what is on disk".into(),
                reason: "the process that does it keeps ending".into(),
                errno: None,
            });
        }
        self.measurer = Measurer::start(spec, &self.roots, self.ids)?;
        Ok(())
    }
}

/// Opens what is measured, while this process may.
pub(crate) fn roots(spec: &SandboxSpec) -> Result<Vec<OwnedFd>, WallError> {
    [&spec.workspace, &spec.home, &spec.data]
        .into_iter()
        .map(|path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
                .step(|| format!("open {} to measure it", path.display()))
        })
        .collect()
}

impl Supervisor {
    /// Takes a measurement in and does what it asks for.
    pub(super) fn read_disk(&mut self, now: Instant) {
        let Some(disk) = &mut self.disk else { return };
        let usage = match packet::receive::<Usage>(disk.reports(), false) {
            Ok(Some((usage, _))) => usage,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => {
                if let Err(error) = disk.replace(&mut self.spec) {
                    self.note(&format!("stopping: {error}"));
                    self.disk = None;
                    self.stop(GRACE, now);
                }
                return;
            }
        };
        let verdict = disk.judge.judge(usage);
        let before = std::mem::replace(
            &mut disk.over,
            match verdict {
                Verdict::Within => None,
                Verdict::Over(reached)
                | Verdict::EndCommands(reached)
                | Verdict::StopAll(reached) => Some(reached),
            },
        );
        let over = disk.over;
        match verdict {
            Verdict::Within | Verdict::Over(_) => {}
            Verdict::EndCommands(reached) => self.end_commands(reached),
            Verdict::StopAll(reached) => {
                self.note(&format!("the sandbox is stopped: {reached}"));
                self.end_commands(reached);
                self.guest_stopped_for = Some(reached);
                self.guest.kill();
            }
        }
        if before != over {
            self.tell(&Event::Disk {
                bytes: usage.bytes,
                entries: usage.entries,
                over,
            });
        }
    }

    fn end_commands(&mut self, reached: LimitReached) {
        for runner in self.runners.values_mut() {
            runner.end_for(reached);
        }
    }
}

impl Measurer {
    /// Starts it. It is the sandbox's host user like its supervisor, in a user namespace in
    /// which it may read what that user has locked itself out of.
    fn start(spec: &mut SandboxSpec, roots: &[OwnedFd], ids: HostIds) -> Result<Self, WallError> {
        let (reports, far) = packet::pair().step(|| "make a socket pair".into())?;
        match sys::clone_into(sys::NEW_USER).step(|| "start measuring the disk".into())? {
            Forked::Child => {
                // Names of files are all that it may know.
                spec.wipe();
                let ended = run(roots, spec.disk, ids, &far);
                sys::exit(i32::from(ended.is_err()))
            }
            Forked::Parent(pid, _) => Ok(Self { reports, pid }),
        }
    }
}

fn run(roots: &[OwnedFd], limits: DiskLimits, ids: HostIds, to: &OwnedFd) -> Result<(), WallError> {
    init::name(c"choir-disk");
    let keep: Vec<_> = roots.iter().chain([to]).map(AsFd::as_fd).collect();
    sys::close_all_except(&keep).step(|| "close inherited descriptors".into())?;
    init::die_with_parent()?;
    init::show()?;
    root::map_ids(ids.uid, ids.gid)?;
    init::hide()?;
    // It may take longer for being the last in line; nobody waits for it.
    let _ = rustix::process::nice(19);
    loop {
        let began = Instant::now();
        let free = free(roots);
        let usage = measure(roots).step(|| "measure what is on disk".into())?;
        let took = began.elapsed();
        packet::send(to, &usage, &[]).step(|| "report what is on disk".into())?;
        let rest = rest(limits, usage);
        wait(roots, to, took, rest, free)?;
    }
}

/// What may still be written: bytes and entries.
fn rest(limits: DiskLimits, usage: Usage) -> (u64, u64) {
    let left = |limit: Option<u64>, used| limit.map_or(u64::MAX, |n| n.saturating_sub(used));
    (
        left(limits.bytes, usage.bytes),
        left(limits.entries, usage.entries),
    )
}

/// Waits until it is time to measure again, or for ever when the supervisor is gone.
fn wait(
    roots: &[OwnedFd],
    to: &OwnedFd,
    took: Duration,
    rest: (u64, u64),
    before: (u64, u64),
) -> Result<(), WallError> {
    let calm = (took * CALM_SHARE).clamp(CALM.0, CALM.1);
    let urgent = took * URGENT_SHARE;
    let began = Instant::now();
    loop {
        let mut fds = [PollFd::new(to, PollFlags::IN)];
        let timeout = Timespec::try_from(LOOK_EVERY).unwrap_or_default();
        if poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            // Nothing is ever sent this way: the other end is closed.
            sys::exit(0);
        }
        let waited = began.elapsed();
        if waited >= calm || (waited >= urgent && is_urgent(rest, before, free(roots))) {
            return Ok(());
        }
    }
}

/// Whether so much was written to the file system, by whomever, that it may matter.
fn is_urgent(rest: (u64, u64), before: (u64, u64), now: (u64, u64)) -> bool {
    let fell = |before: u64, now: u64, rest: u64| {
        rest == 0 || before.saturating_sub(now) > (rest / PART_OF_REST)
    };
    fell(before.0, now.0, rest.0) || fell(before.1, now.1, rest.1)
}

/// Free bytes and entries of the file system. They are told apart no further: the roots of a
/// sandbox lie side by side.
fn free(roots: &[OwnedFd]) -> (u64, u64) {
    roots
        .first()
        .and_then(|root| rustix::fs::fstatvfs(root).ok())
        .map(|stat| (stat.f_bfree.saturating_mul(stat.f_frsize), stat.f_ffree))
        .unwrap_or_default()
}

/// What has to be done after a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Within,
    /// It is over its limit and did not grow: no new command but a terminal, in which its
    /// owner may delete something.
    Over(LimitReached),
    /// It is over its limit and grew: every command is ended.
    EndCommands(LimitReached),
    /// It is far over its limit and grew: the guest is stopped too.
    StopAll(LimitReached),
}

/// Judges one measurement after the other.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    limits: DiskLimits,
    last: Option<Usage>,
    /// How it was when this start began, or when it was least since.
    least: Option<Usage>,
}

impl Judge {
    pub(crate) fn new(limits: DiskLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub(crate) fn judge(&mut self, usage: Usage) -> Verdict {
        let last = self.last.replace(usage);
        let least = *self.least.get_or_insert(usage);
        if usage.bytes < least.bytes || usage.entries < least.entries {
            self.least = Some(Usage {
                bytes: usage.bytes.min(least.bytes),
                entries: usage.entries.min(least.entries),
                ..usage
            });
        }
        let Some(reached) = over(self.limits, usage) else {
            return Verdict::Within;
        };
        let grew = |since: Usage| {
            usage.bytes > since.bytes.saturating_add(SLACK_BYTES)
                || usage.entries > since.entries.saturating_add(SLACK_ENTRIES)
                || (usage.too_deep && !since.too_deep)
        };
        // A sandbox that begins over its limit can still be tidied up by its owner.
        // Depth has no degrees; what lies that deep is only not counted.
        let counted = Usage {
            too_deep: false,
            ..usage
        };
        if over(hard(self.limits), counted).is_some() && grew(least) {
            return Verdict::StopAll(reached);
        }
        if last.is_some_and(|last| over(self.limits, last).is_none() || grew(last)) {
            return Verdict::EndCommands(reached);
        }
        Verdict::Over(reached)
    }
}

fn over(limits: DiskLimits, usage: Usage) -> Option<LimitReached> {
    let reached = |resource, the_users, limit| {
        let scope = if the_users {
            LimitScope::User
        } else {
            LimitScope::Sandbox
        };
        Some(LimitReached {
            resource,
            scope,
            limit,
        })
    };
    match (limits.bytes, limits.entries) {
        (Some(limit), _) if usage.bytes > limit => reached(
            LimitedResource::DiskBytes,
            limits.bytes_are_the_users,
            limit,
        ),
        (_, Some(limit)) if usage.entries > limit || usage.too_deep => reached(
            LimitedResource::DiskEntries,
            limits.entries_are_the_users,
            limit,
        ),
        _ => None,
    }
}

/// The marks at which nothing of the sandbox may go on.
fn hard(limits: DiskLimits) -> DiskLimits {
    DiskLimits {
        bytes: limits
            .bytes
            .map(|limit| limit.saturating_add((limit / 4).max(HARD_BYTES))),
        entries: limits
            .entries
            .map(|limit| limit.saturating_add((limit / 4).max(SLACK_ENTRIES))),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::{Judge, Usage, Verdict, is_urgent};
    use crate::spec::DiskLimits;
    use types::LimitScope;

    const MIB: u64 = 1 << 20;

    fn at(mib: u64) -> Usage {
        Usage {
            bytes: mib * MIB,
            entries: 10,
            too_deep: false,
        }
    }

    fn judge() -> Judge {
        Judge::new(DiskLimits {
            bytes: Some(100 * MIB),
            entries: Some(1000),
            ..DiskLimits::default()
        })
    }

    /// Whoever raises the other key would raise nothing.
    #[test]
    fn the_limit_that_is_named_is_the_one_that_binds() {
        let mut judge = Judge::new(DiskLimits {
            bytes: Some(100 * MIB),
            bytes_are_the_users: true,
            ..DiskLimits::default()
        });
        judge.judge(at(10));
        let Verdict::EndCommands(reached) = judge.judge(at(101)) else {
            panic!("over the limit");
        };
        assert_eq!(reached.scope, LimitScope::User);
    }

    #[test]
    fn writers_are_stopped_at_the_limit_and_everything_far_beyond() {
        let mut judge = judge();
        assert_eq!(judge.judge(at(10)), Verdict::Within);
        assert!(matches!(judge.judge(at(101)), Verdict::EndCommands(_)));
        assert!(matches!(judge.judge(at(101)), Verdict::Over(_)));
        // Somebody writes on in a terminal.
        assert!(matches!(judge.judge(at(110)), Verdict::EndCommands(_)));
        assert!(matches!(judge.judge(at(126)), Verdict::StopAll(_)));
        assert!(matches!(judge.judge(at(90)), Verdict::Within));
    }

    #[test]
    fn a_sandbox_that_begins_over_its_limit_can_be_tidied_up() {
        let mut judge = judge();
        assert!(matches!(judge.judge(at(300)), Verdict::Over(_)));
        assert!(matches!(judge.judge(at(300)), Verdict::Over(_)));
        assert!(matches!(judge.judge(at(200)), Verdict::Over(_)));
        // What was deleted may not be filled again.
        assert!(matches!(judge.judge(at(210)), Verdict::StopAll(_)));
    }

    #[test]
    fn many_entries_and_deep_trees_count() {
        let many = Usage {
            entries: 1001,
            ..at(1)
        };
        let deep = Usage {
            too_deep: true,
            ..at(1)
        };
        for usage in [many, deep] {
            let mut judge = judge();
            assert_eq!(judge.judge(at(1)), Verdict::Within);
            assert!(matches!(judge.judge(usage), Verdict::EndCommands(_)));
        }
    }

    #[test]
    fn a_walk_is_urgent_when_the_disk_fills_or_nothing_is_left() {
        let calm = (1000, 1000);
        assert!(!is_urgent((800, 800), calm, (901, 901)));
        assert!(is_urgent((800, 800), calm, (899, 1000)));
        assert!(is_urgent((800, 800), calm, (1000, 899)));
        assert!(is_urgent((0, 800), calm, calm));
        assert!(!is_urgent((u64::MAX, u64::MAX), calm, (0, 0)));
    }
}

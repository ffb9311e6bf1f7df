//! Stops every process of a pid namespace, from its first process, and lets them go on.
//!
//! A cgroup freezer would do it in the kernel, but an ordinary user may have none. SIGSTOP
//! from pid 1 reaches the same processes: `kill(-1)` is one step for all of them, a fork
//! that is under way gives way to it, and none can block or ignore it. What it does not tell
//! is when they have stopped, so `/proc` is asked until every thread has.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::sys;

/// Between two looks at `/proc`.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// Where a parent waits in the kernel for a child of its vfork(2), which stands still itself.
const VFORK: [&str; 3] = ["kernel_clone", "_do_fork", "do_fork"];

/// A process, told from another one with its number by when it was started.
type Started = BTreeMap<i32, u64>;

/// Processes that were stopped, and those that had been stopped before by somebody else.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    before: Started,
}

/// Stops everything in this pid namespace but this process, which has to be its first.
/// Returns how many processes stand still.
///
/// # Errors
/// What still moves, and why; everything goes on then.
pub(crate) fn freeze(within: Duration) -> Result<(Frozen, u32), String> {
    let deadline = Instant::now() + within;
    let frozen = Frozen {
        before: processes()
            .into_iter()
            .filter(|&process| has_stopped(process.0) == Ok(true))
            .collect(),
    };
    loop {
        sys::signal_all(libc::SIGSTOP);
        let seen = processes();
        let moving = seen.keys().find_map(|&pid| match has_stopped(pid) {
            Ok(true) => None,
            Ok(false) => Some(format!("process {pid} does not stop")),
            Err(state) => Some(format!("process {pid} is busy in the kernel ({state})")),
        });
        match moving {
            None => return Ok((frozen, u32::try_from(seen.len()).unwrap_or(u32::MAX))),
            Some(what) if Instant::now() >= deadline => {
                thaw(&frozen);
                return Err(what);
            }
            Some(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Lets everything go on that was not stopped before. Children first: a shell that is awake
/// before its job would take the job for stopped.
pub(crate) fn thaw(frozen: &Frozen) {
    for (pid, started) in processes().into_iter().rev() {
        if frozen.before.get(&pid) != Some(&started) {
            sys::signal_one(pid, libc::SIGCONT);
        }
    }
}

/// Every process of the namespace but the first, those that only wait to be reaped left out.
fn processes() -> Started {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Started::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid > 1)
        .filter_map(|pid| {
            let stat = Stat::read(&format!("/proc/{pid}/stat"))?;
            // A leader that has ended before its other threads is a zombie as well.
            (stat.state != 'Z' || stat.threads > 1).then_some((pid, stat.started))
        })
        .collect()
}

/// Whether every thread of a process has stopped. The error is the state of one that cannot
/// before the kernel is done with it.
fn has_stopped(pid: i32) -> Result<bool, char> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        // It is gone.
        return Ok(true);
    };
    for thread in threads.flatten() {
        let path = thread.path();
        let Some(stat) = Stat::read(&path.join("stat").to_string_lossy()) else {
            continue;
        };
        match stat.state {
            'T' | 't' | 'Z' | 'X' => {}
            'D' if waits_for_vfork(&path) => {}
            'D' => return Err('D'),
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn waits_for_vfork(thread: &std::path::Path) -> bool {
    fs::read_to_string(thread.join("wchan"))
        .is_ok_and(|place| VFORK.iter().any(|name| place.starts_with(name)))
}

/// What is wanted of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u32,
    started: u64,
}

impl Stat {
    fn read(path: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may contain anything; fields are counted behind it.
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?.chars().next()?;
        // Fields 20 and 22; the state is field 3.
        let threads = fields.nth(16)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        Some(Self {
            state,
            threads,
            started,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn a_name_in_parentheses_deceives_nobody() {
        let text = "7 (a) T 1 (b)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 9001 11 12";
        let expected = Stat {
            state: 'S',
            threads: 3,
            started: 9001,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) T 1"), None);
    }
}

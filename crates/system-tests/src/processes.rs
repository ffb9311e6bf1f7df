//! Looking at and ending processes that we started ourselves.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// A process, told from another one that got its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// What a process holds, and what it has used since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Processor time of all threads, in clock ticks.
    pub cpu_ticks: u64,
    /// How often its present threads went to sleep: each is a wake-up later.
    pub context_switches: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (_, start_ticks) = stat(pid)?;
        Some(Self { pid, start_ticks })
    }

    /// Whether it still runs; one that ended and waits for its parent does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self) && !is_zombie(self.pid)
    }

    /// Sends a signal, if it is still the same process.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may end between the look and the signal; then there is nobody to tell.
            let _ = kill_process(pid, signal);
        }
    }

    /// All its descendants.
    #[must_use]
    pub fn descendants(self) -> Vec<Self> {
        let mut children: BTreeMap<u32, Vec<Self>> = BTreeMap::new();
        for pid in all() {
            if let Some((parent, start_ticks)) = stat(pid) {
                children
                    .entry(parent)
                    .or_default()
                    .push(Self { pid, start_ticks });
            }
        }
        let mut found = Vec::new();
        let mut open = vec![self.pid];
        while let Some(pid) = open.pop() {
            for child in children.get(&pid).into_iter().flatten() {
                found.push(*child);
                open.push(child.pid);
            }
        }
        found
    }

    /// The environment it was started with.
    #[must_use]
    pub fn environment(self) -> Vec<u8> {
        fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default()
    }

    /// Its arguments, joined by spaces.
    #[must_use]
    pub fn command_line(self) -> String {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&raw)
            .replace('\0', " ")
            .trim()
            .to_owned()
    }

    /// What it holds and has used so far.
    #[must_use]
    pub fn usage(self) -> Option<Usage> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let switches = |tid: &str| {
            let path = format!("/proc/{}/task/{tid}/status", self.pid);
            let text = fs::read_to_string(path).ok()?;
            let line = text
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let threads = entries(&format!("/proc/{}/task", self.pid));
        Some(Usage {
            descriptors: entries(&format!("/proc/{}/fd", self.pid)).len(),
            threads: threads.len(),
            cpu_ticks: number(11)? + number(12)?,
            context_switches: threads.iter().filter_map(|tid| switches(tid)).sum(),
        })
    }

    /// Resident memory in KiB, with shared pages divided among those who share them
    /// (`Pss` of `smaps_rollup`), and without dividing (`Rss`).
    #[must_use]
    pub fn memory_kib(self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((field("Pss:")?, field("Rss:")?))
    }
}

/// The numbers of all processes.
fn all() -> Vec<u32> {
    entries("/proc")
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// The names in a directory.
fn entries(dir: &str) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Parent and start time.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, so count from the last one.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|text| {
            text.rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
        })
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn finds_itself_and_its_children() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let found = Process::of(child.id()).unwrap();
        assert!(own.descendants().contains(&found));
        found.signal(rustix::process::Signal::KILL);
        child.wait().unwrap();
        assert!(!found.is_alive());
    }
}

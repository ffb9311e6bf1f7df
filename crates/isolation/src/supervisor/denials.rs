//! Denied system calls of one task: refused, counted, and told at a bounded rate.
//!
//! The kernel holds a denied call until it is answered here (seccomp_unotify(2)), and refuses it
//! by itself when nobody listens any more. The answer is always the same, so the only thing that
//! a slow supervisor changes is how long the caller waits: whoever floods waits most.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use types::{CommandId, CommandView};

use crate::protocol::{Denial, Event};
use crate::sys;
use crate::walls::profile;

/// Most calls refused before others have their turn.
const SLICE: usize = 32;

/// Most calls of one task refused per [`WINDOW`]; further ones wait for the next.
const MOST_PER_WINDOW: u32 = 1000;

/// How often counts are told at most.
const WINDOW: Duration = Duration::from_secs(1);

/// Most pairs of task and call that are counted apart between two reports; beyond it a task's
/// calls are counted as [`OTHERS`]. There are some 60 names that can be denied; a program that
/// tries thousands of numbers is [`UNKNOWN`].
const MOST_COUNTS: usize = 1024;

/// Most pairs in one report, so that it fits a message.
const MOST_TOLD: usize = 512;

/// Longest program name that is told, in characters.
const MAX_PROGRAM: usize = 100;

/// Calls that no profile names.
const UNKNOWN: &str = "unknown";

/// Calls beyond [`MOST_COUNTS`].
const OTHERS: &str = "others";

/// Where the denied calls of one task arrive.
#[derive(Debug)]
pub(crate) struct Denials {
    listener: Option<OwnedFd>,
    window: Instant,
    /// Refused in this window.
    refused: u32,
}

impl Denials {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            listener: None,
            window: now,
            refused: 0,
        }
    }

    /// From now on denied calls arrive here.
    pub(crate) fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
    }

    /// No more will come.
    pub(crate) fn close(&mut self) {
        self.listener = None;
    }

    /// What to wait for, unless this window has had its share.
    pub(crate) fn interest(&self) -> Option<BorrowedFd<'_>> {
        let listener = self.listener.as_ref()?;
        (self.refused < MOST_PER_WINDOW).then(|| listener.as_fd())
    }

    /// When the next window begins, if somebody waits for it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (self.listener.is_some() && self.refused >= MOST_PER_WINDOW).then(|| self.window + WINDOW)
    }

    /// Begins a new window when the old one is over.
    pub(crate) fn turn_window(&mut self, now: Instant) {
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.window = now;
            self.refused = 0;
        }
    }

    /// Refuses and counts a slice of what waits.
    pub(crate) fn refuse(&mut self, who: Option<&CommandView>, counts: &mut Counts, now: Instant) {
        self.turn_window(now);
        for _ in 0..SLICE {
            let Some(listener) = self
                .listener
                .as_ref()
                .filter(|_| self.refused < MOST_PER_WINDOW)
            else {
                return;
            };
            match readiness(listener) {
                flags if flags.contains(PollFlags::IN) => {}
                flags if flags.is_empty() => return,
                // Nobody is left behind this filter.
                _ => return self.close(),
            }
            match sys::next_held_call(listener) {
                Ok(Some(call)) => {
                    sys::refuse_held_call(listener, call);
                    self.refused += 1;
                    counts.add(who, profile::name(call.number).unwrap_or(UNKNOWN));
                }
                Ok(None) => {}
                // Closed, the kernel refuses by itself.
                Err(_) => return self.close(),
            }
        }
    }
}

/// What was denied since it was told last.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    counts: BTreeMap<(Option<CommandId>, &'static str), u64>,
    /// What the commands among them run; they may be forgotten before they are told.
    programs: BTreeMap<CommandId, String>,
    told: Option<Instant>,
}

impl Counts {
    fn add(&mut self, who: Option<&CommandView>, call: &'static str) {
        if let Some(view) = who {
            self.programs
                .entry(view.id)
                .or_insert_with(|| program(view));
        }
        let who = who.map(|view| view.id);
        let is_new = !self.counts.contains_key(&(who, call));
        let call = if is_new && self.counts.len() >= MOST_COUNTS {
            OTHERS
        } else {
            call
        };
        *self.counts.entry((who, call)).or_default() += 1;
    }

    /// When there is something to tell.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let at = || self.told.map_or_else(Instant::now, |told| told + WINDOW);
        (!self.counts.is_empty()).then(at)
    }

    /// What is to be told now: at most once per [`WINDOW`].
    pub(crate) fn report(&mut self, now: Instant) -> Option<Event> {
        let due = self
            .told
            .is_none_or(|at| now.saturating_duration_since(at) >= WINDOW);
        if due { self.rest(now) } else { None }
    }

    /// The same without waiting for the time to come: a part of what was counted, until there is
    /// none. For what is told when nobody listens afterwards.
    pub(crate) fn rest(&mut self, now: Instant) -> Option<Event> {
        if self.counts.is_empty() {
            return None;
        }
        self.told = Some(now);
        let mut denials = Vec::new();
        while denials.len() < MOST_TOLD
            && let Some(((command_id, call), count)) = self.counts.pop_first()
        {
            denials.push(Denial {
                command_id,
                program: command_id.and_then(|id| self.programs.get(&id).cloned()),
                call: call.to_owned(),
                count,
            });
        }
        if self.counts.is_empty() {
            self.programs.clear();
        }
        Some(Event::Denied { denials })
    }
}

fn program(view: &CommandView) -> String {
    let name = view.argv.first().map(String::as_str).unwrap_or_default();
    name.chars().take(MAX_PROGRAM).collect()
}

fn readiness(listener: &OwnedFd) -> PollFlags {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds.first().map_or(PollFlags::empty(), PollFd::revents),
        Err(_) => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> CommandView {
        CommandView {
            id: CommandId::generate(),
            argv: vec!["tracer".into(), "--all".into()],
            label: None,
            terminal: false,
            detach: false,
            network: types::NetworkMode::None,
            state: types::CommandState::Running,
            exit: None,
            started_at: None,
        }
    }

    fn told(event: Option<Event>) -> Vec<Denial> {
        match event {
            None => Vec::new(),
            Some(Event::Denied { denials }) => denials,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flood_is_told_once_per_second_and_none_of_it_is_lost() {
        let begin = Instant::now();
        let mut counts = Counts::default();
        let one = command();
        for _ in 0..5000 {
            counts.add(Some(&one), "ptrace");
        }
        let denial = |who: Option<&CommandView>, call: &str, count| Denial {
            command_id: who.map(|view| view.id),
            program: who.map(|_| "tracer".to_owned()),
            call: call.to_owned(),
            count,
        };
        assert_eq!(
            told(counts.report(begin)),
            [denial(Some(&one), "ptrace", 5000)]
        );
        counts.add(Some(&one), "ptrace");
        assert_eq!(told(counts.report(begin + WINDOW / 2)), []);
        assert_eq!(counts.deadline(), Some(begin + WINDOW));
        counts.add(None, "mount");
        assert_eq!(
            told(counts.report(begin + WINDOW)),
            [denial(None, "mount", 1), denial(Some(&one), "ptrace", 1)]
        );
        assert_eq!(counts.deadline(), None);
    }

    #[test]
    fn names_and_reports_are_bounded() {
        let begin = Instant::now();
        let mut counts = Counts::default();
        let calls = || profile::DENIED.iter().flat_map(|rule| rule.calls);
        let mut added = 0;
        for _ in 0..100 {
            let one = command();
            for (_, name) in calls() {
                counts.add(Some(&one), name);
                added += 1;
            }
        }
        assert!(counts.counts.len() <= MOST_COUNTS + 100);
        let mut seen = 0;
        for second in 0..10 {
            let denials = told(counts.report(begin + second * WINDOW));
            assert!(denials.len() <= MOST_TOLD);
            seen += denials.iter().map(|denial| denial.count).sum::<u64>();
        }
        assert_eq!(seen, added);
    }
}

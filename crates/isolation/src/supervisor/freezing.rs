//! A sandbox that stands still for a moment, so that its files can be copied as they are.
//!
//! It never stays so: the end of the connection that asked, a stop, and a deadline each let
//! it go on, whatever has become of the hypervisor.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use types::CommandId;

use super::connection::{Connection, Mode};
use super::requests;
use super::serve::Supervisor;
use crate::init::Command;
use crate::protocol::{MAX_FREEZE_MS, Refusal, Reply};
use crate::spec::RunnerSpec;

/// How long processes may take to stand still. A write to a slow disk has to end first.
const STILL_WITHIN: Duration = Duration::from_secs(3);

/// Beyond that: how long a first process may take to say how it went.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Commands that may wait for the sandbox to go on.
const MAX_HELD: usize = 128;

/// A freeze that is under way or stands.
#[derive(Debug)]
pub(crate) struct Freeze {
    /// The connection that asked.
    owner: u64,
    /// Who has not answered yet: a runner, or the guest as `None`.
    awaited: BTreeSet<Option<CommandId>>,
    processes: u32,
    limit: Duration,
    answer_by: Instant,
    /// Since when everything stands still.
    since: Option<Instant>,
    /// Commands that begin when it goes on.
    held: Vec<RunnerSpec>,
}

impl Freeze {
    /// When it ends by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(
            self.since
                .map_or(self.answer_by, |since| since + self.limit),
        )
    }
}

impl Supervisor {
    /// Begins to make everything stand still.
    pub(super) fn freeze(
        &mut self,
        number: u64,
        connection: &mut Connection,
        limit_ms: u64,
        now: Instant,
    ) {
        if self.is_stopping() || self.guest.exit.is_some() {
            return connection.refuse(&Refusal::new("stopping", "the sandbox is ending"));
        }
        if self.freeze.is_some() {
            let refusal = Refusal::new("conflict", "somebody else has frozen the sandbox");
            return connection.refuse(&refusal.with_hint("try again in a moment"));
        }
        let order = Command::Freeze(u64::try_from(STILL_WITHIN.as_millis()).unwrap_or_default());
        let mut awaited = BTreeSet::from([None]);
        let mut told = self.guest.command(order);
        for (&id, runner) in &self.runners {
            if runner.task.exit.is_none() {
                // One that is not born yet finds the order once its program runs.
                told &= runner.task.command(order);
                awaited.insert(Some(id));
            }
        }
        connection.mode = Mode::Freezing;
        self.freeze = Some(Freeze {
            owner: number,
            awaited,
            processes: 0,
            limit: Duration::from_millis(limit_ms.min(MAX_FREEZE_MS)),
            answer_by: now + STILL_WITHIN + ANSWER_WITHIN,
            since: None,
            held: Vec::new(),
        });
        if !told {
            self.thaw(now);
            connection.mode = Mode::Requests;
            connection.refuse(&cannot("a process is just ending"));
        }
    }

    /// A first process has answered.
    pub(super) fn hear_frozen(
        &mut self,
        who: Option<CommandId>,
        froze: Result<u32, String>,
        now: Instant,
    ) {
        let Some(freeze) = &mut self.freeze else {
            return;
        };
        freeze.awaited.remove(&who);
        match froze {
            Ok(processes) => {
                freeze.processes += processes;
                self.check_frozen(now);
            }
            Err(reason) => self.give_up_freeze(&reason, now),
        }
    }

    /// Answers whoever asked once everything stands still. What has ended does.
    pub(super) fn check_frozen(&mut self, now: Instant) {
        let runs = |runner: &super::runner::Runner| runner.task.exit.is_none();
        let Some(freeze) = &mut self.freeze else {
            return;
        };
        let (guest, runners) = (&self.guest, &self.runners);
        freeze.awaited.retain(|who| match who {
            None => guest.exit.is_none(),
            Some(id) => runners.get(id).is_some_and(runs),
        });
        if !freeze.awaited.is_empty() || freeze.since.is_some() {
            return;
        }
        freeze.since = Some(now);
        let (owner, processes) = (freeze.owner, freeze.processes);
        if let Some(connection) = self.connections.get_mut(&owner) {
            connection.mode = Mode::Requests;
            connection.say(&Reply::Frozen { processes }, Vec::new());
        }
    }

    /// Lets everything go on when its time is up, or nobody is there who asked.
    pub(super) fn enforce_thaw(&mut self, now: Instant) {
        let Some(freeze) = &self.freeze else {
            return;
        };
        // A guest that died meanwhile may be started again, and would write.
        let died = freeze.since.is_some() && self.guest.exit.is_some();
        if died || !self.connections.contains_key(&freeze.owner) {
            return self.thaw(now);
        }
        if freeze.deadline().is_none_or(|at| at > now) {
            return;
        }
        if freeze.since.is_none() {
            self.give_up_freeze("a process did not stop in time", now);
        } else {
            self.note("the sandbox stood still for too long and goes on");
            self.thaw(now);
        }
    }

    fn give_up_freeze(&mut self, reason: &str, now: Instant) {
        let owner = self.freeze.as_ref().map(|freeze| freeze.owner);
        self.thaw(now);
        let waiting = owner.and_then(|owner| self.connections.get_mut(&owner));
        if let Some(connection) = waiting.filter(|c| c.mode == Mode::Freezing) {
            connection.mode = Mode::Requests;
            connection.refuse(&cannot(reason));
        }
    }

    /// Answers a `thaw`.
    pub(super) fn thaw_for(&mut self, number: u64, now: Instant) -> Reply {
        let since = self
            .freeze
            .as_ref()
            .filter(|freeze| freeze.owner == number)
            .and_then(|freeze| freeze.since);
        let Some(since) = since else {
            return Reply::Thawed {
                held: false,
                frozen_ms: 0,
            };
        };
        // Somebody who exists no more cannot have written, and whoever exists stood still.
        let held = self.guest.exit.is_none();
        self.thaw(now);
        Reply::Thawed {
            held,
            frozen_ms: u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Lets everything go on.
    pub(super) fn thaw(&mut self, now: Instant) {
        let Some(freeze) = self.freeze.take() else {
            return;
        };
        self.guest.command(Command::Thaw);
        for runner in self.runners.values() {
            if runner.task.exit.is_none() {
                runner.task.command(Command::Thaw);
            }
        }
        for spec in freeze.held {
            let id = spec.command_id;
            let Err(refusal) = requests::spawn(self, spec, now) else {
                continue;
            };
            for connection in self.connections.values_mut() {
                if connection.mode == Mode::Spawning(id) {
                    connection.mode = Mode::Requests;
                    connection.refuse(&refusal);
                }
            }
        }
    }

    /// Keeps a command back while the sandbox stands still; gives it back otherwise, and
    /// when too many wait, to be refused in the usual way.
    pub(super) fn hold(&mut self, spec: RunnerSpec) -> Option<RunnerSpec> {
        match &mut self.freeze {
            Some(freeze) if freeze.held.len() < MAX_HELD => {
                freeze.held.push(spec);
                None
            }
            _ => Some(spec),
        }
    }
}

fn cannot(reason: &str) -> Refusal {
    Refusal::new(
        "cannot_freeze",
        format!("the sandbox could not be made to stand still: {reason}"),
    )
    .with_hint("try again; if it stays, stop the sandbox first")
}

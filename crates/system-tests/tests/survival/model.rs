//! What is done, and what may be true afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::Role;

/// Longest time from an order to the kill that cuts it off, in milliseconds. A start of a
/// sandbox takes less, so kills meet every part of it, and what follows.
const CUT_WITHIN: u64 = 140;

/// The same where something is copied, or a sandbox is stopped that takes its time.
const CUT_WITHIN_SLOW: u64 = 900;

/// The same where sandboxes are stopped when nothing happens in them for a second: kills and
/// orders meet such a stop before, in and after it.
const CUT_WITHIN_IDLE: u64 = 1600;

/// How the labels of terminals begin.
const TERMINAL: &str = "terminal";

/// Numbers from a seed (SplitMix64, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn role(&mut self) -> Role {
        Role::ALL[usize::from(self.below(2) == 0)]
    }
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Start(Role),
    Stop(Role),
    Restart(Role),
    Swap,
    /// A command that goes on by itself.
    Service(Role),
    /// A command that is waited for.
    Command(Role),
    /// One that takes longer than the hypervisor that was asked for it may live.
    Long(Role),
    /// A shell, for which its page comes back.
    Terminal(Role),
    Snapshot(Role),
    /// Puts the latest snapshot back, if there is one.
    Restore(Role),
    Clone,
    /// A page that is gone to; it wakes what is stopped.
    Visit(Role),
    /// A restart, to a guest that does not end when it is told to, or to one that does again;
    /// with our own guest a restart and no more.
    Deafen(Role),
}

/// One step of a sequence.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One order, seen through.
    Whole(Operation),
    /// Orders, each after a time of its own, and a kill.
    Cut {
        operations: Vec<(Operation, Duration)>,
        after: Duration,
    },
}

impl Operation {
    fn random(random: &mut Random) -> Self {
        let role = random.role();
        match random.below(22) {
            0..=4 => Self::Start(role),
            5 => Self::Stop(role),
            6 => Self::Restart(role),
            7 | 8 => Self::Swap,
            9 | 10 => Self::Service(role),
            11 => Self::Command(role),
            12 => Self::Long(role),
            13 => Self::Terminal(role),
            14 | 15 => Self::Snapshot(role),
            16 => Self::Restore(role),
            17 => Self::Clone,
            18 | 19 => Self::Visit(role),
            _ => Self::Deafen(role),
        }
    }

    /// What its command is called, if it has one.
    pub(crate) fn label(self, number: &str) -> String {
        match self {
            Self::Terminal(_) => format!("{TERMINAL}{number}"),
            _ => format!("step{number}"),
        }
    }

    /// Whether it is waited for until its end.
    pub(crate) const fn ends(self) -> bool {
        !matches!(self, Self::Long(_))
    }
}

impl Step {
    /// `idles`: where sandboxes are stopped in which nothing happens.
    pub(crate) fn random(random: &mut Random, idles: bool) -> Self {
        if random.below(5) < 3 {
            let operation = Operation::random(random);
            if operation.ends() {
                return Self::Whole(operation);
            }
        }
        let count = 1 + random.below(3);
        let mut operations: Vec<_> = (0..count).map(|_| Operation::random(random)).collect();
        // The test itself writes to a workspace for it, between the orders.
        operations.retain(|operation| !matches!(operation, Operation::Deafen(_)));
        let replaces =
            |operation: &Operation| matches!(operation, Operation::Restore(_) | Operation::Clone);
        // What a replacement does about a sandbox that ran is known; next to other orders
        // about its state nobody can say whether it runs again.
        if operations.iter().any(replaces) {
            operations.retain(|operation| {
                !matches!(
                    operation,
                    Operation::Start(_)
                        | Operation::Stop(_)
                        | Operation::Restart(_)
                        | Operation::Visit(_)
                )
            });
        }
        let slow = operations.iter().any(|operation| {
            matches!(
                operation,
                Operation::Snapshot(_)
                    | Operation::Restore(_)
                    | Operation::Clone
                    | Operation::Stop(_)
            )
        });
        let within = match (idles, slow) {
            (true, _) => CUT_WITHIN_IDLE,
            (false, true) => CUT_WITHIN_SLOW,
            (false, false) => CUT_WITHIN,
        };
        let after = random.below(within);
        let begin = |operation| {
            let begin = if idles { random.below(after + 1) } else { 0 };
            (operation, Duration::from_millis(begin))
        };
        Self::Cut {
            operations: operations.into_iter().map(begin).collect(),
            after: Duration::from_millis(after),
        }
    }
}

/// What may be true of one sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sandbox {
    /// Whether it may run, and whether it may be stopped.
    pub(crate) may_run: bool,
    pub(crate) may_be_stopped: bool,
    /// The start that must still be the present one, if it runs.
    pub(crate) start: Option<String>,
    /// Services of the present start, by label; true: it must be listed and run.
    pub(crate) services: BTreeMap<String, bool>,
}

impl Sandbox {
    /// Nothing may have happened in it for long enough to be stopped. A shell that waits for
    /// somebody does not keep it awake.
    pub(crate) fn may_idle(&mut self) {
        let is_awake = self
            .services
            .iter()
            .any(|(label, required)| *required && !label.starts_with(TERMINAL));
        if !is_awake {
            self.may_be_stopped = true;
            for required in self.services.values_mut() {
                *required = false;
            }
        }
    }
}

/// What may be true of a user's pair.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The sandboxes that were `live` and `dev` at `generation`.
    pub(crate) live: String,
    pub(crate) dev: String,
    pub(crate) generation: u64,
    /// Swaps that may have happened since.
    pub(crate) swaps: u64,
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
}

impl Pair {
    /// The sandboxes that may have a role.
    pub(crate) fn candidates(&self, role: Role) -> BTreeSet<String> {
        let (this, other) = match role {
            Role::Live => (&self.live, &self.dev),
            Role::Dev => (&self.dev, &self.live),
        };
        let mut candidates = BTreeSet::from([this.clone()]);
        if self.swaps > 0 {
            candidates.insert(other.clone());
        }
        candidates
    }

    /// An order was given whose end nobody saw.
    pub(crate) fn may_have(&mut self, operation: Operation, label: &str) {
        let role = match operation {
            Operation::Swap => {
                self.swaps += 1;
                return;
            }
            // Only a source that stands still for a moment, or nothing that is running.
            Operation::Snapshot(_) | Operation::Deafen(_) => return,
            Operation::Clone => Role::Dev,
            Operation::Start(role)
            | Operation::Visit(role)
            | Operation::Stop(role)
            | Operation::Restart(role)
            | Operation::Service(role)
            | Operation::Terminal(role)
            | Operation::Restore(role)
            | Operation::Long(role)
            | Operation::Command(role) => role,
        };
        // With a swap under way at the same time it may have met either.
        let both: BTreeSet<String> = self.candidates(role);
        for id in both {
            let sandbox = self.sandboxes.get_mut(&id).expect("one of the pair");
            match operation {
                Operation::Start(_) | Operation::Visit(_) => {
                    // What runs goes on; what did not may.
                    sandbox.may_run = true;
                    if sandbox.may_be_stopped {
                        sandbox.start = None;
                    }
                }
                // What ran runs again, in another start; what did not does not.
                Operation::Restore(_) | Operation::Clone => {
                    sandbox.start = None;
                    for required in sandbox.services.values_mut() {
                        *required = false;
                    }
                }
                Operation::Stop(_) | Operation::Restart(_) => {
                    sandbox.may_be_stopped = true;
                    sandbox.may_run |= operation == Operation::Restart(role);
                    sandbox.start = None;
                    for required in sandbox.services.values_mut() {
                        *required = false;
                    }
                }
                Operation::Service(_) | Operation::Terminal(_) => {
                    sandbox.services.insert(label.to_owned(), false);
                }
                Operation::Command(_)
                | Operation::Long(_)
                | Operation::Deafen(_)
                | Operation::Snapshot(_)
                | Operation::Swap => {}
            }
        }
    }
}

//! What users should know about their sandboxes: denials, limits, storms, crashes. Kept in
//! memory, bounded, and told to the log and the metrics without a flood.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use types::{NoticeKind, Role, SandboxId, SandboxNotice};

use crate::clock::{Clock, millis, rfc3339};
use crate::http::metrics::Metrics;

/// Different things of one kind kept for one sandbox; the one that is longest ago goes first.
/// Keys may hold what a program chose, such as names it wanted to reach, so that a kind makes
/// room among its own and never at another's expense.
const MAX_OF_KIND: usize = 32;

/// Longest key, message and hint, in characters. What a sandbox caused may be in them.
const MAX_TEXT: usize = 500;

/// The log is told again about the same thing after this long.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// Lines that the log gets about one kind in one sandbox within [`LOG_AGAIN`], however many
/// different things there are; the rest is counted, and told with the next line.
const MAX_LINES: u32 = 8;

/// Notices of all sandboxes.
pub(crate) struct Notices {
    clock: Clock,
    metrics: Arc<Metrics>,
    /// Held only to look up or insert; never across an await. Grows with the sandboxes that
    /// ever had a notice, not with what happens.
    kept: Mutex<HashMap<SandboxId, OfSandbox>>,
    /// Names sandboxes that have a new notice, for those who follow.
    noted: broadcast::Sender<SandboxId>,
}

/// Notices that a slow follower may lag behind by; then it looks at everything again.
const BACKLOG: usize = 64;

#[derive(Default)]
struct OfSandbox {
    /// The latest is the last.
    ring: VecDeque<Kept>,
    lines: HashMap<NoticeKind, Lines>,
}

/// What the log was told about one kind.
#[derive(Default)]
struct Lines {
    since_ms: i64,
    written: u32,
    left_out: u64,
    /// How often something of the kind happened since it was last summed up, and how many of
    /// these times the log was not told of.
    times: u64,
    untold: u64,
}

impl Lines {
    /// Whether there may be a line now, and how many things had none since the last one.
    fn take(&mut self, now: i64) -> Option<u64> {
        if self.written == 0 || now.saturating_sub(self.since_ms) >= millis(LOG_AGAIN) {
            self.since_ms = now;
            self.written = 0;
        }
        if self.written >= MAX_LINES {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

struct Kept {
    kind: NoticeKind,
    key: String,
    message: String,
    hint: Option<String>,
    count: u64,
    first_ms: i64,
    last_ms: i64,
    logged_ms: i64,
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

impl Notices {
    /// None yet.
    pub(crate) fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            kept: Mutex::default(),
            noted: broadcast::Sender::new(BACKLOG),
        }
    }

    /// Something happened once. What has the same kind and key is counted together, with the
    /// latest words.
    pub(crate) fn note(
        &self,
        sandbox: SandboxId,
        kind: NoticeKind,
        key: &str,
        message: &str,
        hint: Option<&str>,
    ) {
        self.note_times(sandbox, kind, key, message, hint, 1);
    }

    /// Something happened that often since it was last told.
    pub(crate) fn note_times(
        &self,
        sandbox: SandboxId,
        kind: NoticeKind,
        key: &str,
        message: &str,
        hint: Option<&str>,
        times: u64,
    ) {
        self.metrics.notices(kind, times);
        let now = self.clock.now_ms();
        let (key, message) = (bounded(key), bounded(message));
        let hint = hint.map(bounded);
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let OfSandbox { ring, lines } = all.entry(sandbox).or_default();
        let before = ring
            .iter()
            .position(|kept| kept.kind == kind && kept.key == key)
            .and_then(|at| ring.remove(at));
        let mut kept = before.unwrap_or(Kept {
            kind,
            key,
            message: String::new(),
            hint: None,
            count: 0,
            first_ms: now,
            last_ms: now,
            logged_ms: i64::MIN,
        });
        kept.count = kept.count.saturating_add(times);
        kept.message = message;
        kept.hint = hint;
        kept.last_ms = now;
        let lines = lines.entry(kind).or_default();
        lines.times = lines.times.saturating_add(times);
        let due = now.saturating_sub(kept.logged_ms) >= millis(LOG_AGAIN);
        let line = due.then(|| lines.take(now)).flatten();
        if line.is_none() {
            lines.untold = lines.untold.saturating_add(times);
        }
        if let Some(left_out) = line {
            kept.logged_ms = now;
            tracing::warn!(
                %sandbox,
                kind = kind.as_str(),
                count = kept.count,
                left_out,
                hint = kept.hint,
                "{}",
                kept.message
            );
        }
        if ring.iter().filter(|one| one.kind == kind).count() >= MAX_OF_KIND
            && let Some(oldest) = ring.iter().position(|one| one.kind == kind)
        {
            ring.remove(oldest);
        }
        ring.push_back(kept);
        drop(all);
        // An error means that nobody follows.
        let _ = self.noted.send(sandbox);
    }

    /// Tells the log how often each kind of thing happened since it was last asked, in a line for
    /// each kind of which it was not told everything. A flood that ends would otherwise leave no
    /// true number behind.
    pub(crate) fn sum_up(&self, sandbox: SandboxId) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_sandbox) = all.get_mut(&sandbox) else {
            return;
        };
        for (kind, lines) in &mut of_sandbox.lines {
            let (times, untold) = (
                std::mem::take(&mut lines.times),
                std::mem::take(&mut lines.untold),
            );
            if untold == 0 {
                continue;
            }
            lines.left_out = 0;
            tracing::warn!(
                %sandbox,
                kind = kind.as_str(),
                count = times,
                untold,
                "all that the sandbox met of this kind until its guest ended"
            );
        }
    }

    /// Names sandboxes as they get notices.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<SandboxId> {
        self.noted.subscribe()
    }

    /// What is known about a sandbox, the latest first.
    pub(crate) fn of(&self, sandbox: SandboxId, role: Role) -> Vec<SandboxNotice> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&sandbox)
            .into_iter()
            .flat_map(|of| &of.ring)
            .rev()
            .map(|kept| SandboxNotice {
                kind: kept.kind,
                role,
                message: kept.message.clone(),
                hint: kept.hint.clone(),
                count: kept.count,
                first_at: rfc3339(kept.first_ms),
                last_at: rfc3339(kept.last_ms),
            })
            .collect()
    }
}

/// Without control characters, and not longer than allowed.
fn bounded(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{LOG_AGAIN, MAX_LINES, MAX_OF_KIND, MAX_TEXT, Notices};
    use crate::clock::Clock;
    use crate::http::metrics::Metrics;
    use types::{NoticeKind, Role, SandboxId};

    fn notices() -> (Notices, Clock, Arc<Metrics>) {
        let clock = Clock::fixed(1_000);
        let metrics = Arc::new(Metrics::new());
        (
            Notices::new(clock.clone(), Arc::clone(&metrics)),
            clock,
            metrics,
        )
    }

    #[test]
    fn what_repeats_is_counted_and_comes_first() {
        let (notices, clock, metrics) = notices();
        let sandbox = SandboxId::generate();
        notices.note(sandbox, NoticeKind::Quota, "memory", "first words", None);
        notices.note(sandbox, NoticeKind::Crash, "guest", "it crashed", None);
        clock.advance(Duration::from_secs(5));
        notices.note_times(
            sandbox,
            NoticeKind::Quota,
            "memory",
            "later words",
            Some("do this"),
            3,
        );
        let seen = notices.of(sandbox, Role::Dev);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].count, 4);
        assert_eq!(seen[0].message, "later words");
        assert_eq!(seen[0].hint.as_deref(), Some("do this"));
        assert_eq!(seen[0].role, Role::Dev);
        assert!(seen[0].first_at < seen[0].last_at);
        assert!(
            metrics
                .text()
                .contains("choir_sandbox_notices_total{kind=\"quota\"} 4")
        );
        assert!(
            notices.of(SandboxId::generate(), Role::Live).is_empty(),
            "another sandbox's are nobody else's"
        );
    }

    #[test]
    fn a_sandbox_cannot_fill_the_memory() {
        let (notices, _, _) = notices();
        let sandbox = SandboxId::generate();
        for number in 0..10 * MAX_OF_KIND {
            let key = format!("{number}");
            notices.note(
                sandbox,
                NoticeKind::NetworkDenied,
                &key,
                &"long\n".repeat(1000),
                None,
            );
        }
        let seen = notices.of(sandbox, Role::Live);
        assert_eq!(seen.len(), MAX_OF_KIND);
        assert!(
            seen.iter()
                .all(|notice| notice.message.len() <= MAX_TEXT && !notice.message.contains('\n'))
        );
    }

    #[test]
    fn a_kind_that_cycles_through_names_evicts_no_other_kind_and_does_not_flood_the_log() {
        let (notices, clock, _) = notices();
        let sandbox = SandboxId::generate();
        notices.note(sandbox, NoticeKind::Quota, "memory", "a limit", None);
        notices.note(sandbox, NoticeKind::SyscallDenied, "ptrace", "a call", None);
        let cycle = |minutes: u32| {
            for number in 0..1000 {
                let key = format!("{number}.example.com {minutes}");
                notices.note(sandbox, NoticeKind::NetworkDenied, &key, "refused", None);
            }
        };
        cycle(0);
        let seen = notices.of(sandbox, Role::Live);
        assert_eq!(seen.len(), MAX_OF_KIND + 2);
        for kind in [NoticeKind::Quota, NoticeKind::SyscallDenied] {
            assert!(seen.iter().any(|one| one.kind == kind), "{seen:?}");
        }
        let lines = || {
            let all = notices.kept.lock().unwrap();
            let lines = &all[&sandbox].lines[&NoticeKind::NetworkDenied];
            (lines.written, lines.left_out)
        };
        assert_eq!(lines(), (MAX_LINES, 1000 - u64::from(MAX_LINES)));
        clock.advance(LOG_AGAIN);
        notices.note(sandbox, NoticeKind::NetworkDenied, "one", "refused", None);
        assert_eq!(lines(), (1, 0), "what had no line is told with the next");
        let numbers = || {
            let all = notices.kept.lock().unwrap();
            let lines = &all[&sandbox].lines[&NoticeKind::NetworkDenied];
            (lines.times, lines.untold)
        };
        assert_eq!(numbers(), (1001, 1000 - u64::from(MAX_LINES)));
        notices.sum_up(sandbox);
        assert_eq!(numbers(), (0, 0));
    }
}

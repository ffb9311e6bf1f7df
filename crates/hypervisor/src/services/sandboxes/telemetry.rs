//! Turns what supervisors tell about their sandboxes into notices and metrics.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use runtime::Instance;
use runtime::protocol::{Denial, Event};
use tokio::sync::broadcast::error::RecvError;
use types::{NoticeKind, SandboxId};

use super::limits;
use super::plane::Plane;

/// Different calls of one start that get a notice of their own. What a program tries is its own
/// choice, and must not push the other notices of its sandbox out.
const MOST_CALLS: usize = 16;

/// How long a guest that is being stopped may take to end; its supervisor tells what it counted
/// until then. Longer than a sandbox is given to be taken down.
const LAST_WORDS: Duration = Duration::from_secs(90);

/// Follows what the supervisor of this start tells, until its end.
pub(super) fn follow(plane: Arc<Plane>, instance: &Arc<Instance>) {
    let mut events = instance.events();
    let (sandbox, ended) = (instance.sandbox_id, instance.ended().clone());
    tokio::spawn(async move {
        let mut named = BTreeSet::new();
        let over = async {
            ended.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let mut over = std::pin::pin!(over);
        loop {
            let event = tokio::select! {
                // How a start ended is told before that it did.
                biased;
                event = events.recv() => event,
                () = &mut over => break,
            };
            match event {
                Ok(Event::Denied { denials }) => {
                    denied(&plane, sandbox, denials, &mut named);
                }
                Ok(Event::RunnerExited { exit, .. }) => {
                    limits::tell(&plane.notices, sandbox, "a command", &exit);
                }
                Ok(Event::Disk { bytes, over, .. }) => {
                    limits::tell_disk(&plane.notices, sandbox, bytes, over);
                }
                Ok(Event::GuestExited { exit }) => {
                    limits::tell(&plane.notices, sandbox, "the guest runtime", &exit);
                    break;
                }
                Err(RecvError::Lagged(lost)) => lagged(&plane, sandbox, lost),
                Err(RecvError::Closed) => break,
            }
        }
        plane.notices.sum_up(sandbox);
        plane.networks.sum_up(&plane, sandbox).await;
    });
}

/// Reports went by while this task had no turn. What they counted is not known any more; that
/// they were there is.
fn lagged(plane: &Plane, sandbox: SandboxId, lost: u64) {
    plane.notices.note_times(
        sandbox,
        NoticeKind::Other,
        "telemetry lost",
        "Reports of denied calls or limits came faster than they could be read; their numbers are missing.",
        Some("Many commands end at once; start fewer of them at a time."),
        lost,
    );
}

fn denied(
    plane: &Plane,
    sandbox: SandboxId,
    denials: Vec<Denial>,
    named: &mut BTreeSet<(&'static str, &'static str)>,
) {
    for denial in denials {
        let (call, reason) = runtime::describe_call(&denial.call).unwrap_or(UNNAMED);
        let (kind, who) = match denial.command_id {
            None => ("guest", "The guest runtime".to_owned()),
            Some(id) => {
                let program = denial.program.as_deref().unwrap_or("a program");
                ("command", format!("`{program}` (command {id})"))
            }
        };
        plane.metrics.denied_calls(kind, call, denial.count);
        let known = named.contains(&(kind, call)) || named.len() < MOST_CALLS;
        let key = if known {
            named.insert((kind, call));
            format!("{kind} {call}")
        } else {
            format!("{kind} others")
        };
        let message = format!("{who} was denied the system call {call}.");
        let hint = format!(
            "The walls around every sandbox leave it out ({reason}); a program that can do without \
             goes on."
        );
        plane.notices.note_times(
            sandbox,
            NoticeKind::SyscallDenied,
            &key,
            &message,
            Some(&hint),
            denial.count,
        );
    }
}

/// What is told about a call that no profile names.
const UNNAMED: (&str, &str) = ("unknown", "no program of today needs it");

//! Turns what supervisors tell about their sandboxes into notices and metrics.

use std::collections::BTreeSet;
use std::sync::Arc;

use runtime::Instance;
use runtime::protocol::{Denial, Event};
use tokio::sync::broadcast::error::RecvError;
use types::NoticeKind;

use super::plane::Plane;

/// Different calls of one start that get a notice of their own. What a program tries is its own
/// choice, and must not push the other notices of its sandbox out.
const MOST_CALLS: usize = 16;

/// Longest program name that a notice repeats, in characters.
const MAX_PROGRAM: usize = 100;

/// Follows what the supervisor of this start tells, until its end.
pub(super) fn follow(plane: Arc<Plane>, instance: &Arc<Instance>) {
    let mut events = instance.events();
    let instance = Arc::clone(instance);
    tokio::spawn(async move {
        let ended = instance.ended().clone();
        let mut named = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = ended.cancelled() => return,
            };
            match event {
                Ok(Event::Denied { denials }) => {
                    denied(&plane, &instance, denials, &mut named).await;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
}

async fn denied(
    plane: &Plane,
    instance: &Instance,
    denials: Vec<Denial>,
    named: &mut BTreeSet<(&'static str, &'static str)>,
) {
    // Whose names they are is worth a question to the supervisor; without an answer the id says it.
    let runners = instance.runners().await.unwrap_or_default();
    for denial in denials {
        let (call, reason) = runtime::describe_call(&denial.call).unwrap_or(UNNAMED);
        let (kind, who) = match denial.command_id {
            None => ("guest", "The guest runtime".to_owned()),
            Some(id) => {
                let program = runners
                    .iter()
                    .find(|runner| runner.view.id == id)
                    .and_then(|runner| runner.view.argv.first())
                    .map(|name| name.chars().take(MAX_PROGRAM).collect::<String>());
                let who = program.map_or_else(
                    || format!("Command {id}"),
                    |program| format!("`{program}` (command {id})"),
                );
                ("command", who)
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
            instance.sandbox_id,
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

//! Denied system calls are told to whoever watches, without a flood.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isolation::protocol::{Denial, Event, Message, Request};
use types::CommandId;

use crate::harness::{Client, DRILL, Sandbox, runner};

const IDLE: &[&str] = &["/bin/sleep", "1000"];

type Totals = BTreeMap<(Option<CommandId>, String), u64>;

fn watch(sandbox: &Sandbox) -> Client {
    let mut watcher = sandbox.connect();
    watcher.send(&Request::Watch {});
    watcher
}

/// Adds up what a watcher is told until `enough`; and how often it was told.
fn totals(watcher: &mut Client, enough: impl Fn(&Totals) -> bool) -> (Totals, usize) {
    let (mut totals, mut reports) = (Totals::new(), 0);
    while !enough(&totals) {
        if let Message::Event(Event::Denied { denials }) = watcher.message() {
            reports += 1;
            for Denial {
                command_id,
                call,
                count,
                ..
            } in denials
            {
                *totals.entry((command_id, call)).or_default() += count;
            }
        }
    }
    (totals, reports)
}

#[test]
fn denied_calls_are_told_with_who_what_and_how_often() {
    let sandbox = Sandbox::start(&[DRILL, "--flood", "3"]);
    let mut watcher = watch(&sandbox);
    let spec = runner(&[DRILL, "--only", "ptrace_traceme"]);
    let id = spec.command_id;
    sandbox.run(spec);
    let (totals, _) = totals(&mut watcher, |totals| totals.len() >= 2);
    assert_eq!(totals[&(None, "keyctl".to_owned())], 3);
    assert_eq!(totals[&(Some(id), "ptrace".to_owned())], 1);
    assert_eq!(totals.len(), 2, "{totals:?}");
}

/// Nobody listens while the hypervisor is away; what was counted is told when it is back.
#[test]
fn what_nobody_listened_to_is_told_later() {
    let sandbox = Sandbox::start(IDLE);
    let spec = runner(&[DRILL, "--flood", "7"]);
    let id = spec.command_id;
    assert_eq!(sandbox.run(spec).stdout, "7 refused\n");
    let (totals, _) = totals(&mut watch(&sandbox), |totals| !totals.is_empty());
    assert_eq!(totals[&(Some(id), "keyctl".to_owned())], 7);
}

/// A flood is slowed down and counted, and leaves the supervisor free for others.
#[test]
fn a_flood_of_denied_calls_harms_nobody_else() {
    const FLOODS: [u64; 4] = [4000, 500, 500, 500];
    let sandbox = Sandbox::start(IDLE);
    let mut watcher = watch(&sandbox);
    let begin = Instant::now();
    let mut floods = Vec::new();
    for flood in FLOODS {
        let mut client = sandbox.connect();
        let id = client.spawn(runner(&[DRILL, "--flood", &flood.to_string()]));
        client.attach(id, 0);
        floods.push((client, id, flood));
    }
    // Meanwhile another command is denied something and goes on.
    let other = sandbox.run(runner(&[DRILL, "--flood", "5"]));
    assert_eq!(other.stdout, "5 refused\n");
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "a neighbour waited {:?}",
        begin.elapsed()
    );
    for (client, _, flood) in &mut floods {
        assert_eq!(client.collect().stdout, format!("{flood} refused\n"));
    }
    // 1000 in each second, so the fourth one is needed.
    assert!(
        begin.elapsed() > Duration::from_millis(2900),
        "not slowed down"
    );
    let all = FLOODS.iter().sum::<u64>() + 5;
    let (totals, reports) = totals(&mut watcher, |totals| totals.values().sum::<u64>() >= all);
    assert_eq!(totals.values().sum::<u64>(), all);
    assert!(reports < 15, "told {reports} times");
    for (_, id, flood) in floods {
        assert_eq!(totals[&(Some(id), "keyctl".to_owned())], flood);
    }
}

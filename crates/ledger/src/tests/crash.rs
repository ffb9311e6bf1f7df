//! `kill -9` in the middle of appends.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::{HELPER_DIR, open, options, record};
use crate::{Ledger, verify};

/// Runs in a process of its own: appends without end, in groups, and prints each record's
/// number once it was acknowledged. Does nothing in an ordinary test run.
#[test]
fn helper_that_appends_until_it_is_killed() {
    let Some(dir) = env::var_os(HELPER_DIR) else {
        return;
    };
    let ledger = Ledger::open(&dir, options(20_000)).unwrap();
    let mut out = std::io::stdout();
    loop {
        let tickets: Vec<_> = (0..20).map(|_| ledger.append(&record("act"))).collect();
        for ticket in tickets {
            writeln!(out, "acknowledged {}", ticket.wait().unwrap().seq).unwrap();
        }
    }
}

#[test]
fn a_killed_writer_keeps_every_acknowledged_record() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("audit");
    let mut acknowledged = 0;
    for round in 0..8 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::crash::helper_that_appends_until_it_is_killed",
                "--nocapture",
            ])
            .env(HELPER_DIR, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Another place in the stream of appends in each round.
        let enough = acknowledged + 50 + round * 37;
        let mut number = |line: String| {
            if let Some(seq) = line.rsplit_once("acknowledged ") {
                acknowledged = seq.1.parse().unwrap_or(acknowledged);
            }
            acknowledged
        };
        for line in lines.by_ref() {
            if number(line.unwrap()) >= enough {
                break;
            }
        }
        child.kill().unwrap();
        // What it said before it died counts as well; a last line may be torn.
        for line in lines.map_while(Result::ok) {
            number(line);
        }
        child.wait().unwrap();
        let report = verify(&dir).unwrap();
        assert!(report.ok, "round {round}: {}", report.summary());
        let ledger = open(&dir);
        assert!(
            ledger.head().seq >= acknowledged,
            "{} < {acknowledged}",
            ledger.head().seq
        );
        drop(ledger);
        assert!(verify(&dir).unwrap().ok);
    }
    assert!(acknowledged > 400);
}

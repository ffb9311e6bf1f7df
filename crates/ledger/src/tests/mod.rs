//! The log as a whole, on real files.

mod append;
mod crash;
mod disk;
mod read;
mod tamper;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;
use types::{UserId, UserName};

use crate::{Actor, Channel, Ledger, Options, Outcome, Record, User};

/// An environment variable that makes a helper test do its part in a process of its own.
const HELPER_DIR: &str = "LEDGER_TEST_DIR";

fn record(action: &str) -> Record {
    Record::new(
        Timestamp::UNIX_EPOCH,
        Actor::Internal,
        Channel::Internal,
        action,
        Outcome::Succeeded,
    )
}

fn by_user(name: &str, action: &str) -> Record {
    let name: UserName = name.parse().unwrap();
    let mut record = record(action);
    record.actor = Actor::User(User::new(UserId::generate(), &name));
    record
}

/// Bounds that no test reaches by accident, and one that lets segments change often.
fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        deadline: Duration::from_secs(60),
        ..Options::default()
    }
}

fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, options(64 * 1024 * 1024)).unwrap()
}

/// A log with records `act.1` … `act.n`, closed.
fn log_of(count: u64, segment_bytes: u64) -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("audit");
    let ledger = Ledger::open(&dir, options(segment_bytes)).unwrap();
    for number in 1..=count {
        // One by one, so that each is a group of its own.
        ledger
            .append(&record(&format!("act.{number}")))
            .wait()
            .unwrap();
    }
    (temp, dir)
}

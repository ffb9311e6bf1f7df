use std::fs;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use super::{log_of, open, options, record};
use crate::{AppendError, Health, Ledger, OpenError, Options, RecordError, segment, verify};

#[test]
fn what_was_acknowledged_is_in_the_files() {
    let (_temp, dir) = log_of(3, u64::MAX);
    let report = verify(&dir).unwrap();
    assert!(report.ok, "{}", report.summary());
    assert_eq!(
        (report.records, report.first_seq, report.last_seq),
        (3, Some(1), Some(3))
    );
    let entries = crate::Reader::new(&dir)
        .tail(10, &crate::Filter::default())
        .unwrap();
    let actions: Vec<_> = entries
        .iter()
        .map(|entry| entry.record.action.as_str())
        .collect();
    assert_eq!(actions, ["act.1", "act.2", "act.3"]);
    assert_eq!(entries[2].hash, report.head);
}

#[test]
fn an_empty_log_is_a_whole_log() {
    let (_temp, dir) = log_of(0, u64::MAX);
    let report = verify(&dir).unwrap();
    assert!(report.ok);
    assert_eq!(
        (report.records, report.first_seq, report.last_seq),
        (0, None, None)
    );
    assert_eq!(open(&dir).head().seq, 0);
}

#[test]
fn a_reopened_log_goes_on_where_it_ended() {
    let (_temp, dir) = log_of(2, u64::MAX);
    let before = verify(&dir).unwrap();
    let ledger = open(&dir);
    assert_eq!((ledger.head().seq, ledger.head().hash), (2, before.head));
    assert_eq!(Some(ledger.id()), before.log);
    assert_eq!(ledger.append(&record("act.3")).wait().unwrap().seq, 3);
    drop(ledger);
    assert!(verify(&dir).unwrap().ok);
}

#[test]
fn segments_change_and_the_chain_goes_on() {
    let (_temp, dir) = log_of(20, 500);
    let report = verify(&dir).unwrap();
    assert!(report.ok, "{}", report.summary());
    assert_eq!(report.records, 20);
    assert!(report.segments > 3, "{}", report.segments);
    let ledger = Ledger::open(&dir, options(500)).unwrap();
    assert_eq!(ledger.append(&record("act.21")).wait().unwrap().seq, 21);
}

#[test]
fn a_log_that_was_closed_right_after_a_segment_change_opens() {
    let (_temp, dir) = log_of(5, u64::MAX);
    let head = verify(&dir).unwrap();
    let header = segment::Header {
        log: head.log.unwrap(),
        index: 2,
        first_seq: 6,
        previous: head.head,
    };
    fs::write(segment::path(&dir, 2), header.encode().0).unwrap();
    let ledger = open(&dir);
    assert_eq!((ledger.head().seq, ledger.head().hash), (5, head.head));
    drop(ledger);
    let report = verify(&dir).unwrap();
    assert!(report.ok, "{}", report.summary());
    assert_eq!(open(&dir).append(&record("act.6")).wait().unwrap().seq, 6);
    assert!(verify(&dir).unwrap().ok);
}

#[test]
fn a_second_writer_is_refused() {
    let (_temp, dir) = log_of(1, u64::MAX);
    let first = open(&dir);
    assert!(matches!(
        Ledger::open(&dir, options(500)),
        Err(OpenError::Locked { .. })
    ));
    drop(first);
    open(&dir);
}

#[test]
fn concurrent_appenders_get_numbers_without_gaps() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(temp.path(), options(10_000)).unwrap();
    let mut numbers: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let ledger = ledger.clone();
                scope.spawn(move || {
                    let tickets: Vec<_> = (0..50)
                        .map(|n| ledger.append(&record(&format!("act.{worker}.{n}"))))
                        .collect();
                    let numbers: Vec<_> = tickets
                        .into_iter()
                        .map(|ticket| ticket.wait().unwrap().seq)
                        .collect();
                    assert!(numbers.is_sorted(), "in the order of the calls");
                    numbers
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=400).collect::<Vec<_>>());
    assert_eq!(ledger.head().seq, 400);
    assert!(verify(temp.path()).unwrap().ok);
}

#[test]
fn a_ticket_is_a_future_that_wakes_its_task() {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (_temp, dir) = log_of(0, u64::MAX);
    let ledger = open(&dir);
    let mut ticket = Box::pin(ledger.append(&record("act")));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let receipt = loop {
        match ticket.as_mut().poll(&mut context) {
            Poll::Ready(answer) => break answer.unwrap(),
            Poll::Pending => thread::park(),
        }
    };
    assert_eq!((receipt.seq, receipt.hash), (1, ledger.head().hash));
}

#[test]
fn followers_are_told_of_each_group() {
    let temp = tempfile::tempdir().unwrap();
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let on_commit = Box::new(move |head| {
        let _ = sender.lock().unwrap().send(head);
    });
    let ledger = Ledger::open(
        temp.path(),
        Options {
            on_commit: Some(on_commit),
            ..options(500)
        },
    )
    .unwrap();
    let receipt = ledger.append(&record("act")).wait().unwrap();
    let head = receiver.recv().unwrap();
    assert_eq!((head.seq, head.hash), (receipt.seq, receipt.hash));
}

#[test]
fn a_record_beyond_its_bounds_is_refused_and_the_log_goes_on() {
    let (_temp, dir) = log_of(0, u64::MAX);
    let ledger = open(&dir);
    let refused = ledger.append(&record(&"x".repeat(100))).wait().unwrap_err();
    assert!(matches!(
        refused,
        AppendError::Record(RecordError::TooLong {
            field: "action",
            ..
        })
    ));
    assert_eq!(ledger.append(&record("act")).wait().unwrap().seq, 1);
}

fn assert_noticed(meddle: impl FnOnce(&std::path::Path), expected: &str) {
    let (_temp, dir) = log_of(2, u64::MAX);
    let ledger = open(&dir);
    meddle(&dir);
    let error = ledger.append(&record("act.3")).wait().unwrap_err();
    assert!(
        matches!(&error, AppendError::Broken(why) if why.contains(expected)),
        "{error}"
    );
    assert!(matches!(ledger.health(), Health::Broken(_)));
    let again = ledger.append(&record("act.4")).wait().unwrap_err();
    assert!(matches!(again, AppendError::Broken(_)));
    assert_eq!(ledger.head().seq, 2);
}

#[test]
fn a_deleted_segment_is_noticed_at_the_next_append() {
    assert_noticed(
        |dir| fs::remove_file(segment::path(dir, 1)).unwrap(),
        "was deleted",
    );
}

#[test]
fn a_replaced_segment_is_noticed_at_the_next_append() {
    assert_noticed(
        |dir| {
            let path = segment::path(dir, 1);
            let copy = dir.join("copy");
            fs::copy(&path, &copy).unwrap();
            fs::rename(copy, path).unwrap();
        },
        "was replaced",
    );
}

#[test]
fn a_segment_that_somebody_else_cut_is_noticed_at_the_next_append() {
    assert_noticed(
        |dir| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(segment::path(dir, 1))
                .unwrap();
            file.set_len(200).unwrap();
        },
        "somebody else changed the segment",
    );
}

#[test]
fn a_deleted_head_is_noticed_at_the_next_append() {
    assert_noticed(
        |dir| fs::remove_file(dir.join("head")).unwrap(),
        "was deleted",
    );
}

#[test]
fn a_moved_directory_is_noticed_at_the_next_append() {
    assert_noticed(
        |dir| fs::rename(dir, dir.with_extension("away")).unwrap(),
        "was deleted",
    );
}

#[test]
fn impossible_options_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let zero = Options {
        queue_records: 0,
        ..Options::default()
    };
    assert!(matches!(
        Ledger::open(temp.path(), zero),
        Err(OpenError::Options("queue_records"))
    ));
    let zero = Options {
        deadline: Duration::ZERO,
        ..Options::default()
    };
    assert!(matches!(
        Ledger::open(temp.path(), zero),
        Err(OpenError::Options("deadline"))
    ));
}

#[test]
fn only_the_owner_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_temp, dir) = log_of(1, u64::MAX);
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for file in fs::read_dir(&dir).unwrap() {
        assert_eq!(
            file.unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

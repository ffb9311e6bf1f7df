use std::fs;

use jiff::Timestamp;
use types::SandboxId;

use super::{by_user, log_of, open, options, record};
use crate::{Entry, Filter, Ledger, Outcome, ReadError, Reader, encoding, frame, segment};

fn numbers(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}

#[test]
fn the_tail_reaches_over_segments() {
    let (_temp, dir) = log_of(20, 500);
    let reader = Reader::new(&dir);
    assert_eq!(
        numbers(&reader.tail(7, &Filter::default()).unwrap()),
        (14..=20).collect::<Vec<_>>()
    );
    assert!(reader.tail(0, &Filter::default()).unwrap().is_empty());
    assert_eq!(
        reader.tail(usize::MAX, &Filter::default()).unwrap().len(),
        20
    );
}

#[test]
fn reading_begins_at_any_record() {
    let (_temp, dir) = log_of(20, 500);
    for from in 0..=20 {
        let entries: Vec<_> = Reader::new(&dir)
            .from(from)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(numbers(&entries), (from.max(1)..=20).collect::<Vec<_>>());
    }
    assert_eq!(Reader::new(&dir).from(21).unwrap().count(), 0);
}

#[test]
fn a_follower_sees_what_is_appended_later_also_in_later_segments() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(temp.path(), options(400)).unwrap();
    let mut entries = ledger.reader().from(1).unwrap();
    assert!(entries.next().is_none());
    for seq in 1..=10 {
        ledger.append(&record("act")).wait().unwrap();
        assert_eq!(entries.next().unwrap().unwrap().seq, seq);
        assert!(entries.next().is_none());
    }
    assert!(segment::list(temp.path()).unwrap().len() > 2);
}

#[test]
fn what_was_not_acknowledged_is_not_read() {
    let (_temp, dir) = log_of(3, u64::MAX);
    let ledger = open(&dir);
    // A whole frame that a failed group left behind, and that the writer will write over.
    let path = segment::path(&dir, 1);
    let whole = fs::read(&path).unwrap();
    let mut longer = whole.clone();
    let payload = encoding::encode(&record("never")).unwrap();
    frame::write(&mut longer, 4, ledger.head().hash, &payload);
    fs::write(&path, &longer).unwrap();
    assert_eq!(
        Reader::new(&dir).tail(9, &Filter::default()).unwrap().len(),
        4
    );
    let mut entries = ledger.reader().from(2).unwrap();
    assert_eq!(
        numbers(&entries.by_ref().map(Result::unwrap).collect::<Vec<_>>()),
        [2, 3]
    );
    assert_eq!(
        ledger.reader().tail(9, &Filter::default()).unwrap().len(),
        3
    );
    fs::write(&path, &whole).unwrap();
    ledger.append(&record("act.4")).wait().unwrap();
    assert_eq!(entries.next().unwrap().unwrap().record.action, "act.4");
}

#[test]
fn waiting_for_a_record_that_is_not_there_yet_ends_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(temp.path(), options(400)).unwrap();
    let mut entries = ledger.reader().from(8).unwrap();
    for seq in 1..=9 {
        assert!(entries.next().is_none(), "before {seq}");
        ledger.append(&record("act")).wait().unwrap();
        if seq >= 8 {
            assert_eq!(entries.next().unwrap().unwrap().seq, seq);
        }
    }
}

#[test]
fn filters_choose() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = open(temp.path());
    let sandbox = SandboxId::generate();
    let mut late = by_user("bob", "auth.logout");
    late.at = Timestamp::from_second(1000).unwrap();
    late.outcome = Outcome::Denied;
    for record in [
        by_user("alice", "auth.login"),
        by_user("bob", "sandbox.start").in_sandbox(sandbox, None),
        late,
    ] {
        ledger.append(&record).wait().unwrap();
    }
    let tail = |filter: Filter| numbers(&ledger.reader().tail(10, &filter).unwrap());
    let all = Filter::default();
    assert_eq!(
        tail(Filter {
            user: Some("bob".to_owned()),
            ..all.clone()
        }),
        [2, 3]
    );
    assert_eq!(
        tail(Filter {
            action: Some("auth.".to_owned()),
            ..all.clone()
        }),
        [1, 3]
    );
    assert_eq!(
        tail(Filter {
            outcome: Some(Outcome::Denied),
            ..all.clone()
        }),
        [3]
    );
    assert_eq!(
        tail(Filter {
            sandbox: Some(sandbox),
            ..all.clone()
        }),
        [2]
    );
    let since = Some(Timestamp::from_second(999).unwrap());
    assert_eq!(tail(Filter { since, ..all }), [3]);
}

#[test]
fn a_fault_ends_reading_with_its_number() {
    let (_temp, dir) = log_of(4, u64::MAX);
    let path = segment::path(&dir, 1);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut entries = Reader::new(&dir).from(3).unwrap();
    assert_eq!(entries.next().unwrap().unwrap().seq, 3);
    assert!(matches!(
        entries.next(),
        Some(Err(ReadError::Fault { seq: 4, .. }))
    ));
    assert!(entries.next().is_none());
}

#[test]
fn no_log_is_an_error_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    assert!(matches!(
        crate::verify(temp.path()),
        Err(ReadError::Missing { .. })
    ));
    assert!(matches!(
        crate::verify(&temp.path().join("no")),
        Err(ReadError::Missing { .. })
    ));
    assert!(matches!(
        Reader::new(temp.path()).from(1),
        Err(ReadError::Missing { .. })
    ));
}

#[test]
fn an_entry_is_one_flat_json_object() {
    let (_temp, dir) = log_of(1, u64::MAX);
    let entries = Reader::new(&dir).tail(1, &Filter::default()).unwrap();
    let json = serde_json::to_value(&entries[0]).unwrap();
    assert_eq!(json["seq"], 1);
    assert_eq!(json["action"], "act.1");
    assert_eq!(json["actor"]["kind"], "internal");
    assert_eq!(json["at"], "1970-01-01T00:00:00Z");
    assert_eq!(serde_json::from_value::<Entry>(json).unwrap(), entries[0]);
}

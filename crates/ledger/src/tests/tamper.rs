//! Each way to change a log unnoticed, and the record number under which it is noticed.

use std::fs;
use std::ops::Range;
use std::path::Path;

use crypto::Digest;

use super::{log_of, open, options, record};
use crate::segment::{self, HEADER, Header};
use crate::{FaultKind, Ledger, OpenError, frame, verify};

/// Where each frame of the first segment stands.
fn frames(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() {
        let end = at + frame::length(&bytes[at..]).unwrap();
        ranges.push(at..end);
        at = end;
    }
    ranges
}

fn edit(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = segment::path(dir, 1);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The verifier names the fault, and the log does not open and is left as it is.
#[track_caller]
fn assert_fault(dir: &Path, seq: u64, kind: FaultKind) {
    let before = fs::read(segment::path(dir, 1)).ok();
    let report = verify(dir).unwrap();
    let fault = report.fault.clone().expect("a fault");
    assert!(!report.ok);
    assert_eq!((fault.seq, fault.kind), (seq, kind), "{fault}");
    assert_eq!(report.records, seq - 1);
    match Ledger::open(dir, options(u64::MAX)) {
        Err(OpenError::Fault { report: found, .. }) => assert_eq!(*found, report),
        other => panic!("opened: {other:?}"),
    }
    assert_eq!(fs::read(segment::path(dir, 1)).ok(), before);
}

/// Writes the frames from `index` on anew, so that each has a right hash and continues the
/// one before.
fn recompute(bytes: &mut Vec<u8>, index: usize, change: impl FnOnce(&mut Vec<u8>)) {
    let ranges = frames(bytes);
    let mut previous = Digest::from_bytes(bytes[ranges[index].start..][12..44].try_into().unwrap());
    let payloads: Vec<Vec<u8>> = ranges
        .iter()
        .map(|range| bytes[range.start + 44..range.end - 32].to_vec())
        .collect();
    let mut payloads = payloads[index..].to_vec();
    change(&mut payloads[0]);
    bytes.truncate(ranges[index].start);
    for (payload, seq) in payloads.iter().zip(index as u64 + 1..) {
        previous = frame::write(bytes, seq, previous, payload);
    }
}

#[test]
fn one_byte_flipped_anywhere_names_its_record() {
    let (_temp, dir) = log_of(4, u64::MAX);
    let original = fs::read(segment::path(&dir, 1)).unwrap();
    for (range, seq) in frames(&original).into_iter().zip(1..) {
        for at in range {
            edit(&dir, |bytes| bytes[at] ^= 0x10);
            let report = verify(&dir).unwrap();
            let fault = report.fault.expect("a fault");
            assert_eq!(fault.seq, seq, "byte {at}: {fault}");
            // A changed length may reach beyond the end of the file.
            assert!(
                matches!(fault.kind, FaultKind::Changed | FaultKind::Cut),
                "byte {at}: {fault}"
            );
            fs::write(segment::path(&dir, 1), &original).unwrap();
        }
    }
    assert!(verify(&dir).unwrap().ok);
}

#[test]
fn a_flipped_byte_keeps_the_log_from_opening() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let at = frames(bytes)[2].start + 50;
        bytes[at] ^= 1;
    });
    assert_fault(&dir, 3, FaultKind::Changed);
}

#[test]
fn a_changed_length_of_the_last_record_is_not_taken_for_a_torn_tail() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let at = frames(bytes)[3].start + 3;
        bytes[at] ^= 0x80;
    });
    assert_fault(&dir, 4, FaultKind::Cut);
}

#[test]
fn a_dropped_record_is_named() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let range = frames(bytes)[1].clone();
        bytes.drain(range);
    });
    assert_fault(&dir, 2, FaultKind::Order);
}

#[test]
fn a_dropped_first_record_is_named() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let range = frames(bytes)[0].clone();
        bytes.drain(range);
    });
    assert_fault(&dir, 1, FaultKind::Order);
}

#[test]
fn a_dropped_last_record_is_named() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| bytes.truncate(frames(bytes)[3].start));
    assert_fault(&dir, 4, FaultKind::Missing);
}

#[test]
fn swapped_records_are_named_by_the_first() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let ranges = frames(bytes);
        let (one, other) = (
            bytes[ranges[1].clone()].to_vec(),
            bytes[ranges[2].clone()].to_vec(),
        );
        bytes.splice(ranges[1].start..ranges[2].end, [other, one].concat());
    });
    assert_fault(&dir, 2, FaultKind::Order);
}

#[test]
fn a_doubled_record_is_named() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let range = frames(bytes)[1].clone();
        let double = bytes[range.clone()].to_vec();
        bytes.splice(range.end..range.end, double);
    });
    assert_fault(&dir, 3, FaultKind::Order);
}

#[test]
fn a_record_rewritten_with_its_hash_breaks_the_chain_at_the_next() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| {
        let rest = bytes[frames(bytes)[2].start..].to_vec();
        recompute(bytes, 1, |payload| payload[1] ^= 1);
        let end = frames(bytes)[1].end;
        bytes.splice(end.., rest);
    });
    assert_fault(&dir, 3, FaultKind::Chain);
}

#[test]
fn a_chain_recomputed_up_to_the_end_is_not_the_acknowledged_one() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| recompute(bytes, 1, |payload| payload[1] ^= 1));
    assert_fault(&dir, 4, FaultKind::Rewritten);
}

#[test]
fn a_whole_frame_around_something_that_is_no_record_is_named() {
    let (_temp, dir) = log_of(4, u64::MAX);
    edit(&dir, |bytes| recompute(bytes, 3, |payload| payload[0] = 9));
    assert_fault(&dir, 4, FaultKind::Changed);
}

#[test]
fn a_tail_cut_at_any_byte_names_the_first_lost_record() {
    let (_temp, dir) = log_of(3, u64::MAX);
    let original = fs::read(segment::path(&dir, 1)).unwrap();
    let ranges = frames(&original);
    for length in 0..original.len() {
        fs::write(segment::path(&dir, 1), &original[..length]).unwrap();
        let (seq, kind) = match ranges.iter().position(|range| length < range.end) {
            _ if length < HEADER => (1, FaultKind::Segment),
            Some(index) if length == ranges[index].start => (index as u64 + 1, FaultKind::Missing),
            Some(index) => (index as u64 + 1, FaultKind::Cut),
            None => panic!("{length} is the whole file"),
        };
        assert_fault(&dir, seq, kind);
    }
}

#[test]
fn a_crash_at_any_byte_of_an_append_loses_only_what_was_not_acknowledged() {
    let (_temp, dir) = log_of(2, u64::MAX);
    let head = fs::read(dir.join("head")).unwrap();
    let ledger = open(&dir);
    ledger.append(&record("act.3")).wait().unwrap();
    drop(ledger);
    let path = segment::path(&dir, 1);
    let original = fs::read(&path).unwrap();
    let last = frames(&original)[2].clone();
    for length in last.clone() {
        fs::write(&path, &original[..length]).unwrap();
        fs::write(dir.join("head"), &head).unwrap();
        let report = verify(&dir).unwrap();
        assert!(report.ok, "{length}: {}", report.summary());
        assert_eq!(report.torn_bytes, (length - last.start) as u64);
        let ledger = open(&dir);
        assert_eq!(ledger.head().seq, 2);
        assert_eq!(ledger.append(&record("act.again")).wait().unwrap().seq, 3);
        drop(ledger);
        let report = verify(&dir).unwrap();
        assert!(report.ok, "{length}: {}", report.summary());
        assert_eq!((report.records, report.torn_bytes), (3, 0));
    }
    // Whole, and not acknowledged: it is kept.
    fs::write(&path, &original).unwrap();
    fs::write(dir.join("head"), &head).unwrap();
    assert_eq!(open(&dir).head().seq, 3);
}

#[test]
fn a_changed_header_is_named_by_the_segments_first_record() {
    let (_temp, dir) = log_of(4, u64::MAX);
    for at in 0..HEADER {
        edit(&dir, |bytes| bytes[at] ^= 1);
        assert_fault(&dir, 1, FaultKind::Segment);
        edit(&dir, |bytes| bytes[at] ^= 1);
    }
}

#[test]
fn a_missing_segment_is_named_by_its_first_record() {
    let (_temp, dir) = log_of(9, 500);
    let second = fs::read(segment::path(&dir, 2)).unwrap();
    let first_seq = u64::from_be_bytes(second[36..44].try_into().unwrap());
    fs::remove_file(segment::path(&dir, 2)).unwrap();
    assert_fault(&dir, first_seq, FaultKind::Segment);
}

#[test]
fn all_segments_missing_are_not_a_new_log() {
    let (_temp, dir) = log_of(2, u64::MAX);
    fs::remove_file(segment::path(&dir, 1)).unwrap();
    assert_fault(&dir, 1, FaultKind::Segment);
}

#[test]
fn a_cut_in_a_segment_that_is_not_the_last_is_never_a_torn_tail() {
    let (_temp, dir) = log_of(9, 500);
    edit(&dir, |bytes| {
        bytes.pop();
    });
    let report = verify(&dir).unwrap();
    assert_eq!(report.fault.unwrap().kind, FaultKind::Cut);
}

#[test]
fn a_segment_of_another_log_is_named() {
    let (_temp, dir) = log_of(9, 500);
    let (_other, other) = log_of(9, 500);
    fs::copy(segment::path(&other, 2), segment::path(&dir, 2)).unwrap();
    let report = verify(&dir).unwrap();
    assert_eq!(report.fault.unwrap().kind, FaultKind::Segment);
}

#[test]
fn a_whole_log_replaced_by_another_is_not_the_one_of_its_head() {
    let (_temp, dir) = log_of(3, u64::MAX);
    let (_other, other) = log_of(3, u64::MAX);
    fs::copy(segment::path(&other, 1), segment::path(&dir, 1)).unwrap();
    assert_fault(&dir, 1, FaultKind::Head);
}

#[test]
fn a_log_replaced_by_an_older_copy_of_itself_is_short() {
    let (_temp, dir) = log_of(2, u64::MAX);
    let old = fs::read(segment::path(&dir, 1)).unwrap();
    let ledger = open(&dir);
    ledger.append(&record("act.3")).wait().unwrap();
    drop(ledger);
    fs::write(segment::path(&dir, 1), old).unwrap();
    assert_fault(&dir, 3, FaultKind::Missing);
}

#[test]
fn without_head_nobody_can_tell_where_the_log_ended() {
    let (_temp, dir) = log_of(3, u64::MAX);
    fs::remove_file(dir.join("head")).unwrap();
    assert_fault(&dir, 4, FaultKind::Head);
}

#[test]
fn something_after_the_end_is_named() {
    let (_temp, dir) = log_of(3, u64::MAX);
    edit(&dir, |bytes| bytes.extend([0; 200]));
    assert_fault(&dir, 4, FaultKind::Changed);
}

#[test]
fn a_header_that_skips_records_is_named() {
    let (_temp, dir) = log_of(3, u64::MAX);
    let report = verify(&dir).unwrap();
    let header = Header {
        log: report.log.unwrap(),
        index: 2,
        first_seq: 9,
        previous: report.head,
    };
    fs::write(segment::path(&dir, 2), header.encode().0).unwrap();
    let fault = verify(&dir).unwrap().fault.unwrap();
    assert_eq!((fault.seq, fault.kind), (4, FaultKind::Segment));
}

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crypto::Digest;

use super::{Condition, Queue, Receipt};
use crate::AppendError;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(20);

fn receipts(count: usize) -> Vec<Receipt> {
    (1..)
        .take(count)
        .map(|seq| Receipt {
            seq,
            hash: Digest::ZERO,
        })
        .collect()
}

#[test]
fn a_full_queue_refuses() {
    let queue = Queue::new(2, LONG);
    let first = queue.push(vec![1]);
    let _second = queue.push(vec![2]);
    let refused = queue.push(vec![3]).wait().unwrap_err();
    assert!(
        matches!(refused, AppendError::QueueFull { bound: 2 }),
        "{refused}"
    );
    assert_eq!(queue.take_group().unwrap(), [[1], [2]]);
    queue.answer(Ok(receipts(2)));
    assert_eq!(first.wait().unwrap().seq, 1);
    assert_eq!(queue.condition(), Condition::Open);
}

#[test]
fn a_group_is_bounded_and_has_at_least_one_record() {
    let queue = Queue::new(2000, LONG);
    let tickets: Vec<_> = (0..600).map(|_| queue.push(vec![0])).collect();
    assert_eq!(queue.take_group().unwrap().len(), 512);
    queue.answer(Ok(receipts(512)));
    assert_eq!(queue.take_group().unwrap().len(), 88);
    queue.answer(Ok(receipts(88)));
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    let _huge = queue.push(vec![0; 2 * 1024 * 1024]);
    assert_eq!(queue.take_group().unwrap().len(), 1);
}

#[test]
fn what_the_disk_does_not_confirm_in_time_fails_and_later_appends_fail_at_once() {
    let queue = Arc::new(Queue::new(10, SHORT));
    let watchdog = thread::spawn({
        let queue = Arc::clone(&queue);
        move || queue.watch()
    });
    let in_flight = queue.push(vec![1]);
    assert_eq!(queue.take_group().unwrap().len(), 1);
    let behind = queue.push(vec![2]);
    for ticket in [in_flight, behind] {
        assert!(matches!(ticket.wait(), Err(AppendError::Deadline(SHORT))));
    }
    assert_eq!(queue.condition(), Condition::Stalled);
    assert!(matches!(
        queue.push(vec![3]).wait(),
        Err(AppendError::Deadline(SHORT))
    ));
    // The disk answers at last: the log takes records again, and what was refused is gone.
    queue.answer(Ok(receipts(1)));
    assert_eq!(queue.condition(), Condition::Open);
    let next = queue.push(vec![4]);
    assert_eq!(queue.take_group().unwrap(), [[4]]);
    queue.answer(Ok(receipts(1)));
    assert!(next.wait().is_ok());
    queue.writer_done();
    watchdog.join().unwrap();
}

#[test]
fn a_broken_log_answers_everybody_and_takes_nothing_more() {
    let queue = Queue::new(10, LONG);
    let in_flight = queue.push(vec![1]);
    assert_eq!(queue.take_group().unwrap().len(), 1);
    let waiting = queue.push(vec![2]);
    queue.answer(Err(AppendError::Broken("it burns".to_owned())));
    for ticket in [in_flight, waiting, queue.push(vec![3])] {
        assert!(matches!(ticket.wait(), Err(AppendError::Broken(why)) if why == "it burns"));
    }
    assert_eq!(queue.condition(), Condition::Broken("it burns".to_owned()));
}

#[test]
fn a_full_disk_fails_the_group_only() {
    let queue = Queue::new(10, LONG);
    let failed = queue.push(vec![1]);
    assert_eq!(queue.take_group().unwrap().len(), 1);
    queue.answer(Err(AppendError::DiskFull));
    assert!(matches!(failed.wait(), Err(AppendError::DiskFull)));
    assert_eq!(queue.condition(), Condition::Open);
}

#[test]
fn closing_writes_what_waits_and_refuses_the_rest() {
    let queue = Queue::new(10, LONG);
    let waiting = queue.push(vec![1]);
    queue.close();
    assert!(matches!(
        queue.push(vec![2]).wait(),
        Err(AppendError::Closed)
    ));
    assert_eq!(queue.take_group().unwrap().len(), 1);
    queue.answer(Ok(receipts(1)));
    assert!(waiting.wait().is_ok());
    assert_eq!(queue.take_group(), None);
}

#[test]
fn a_writer_that_dies_leaves_nobody_waiting() {
    let queue = Queue::new(10, LONG);
    let in_flight = queue.push(vec![1]);
    assert_eq!(queue.take_group().unwrap().len(), 1);
    let waiting = queue.push(vec![2]);
    queue.writer_done();
    for ticket in [in_flight, waiting] {
        assert!(matches!(ticket.wait(), Err(AppendError::Closed)));
    }
}

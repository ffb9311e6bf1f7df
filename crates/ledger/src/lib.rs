//! The audit log: append-only segment files of framed, canonical, hash-chained records.
//!
//! # Promise
//! [`Ledger::append`] answers with success only after the record is on disk (`fdatasync`).
//! Whoever acts on something that must be audited appends first and acts after the answer;
//! any error means that it must not act (arch §6: fail closed). Verification names the first
//! record that was changed, dropped, moved or cut off.
//!
//! # Files
//! ```text
//! segment-00000001.log   header, frames          at most about 64 MiB, then the next one
//! segment-00000002.log   …
//! head                   lower bound of what was acknowledged, see below
//! lock                   flock of the one writer
//! ```
//! Integers are big endian. Hashes are SHA-256 with domain separation
//! (`u64 length of domain ‖ domain ‖ bytes`).
//!
//! ```text
//! header (108 bytes)
//!   8  magic "CHOIRLED"     2  version = 1      2  zero
//!  16  log id               8  segment index, from 1
//!   8  seq of the segment's first record
//!  32  hash of the last record of the previous segment; zeros in the first
//!  32  hash of the 76 bytes before, domain "choir ledger segment v1"
//!
//! frame (76 bytes + payload)
//!   4  length of the payload, 1 to 16384
//!   8  seq, from 1, without gaps over the whole log
//!  32  hash of the previous record; in a segment's first frame the header's hash
//!   n  payload: one record in the canonical encoding (module `encoding`)
//!  32  hash of all of the frame before, domain "choir ledger record v1"
//! ```
//! So the chain covers every byte of every file, and headers too.
//!
//! `head` holds two slots that are written in turn after each synced group, with the seq and
//! hash of its last record. It is not synced itself: after a power failure it may be behind,
//! never ahead. What it names was acknowledged, so a log that ends before it has lost records.
//! What lies behind it and is incomplete was never acknowledged: a torn tail, which the next
//! opening cuts off. Whoever can rewrite all files can rewrite this one; against that only a
//! checkpoint held elsewhere helps.

mod encoding;
mod error;
mod frame;
mod head;
mod ledger;
mod queue;
mod reader;
mod record;
mod segment;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{AppendError, OpenError, ReadError, RecordError};
pub use ledger::{Head, Health, Ledger, Options};
pub use queue::{Receipt, Ticket};
pub use reader::{Entries, Entry, Filter, Reader};
pub use record::{Actor, Channel, Outcome, Record, User};
pub use segment::LogId;
pub use verify::{Fault, FaultKind, Report, verify};

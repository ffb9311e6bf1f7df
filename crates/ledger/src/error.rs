//! What can go wrong, by what was tried.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::Report;

/// A record that cannot be encoded, or bytes that are not a record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A field is longer than its bound.
    #[error("the record's {field} is longer than {max} bytes")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its bound in bytes.
        max: usize,
    },
    /// There are more details than a record may have.
    #[error("the record has more than {max} details")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The bytes are not the canonical encoding of a record.
    #[error("not a record: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

/// Why a record was not taken. The act that it was for must not happen.
#[derive(Debug, Clone, Error)]
pub enum AppendError {
    /// The record itself is not acceptable.
    #[error("the record cannot be written")]
    Record(#[source] RecordError),
    /// Too many records wait to be written.
    #[error("the audit log does not keep up: {bound} records wait already")]
    QueueFull {
        /// The bound.
        bound: usize,
    },
    /// The disk did not confirm in time. The record may still come to stand in the log.
    #[error("the audit log was not confirmed on disk within {0:?}")]
    Deadline(Duration),
    /// The disk is full; later appends are tried again.
    #[error("the disk of the audit log is full")]
    DiskFull,
    /// Writing failed, and nothing more is taken until the log was opened again.
    #[error("the audit log cannot be written: {0}")]
    Broken(String),
    /// The log was closed.
    #[error("the audit log is closed")]
    Closed,
}

/// Why the log could not be opened for writing.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process writes to it.
    #[error("another process writes to the audit log in {dir}")]
    Locked {
        /// Its directory.
        dir: PathBuf,
    },
    /// It has a fault. Nothing was changed.
    #[error("the audit log in {dir} has a fault: {what}", what = .report.summary())]
    Fault {
        /// Its directory.
        dir: PathBuf,
        /// What verification found.
        report: Box<Report>,
    },
    /// It could not be read.
    #[error("the audit log cannot be read")]
    Read(#[source] ReadError),
    /// An operation on its files failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The random source failed.
    #[error("no id for a new audit log")]
    Random(#[source] crypto::RandomError),
    /// A bound in the options is zero.
    #[error("the option {0} must be larger")]
    Options(&'static str),
}

/// Why the log could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// There is no log.
    #[error("there is no audit log in {dir}")]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The log has a fault where it was to be read.
    #[error("the audit log has a fault at record {seq}: {what}")]
    Fault {
        /// The first record that is not as it was written.
        seq: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An operation on its files failed.
    #[error("cannot read {path}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

//! Reads a log, also while it is written to.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crypto::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use types::SandboxId;

use crate::queue::lock;
use crate::verify::{Frames, Opened, Step, io_error};
use crate::{Actor, Head, Outcome, ReadError, Record, encoding, head, segment};

/// Most entries that one call of [`Reader::tail`] gives.
const MAX_TAIL: usize = 10_000;

/// A record with its place in the log. In JSON the record's fields stand beside `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// Its hash, which chains it to all before it.
    pub hash: Digest,
    /// What it says.
    #[serde(flatten)]
    pub record: Record,
}

/// Which entries to give; an empty filter gives all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Entries by or for the user of this name.
    pub user: Option<String>,
    /// Entries of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Entries whose action begins with this, such as `auth.`.
    pub action: Option<String>,
    /// Entries with this outcome.
    pub outcome: Option<Outcome>,
    /// Entries at this time or later.
    pub since: Option<Timestamp>,
}

impl Filter {
    /// Whether an entry is wanted.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let named = |name: &String| {
            let actor = match &record.actor {
                Actor::User(user) => Some(&user.name),
                _ => None,
            };
            actor == Some(name) || record.subject.as_ref().map(|user| &user.name) == Some(name)
        };
        self.user.as_ref().is_none_or(named)
            && self.sandbox.is_none_or(|id| record.sandbox == Some(id))
            && self
                .action
                .as_ref()
                .is_none_or(|prefix| record.action.starts_with(prefix))
            && self.outcome.is_none_or(|outcome| record.outcome == outcome)
            && self.since.is_none_or(|since| record.at >= since)
    }
}

/// Reads the log in one directory. Opens nothing before it is asked for entries. It is for
/// looking things up: what it passes over it does not verify.
#[derive(Debug, Clone)]
pub struct Reader {
    dir: PathBuf,
    /// The end of what was acknowledged, beyond which nothing is given.
    head: Option<Arc<Mutex<Head>>>,
}

impl Reader {
    /// A reader of the files in `dir`, which nobody or another process writes to. It gives
    /// every whole record. Where a [`Ledger`](crate::Ledger) is open, use its own reader.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            head: None,
        }
    }

    /// A reader of a log that is open: what was written and not acknowledged may vanish
    /// again, so it is not given.
    pub(crate) fn of(dir: &Path, head: Arc<Mutex<Head>>) -> Self {
        Self {
            dir: dir.to_owned(),
            head: Some(head),
        }
    }

    /// The entries from a number on, oldest first.
    ///
    /// # Errors
    /// There is no log, or its files cannot be read.
    pub fn from(&self, seq: u64) -> Result<Entries, ReadError> {
        let indices = segment::list(&self.dir).map_err(io_error(&self.dir))?;
        let mut start = None;
        // Newest first: following the end is the common case.
        for index in indices.into_iter().rev() {
            if let Some(frames) = open(&self.dir, index)? {
                let found = frames.header.first_seq <= seq;
                start = Some((index, frames));
                if found {
                    break;
                }
            }
        }
        let Some((index, frames)) = start else {
            return Err(ReadError::Missing {
                dir: self.dir.clone(),
            });
        };
        Ok(Entries {
            dir: self.dir.clone(),
            index,
            next_seq: frames.header.first_seq,
            previous: Some(frames.header_hash),
            from: seq,
            frames,
            sealed: false,
            failed: false,
            limit: if self.head.is_some() { 0 } else { u64::MAX },
            head: self.head.clone(),
        })
    }

    /// The last `count` entries that match, oldest first; at most 10,000.
    ///
    /// # Errors
    /// There is no log, its files cannot be read, or what is read has a fault.
    pub fn tail(&self, count: usize, filter: &Filter) -> Result<Vec<Entry>, ReadError> {
        let count = count.min(MAX_TAIL);
        let from = if *filter == Filter::default() {
            let last = match &self.head {
                Some(head) => lock(head).seq,
                None => head::read(&self.dir)
                    .map_err(io_error(&head::path(&self.dir)))?
                    .map_or(0, |mark| mark.seq),
            };
            last.saturating_sub(count as u64) + 1
        } else {
            1
        };
        let mut last = VecDeque::with_capacity(count.min(1024));
        for entry in self.from(from)? {
            let entry = entry?;
            if filter.matches(&entry.record) {
                if last.len() == count {
                    last.pop_front();
                }
                if count > 0 {
                    last.push_back(entry);
                }
            }
        }
        Ok(last.into())
    }
}

/// Entries, oldest first. At the end of the log `next` gives `None`, and may be asked again
/// when more was appended. After an error it gives nothing more.
pub struct Entries {
    dir: PathBuf,
    index: u64,
    frames: Frames,
    /// The next segment exists, so this one gets no more frames.
    sealed: bool,
    /// Entries before this one are passed over.
    from: u64,
    next_seq: u64,
    /// What the next frame continues; unknown after frames were passed over.
    previous: Option<Digest>,
    failed: bool,
    /// Nothing after this one is given, or even read.
    limit: u64,
    head: Option<Arc<Mutex<Head>>>,
}

enum Advance {
    Entry(Box<Entry>),
    PassedOver,
    End,
}

impl Entries {
    fn step(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            if self.next_seq > self.limit {
                let limit = self.head.as_ref().map_or(u64::MAX, |head| lock(head).seq);
                if self.next_seq > limit {
                    return Ok(None);
                }
                // What was read ahead may be older than the new limit, and not what was
                // acknowledged in the end.
                self.limit = limit;
                let path = segment::path(&self.dir, self.index);
                self.frames.forget_buffer().map_err(io_error(&path))?;
            }
            match self.advance()? {
                Advance::Entry(entry) => return Ok(Some(*entry)),
                Advance::PassedOver => {}
                Advance::End if self.sealed => self.open_next()?,
                Advance::End => {
                    let next = segment::path(&self.dir, self.index + 1);
                    self.sealed = next.try_exists().map_err(io_error(&next))?;
                    // Frames may have come between the look at this segment and at the next.
                    if !self.sealed {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn advance(&mut self) -> Result<Advance, ReadError> {
        let path = segment::path(&self.dir, self.index);
        if self.next_seq < self.from {
            let end = self.from.min(self.limit.saturating_add(1));
            let passed = self
                .frames
                .pass_over(self.next_seq..end)
                .map_err(io_error(&path))?;
            self.next_seq += passed;
            if passed > 0 {
                self.previous = None;
                return Ok(Advance::PassedOver);
            }
        }
        let seq = self.next_seq;
        let fault = |what: &str| ReadError::Fault {
            seq,
            what: what.to_owned(),
        };
        let frame = match self.frames.next().map_err(io_error(&path))? {
            Step::Frame(frame) => frame,
            Step::Torn { .. } if self.sealed => return Err(fault("the file ends inside it")),
            Step::End | Step::Torn { .. } => return Ok(Advance::End),
            Step::Bad => return Err(fault("its bytes were changed")),
        };
        if frame.seq != seq
            || self
                .previous
                .is_some_and(|previous| frame.previous != previous)
        {
            return Err(fault("it does not continue the record before it"));
        }
        self.next_seq += 1;
        self.previous = Some(frame.hash);
        let record = encoding::decode(frame.payload).map_err(|error| fault(&error.to_string()))?;
        Ok(Advance::Entry(Box::new(Entry {
            seq,
            hash: frame.hash,
            record,
        })))
    }

    fn open_next(&mut self) -> Result<(), ReadError> {
        let fault = |what: &str| ReadError::Fault {
            seq: self.next_seq,
            what: what.to_owned(),
        };
        let frames =
            open(&self.dir, self.index + 1)?.ok_or_else(|| fault("its segment is gone"))?;
        let header = frames.header;
        let first_seq = self.frames.header.first_seq;
        // Only where frames of the last segment were read is there something to compare with.
        let continues = self.next_seq == first_seq
            || self
                .previous
                .is_none_or(|previous| header.previous == previous);
        if header.first_seq != self.next_seq || !continues {
            return Err(fault("its segment does not continue the one before"));
        }
        self.index += 1;
        self.previous = Some(frames.header_hash);
        self.frames = frames;
        self.sealed = false;
        Ok(())
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step().transpose();
        self.failed = matches!(step, Some(Err(_)));
        step
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("dir", &self.dir)
            .field("next_seq", &self.next_seq)
            .finish_non_exhaustive()
    }
}

/// The frames of a segment; `None` when it is gone by now.
fn open(dir: &Path, index: u64) -> Result<Option<Frames>, ReadError> {
    let path = segment::path(dir, index);
    match Frames::open(&path).map_err(io_error(&path))? {
        Opened::Frames(frames) => Ok(Some(frames)),
        Opened::Missing => Ok(None),
        Opened::Header => Err(ReadError::Io {
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, "its header is damaged"),
        }),
    }
}

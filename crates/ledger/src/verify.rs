//! Walks a whole log and names the first record that is not as it was written.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crypto::Digest;
use serde::{Deserialize, Serialize};

use crate::frame::{self, FRAME_HEAD, Frame, FrameError};
use crate::segment::{self, HEADER, Header, LogId};
use crate::{ReadError, encoding, head};

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Its bytes were changed: the hash, the length or the encoding is not right.
    Changed,
    /// Another record stands in its place: it was dropped, moved or doubled.
    Order,
    /// It does not continue the record before it: that one was rewritten together with its hash.
    Chain,
    /// The file ends in the middle of it.
    Cut,
    /// It was acknowledged, and the log ends before it.
    Missing,
    /// It is not the record that was acknowledged: the log was rewritten up to its end.
    Rewritten,
    /// The header of the segment that begins with it was changed, or the segment is gone.
    Segment,
    /// The file `head` is gone or damaged, so that nobody can tell where the log ended.
    Head,
}

/// The first fault of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The number of the first record that is not as it was written.
    pub seq: u64,
    /// What is wrong with it.
    pub kind: FaultKind,
    /// The file in which it shows.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FaultKind::Changed => "its bytes were changed",
            FaultKind::Order => "another record stands in its place",
            FaultKind::Chain => "it does not continue the record before it, which was rewritten",
            FaultKind::Cut => "the file ends in the middle of it",
            FaultKind::Missing => "it was acknowledged, and the log ends before it",
            FaultKind::Rewritten => "it is not the record that was acknowledged",
            FaultKind::Segment => "the header of its segment was changed, or the segment is gone",
            FaultKind::Head => "the file `head` is gone or damaged",
        };
        write!(
            f,
            "record {}: {what} ({} at byte {})",
            self.seq,
            self.file.display(),
            self.offset
        )
    }
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the log is whole.
    pub ok: bool,
    /// The log's id, as far as its first header could be read.
    pub log: Option<LogId>,
    /// Number of segment files.
    pub segments: u64,
    /// Number of whole records up to the fault or the end.
    pub records: u64,
    /// Number of the first record.
    pub first_seq: Option<u64>,
    /// Number of the last whole record.
    pub last_seq: Option<u64>,
    /// Hash of the last whole record: what a checkpoint would hold.
    pub head: Digest,
    /// Bytes after it of a record that was never acknowledged. The next opening cuts them off.
    pub torn_bytes: u64,
    /// The first fault.
    pub fault: Option<Fault>,
}

impl Report {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.fault {
            Some(fault) => fault.to_string(),
            None => format!("{} records, head {}", self.records, self.head),
        }
    }
}

/// Verifies the log in a directory. It may be written to meanwhile.
///
/// # Errors
/// There is no log, or its files cannot be read. A fault in the log is no error here: it
/// stands in the report.
pub fn verify(dir: &Path) -> Result<Report, ReadError> {
    walk(dir).map(|(report, _)| report)
}

/// Where the next frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) log: LogId,
    pub(crate) index: u64,
    pub(crate) offset: u64,
    pub(crate) next_seq: u64,
    /// What the next frame chains to.
    pub(crate) previous: Digest,
    /// Hash of the last record, of the first header when there is none. Another one than
    /// `previous` while the segment has no frame yet.
    pub(crate) head: Digest,
}

/// Verifies, and finds the end when there is no fault.
pub(crate) fn walk(dir: &Path) -> Result<(Report, Option<Tail>), ReadError> {
    // The mark is read first: what it names is in the files from here on.
    let mark = head::read(dir).map_err(io_error(&head::path(dir)))?;
    let indices = match segment::list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(io_error(dir))?,
    };
    if indices.is_empty() && mark.is_none() {
        return Err(ReadError::Missing {
            dir: dir.to_owned(),
        });
    }
    let mut walk = Walk {
        mark,
        report: Report {
            ok: false,
            log: None,
            segments: indices.len() as u64,
            records: 0,
            first_seq: None,
            last_seq: None,
            head: Digest::ZERO,
            torn_bytes: 0,
            fault: None,
        },
        tail: None,
    };
    let last = indices.last().copied().unwrap_or(1);
    for index in 1..=last {
        let path = segment::path(dir, index);
        if let Some((kind, offset)) = walk.segment(&path, index, index == last)? {
            return Ok((walk.faulty(kind, path, offset), None));
        }
    }
    let end = walk.tail.map_or(0, |tail| tail.offset);
    let fault = match walk.mark {
        Some(mark) if mark.seq >= walk.next_seq() => {
            Some((FaultKind::Missing, segment::path(dir, last), end))
        }
        None if walk.report.records > 0 => Some((FaultKind::Head, head::path(dir), 0)),
        _ => None,
    };
    match fault {
        Some((kind, path, offset)) => Ok((walk.faulty(kind, path, offset), None)),
        None => {
            walk.report.ok = true;
            Ok((walk.report, walk.tail))
        }
    }
}

struct Walk {
    mark: Option<head::Mark>,
    report: Report,
    tail: Option<Tail>,
}

impl Walk {
    fn next_seq(&self) -> u64 {
        self.report.last_seq.map_or(1, |last| last + 1)
    }

    fn faulty(mut self, kind: FaultKind, file: PathBuf, offset: u64) -> Report {
        let seq = self.next_seq();
        self.report.fault = Some(Fault {
            seq,
            kind,
            file,
            offset,
        });
        self.report
    }

    /// Walks one segment; the fault, if it has one, with the byte where it shows.
    fn segment(
        &mut self,
        path: &Path,
        index: u64,
        last: bool,
    ) -> Result<Option<(FaultKind, u64)>, ReadError> {
        let mut frames = match Frames::open(path).map_err(io_error(path))? {
            Opened::Frames(frames) => frames,
            Opened::Missing | Opened::Header => return Ok(Some((FaultKind::Segment, 0))),
        };
        let header = frames.header;
        let previous = if index == 1 {
            Digest::ZERO
        } else {
            self.report.head
        };
        let expected = Header {
            log: self.report.log.unwrap_or(header.log),
            index,
            first_seq: self.next_seq(),
            previous,
        };
        if header != expected {
            return Ok(Some((FaultKind::Segment, 0)));
        }
        if self.mark.is_some_and(|mark| mark.log != header.log) {
            return Ok(Some((FaultKind::Head, 0)));
        }
        self.report.log = Some(header.log);
        if index == 1 {
            self.report.head = frames.header_hash;
        }
        let mut chained_to = frames.header_hash;
        loop {
            let offset = frames.offset;
            let seq = self.next_seq();
            let step = frames.next().map_err(io_error(path))?;
            let frame = match step {
                Step::End => break,
                Step::Torn { bytes } => {
                    if !last || self.mark.is_some_and(|mark| mark.seq >= seq) {
                        return Ok(Some((FaultKind::Cut, offset)));
                    }
                    self.report.torn_bytes = bytes;
                    break;
                }
                Step::Bad => return Ok(Some((FaultKind::Changed, offset))),
                Step::Frame(frame) => frame,
            };
            if let Some(kind) = fault_of(&frame, seq, chained_to, self.mark) {
                return Ok(Some((kind, offset)));
            }
            chained_to = frame.hash;
            self.report.head = frame.hash;
            self.report.records += 1;
            self.report.first_seq.get_or_insert(seq);
            self.report.last_seq = Some(seq);
        }
        self.tail = Some(Tail {
            log: header.log,
            index,
            offset: frames.offset,
            next_seq: self.next_seq(),
            previous: chained_to,
            head: self.report.head,
        });
        Ok(None)
    }
}

fn fault_of(
    frame: &Frame<'_>,
    seq: u64,
    chained_to: Digest,
    mark: Option<head::Mark>,
) -> Option<FaultKind> {
    if frame.seq != seq {
        Some(FaultKind::Order)
    } else if frame.previous != chained_to {
        Some(FaultKind::Chain)
    } else if encoding::decode(frame.payload).is_err() {
        Some(FaultKind::Changed)
    } else if mark.is_some_and(|mark| mark.seq == seq && mark.hash != frame.hash) {
        Some(FaultKind::Rewritten)
    } else {
        None
    }
}

/// What opening a segment gave.
pub(crate) enum Opened {
    /// Its frames.
    Frames(Frames),
    /// There is no such file.
    Missing,
    /// Its header is not whole.
    Header,
}

/// One step through a segment.
pub(crate) enum Step<'a> {
    /// The next frame, its own hash checked.
    Frame(Frame<'a>),
    /// Nothing more, for now.
    End,
    /// The file ends inside a frame, for now.
    Torn {
        /// Bytes of it that are there.
        bytes: u64,
    },
    /// Bytes that are no frame.
    Bad,
}

/// The frames of one segment file, one after the other.
pub(crate) struct Frames {
    pub(crate) header: Header,
    pub(crate) header_hash: Digest,
    /// Where the next frame begins.
    pub(crate) offset: u64,
    file: BufReader<File>,
    buffer: Vec<u8>,
}

impl Frames {
    pub(crate) fn open(path: &Path) -> io::Result<Opened> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::Missing),
            Err(error) => return Err(error),
        };
        let mut file = BufReader::with_capacity(64 * 1024, file);
        let mut bytes = [0; HEADER];
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Opened::Header);
            }
            Err(error) => return Err(error),
        }
        Ok(match Header::decode(&bytes) {
            None => Opened::Header,
            Some((header, header_hash)) => Opened::Frames(Self {
                header,
                header_hash,
                offset: HEADER as u64,
                file,
                buffer: Vec::new(),
            }),
        })
    }

    /// Passes over the frames of `seqs`, without a look at what they say, and tells how many
    /// there were. Stops early where another one stands: the next step tells what is wrong.
    pub(crate) fn pass_over(&mut self, seqs: Range<u64>) -> io::Result<u64> {
        let mut passed = 0;
        for seq in seqs {
            let mut head = Vec::with_capacity(FRAME_HEAD);
            (&mut self.file)
                .take(FRAME_HEAD as u64)
                .read_to_end(&mut head)?;
            let found = head.get(4..12).and_then(|bytes| bytes.first_chunk());
            let rest = match frame::length(&head) {
                Ok(length) if found == Some(&seq.to_be_bytes()) => length - FRAME_HEAD,
                _ => break,
            };
            // At most a record long.
            let Ok(distance) = i64::try_from(rest) else {
                break;
            };
            self.file.seek_relative(distance)?;
            self.offset += (FRAME_HEAD + rest) as u64;
            passed += 1;
        }
        self.forget_buffer()?;
        Ok(passed)
    }

    /// Reads the file again from the next frame on, instead of what was read ahead of it.
    pub(crate) fn forget_buffer(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.offset)).map(drop)
    }

    /// The next step. After an end or a torn frame it may be asked again, once more was written.
    pub(crate) fn next(&mut self) -> io::Result<Step<'_>> {
        self.buffer.clear();
        let mut wanted = 4;
        loop {
            let missing = wanted - self.buffer.len();
            (&mut self.file)
                .take(missing as u64)
                .read_to_end(&mut self.buffer)?;
            if self.buffer.len() < wanted {
                if self.buffer.is_empty() {
                    return Ok(Step::End);
                }
                self.file.seek(SeekFrom::Start(self.offset))?;
                return Ok(Step::Torn {
                    bytes: self.buffer.len() as u64,
                });
            }
            match frame::length(&self.buffer) {
                Ok(length) if length == wanted => break,
                Ok(length) => wanted = length,
                Err(_) => return Ok(Step::Bad),
            }
        }
        match frame::read(&self.buffer) {
            Ok(frame) => {
                self.offset += wanted as u64;
                Ok(Step::Frame(frame))
            }
            Err(FrameError::Incomplete | FrameError::Length | FrameError::Hash) => Ok(Step::Bad),
        }
    }
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ReadError + use<> {
    let path = path.to_owned();
    move |source| ReadError::Io { path, source }
}

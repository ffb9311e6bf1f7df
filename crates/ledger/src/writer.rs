//! The one writer: owns the open segment, knows where the next frame goes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::head::{self, HeadFile, Mark};
use crate::segment::{self, Header};
use crate::verify::Tail;
use crate::{AppendError, Receipt, frame};

/// Name of a segment that is being made; it gets its own once its header is on disk.
const UNFINISHED: &str = "segment.new";

pub(crate) struct Writer {
    dir: PathBuf,
    segment: File,
    tail: Tail,
    head: HeadFile,
    segment_bytes: u64,
}

impl Writer {
    /// Takes over the log at its tail, which verification has found.
    pub(crate) fn new(dir: &Path, tail: Tail, segment_bytes: u64) -> io::Result<Self> {
        let segment = OpenOptions::new()
            .read(true)
            .write(true)
            .open(segment::path(dir, tail.index))?;
        // Cuts off what was never acknowledged; nothing, mostly.
        if segment.metadata()?.len() != tail.offset {
            segment.set_len(tail.offset)?;
        }
        // What was written by a process that was killed is perhaps not on disk yet.
        segment.sync_data()?;
        let mut head = HeadFile::open(dir)?;
        let mark = Mark {
            log: tail.log,
            seq: tail.next_seq - 1,
            hash: tail.head,
        };
        head.write(&mark)?;
        head.write(&mark)?;
        head.sync()?;
        sync_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            segment,
            tail,
            head,
            segment_bytes,
        })
    }

    /// Writes a group and returns once it is on disk. After an error none of it counts.
    pub(crate) fn commit(&mut self, group: &[Vec<u8>]) -> Result<Vec<Receipt>, AppendError> {
        self.check_length()?;
        let empty = self.tail.offset == segment::HEADER as u64;
        if self.tail.offset >= self.segment_bytes && !empty {
            self.rotate()?;
        }
        let mut bytes = Vec::new();
        let mut receipts = Vec::with_capacity(group.len());
        let (mut seq, mut previous) = (self.tail.next_seq, self.tail.previous);
        for payload in group {
            previous = frame::write(&mut bytes, seq, previous, payload);
            receipts.push(Receipt {
                seq,
                hash: previous,
            });
            seq += 1;
        }
        if let Err(error) = self.segment.write_all_at(&bytes, self.tail.offset) {
            // A part may stand there; without it the file is as it was.
            return Err(match self.segment.set_len(self.tail.offset) {
                Ok(()) if is_disk_full(&error) => AppendError::DiskFull,
                _ => broken("cannot write", &error),
            });
        }
        // After a failed sync the kernel may have dropped the pages: only reading the files
        // again, by opening the log, tells what is on disk.
        self.segment
            .sync_data()
            .map_err(|error| broken("cannot sync", &error))?;
        self.check_identity()?;
        self.tail.offset += bytes.len() as u64;
        self.tail.next_seq = seq;
        self.tail.previous = previous;
        self.tail.head = previous;
        self.head
            .write(&Mark {
                log: self.tail.log,
                seq: seq - 1,
                hash: previous,
            })
            .map_err(|error| broken("cannot write the file `head`", &error))?;
        Ok(receipts)
    }

    /// Forces `head` to disk, for an orderly end.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.head.sync()
    }

    fn rotate(&mut self) -> Result<(), AppendError> {
        let header = Header {
            log: self.tail.log,
            index: self.tail.index + 1,
            first_seq: self.tail.next_seq,
            previous: self.tail.previous,
        };
        let failed = |error: io::Error| {
            if is_disk_full(&error) {
                AppendError::DiskFull
            } else {
                broken("cannot begin a segment", &error)
            }
        };
        self.head.sync().map_err(failed)?;
        let (segment, tail) = create_segment(&self.dir, &header).map_err(failed)?;
        self.segment = segment;
        self.tail = tail;
        Ok(())
    }

    /// Nobody else wrote to the file or cut it.
    fn check_length(&self) -> Result<(), AppendError> {
        let length = self
            .segment
            .metadata()
            .map_err(|error| broken("cannot look at the segment", &error))?
            .len();
        if length == self.tail.offset {
            Ok(())
        } else {
            Err(AppendError::Broken(format!(
                "somebody else changed the segment: it has {length} bytes instead of {}",
                self.tail.offset
            )))
        }
    }

    /// The files under their names are the ones that are open: neither deleted nor replaced.
    fn check_identity(&self) -> Result<(), AppendError> {
        for (file, path) in [
            (&self.segment, segment::path(&self.dir, self.tail.index)),
            (self.head.file(), head::path(&self.dir)),
        ] {
            let same = file.metadata().and_then(|open| {
                let named = fs::symlink_metadata(&path)?;
                Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
            });
            match same {
                Ok(true) => {}
                Ok(false) => {
                    return Err(AppendError::Broken(format!(
                        "{} was replaced",
                        path.display()
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(AppendError::Broken(format!(
                        "{} was deleted",
                        path.display()
                    )));
                }
                Err(error) => return Err(broken("cannot look at the segment", &error)),
            }
        }
        Ok(())
    }
}

/// Makes a segment that is there with its whole header or not at all.
pub(crate) fn create_segment(dir: &Path, header: &Header) -> io::Result<(File, Tail)> {
    let (bytes, hash) = header.encode();
    let unfinished = dir.join(UNFINISHED);
    remove_unfinished(dir)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    fs::rename(&unfinished, segment::path(dir, header.index))?;
    sync_dir(dir)?;
    let tail = Tail {
        log: header.log,
        index: header.index,
        offset: bytes.len() as u64,
        next_seq: header.first_seq,
        previous: hash,
        head: if header.first_seq == 1 {
            hash
        } else {
            header.previous
        },
    };
    Ok((file, tail))
}

fn remove_unfinished(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn is_disk_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|full| error.raw_os_error() == Some(full.raw_os_error()))
}

fn broken(what: &str, error: &io::Error) -> AppendError {
    AppendError::Broken(format!("{what}: {error}"))
}

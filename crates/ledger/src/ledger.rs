//! The log, open for appending.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crypto::{Digest, OsRandom, Random};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use crate::queue::{Condition, Queue, lock};
use crate::segment::{Header, LogId};
use crate::verify::{Tail, walk};
use crate::writer::{Writer, create_segment};
use crate::{AppendError, OpenError, ReadError, Reader, Record, Ticket, encoding};

/// A segment is closed once it has this many bytes.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Records that may wait for the disk.
const QUEUE_RECORDS: usize = 4096;
/// How long an append waits for the disk.
const DEADLINE: Duration = Duration::from_secs(5);

/// Bounds, and what else the log needs from outside.
pub struct Options {
    /// A segment is closed once it has this many bytes; at least 1.
    pub segment_bytes: u64,
    /// Records that may wait for the disk; at least 1.
    pub queue_records: usize,
    /// How long an append waits for the disk; more than nothing.
    pub deadline: Duration,
    /// Where a new log's id comes from.
    pub random: Arc<dyn Random>,
    /// Called on the writer's thread after each group, with the new end of the log: what
    /// follows the log is woken here. It must not block.
    pub on_commit: Option<Box<dyn Fn(Head) + Send>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            queue_records: QUEUE_RECORDS,
            deadline: DEADLINE,
            random: Arc::new(OsRandom::new()),
            on_commit: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("queue_records", &self.queue_records)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// The end of what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Number of the last record; 0 when there is none.
    pub seq: u64,
    /// Its hash; of the first header when there is none.
    pub hash: Digest,
}

/// Whether the log takes records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ok,
    /// The disk has not answered within the deadline, and still does not.
    Stalled,
    /// Writing failed; it has to be opened again.
    Broken(String),
    /// It was closed.
    Closed,
}

/// The log. Cheap to clone; the last clone closes it, waiting for what is queued up to the
/// deadline, so drop it where a thread may block.
#[derive(Debug, Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    log: LogId,
    queue: Arc<Queue>,
    head: Arc<Mutex<Head>>,
    deadline: Duration,
}

impl Ledger {
    /// Opens the log in a directory, or begins one there. Verifies all of it first, and cuts
    /// off a torn tail that was never acknowledged. One process may have it open at a time.
    ///
    /// # Errors
    /// Another process has it open; it has a fault (nothing is changed then); the files
    /// cannot be read or written; an option is zero.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        for (zero, name) in [
            (options.segment_bytes == 0, "segment_bytes"),
            (options.queue_records == 0, "queue_records"),
            (options.deadline.is_zero(), "deadline"),
        ] {
            if zero {
                return Err(OpenError::Options(name));
            }
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error("create", dir))?;
        let lock_file = lock_dir(dir)?;
        let tail = recover(dir, options.random.as_ref())?;
        let writer =
            Writer::new(dir, tail, options.segment_bytes).map_err(io_error("write in", dir))?;
        let inner = Inner {
            dir: dir.to_owned(),
            log: tail.log,
            queue: Arc::new(Queue::new(options.queue_records, options.deadline)),
            head: Arc::new(Mutex::new(Head {
                seq: tail.next_seq - 1,
                hash: tail.head,
            })),
            deadline: options.deadline,
        };
        inner
            .start(writer, lock_file, options.on_commit)
            .map_err(io_error("serve", dir))?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Appends a record. The answer comes once it is on disk; whatever else the answer is,
    /// the act that the record is for must not happen.
    ///
    /// Does not block. The record is in the log in the order of the calls.
    pub fn append(&self, record: &Record) -> Ticket {
        match encoding::encode(record) {
            Ok(payload) => self.inner.queue.push(payload),
            Err(error) => Ticket::refused(AppendError::Record(error)),
        }
    }

    /// The end of what was acknowledged.
    #[must_use]
    pub fn head(&self) -> Head {
        *lock(&self.inner.head)
    }

    /// Whether it takes records.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.inner.queue.condition() {
            Condition::Open => Health::Ok,
            Condition::Stalled => Health::Stalled,
            Condition::Broken(why) => Health::Broken(why),
            Condition::Closed => Health::Closed,
        }
    }

    /// The log's id.
    #[must_use]
    pub fn id(&self) -> LogId {
        self.inner.log
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// A reader of this log, up to what was acknowledged.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::of(&self.inner.dir, Arc::clone(&self.inner.head))
    }
}

impl Inner {
    fn start(
        &self,
        mut writer: Writer,
        lock_file: File,
        on_commit: Option<Box<dyn Fn(Head) + Send>>,
    ) -> io::Result<()> {
        let (queue, head) = (Arc::clone(&self.queue), Arc::clone(&self.head));
        thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || {
                // Tells those who wait, even should the loop below panic.
                let done = Done(queue);
                while let Some(group) = done.0.take_group() {
                    let result = writer.commit(&group);
                    let last = result.as_ref().ok().and_then(|receipts| receipts.last());
                    let moved = last.map(|last| Head {
                        seq: last.seq,
                        hash: last.hash,
                    });
                    if let Some(moved) = moved {
                        *lock(&head) = moved;
                    }
                    done.0.answer(result);
                    if let (Some(moved), Some(on_commit)) = (moved, &on_commit) {
                        on_commit(moved);
                    }
                }
                // Only the freshness of `head` after a power failure depends on this.
                let _ = writer.finish();
                // Until here the directory is ours alone.
                drop(lock_file);
            })?;
        let queue = Arc::clone(&self.queue);
        let watch = thread::Builder::new()
            .name("ledger-deadline".to_owned())
            .spawn(move || queue.watch());
        if watch.is_err() {
            self.queue.close();
        }
        watch.map(drop)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        // A disk that hangs must not hang the process's end as well.
        self.queue.wait_done(self.deadline);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("dir", &self.dir)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

struct Done(Arc<Queue>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.writer_done();
    }
}

fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(OpenError::Locked {
            dir: dir.to_owned(),
        }),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

/// Finds the end of the log, or begins one.
fn recover(dir: &Path, random: &dyn Random) -> Result<Tail, OpenError> {
    match walk(dir) {
        Ok((_, Some(tail))) => Ok(tail),
        Ok((report, None)) => Err(OpenError::Fault {
            dir: dir.to_owned(),
            report: Box::new(report),
        }),
        Err(ReadError::Missing { .. }) => {
            let header = Header {
                log: LogId::generate(random).map_err(OpenError::Random)?,
                index: 1,
                first_seq: 1,
                previous: Digest::ZERO,
            };
            let (_, tail) =
                create_segment(dir, &header).map_err(io_error("begin a log in", dir))?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)
                    .and_then(|parent| parent.sync_all())
                    .map_err(io_error("sync", parent))?;
            }
            Ok(tail)
        }
        Err(error) => Err(OpenError::Read(error)),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io {
        operation,
        path,
        source,
    }
}

//! Lines on their way to standard error. Whoever logs only puts a line into a buffer; a
//! thread of its own masks and writes what has gathered. A reader that does not read can
//! therefore hold nobody up, and a busy proxy pays no system call per request.
//!
//! The buffer is bounded. When it is full, lines about single requests go first; what
//! warns of something has room of its own. What was dropped is counted and said. At an
//! orderly end everything that waits is written; a killed process loses what gathered in
//! its last [`GATHER`].

use std::borrow::Cow;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::redact;

/// Bytes that may wait before lines about single requests are dropped.
const MAX_WAITING: usize = 4 << 20;

/// Bytes that may wait in all.
const MAX_WAITING_IN_ALL: usize = 8 << 20;

/// How long lines gather before they are written.
const GATHER: Duration = Duration::from_millis(5);

/// How long the end waits for a reader that does not read.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The module whose lines are about single requests.
const REQUESTS: &str = "hypervisor::http";

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    writing: bool,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to write, or the end has come.
    filled: Condvar,
    /// Everything is written.
    emptied: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Valid after every statement, so a poisoned lock still guards a sound buffer.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8], expendable: bool) {
        let most = if expendable {
            MAX_WAITING
        } else {
            MAX_WAITING_IN_ALL
        };
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > most {
            waiting.dropped += 1;
            return;
        }
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Waits for lines and takes them, with the number of those that found no room.
    /// `None` once there are none and none will come.
    fn take(&self, spare: Vec<u8>) -> Option<(Vec<u8>, u64)> {
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() && waiting.dropped == 0 {
            waiting.writing = false;
            self.emptied.notify_all();
            if waiting.closing {
                return None;
            }
            waiting = self
                .filled
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting.writing = true;
        let bytes = std::mem::replace(&mut waiting.bytes, spare);
        Some((bytes, std::mem::take(&mut waiting.dropped)))
    }

    /// Lets lines gather, unless the end has come.
    fn gather(&self) {
        let waiting = self.lock();
        // Its outcome does not matter: there is something to write, or time has passed.
        let _ = self
            .filled
            .wait_timeout_while(waiting, GATHER, |waiting| !waiting.closing);
    }
}

/// Takes lines for a [`Guard`]'s thread.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

/// Writes everything that waits when it is dropped; keep it until the process ends.
#[must_use = "what is logged is written as long as this lives"]
pub struct Guard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        waiting.closing = true;
        self.shared.filled.notify_all();
        let (waiting, late) = self
            .shared
            .emptied
            .wait_timeout_while(waiting, FLUSH_WITHIN, |waiting| {
                waiting.writing || !waiting.bytes.is_empty()
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(waiting);
        if !late.timed_out()
            && let Some(thread) = self.thread.take()
        {
            // It has nothing left to do; how it ends is no matter.
            let _ = thread.join();
        }
    }
}

/// Begins to write to `out`.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn begin(mut out: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
    let shared = Arc::new(Shared::default());
    let theirs = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            // Lines that cannot be masked are lost, and not what is logged from then on.
            while catch_unwind(AssertUnwindSafe(|| write(&theirs, &mut out))).is_err() {
                tracing::error!("log lines could not be written: the log's own code panicked");
                theirs.gather();
            }
        })?;
    let guard = Guard {
        shared: Arc::clone(&shared),
        thread: Some(thread),
    };
    Ok((Lines(shared), guard))
}

fn write(shared: &Shared, out: &mut impl Write) {
    let mut spare = Vec::new();
    while let Some((mut bytes, dropped)) = shared.take(std::mem::take(&mut spare)) {
        if dropped > 0 {
            // A line like any other, which is written next.
            tracing::warn!(
                lines = dropped,
                "log lines were dropped: they came faster than they were read"
            );
        }
        // Quicker than `from_utf8_lossy` about what is sound, which is everything.
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(&bytes),
        };
        // Nobody is left to tell when standard error is closed.
        let _ = out.write_all(redact(&text).as_bytes());
        let _ = out.flush();
        drop(text);
        bytes.clear();
        spare = bytes;
        shared.gather();
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter {
            shared: &self.0,
            expendable: false,
        }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> LineWriter<'a> {
        LineWriter {
            shared: &self.0,
            expendable: *about.level() > Level::INFO
                || (*about.level() == Level::INFO && about.target() == REQUESTS),
        }
    }
}

/// Takes one whole line per write, as `tracing_subscriber::fmt` hands it over.
pub(super) struct LineWriter<'a> {
    shared: &'a Shared,
    expendable: bool,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.push(line, self.expendable);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Mutex};

    use super::{Lines, MAX_WAITING, MAX_WAITING_IN_ALL, begin};

    /// Keeps what is written, and stands still until it may go on.
    struct Gate {
        written: Arc<Mutex<Vec<u8>>>,
        entered: SyncSender<()>,
        go: Receiver<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.try_send(());
            // An error: the gate stays open from now on.
            let _ = self.go.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn push(lines: &Lines, line: &str, expendable: bool) {
        lines.0.push(line.as_bytes(), expendable);
    }

    #[test]
    fn loses_nothing_at_an_orderly_end_and_masks_what_it_writes() {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (entered, _entered) = sync_channel(1);
        let (_open, go) = {
            let (sender, receiver) = sync_channel::<()>(1);
            drop(sender);
            ((), receiver)
        };
        let (lines, guard) = begin(Gate {
            written: Arc::clone(&written),
            entered,
            go,
        })
        .unwrap();
        for n in 0..1000 {
            push(&lines, &format!("line {n} sk-{}\n", "x".repeat(20)), true);
        }
        drop(guard);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1000);
        assert_eq!(text.lines().last(), Some("line 999 sk-[redacted]"));
        assert!(!text.contains("xxx"));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_warnings_have_room_of_their_own() {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (entered, stuck) = sync_channel(1);
        let (open, go) = sync_channel::<()>(0);
        let (lines, guard) = begin(Gate {
            written: Arc::clone(&written),
            entered,
            go,
        })
        .unwrap();
        push(&lines, "first\n", true);
        stuck.recv().unwrap();
        // The writer is stuck with the first line; none of these calls waits for it.
        let line = format!("{}\n", "r".repeat(1023));
        for _ in 0..MAX_WAITING_IN_ALL / line.len() {
            push(&lines, &line, true);
        }
        push(&lines, "a warning\n", false);
        {
            let waiting = lines.0.lock();
            assert!(waiting.bytes.len() <= MAX_WAITING + "a warning\n".len());
            assert_eq!(
                waiting.dropped as usize,
                (MAX_WAITING_IN_ALL - MAX_WAITING) / line.len()
            );
        }
        drop(open);
        drop(guard);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("first\n") && text.ends_with("a warning\n"));
    }

    /// Panics at its first line, and says that it comes to it.
    struct Once {
        begins: Option<SyncSender<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Once {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(begins) = self.begins.take() {
                begins.send(()).unwrap();
                panic!("on purpose");
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_go_on_after_a_panic_of_the_log_itself() {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (begins, taken) = sync_channel(1);
        let (lines, guard) = begin(Once {
            begins: Some(begins),
            written: Arc::clone(&written),
        })
        .unwrap();
        push(&lines, "lost\n", false);
        taken.recv().unwrap();
        push(&lines, "kept\n", false);
        drop(guard);
        assert_eq!(*written.lock().unwrap(), b"kept\n");
    }
}

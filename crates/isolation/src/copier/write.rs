//! The writing half of the copier: makes what the reader hands over. Runs as the user whom
//! the copy shall belong to, and reaches nothing but the target.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Timestamps, XattrFlags, chmodat,
    copy_file_range, fchmod, fsetxattr, ftruncate, futimens, ioctl_ficlone, mkdirat, openat, seek,
    statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::remove;
use super::wire::{Ask, Attributes, Meta, Step, to_bytes};
use crate::copying::{CopyBounds, CopyEvent, CopyReport, FINISH, Tally};
use crate::packet;
use crate::protocol::Refusal;

/// Passes over a source in use; after them the rest waits for it to stand still.
const MAX_LIVE_PASSES: u32 = 3;

/// A pass that was this short leaves little to the next one.
const SHORT_PASS: Duration = Duration::from_secs(1);

/// Between two reports of progress.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Bytes copied between two looks at whether to go on.
const PIECE: usize = 8 << 20;

/// Files up to this length are copied through memory, which takes fewer calls.
const SMALL: u64 = 64 << 10;

/// Bytes copied between two looks at the free space.
const LOOK_AT_SPACE_EVERY: u64 = 64 << 20;

/// The writer.
pub(super) struct Writer<'a> {
    /// To the reader.
    socket: OwnedFd,
    /// Who asked; its end cancels.
    orders: OwnedFd,
    tell: &'a dyn Fn(&CopyEvent) -> io::Result<()>,
    bounds: CopyBounds,
    target: &'a OwnedFd,
    parts: Vec<(String, OwnedFd)>,
    /// Where it is: open directories, and what is to stay in each.
    levels: Vec<Level>,
    files: u64,
    bytes: u64,
    since_space: u64,
    told: Instant,
    /// Whether FICLONE works here; `None` until it was tried.
    reflinks: Option<bool>,
    buffer: Vec<u8>,
}

struct Level {
    dir: OwnedFd,
    keep: Option<HashSet<Vec<u8>>>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        socket: OwnedFd,
        orders: OwnedFd,
        tell: &'a dyn Fn(&CopyEvent) -> io::Result<()>,
        bounds: CopyBounds,
        target: &'a OwnedFd,
        parts: Vec<(String, OwnedFd)>,
    ) -> Self {
        Self {
            socket,
            orders,
            tell,
            bounds,
            target,
            parts,
            levels: Vec::new(),
            files: 0,
            bytes: 0,
            since_space: 0,
            told: Instant::now(),
            reflinks: None,
            buffer: Vec::new(),
        }
    }

    /// Counts only.
    pub(super) fn measure(&mut self) -> Result<Tally, Refusal> {
        self.ask(Ask::Count)?;
        match self.next()?.0 {
            Step::Counted { tally, .. } => Ok(tally),
            Step::Failed(refusal) => Err(refusal),
            _ => Err(confused()),
        }
    }

    /// The whole copy, up to the disk.
    pub(super) fn copy(&mut self, live: bool) -> Result<CopyReport, Refusal> {
        self.ask(Ask::Count)?;
        let (tally, precise) = match self.next()?.0 {
            Step::Counted { tally, precise } => (tally, precise),
            Step::Failed(refusal) => return Err(refusal),
            _ => return Err(confused()),
        };
        self.say(&CopyEvent::Counted { tally })?;
        self.reflinks = Some(self.can_reflink());
        if self.reflinks != Some(true) {
            self.check_space(tally.bytes)?;
        }
        let mut report = CopyReport {
            reflinked: self.reflinks == Some(true),
            ..CopyReport::default()
        };
        if live {
            // Without change times that can be trusted, a first pass would be for nothing.
            while precise && report.passes < MAX_LIVE_PASSES {
                let began = Instant::now();
                self.pass(false)?;
                report.passes += 1;
                if began.elapsed() < SHORT_PASS {
                    break;
                }
            }
            self.say(&CopyEvent::Ready)?;
            self.await_finish()?;
        }
        let began = Instant::now();
        let (files, bytes) = (self.files, self.bytes);
        report.tally = self.pass(true)?;
        report.passes += 1;
        report.last_files = self.files - files;
        report.last_bytes = self.bytes - bytes;
        report.last_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.say(&CopyEvent::Copied { report })?;
        rustix::fs::syncfs(self.target).map_err(|e| failed("write the copy to the disk", e))?;
        Ok(report)
    }

    fn pass(&mut self, last: bool) -> Result<Tally, Refusal> {
        self.ask(Ask::Pass { last })?;
        loop {
            let (step, riders) = self.next()?;
            match step {
                Step::Enter(name) => self.enter(&bytes(&name)?)?,
                Step::Keep(names) => {
                    let names = names.iter().map(|name| bytes(name));
                    let names = names.collect::<Result<Vec<_>, _>>()?;
                    let level = self.levels.last_mut().ok_or_else(confused)?;
                    level.keep.get_or_insert_default().extend(names);
                }
                Step::Leave(meta) => self.leave(meta, riders)?,
                Step::File { name, size, meta } => {
                    self.file(&bytes(&name)?, size, meta, riders)?;
                }
                Step::Link { name, to, meta } => self.link(&bytes(&name)?, &bytes(&to)?, meta)?,
                Step::Over(tally) => return Ok(tally),
                Step::Failed(refusal) => return Err(refusal),
                Step::Counted { .. } => return Err(confused()),
            }
            self.report()?;
        }
    }

    fn enter(&mut self, name: &[u8]) -> Result<(), Refusal> {
        let dir = match self.levels.last() {
            None => {
                let part = self.parts.iter().find(|(part, _)| part.as_bytes() == name);
                let (_, dir) = part.ok_or_else(confused)?;
                dir.try_clone().map_err(|e| failed("open a part", e))?
            }
            Some(Level { dir, .. }) => make_dir(dir, name)?,
        };
        self.levels.push(Level { dir, keep: None });
        Ok(())
    }

    fn leave(&mut self, meta: Meta, riders: Vec<OwnedFd>) -> Result<(), Refusal> {
        let Level { dir, keep } = self.levels.pop().ok_or_else(confused)?;
        if let Some(keep) = keep {
            remove_others(&dir, &keep)?;
        }
        set_attributes(&dir, riders.into_iter().next())?;
        // A part's own mode is the supervisor's to set.
        if !self.levels.is_empty() {
            fchmod(&dir, Mode::from_raw_mode(meta.mode)).map_err(|e| failed("set a mode", e))?;
        }
        futimens(&dir, &times(meta)).map_err(|e| failed("set a time", e))
    }

    fn file(
        &mut self,
        name: &[u8],
        size: u64,
        meta: Meta,
        riders: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let level = self.levels.last().ok_or_else(confused)?;
        let mut riders = riders.into_iter();
        let from = riders.next().ok_or_else(confused)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(&level.dir, name, flags, Mode::RUSR | Mode::WUSR);
        let to = match create() {
            Err(Errno::EXIST) => {
                make_way(&level.dir, name)?;
                create()
            }
            other => other,
        };
        let to = to.map_err(|e| failed("make a file", e))?;
        self.data(&from, &to, size)?;
        self.files += 1;
        set_attributes(&to, riders.next())?;
        fchmod(&to, Mode::from_raw_mode(meta.mode)).map_err(|e| failed("set a mode", e))?;
        futimens(&to, &times(meta)).map_err(|e| failed("set a time", e))
    }

    fn link(&self, name: &[u8], to: &[u8], meta: Meta) -> Result<(), Refusal> {
        let level = self.levels.last().ok_or_else(confused)?;
        let made = match symlinkat(to, &level.dir, name) {
            Err(Errno::EXIST) => {
                make_way(&level.dir, name)?;
                symlinkat(to, &level.dir, name)
            }
            other => other,
        };
        made.map_err(|e| failed("make a symbolic link", e))?;
        utimensat(&level.dir, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("set a time", e))
    }

    /// Copies the bytes of a file, holes as holes.
    fn data(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Refusal> {
        if size == 0 {
            return Ok(());
        }
        if self.reflinks == Some(true) && ioctl_ficlone(to, from).is_ok() {
            // The whole file, which may have grown since it was looked at.
            return ftruncate(to, size).map_err(|e| failed("cut a file", e));
        }
        if size <= SMALL {
            return self.through_memory(from, to, 0, size, size);
        }
        let mut at = 0;
        while at < size {
            let start = match seek(from, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                // A hole up to the end, or a file that was cut meanwhile.
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(failed("look for data in a file", error)),
            };
            let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            self.piece(from, to, start, end, size)?;
            at = end.max(start + 1);
        }
        ftruncate(to, size).map_err(|e| failed("set the length of a file", e))
    }

    /// Copies one run of data within the kernel.
    fn piece(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        mut at: u64,
        end: u64,
        size: u64,
    ) -> Result<(), Refusal> {
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let (mut source, mut target) = (at, at);
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), most) {
                // It was cut meanwhile; the next pass will see that.
                Ok(0) => return Ok(()),
                Ok(length) => {
                    at += length as u64;
                    self.account(length as u64)?;
                }
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return self.through_memory(from, to, at, end, size);
                }
                Err(error) => return Err(failed("copy a file", error)),
            }
        }
        Ok(())
    }

    fn through_memory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        mut at: u64,
        end: u64,
        size: u64,
    ) -> Result<(), Refusal> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(SMALL as usize, 0);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(buffer.len());
            let most = most.min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            let length = match rustix::io::pread(from, room, at) {
                Ok(0) => break,
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(failed("read a file", error)),
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let written = match rustix::io::pwrite(to, rest, at) {
                    Ok(written) => written,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(failed("write a file", error)),
                };
                at += written as u64;
                rest = rest.get(written..).unwrap_or_default();
            }
            self.account(length as u64)?;
        }
        self.buffer = buffer;
        if at < size && end == size {
            // It was cut meanwhile; the next pass will see that.
            return ftruncate(to, at).map_err(|e| failed("set the length of a file", e));
        }
        Ok(())
    }

    fn account(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.bytes += bytes;
        self.since_space += bytes;
        if self.since_space >= LOOK_AT_SPACE_EVERY {
            self.since_space = 0;
            self.check_space(0)?;
        }
        self.report()
    }

    /// Says how far it is, and ends when nobody waits for it any more.
    fn report(&mut self) -> Result<(), Refusal> {
        if self.told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        if is_closed(&self.orders) {
            return Err(cancelled());
        }
        self.say(&CopyEvent::Progress {
            files: self.files,
            bytes: self.bytes,
        })
    }

    fn check_space(&self, wanted: u64) -> Result<(), Refusal> {
        let space =
            rustix::fs::fstatvfs(self.target).map_err(|e| failed("look at the free space", e))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free >= wanted.saturating_add(self.bounds.keep_free) {
            return Ok(());
        }
        Err(Refusal::new(
            "disk_full",
            format!(
                "the disk has {} MiB free; the copy needs {} MiB, and {} MiB stay in reserve",
                free >> 20,
                wanted >> 20,
                self.bounds.keep_free >> 20
            ),
        )
        .with_hint("delete snapshots that are not needed, or give the data directory more room"))
    }

    /// Whether the target's file system shares blocks between files, tried with two files
    /// that have no name.
    fn can_reflink(&self) -> bool {
        let Some((_, part)) = self.parts.first() else {
            return false;
        };
        let file = || {
            openat(
                part,
                ".",
                OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )
        };
        let (Ok(one), Ok(other)) = (file(), file()) else {
            return false;
        };
        rustix::io::write(&one, &[1; 4096]).is_ok() && ioctl_ficlone(&other, &one).is_ok()
    }

    fn ask(&self, ask: Ask) -> Result<(), Refusal> {
        packet::send(&self.socket, &ask, &[]).map_err(|_| reader_gone())
    }

    /// The reader's next step; ends early when nobody waits for the copy any more.
    fn next(&self) -> Result<(Step, Vec<OwnedFd>), Refusal> {
        loop {
            match packet::receive(&self.socket, false) {
                Ok(Some(step)) => return Ok(step),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => return Err(reader_gone()),
            }
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.orders, PollFlags::empty()),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed("wait for the reader", error)),
            }
            if fds.last().is_some_and(|fd| !fd.revents().is_empty()) {
                return Err(cancelled());
            }
        }
    }

    /// Waits until the source stands still.
    fn await_finish(&self) -> Result<(), Refusal> {
        let mut line = [0; FINISH.len() + 1];
        let mut read = 0;
        while let Some(room) = line.get_mut(read..).filter(|room| !room.is_empty()) {
            match rustix::io::read(&self.orders, room) {
                Ok(0) => return Err(cancelled()),
                Ok(length) => read += length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("wait for the sandbox to stand still", error)),
            }
        }
        if line.strip_suffix(b"\n") == Some(FINISH.as_bytes()) {
            Ok(())
        } else {
            Err(confused())
        }
    }

    fn say(&self, event: &CopyEvent) -> Result<(), Refusal> {
        (self.tell)(event).map_err(|_| cancelled())
    }
}

/// Whether the other end of a pipe is closed.
fn is_closed(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

/// Opens a directory of ours, made if it is missing and in place of anything else.
fn make_dir(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Refusal> {
    let made = mkdirat(parent, name, Mode::RWXU);
    if made == Err(Errno::EXIST) {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("look at a directory", e))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            // Its mode may be one that lets nobody in. Nobody else reaches the copy.
            chmodat(parent, name, Mode::RWXU, AtFlags::empty())
                .map_err(|e| failed("set a mode", e))?;
        } else {
            make_way(parent, name)?;
            mkdirat(parent, name, Mode::RWXU).map_err(|e| failed("make a directory", e))?;
        }
    } else {
        made.map_err(|e| failed("make a directory", e))?;
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(|e| failed("open a directory", e))
}

/// Removes what has a name that is needed for something else.
fn make_way(dir: &OwnedFd, name: &[u8]) -> Result<(), Refusal> {
    remove::entry(dir, name).map_err(|e| failed("remove what was replaced", e))
}

/// Removes what the source has no more.
fn remove_others(dir: &OwnedFd, keep: &HashSet<Vec<u8>>) -> Result<(), Refusal> {
    let entries = Dir::read_from(dir).map_err(|e| failed("list a directory", e))?;
    let mut others = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| failed("list a directory", e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !keep.contains(name) {
            others.push(name.to_vec());
        }
    }
    others.iter().try_for_each(|name| make_way(dir, name))
}

/// Sets the extended attributes that came along; those of another pass that are gone since
/// stay on a directory, and never on a file, which is made anew.
fn set_attributes(file: impl AsFd, from: Option<OwnedFd>) -> Result<(), Refusal> {
    let Some(from) = from else {
        return Ok(());
    };
    let mut text = Vec::new();
    std::fs::File::from(from)
        .read_to_end(&mut text)
        .map_err(|e| failed("read attributes", e))?;
    let attributes: Attributes = serde_json::from_slice(&text).map_err(|_| confused())?;
    for (name, value) in attributes {
        let (name, value) = (bytes(&name)?, bytes(&value)?);
        // A file system without them keeps the files all the same.
        match fsetxattr(&file, name.as_slice(), &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed("set an attribute", error)),
        }
    }
    Ok(())
}

fn times(meta: Meta) -> Timestamps {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time(meta.mtime),
        last_modification: time(meta.mtime),
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    to_bytes(text).ok_or_else(confused)
}

fn failed(what: &str, error: impl Into<io::Error>) -> Refusal {
    let error = error.into();
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Refusal::new("disk_full", format!("the disk is full: cannot {what}")).with_hint(
                "delete snapshots that are not needed, or give the data directory more room",
            )
        }
        _ => Refusal::new("unwritable", format!("cannot {what}: {error}")),
    }
}

fn cancelled() -> Refusal {
    Refusal::new("cancelled", "the copy was cancelled")
}

fn reader_gone() -> Refusal {
    Refusal::new("internal", "the reading half of the copier went away")
}

fn confused() -> Refusal {
    Refusal::new("internal", "the two halves of the copier disagree")
}

//! The reading half of the copier: walks a tree that its owner may be changing, and hands
//! open files to the writer. Runs as the tree's owner, and reaches nothing else.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, Stat, chmodat, fstat,
    memfd_create, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::wire::{Ask, Attributes, Meta, Step, to_text};
use crate::copying::{CopyBounds, Tally};
use crate::packet;
use crate::protocol::Refusal;
use crate::sys;

/// A file that changed this short a time before it was looked at is copied again in the next
/// pass, whatever its change time says then. Time stamps are as coarse as a clock tick (a
/// second on old file systems), and a long `write` sets its time when it begins.
const SETTLED_SECONDS: i64 = 5;

/// Bytes of names in one message.
const NAMES_PER_STEP: usize = 6 << 10;

/// Most bytes of extended attributes of one file.
const MAX_ATTRIBUTES: usize = 64 << 10;

/// Longest target of a symbolic link that is kept: PATH_MAX.
const MAX_LINK: usize = 4096;

/// How a name of a hostile directory is opened: itself, never what a link or a mount leads to.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// File systems on which every change of a file's bytes, one through a shared mapping
/// included, moves its change time once its pages were written out.
const PRECISE: &[i64] = &[
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
];

/// How a file stood when it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
}

/// Walks the source and answers the writer until it goes away.
pub(super) struct Reader {
    /// To the writer.
    socket: OwnedFd,
    /// The parts, in the order of the job; `None` when there is none.
    parts: Vec<Option<OwnedFd>>,
    names: Vec<String>,
    bounds: CopyBounds,
    /// What was copied, by the hash of its path. Keyed by a random seed, so nobody can choose
    /// paths that collide; the inode has to be the same as well.
    seen: HashMap<u64, Stamp>,
    hasher: RandomState,
    precise: bool,
    walk: Walk,
}

/// One walk.
#[derive(Debug, Default)]
struct Walk {
    tally: Tally,
    /// Copy nothing.
    counting: bool,
    last: bool,
    /// Where the walk is, for messages and for [`Reader::seen`].
    path: Vec<u8>,
    /// Lengths of `path` at each level that the writer has not been told to enter.
    unentered: Vec<String>,
}

/// The walk cannot go on.
enum Stop {
    Refused(Refusal),
    /// The writer is gone.
    Abandoned,
}

type Walked<T> = Result<T, Stop>;

impl Reader {
    pub(super) fn new(
        socket: OwnedFd,
        parts: Vec<Option<OwnedFd>>,
        names: Vec<String>,
        bounds: CopyBounds,
    ) -> Self {
        let precise = parts
            .iter()
            .flatten()
            .all(|part| rustix::fs::fstatfs(part).is_ok_and(|fs| PRECISE.contains(&fs.f_type)));
        Self {
            socket,
            parts,
            names,
            bounds,
            seen: HashMap::new(),
            hasher: RandomState::new(),
            precise,
            walk: Walk::default(),
        }
    }

    /// Answers until the writer goes away; it says why when something is wrong.
    pub(super) fn serve(&mut self) {
        while let Ok(Some((ask, _))) = packet::receive::<Ask>(&self.socket, true) {
            let answered = match ask {
                Ask::Count => self.walk_all(true, true).and_then(|()| {
                    let counted = Step::Counted {
                        tally: self.walk.tally,
                        precise: self.precise,
                    };
                    self.send(&counted, &[])
                }),
                Ask::Pass { last } => self
                    .walk_all(false, last)
                    .and_then(|()| self.send(&Step::Over(self.walk.tally), &[])),
            };
            match answered {
                Ok(()) => {}
                Err(Stop::Refused(refusal)) => {
                    // If the writer is gone there is nobody to tell.
                    let _ = packet::send(&self.socket, &Step::Failed(refusal), &[]);
                    return;
                }
                Err(Stop::Abandoned) => return,
            }
        }
    }

    fn walk_all(&mut self, counting: bool, last: bool) -> Walked<()> {
        self.walk = Walk {
            counting,
            // Counting looks at a tree that may be in use.
            last: last && !counting,
            ..Walk::default()
        };
        for index in 0..self.parts.len() {
            let Some(name) = self.names.get(index).cloned() else {
                continue;
            };
            let dir = match self.parts.get(index) {
                Some(Some(dir)) => dir.try_clone().map_err(|e| self.failed("open", &e))?,
                _ => continue,
            };
            self.enter_later(name.as_bytes());
            let walked = self.directory(&dir, 1);
            self.walk.path.clear();
            walked?;
        }
        Ok(())
    }

    /// Notes that the walk is in a directory now; the writer is told when it matters.
    fn enter_later(&mut self, name: &[u8]) {
        if !self.walk.path.is_empty() {
            self.walk.path.push(b'/');
        }
        self.walk.path.extend_from_slice(name);
        self.walk.unentered.push(to_text(name));
    }

    /// Tells the writer where the walk is.
    fn enter(&mut self) -> Walked<()> {
        for name in std::mem::take(&mut self.walk.unentered) {
            self.send(&Step::Enter(name), &[])?;
        }
        Ok(())
    }

    /// Walks an open directory, the last component of the path.
    fn directory(&mut self, dir: &OwnedFd, depth: u32) -> Walked<()> {
        if depth > self.bounds.depth {
            return Err(self.refused(
                "too_deep",
                &format!("directories nest deeper than {}", self.bounds.depth),
                "move or remove what lies there",
            ));
        }
        // Before it is listed: what comes or goes later moves the time on.
        let stat = fstat(dir).map_err(|e| self.failed("look at", &e.into()))?;
        let unchanged = self.known(&stat);
        self.note(&stat);
        self.count(|tally| tally.directories += 1)?;
        let names = self.list(dir)?;
        if !unchanged && !self.walk.counting {
            self.enter()?;
            self.keep(&names)?;
        }
        for name in names {
            let length = self.walk.path.len();
            let walked = self.entry(dir, &name, depth);
            self.walk.path.truncate(length);
            walked?;
        }
        if self.walk.unentered.pop().is_none() {
            let attributes = self.attributes(dir.as_fd())?;
            let riders: Vec<BorrowedFd<'_>> = attributes.iter().map(AsFd::as_fd).collect();
            self.send(&Step::Leave(meta(&stat)), &riders)?;
        }
        Ok(())
    }

    fn list(&self, dir: &OwnedFd) -> Walked<Vec<Vec<u8>>> {
        let room = self
            .bounds
            .entries
            .saturating_sub(self.walk.tally.entries());
        let mut names = Vec::new();
        // Through this descriptor: to open it again is a right that its owner may have taken.
        let listing = dir.try_clone().map_err(|e| self.failed("open", &e))?;
        let mut entries = Dir::new(listing).map_err(|e| self.failed("list", &e.into()))?;
        // A part is listed once more in the next pass.
        entries.rewind();
        for entry in entries {
            let entry = entry.map_err(|e| self.failed("list", &e.into()))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            names.push(name.to_vec());
            if names.len() as u64 > room {
                return Err(self.too_many());
            }
        }
        Ok(names)
    }

    /// Tells the writer what is in the directory, so that it removes what is not.
    fn keep(&self, names: &[Vec<u8>]) -> Walked<()> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for name in names {
            bytes += 2 * name.len() + 3;
            batch.push(to_text(name));
            if bytes > NAMES_PER_STEP {
                self.send(&Step::Keep(std::mem::take(&mut batch)), &[])?;
                bytes = 0;
            }
        }
        self.send(&Step::Keep(batch), &[])
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], depth: u32) -> Walked<()> {
        let parent_length = self.walk.path.len();
        self.walk.path.push(b'/');
        self.walk.path.extend_from_slice(name);
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.vanished("look at", error),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(dir, name, &stat),
            FileType::Symlink => self.link(dir, name, &stat),
            FileType::Directory => match self.open(dir, name, OFlags::DIRECTORY) {
                Ok(Some(inner)) => {
                    self.walk.path.truncate(parent_length);
                    self.enter_later(name);
                    self.directory(&inner, depth + 1)
                }
                Ok(None) => self.count(|tally| tally.skipped += 1),
                Err(error) => self.vanished("open", error),
            },
            _ => self.count(|tally| tally.skipped += 1),
        }
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], seen: &Stat) -> Walked<()> {
        if self.walk.counting || self.known(seen) {
            return self.count_file(seen);
        }
        let file = match self.open(dir, name, OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(Some(file)) => file,
            Ok(None) => return self.count(|tally| tally.skipped += 1),
            Err(error) => return self.vanished("open", error),
        };
        let stat = fstat(&file).map_err(|e| self.failed("look at", &e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // Another one took its name between the look and the opening.
            return self.vanished("open", Errno::STALE);
        }
        self.count_file(&stat)?;
        if !self.walk.last {
            // Pages that are written out are protected, so the next store into a mapping of
            // the file moves its change time. After the look at it: what changes in between
            // is copied now, and looks new to the next pass.
            sys::write_out(&file);
        }
        self.note(&stat);
        let attributes = self.attributes(file.as_fd())?;
        let mut riders = vec![file.as_fd()];
        riders.extend(attributes.iter().map(AsFd::as_fd));
        self.enter()?;
        let step = Step::File {
            name: to_text(name),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            meta: meta(&stat),
        };
        self.send(&step, &riders)
    }

    fn link(&mut self, dir: &OwnedFd, name: &[u8], stat: &Stat) -> Walked<()> {
        self.count(|tally| tally.links += 1)?;
        if self.walk.counting || self.known(stat) {
            return Ok(());
        }
        let to = match readlinkat(dir, name, Vec::new()) {
            Ok(to) if to.as_bytes().len() <= MAX_LINK => to,
            Ok(_) => return Ok(()),
            Err(error) => return self.vanished("read", error),
        };
        self.note(stat);
        self.enter()?;
        let step = Step::Link {
            name: to_text(name),
            to: to_text(to.as_bytes()),
            meta: meta(stat),
        };
        self.send(&step, &[])
    }

    /// Opens an entry for reading. `None`: something is mounted over it.
    fn open(&self, dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |flags| match openat2(dir, name, flags, Mode::empty(), BENEATH) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::XDEV) => Ok(None),
            Err(error) => Err(error),
        };
        match open(flags) {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        // Its owner took their own right to read it. They have the right to give it back for
        // as long as it takes to open it; the descriptor names it whatever the name does.
        let pinned = openat2(
            dir,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        )?;
        let stat = fstat(&pinned)?;
        let itself = format!("/proc/self/fd/{}", pinned.as_raw_fd());
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let wanted = mode | Mode::RUSR | Mode::XUSR;
        chmodat(CWD, &itself, wanted, AtFlags::empty())?;
        let opened = open(flags);
        chmodat(CWD, &itself, mode, AtFlags::empty())?;
        opened
    }

    /// What is gone may be gone while the tree is in use. In the last pass nothing changes,
    /// or the copy is not what it claims to be.
    fn vanished(&self, what: &str, error: Errno) -> Walked<()> {
        let expected = matches!(
            error,
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::STALE | Errno::ACCESS
        );
        if expected && !self.walk.last {
            return Ok(());
        }
        if expected && error != Errno::ACCESS {
            return Err(self.refused(
                "changing",
                "something changed while the sandbox stood still",
                "try again; if it stays, stop the sandbox first",
            ));
        }
        Err(self.failed(what, &error.into()))
    }

    fn count_file(&mut self, stat: &Stat) -> Walked<()> {
        // Blocks of 512 bytes (stat(2)); fewer than its length when it has holes.
        let held = u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.count(|tally| {
            tally.files += 1;
            tally.bytes += size.min(held);
        })?;
        if self.walk.tally.bytes > self.bounds.bytes {
            return Err(self.refused(
                "too_large",
                &format!("the files are larger than {} bytes", self.bounds.bytes),
                "remove what is not needed, or delete older snapshots",
            ));
        }
        Ok(())
    }

    fn count(&mut self, add: impl FnOnce(&mut Tally)) -> Walked<()> {
        add(&mut self.walk.tally);
        if self.walk.tally.entries() > self.bounds.entries {
            return Err(self.too_many());
        }
        Ok(())
    }

    fn too_many(&self) -> Stop {
        self.refused(
            "too_many_files",
            &format!("there are more than {} files", self.bounds.entries),
            "remove what is not needed, such as caches",
        )
    }

    /// Whether the entry at the present path is the one that was copied before.
    fn known(&self, stat: &Stat) -> bool {
        self.seen.get(&self.key()) == Some(&stamp(stat))
    }

    /// Remembers how the entry at the present path stands, if that tells anything later.
    fn note(&mut self, stat: &Stat) {
        if self.walk.counting || self.walk.last || !self.precise {
            return;
        }
        let key = self.key();
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        if stat.st_ctime.saturating_add(SETTLED_SECONDS) < now {
            self.seen.insert(key, stamp(stat));
        } else {
            self.seen.remove(&key);
        }
    }

    fn key(&self) -> u64 {
        self.hasher.hash_one(&self.walk.path)
    }

    /// The extended attributes of a file in the `user` name space, in a memfd.
    fn attributes(&self, file: BorrowedFd<'_>) -> Walked<Option<OwnedFd>> {
        let mut list = vec![0; MAX_ATTRIBUTES];
        let length = match rustix::fs::flistxattr(file, list.as_mut_slice()) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(length) => length,
        };
        let mut found: Attributes = Vec::new();
        let mut room = MAX_ATTRIBUTES;
        for name in list.get(..length).unwrap_or_default().split(|&b| b == 0) {
            if !name.starts_with(b"user.") {
                continue;
            }
            let mut value = vec![0; room];
            if let Ok(length) = rustix::fs::fgetxattr(file, name, value.as_mut_slice()) {
                room -= length;
                found.push((
                    to_text(name),
                    to_text(value.get(..length).unwrap_or_default()),
                ));
            }
        }
        if found.is_empty() {
            return Ok(None);
        }
        let written = || -> std::io::Result<OwnedFd> {
            let mut file = std::fs::File::from(memfd_create("attributes", MemfdFlags::CLOEXEC)?);
            file.write_all(&serde_json::to_vec(&found)?)?;
            file.rewind()?;
            Ok(file.into())
        };
        written()
            .map(Some)
            .map_err(|e| self.failed("read the attributes of", &e))
    }

    fn send(&self, step: &Step, riders: &[BorrowedFd<'_>]) -> Walked<()> {
        packet::send(&self.socket, step, riders).map_err(|_| Stop::Abandoned)
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Stop {
        let code = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "too_deep",
            _ => "unreadable",
        };
        Stop::Refused(Refusal::new(
            code,
            format!("cannot {what} {}: {error}", self.shown()),
        ))
    }

    fn refused(&self, code: &str, message: &str, hint: &str) -> Stop {
        Stop::Refused(
            Refusal::new(code, format!("{message} (at {})", self.shown())).with_hint(hint),
        )
    }

    /// The present path, for people; its end when it is long.
    fn shown(&self) -> String {
        const MOST: usize = 120;
        let text: String = String::from_utf8_lossy(&self.walk.path)
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        let length = text.chars().count();
        if length <= MOST {
            return text;
        }
        let end: String = text.chars().skip(length - MOST).collect();
        format!("…{end}")
    }
}

fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        inode: stat.st_ino,
        changed: (
            stat.st_ctime,
            i64::try_from(stat.st_ctime_nsec).unwrap_or_default(),
        ),
    }
}

fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o777,
        mtime: (
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        ),
    }
}

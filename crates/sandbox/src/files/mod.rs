//! Files beneath the workspace and nowhere else.
//!
//! Every path is resolved by the kernel with `openat2` and `RESOLVE_BENEATH`, and what is
//! created, renamed or removed is named relative to a directory that was opened that way.
//! There is no check that a link could be swapped in behind: a command in the sandbox may
//! race with every one of these calls and gains nothing. `..`, absolute paths and absolute
//! links do not resolve; links that stay beneath the workspace do.

mod edit;
mod walk;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use edit::{Precondition, Written};
pub use walk::{Found, WalkLimits};

/// Largest file that is read or written whole.
pub const MAX_CONTENT: u64 = 16 * 1024 * 1024;
/// Most entries of a directory that are listed.
pub const MAX_ENTRIES: usize = 10_000;
/// Longest path, as the kernel has it.
const MAX_PATH: usize = 4096;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Why a file operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file, or not beneath the workspace.
    #[error("there is no such file or directory")]
    NotFound,
    /// The path cannot be one.
    #[error("the path is not valid: {0}")]
    Path(&'static str),
    /// The path leads out of the workspace.
    #[error("the path leads out of the workspace")]
    Outside,
    /// It is of another kind than the operation needs.
    #[error("this is {0}")]
    Kind(&'static str),
    /// Something is there already.
    #[error("something of that name is there already")]
    Exists,
    /// The directory is not empty or too deep to remove.
    #[error("the directory is nested too deep to be removed")]
    TooDeep,
    /// It is larger than what is read or written.
    #[error("it has {0} bytes; the bound is {MAX_CONTENT}")]
    TooLarge(u64),
    /// It is not the version that the caller knows.
    #[error("the file has changed since it was read")]
    Changed,
    /// The permissions do not allow it.
    #[error("the permissions do not allow it")]
    Permission,
    /// No room.
    #[error("there is no room left")]
    Full,
    /// Anything else.
    #[error("the operation failed")]
    Io(#[source] io::Error),
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::XDEV => Self::Outside,
            Errno::LOOP => Self::Kind("a symbolic link"),
            Errno::NOTDIR => Self::Kind("not a directory"),
            Errno::ISDIR => Self::Kind("a directory"),
            Errno::EXIST | Errno::NOTEMPTY => Self::Exists,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::Permission,
            Errno::NOSPC | Errno::DQUOT => Self::Full,
            Errno::NAMETOOLONG => Self::Path("it is too long"),
            errno => Self::Io(errno.into()),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Errno::from_raw_os_error(code).into(),
            None => Self::Io(error),
        }
    }
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryType {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link, whatever it leads to.
    Symlink,
    /// A socket, pipe or device.
    Other,
}

impl EntryType {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Its name; what is not UTF-8 in it is replaced.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryType,
    /// Bytes, for a file.
    pub size: u64,
    /// Last change, RFC 3339.
    #[schema(format = DateTime)]
    pub modified: String,
}

/// A regular file that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The file, at its beginning.
    pub file: File,
    /// Bytes it had when it was opened.
    pub size: u64,
    /// Strong entity tag of this version, quotes included.
    pub etag: String,
}

/// A directory beneath which everything happens. All methods block.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: Arc<OwnedFd>,
    /// Writers of this process take turns, so that a precondition holds until the write.
    writing: Arc<Mutex<()>>,
}

impl Workspace {
    /// Opens the root.
    ///
    /// # Errors
    /// When it is no directory, or the kernel lacks `openat2` (Linux 5.6).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        rustix::fs::openat2(&root, ".", flags, Mode::empty(), RESOLVE)?;
        Ok(Self {
            root: Arc::new(root),
            writing: Arc::default(),
        })
    }

    /// A directory beneath this one, as a root of its own.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn beneath(&self, path: &str) -> Result<Self, FileError> {
        let root = self.directory(check(path)?)?;
        Ok(Self {
            root: Arc::new(root),
            writing: self.writing.clone(),
        })
    }

    /// Whether the path leads to a regular file.
    #[must_use]
    pub fn is_file(&self, path: &str) -> bool {
        self.resolve(path, OFlags::PATH)
            .and_then(|fd| Ok(rustix::fs::fstat(fd)?))
            .is_ok_and(|stat| EntryType::of(&stat) == EntryType::File)
    }

    /// Opens a regular file of at most `max` bytes for reading.
    ///
    /// # Errors
    /// When there is none, it is larger, or it may not be read.
    pub fn open_file(&self, path: &str, max: u64) -> Result<Opened, FileError> {
        // Not to hang on a pipe that nobody writes.
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&fd)?;
        match EntryType::of(&stat) {
            EntryType::File => {}
            EntryType::Dir => return Err(FileError::Kind("a directory")),
            EntryType::Symlink | EntryType::Other => {
                return Err(FileError::Kind("not a regular file"));
            }
        }
        let size = size(&stat);
        if size > max {
            return Err(FileError::TooLarge(size));
        }
        Ok(Opened {
            file: File::from(fd),
            size,
            etag: etag(&stat),
        })
    }

    /// The content of a regular file of at most `max` bytes, with its entity tag.
    ///
    /// # Errors
    /// As [`Workspace::open_file`], and when reading fails.
    pub fn read(&self, path: &str, max: u64) -> Result<(Vec<u8>, String), FileError> {
        let opened = self.open_file(path, max)?;
        let mut bytes = Vec::with_capacity(usize::try_from(opened.size).unwrap_or_default());
        // It may grow while it is read.
        opened.file.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(FileError::TooLarge(bytes.len() as u64));
        }
        Ok((bytes, opened.etag))
    }

    /// The entries of a directory, directories first, then by name. The flag says whether
    /// there are more than [`MAX_ENTRIES`].
    ///
    /// # Errors
    /// When it is no directory or may not be read.
    pub fn list(&self, path: &str) -> Result<(Vec<Entry>, bool), FileError> {
        let directory = self.readable_directory(path)?;
        let mut entries = Vec::new();
        let mut more = false;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                more = true;
                break;
            }
            // Gone in the meantime.
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                kind: EntryType::of(&stat),
                size: size(&stat),
                modified: modified(&stat),
            });
        }
        entries.sort_by(|one, other| {
            (one.kind != EntryType::Dir, &one.name)
                .cmp(&(other.kind != EntryType::Dir, &other.name))
        });
        Ok((entries, more))
    }

    fn resolve(&self, path: &str, flags: OFlags) -> Result<OwnedFd, FileError> {
        let path = match check(path)? {
            "" => ".",
            path => path,
        };
        let mut tries = 0;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), RESOLVE) {
                // The kernel asks to try again when a rename elsewhere raced with `..`.
                Err(Errno::AGAIN) if tries < 8 => tries += 1,
                result => return Ok(result?),
            }
        }
    }

    fn directory(&self, path: &str) -> Result<OwnedFd, FileError> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn readable_directory(&self, path: &str) -> Result<OwnedFd, FileError> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The directory that holds the last component of a path, and that component.
    fn parent<'path>(&self, path: &'path str) -> Result<(OwnedFd, &'path str), FileError> {
        let path = check(path)?.trim_end_matches('/');
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        match name {
            "" => Err(FileError::Path("it names the workspace itself")),
            "." | ".." => Err(FileError::Path("its last part is . or ..")),
            name => Ok((self.directory(directory)?, name)),
        }
    }
}

/// Paths are relative to the root; the rest is for the kernel to decide.
fn check(path: &str) -> Result<&str, FileError> {
    if path.len() >= MAX_PATH {
        return Err(FileError::Path("it is too long"));
    }
    if path.contains('\0') {
        return Err(FileError::Path("it has a NUL character"));
    }
    if path.starts_with('/') {
        return Err(FileError::Path("it has to be relative to the workspace"));
    }
    Ok(path)
}

fn stat_entry(directory: impl AsFd, name: &str) -> Result<Option<Stat>, FileError> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// A version is told by inode, size and times: an atomic write makes a new inode, and a
/// write in place changes the times. Writes in place within one tick of the kernel's
/// clock (4 ms) that keep the size are not told apart.
fn etag(stat: &Stat) -> String {
    format!(
        "\"{:x}-{:x}-{:x}.{:x}-{:x}.{:x}\"",
        stat.st_ino,
        stat.st_size,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec
    )
}

fn modified(stat: &Stat) -> String {
    jiff::Timestamp::from_second(stat.st_mtime)
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
mod tests;

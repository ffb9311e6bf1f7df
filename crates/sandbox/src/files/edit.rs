//! Changes beneath the workspace.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{EntryType, FileError, MAX_CONTENT, Workspace, etag, stat_entry};

/// Deepest directory tree that is removed.
const MAX_DEPTH: usize = 128;
/// Beginning of the names under which new content waits to take its place.
const TEMPORARY: &str = ".choir-new-";
/// Permissions of a new file and of a new directory; nobody else is in the sandbox.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// What must hold for a write to happen (RFC 9110 §13.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// The file is this version: `If-Match`.
    Version(String),
    /// There is no file yet: `If-None-Match: *`.
    Absent,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The entity tag of the new version.
    pub etag: String,
    /// Whether there was no file before.
    pub created: bool,
}

/// Removes the waiting content unless it took its place.
struct Temporary<'directory> {
    directory: &'directory OwnedFd,
    name: String,
    placed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing else can be done about it; the name tells what it is.
            let _gone = rustix::fs::unlinkat(self.directory, &self.name, AtFlags::empty());
        }
    }
}

impl Workspace {
    /// Replaces a file's content atomically: who reads sees the old or the new, never a
    /// part. Permissions are kept; a symbolic link is refused rather than replaced.
    ///
    /// # Errors
    /// When the precondition does not hold, the content is larger than [`MAX_CONTENT`],
    /// the directory does not exist, or the system refuses.
    pub fn write(
        &self,
        path: &str,
        content: &[u8],
        precondition: &Precondition,
    ) -> Result<Written, FileError> {
        if content.len() as u64 > MAX_CONTENT {
            return Err(FileError::TooLarge(content.len() as u64));
        }
        let (directory, name) = self.parent(path)?;
        let mut temporary = Temporary {
            directory: &directory,
            name: format!("{TEMPORARY}{}", Uuid::new_v4().simple()),
            placed: false,
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(
            &directory,
            &temporary.name,
            flags,
            FILE_MODE,
        )?);
        file.write_all(content)?;
        file.sync_data()?;

        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let existing = stat_entry(&directory, name)?;
        if let Some(stat) = &existing {
            match EntryType::of(stat) {
                EntryType::File => {}
                EntryType::Dir => return Err(FileError::Kind("a directory")),
                EntryType::Symlink => {
                    return Err(FileError::Kind(
                        "a symbolic link; write to what it leads to",
                    ));
                }
                EntryType::Other => return Err(FileError::Kind("not a regular file")),
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o777))?;
        }
        let holds = match (precondition, &existing) {
            (Precondition::None, _) | (Precondition::Absent, None) => true,
            (Precondition::Version(version), Some(stat)) => {
                version == "*" || *version == etag(stat)
            }
            (Precondition::Version(_), None) | (Precondition::Absent, Some(_)) => false,
        };
        if !holds {
            return Err(FileError::Changed);
        }
        if existing.is_some() {
            rustix::fs::renameat(&directory, &temporary.name, &directory, name)?;
        } else {
            // Something created in this moment by a command is not overwritten.
            let keep = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(&directory, &temporary.name, &directory, name, keep)?;
        }
        temporary.placed = true;
        Ok(Written {
            etag: etag(&rustix::fs::fstat(&file)?),
            created: existing.is_none(),
        })
    }

    /// Creates a directory, and those above it that are missing.
    ///
    /// # Errors
    /// When something of that name exists, or the system refuses.
    pub fn create_directory(&self, path: &str) -> Result<(), FileError> {
        let path = super::check(path)?.trim_end_matches('/');
        for (at, _) in path.match_indices('/') {
            let above = path.get(..at).unwrap_or_default();
            match self.create_one(above) {
                Ok(()) | Err(FileError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        self.create_one(path)
    }

    fn create_one(&self, path: &str) -> Result<(), FileError> {
        let (directory, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(&directory, name, DIRECTORY_MODE)?)
    }

    /// Creates the directories above a path that are missing.
    ///
    /// # Errors
    /// When the system refuses, or something above the path is no directory.
    pub fn create_above(&self, path: &str) -> Result<(), FileError> {
        match path.rsplit_once('/') {
            None => Ok(()),
            Some((above, _)) => match self.create_directory(above) {
                Ok(()) | Err(FileError::Exists) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Renames; never replaces what is at the new name.
    ///
    /// # Errors
    /// When the old name does not exist, the new one does, or the system refuses.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        let keep = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&from_directory, from_name, &to_directory, to_name, keep).map_err(
            |errno| match errno {
                Errno::INVAL => FileError::Path("a directory cannot be moved into itself"),
                errno => errno.into(),
            },
        )
    }

    /// Removes a file, a link (not what it leads to) or a directory with all it holds.
    ///
    /// # Errors
    /// When it does not exist, is nested deeper than 128 directories, or the system
    /// refuses; a part may be gone by then.
    pub fn remove(&self, path: &str) -> Result<(), FileError> {
        let (directory, name) = self.parent(path)?;
        remove_entry(&directory, name, 0)
    }
}

fn remove_entry(
    directory: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    depth: usize,
) -> Result<(), FileError> {
    let errno = match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    // Linux answers EISDIR for a directory, POSIX says EPERM.
    if errno != Errno::ISDIR && errno != Errno::PERM {
        return Err(errno.into());
    }
    if depth >= MAX_DEPTH {
        return Err(FileError::TooDeep);
    }
    // NOFOLLOW: a directory swapped for a link is not walked into.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(&directory, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let removed = if entry.file_type() == FileType::Directory {
            remove_entry(&inner, entry.file_name(), depth + 1)
        } else {
            rustix::fs::unlinkat(&inner, entry.file_name(), AtFlags::empty())
                .map_err(FileError::from)
        };
        match removed {
            // Somebody else removed it.
            Ok(()) | Err(FileError::NotFound) => {}
            // It was not what the listing said (or the file system does not say).
            Err(FileError::Kind(_)) => remove_entry(&inner, entry.file_name(), depth + 1)?,
            Err(error) => return Err(error),
        }
    }
    Ok(rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR)?)
}

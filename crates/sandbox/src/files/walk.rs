//! Walks a directory tree without following links.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use super::{EntryType, FileError, Workspace, size};

/// Directories that a walk does not enter: what is in them was not written by people.
const SKIPPED: &[&str] = &[".git", "node_modules", "target", ".venv", "__pycache__"];

/// Bounds of a walk.
#[derive(Debug, Clone, Copy)]
pub struct WalkLimits {
    /// Entries looked at.
    pub entries: usize,
    /// Directories below the first.
    pub depth: usize,
}

/// Something that a walk came by.
#[derive(Debug)]
pub struct Found<'walk> {
    /// Path relative to where the walk began.
    pub path: &'walk str,
    /// What it is.
    pub kind: EntryType,
    /// Bytes, for a file.
    pub size: u64,
    directory: &'walk OwnedFd,
    name: &'walk str,
}

impl Found<'_> {
    /// Opens it, when it is a regular file still.
    ///
    /// # Errors
    /// When it is not, or may not be read.
    pub fn open(&self) -> Result<std::fs::File, FileError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.directory, self.name, flags, Mode::empty())?;
        match EntryType::of(&rustix::fs::fstat(&fd)?) {
            EntryType::File => Ok(fd.into()),
            _ => Err(FileError::Kind("not a regular file")),
        }
    }
}

impl Workspace {
    /// Calls `visit` for everything beneath a directory, in the order of names, until it
    /// answers false. Directories of tools (`.git`, `node_modules`, `target` and such) are
    /// named and not entered. Answers whether everything was seen.
    ///
    /// # Errors
    /// When the directory cannot be read. Unreadable ones beneath it are passed over.
    pub fn walk(
        &self,
        path: &str,
        limits: WalkLimits,
        mut visit: impl FnMut(&Found<'_>) -> bool,
    ) -> Result<bool, FileError> {
        let root = self.readable_directory(path)?;
        let mut left = limits.entries;
        walk(&root, "", limits.depth, &mut left, &mut visit)
    }
}

fn walk(
    directory: &OwnedFd,
    prefix: &str,
    depth: usize,
    left: &mut usize,
    visit: &mut impl FnMut(&Found<'_>) -> bool,
) -> Result<bool, FileError> {
    let mut names = Vec::new();
    let mut all = true;
    for entry in Dir::read_from(directory)? {
        let Ok(entry) = entry else { break };
        // A name that is not UTF-8 cannot be asked for over JSON either.
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(_) if names.len() >= *left => {
                all = false;
                break;
            }
            Ok(name) => names.push(name.to_owned()),
        }
    }
    names.sort();
    for name in &names {
        if *left == 0 {
            return Ok(false);
        }
        *left -= 1;
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}/{name}")
        };
        let kind = EntryType::of(&stat);
        if !visit(&Found {
            path: &path,
            kind,
            size: size(&stat),
            directory,
            name,
        }) {
            return Ok(false);
        }
        if kind == EntryType::Dir && depth > 0 && !SKIPPED.contains(&name.as_str()) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(inner) = rustix::fs::openat(directory, name, flags, Mode::empty()) else {
                continue;
            };
            if !walk(&inner, &path, depth - 1, left, visit)? {
                return Ok(false);
            }
        }
    }
    Ok(all)
}

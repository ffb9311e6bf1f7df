//! Removes trees that nobody vouches for: as their owner, without following a link, and with
//! the same few descriptors and the same stack however deep they nest.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, chmodat, openat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

const OPEN: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes one entry of a directory and all that is in it.
///
/// Directories inside are first moved up to stand next to it, so nothing is ever more than
/// one level deep: a tree of any depth goes with three descriptors.
pub(super) fn entry(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let mut waiting = vec![name.to_vec()];
    let mut number = 0_u64;
    while let Some(name) = waiting.pop() {
        let dir = open(parent, &name)?;
        // A directory that changes while it is read may be listed in part: until it is empty.
        loop {
            let names = names(&dir)?;
            if names.is_empty() {
                break;
            }
            for inner in names {
                if !is_directory(&dir, &inner)? {
                    unlinkat(&dir, inner.as_slice(), AtFlags::empty())?;
                } else if unlinkat(&dir, inner.as_slice(), AtFlags::REMOVEDIR).is_err() {
                    waiting.push(move_up(&dir, &inner, parent, &mut number)?);
                }
            }
        }
        unlinkat(parent, name.as_slice(), AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes everything in a directory.
pub(super) fn contents(dir: &OwnedFd) -> rustix::io::Result<()> {
    loop {
        let names = names(dir)?;
        if names.is_empty() {
            return Ok(());
        }
        names.iter().try_for_each(|name| entry(dir, name))?;
    }
}

/// Moves a directory next to the one it is in, under a name that nothing else has.
fn move_up(
    dir: &OwnedFd,
    name: &[u8],
    parent: &OwnedFd,
    number: &mut u64,
) -> rustix::io::Result<Vec<u8>> {
    // To change what `..` in it means, it has to be writable.
    chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
    loop {
        let fresh = format!(".removing-{number}").into_bytes();
        *number += 1;
        match renameat_with(dir, name, parent, fresh.as_slice(), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(fresh),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens a directory, which its owner may have closed to themselves.
fn open(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    if is_directory(parent, name)? {
        // Nothing runs any more that could put a link here between the look and the change.
        chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
    }
    openat(parent, name, OPEN, Mode::empty())
}

fn is_directory(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<bool> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Names listed at once; the rest is listed when these are gone.
const BATCH: usize = 4096;

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
            if names.len() >= BATCH {
                break;
            }
        }
    }
    Ok(names)
}

//! What a sandbox keeps on disk: measured, because an ordinary user has no quota of the
//! kernel's to set.
//!
//! A measurement is a walk, so it is late: what is written meanwhile is seen by the next one
//! (`supervisor/disk.rs` says how late that is). A file that has no name any more but is
//! still open is not seen at all; it goes with the process that holds it, and the limit of a
//! single file's size bounds it.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use serde::{Deserialize, Serialize};

/// Directories within directories that are followed; no honest tree is that deep, and each
/// level holds a descriptor.
const MAX_DEPTH: usize = 256;

/// Files with several names that are remembered, so that each counts once. Further ones count
/// once for each name.
const MAX_LINKED: usize = 1 << 18;

/// `st_blocks` counts in this unit whatever the file system (stat(3type)).
const BLOCK: u64 = 512;

/// What lies in some directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Bytes that are taken up, which for a sparse file is less than its length.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
    /// Whether there are directories deeper than are followed.
    pub(crate) too_deep: bool,
}

/// Walks directories without following links or leaving their file system. Names that vanish
/// under way are left out.
///
/// # Errors
/// One of the roots cannot be read.
pub(crate) fn measure(roots: &[OwnedFd]) -> io::Result<Usage> {
    let mut walk = Walk::default();
    for root in roots {
        walk.walk(root)?;
    }
    Ok(walk.usage)
}

#[derive(Debug, Default)]
struct Walk {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Walk {
    fn walk(&mut self, root: &OwnedFd) -> io::Result<()> {
        let device = rustix::fs::fstat(root)?.st_dev;
        let mut open = vec![Dir::read_from(root)?];
        loop {
            let depth = open.len();
            let Some(dir) = open.last_mut() else {
                return Ok(());
            };
            let Some(Ok(entry)) = dir.read() else {
                open.pop();
                continue;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(parent) = dir.fd() else { continue };
            let Ok(found) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            self.count(&found);
            let is_dir = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if !is_dir || found.st_dev != device {
                continue;
            }
            if depth >= MAX_DEPTH {
                self.usage.too_deep = true;
                continue;
            }
            let flags = OFlags::RDONLY
                | OFlags::DIRECTORY
                | OFlags::NOFOLLOW
                | OFlags::NONBLOCK
                | OFlags::CLOEXEC;
            if let Ok(below) = openat(parent, name, flags, Mode::empty()).and_then(Dir::new) {
                open.push(below);
            }
        }
    }

    fn count(&mut self, found: &rustix::fs::Stat) {
        self.usage.entries += 1;
        let several = found.st_nlink > 1
            && FileType::from_raw_mode(found.st_mode) != FileType::Directory
            && self.linked.len() < MAX_LINKED;
        if several && !self.linked.insert((found.st_dev, found.st_ino)) {
            return;
        }
        let blocks = u64::try_from(found.st_blocks).unwrap_or_default();
        self.usage.bytes = self.usage.bytes.saturating_add(blocks * BLOCK);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use super::{MAX_DEPTH, measure};

    #[test]
    fn everything_counts_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 4 << 20]).unwrap();
        let root = || OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let before = measure(&[root()]).unwrap();
        assert_eq!(before.entries, 0);

        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(dir.path().join("a/b/file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("a/up")).unwrap();
        // A hole takes nothing.
        fs::File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let usage = measure(&[root()]).unwrap();
        assert_eq!(usage.entries, 7);
        assert!(
            (1 << 20..3 << 20).contains(&usage.bytes),
            "{} bytes",
            usage.bytes
        );
        assert!(!usage.too_deep);
        // The same root twice is the caller's mistake, but its linked files count once still.
        assert_eq!(measure(&[root(), root()]).unwrap().entries, 14);
    }

    #[test]
    fn a_tree_that_is_too_deep_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        let root = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        assert!(measure(&[root]).unwrap().too_deep);
    }
}

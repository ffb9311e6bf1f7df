//! The file `head`: a lower bound of what was acknowledged, in two slots written in turn.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crypto::{Digest, Hasher};

use crate::segment::LogId;

const MAGIC: &[u8; 8] = b"CHOIRHED";
const DOMAIN: &str = "choir ledger head v1";
const SLOT: usize = 8 + 16 + 8 + 32 + 32;
/// Distance of the slots: one sector each, so that a torn write costs one of them at most.
const SLOT_DISTANCE: u64 = 512;

/// What `head` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) log: LogId,
    pub(crate) seq: u64,
    pub(crate) hash: Digest,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.log.as_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(self.hash.as_bytes());
        let hash = Hasher::new(DOMAIN).update(&bytes).finish();
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8; SLOT]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (log, rest) = rest.split_first_chunk::<16>()?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let (hash, _) = rest.split_first_chunk::<32>()?;
        let mark = Self {
            log: LogId::from_bytes(*log),
            seq: u64::from_be_bytes(*seq),
            hash: Digest::from_bytes(*hash),
        };
        (mark.encode() == bytes).then_some(mark)
    }
}

/// The path of the file.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("head")
}

/// The newest mark; `None` when the file is not there or neither slot is whole.
pub(crate) fn read(dir: &Path) -> io::Result<Option<Mark>> {
    let file = match File::open(path(dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest: Option<Mark> = None;
    for slot in [0, SLOT_DISTANCE] {
        let mut bytes = [0; SLOT];
        match file.read_exact_at(&mut bytes, slot) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(error),
        }
        newest = newest
            .into_iter()
            .chain(Mark::decode(&bytes))
            .max_by_key(|mark| mark.seq);
    }
    Ok(newest)
}

/// Writes marks.
#[derive(Debug)]
pub(crate) struct HeadFile {
    file: File,
    next_slot: u64,
}

impl HeadFile {
    /// Opens or creates the file.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path(dir))?;
        Ok(Self { file, next_slot: 0 })
    }

    /// Writes one mark over the older slot.
    pub(crate) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.encode(), self.next_slot)?;
        self.next_slot = SLOT_DISTANCE - self.next_slot;
        Ok(())
    }

    /// Forces it to disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The file, for comparing it with what stands under its name.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crypto::sha256;

    use super::{HeadFile, Mark, path, read};
    use crate::segment::LogId;

    fn mark(seq: u64) -> Mark {
        Mark {
            log: LogId::from_bytes([1; 16]),
            seq,
            hash: sha256(&seq.to_be_bytes()),
        }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let mut head = HeadFile::open(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        for seq in 1..=3 {
            head.write(&mark(seq)).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Some(mark(seq)));
        }
        // Slot 0 holds 3 and is torn now; slot 1 still holds 2.
        let mut bytes = fs::read(path(dir.path())).unwrap();
        bytes[50] ^= 1;
        fs::write(path(dir.path()), bytes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(mark(2)));
    }
}

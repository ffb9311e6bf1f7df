//! The data directory and its lock (arch §4: a second hypervisor on it refuses to start).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Sandboxes run under uids of their own and have to reach their directories beneath it.
const DATA_DIR_MODE: u32 = 0o711;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or entered.
    #[error("cannot use the data directory {}: check that this user may write there, or choose another with data_dir", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another hypervisor has it.
    #[error("another hypervisor uses the data directory {}: stop it first, or choose another with data_dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// The data directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none, and locks it.
    ///
    /// # Errors
    /// It cannot be used, or another hypervisor has it.
    pub fn lock(path: &Path) -> Result<Self, DataDirError> {
        let unusable = |source| DataDirError::Unusable {
            path: path.to_owned(),
            source,
        };
        if !path.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(DATA_DIR_MODE)
                .create(path)
                .map_err(unusable)?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(DATA_DIR_MODE))
            .map_err(unusable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(unusable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                DataDirError::Locked {
                    path: path.to_owned(),
                }
            } else {
                unusable(error.into())
            }
        })?;
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::{DataDir, DataDirError};

    #[test]
    fn a_second_hypervisor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let held = DataDir::lock(&path).unwrap();
        assert!(matches!(
            DataDir::lock(&path),
            Err(DataDirError::Locked { .. })
        ));
        drop(held);
        DataDir::lock(&path).unwrap();
    }
}

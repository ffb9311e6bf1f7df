//! The sandbox's own socket, opened as the hostile name that it is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// The name of the socket inside the sandbox's app directory.
pub const APP_SOCKET_NAME: &str = "app.sock";

/// First and longest pause between attempts while the listener's backlog is full.
const BACKLOG_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Why `app.sock` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppSocketError {
    /// There is no such name: the app has not bound it yet, or removed it.
    #[error("there is no app.sock")]
    Missing,
    /// The name is a symbolic link, a FIFO, a directory or another thing that is no socket.
    #[error("app.sock is not a socket but a {found}")]
    NotASocket {
        /// What it is instead.
        found: &'static str,
    },
    /// Nobody listens on the socket.
    #[error("nobody listens on app.sock")]
    Refused,
    /// The listener's backlog stayed full, or the connection hung, until the deadline.
    #[error("app.sock did not accept within {0:?}")]
    Timeout(Duration),
    /// Anything else that the system said.
    #[error("app.sock cannot be opened")]
    Io(#[source] io::Error),
}

/// `app.sock` in the directory that a sandbox can write to.
///
/// The name is under the sandbox's control, so it may at any moment become a link to
/// another sandbox's socket or to the container engine's. It is opened without following
/// links, its type is checked on the descriptor, and the connection goes through that
/// descriptor (`/proc/self/fd/N`), so that what was checked is what is connected to
/// (arch §1, threats "The crossing").
#[derive(Debug, Clone)]
pub struct AppSocket {
    directory: Arc<OwnedFd>,
}

impl AppSocket {
    /// The socket in `directory`, a descriptor of the start's app directory as the *host*
    /// opened it (an `O_PATH` descriptor is enough).
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self {
            directory: Arc::new(directory),
        }
    }

    /// Connects, within `deadline`.
    ///
    /// # Errors
    /// [`AppSocketError`] says what stands in the way. Nothing is retried but a full
    /// backlog.
    pub async fn connect(&self, deadline: Duration) -> Result<UnixStream, AppSocketError> {
        let until = Instant::now() + deadline;
        let mut pause = BACKLOG_PAUSE.0;
        loop {
            // Opened anew each time: the app may have rebound the name in between.
            let socket = self.open()?;
            let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
            let attempt = tokio::time::timeout_at(until, UnixStream::connect(path)).await;
            match attempt {
                Err(_) => return Err(AppSocketError::Timeout(deadline)),
                Ok(Ok(stream)) => return Ok(stream),
                // A Unix socket with a full backlog says EAGAIN instead of making us wait.
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() + pause > until {
                        return Err(AppSocketError::Timeout(deadline));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKLOG_PAUSE.1);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(AppSocketError::Refused);
                }
                Ok(Err(error)) => return Err(AppSocketError::Io(error)),
            }
        }
    }

    /// The socket itself, pinned: whatever happens to the name, this stays what was checked.
    fn open(&self) -> Result<OwnedFd, AppSocketError> {
        let socket = rustix::fs::openat(
            self.directory.as_fd(),
            APP_SOCKET_NAME,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| match error {
            rustix::io::Errno::NOENT => AppSocketError::Missing,
            other => AppSocketError::Io(other.into()),
        })?;
        let status =
            rustix::fs::fstat(&socket).map_err(|error| AppSocketError::Io(error.into()))?;
        let found = match FileType::from_raw_mode(status.st_mode) {
            FileType::Socket => return Ok(socket),
            FileType::Symlink => "symbolic link",
            FileType::Directory => "directory",
            FileType::Fifo => "FIFO",
            FileType::RegularFile => "regular file",
            _ => "device",
        };
        Err(AppSocketError::NotASocket { found })
    }
}

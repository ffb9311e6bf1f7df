//! The directories of a sandbox and of one start, and the sockets in them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, mkdirat, openat, unlinkat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::spec::{HostIds, SandboxSpec};
use crate::walls::{Step, WallError};

/// Connections that wait to be accepted, on each socket.
const BACKLOG: i32 = 64;

/// The supervisor's own socket, outside every mount.
const CONTROL: &str = "control.sock";

/// A channel's socket, in the directory that is shown as `/run/choir/channel`.
const CHANNEL: &str = "channel.sock";

/// What exists on disk for one start.
#[derive(Debug)]
pub(crate) struct StartDirs {
    path: PathBuf,
    run: OwnedFd,
    runners: OwnedFd,
}

impl StartDirs {
    /// Makes the directories that are missing. `owner` is who the sandbox is on the host;
    /// the run directory itself stays with whoever runs the hypervisor.
    pub(crate) fn make(spec: &SandboxSpec, owner: Option<HostIds>) -> Result<Self, WallError> {
        for dir in [&spec.workspace, &spec.home, &spec.data] {
            make(CWD, dir, 0o700, owner).step(|| format!("prepare {}", dir.display()))?;
        }
        let prepare = || -> io::Result<Self> {
            let run = make(CWD, &spec.run_dir, 0o700, None)?;
            make(&run, Path::new("channel"), 0o755, None)?;
            make(&run, Path::new("app"), 0o700, owner)?;
            let runners = make(&run, Path::new("runners"), 0o700, owner)?;
            Ok(Self {
                path: spec.run_dir.clone(),
                run,
                runners,
            })
        };
        prepare().step(|| format!("prepare {}", spec.run_dir.display()))
    }

    /// Whether the start's directory was removed, so that nobody can reach this supervisor
    /// again. Asked of the open directory: its path is not this process's to walk.
    pub(crate) fn is_gone(&self) -> bool {
        rustix::fs::fstat(&self.run).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// The socket that the hypervisor talks to this supervisor on.
    pub(crate) fn control(&self) -> io::Result<OwnedFd> {
        listen_in(&self.run, CONTROL, 0o600)
    }

    /// The guest's channel. Anybody may connect who can reach it, which is the guest.
    pub(crate) fn channel(&self) -> io::Result<OwnedFd> {
        let dir = openat(
            &self.run,
            "channel",
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        listen_in(&dir, CHANNEL, 0o666)
    }

    /// A runner's channel, in a directory of its own.
    pub(crate) fn runner_channel(&self, name: &str) -> io::Result<OwnedFd> {
        let dir = make(&self.runners, Path::new(name), 0o755, None)?;
        listen_in(&dir, CHANNEL, 0o666)
    }

    /// Removes a runner's channel.
    pub(crate) fn remove_runner_channel(&self, name: &str) {
        // What is left goes with the start's directory.
        let _ = remove_tree(&self.runners, name);
    }

    /// Removes everything of the start that this process may remove. In root mode the
    /// directory itself belongs to root, and the hypervisor removes it.
    pub(crate) fn remove(&self) {
        for name in ["app", "channel", "runners"] {
            let _ = remove_tree(&self.run, name);
        }
        let _ = unlinkat(&self.run, CONTROL, AtFlags::empty());
        let _ = fs::remove_dir(&self.path);
    }
}

/// Makes a directory if it is missing and opens it, never through a symbolic link at its
/// end, with the owner and mode that it is meant to have.
fn make(
    parent: impl std::os::fd::AsFd,
    path: &Path,
    mode: u32,
    owner: Option<HostIds>,
) -> io::Result<OwnedFd> {
    match mkdirat(&parent, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(&parent, path, flags, Mode::empty())?;
    if let Some(HostIds { uid, gid }) = owner {
        rustix::fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    Ok(dir)
}

/// Listens on a socket in an open directory. The path is short whatever the directory is
/// called, because a socket's may have 108 bytes.
fn listen_in(dir: &OwnedFd, name: &str, mode: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // Born without rights for others; the mode follows before anybody is listening.
    let previous = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = SocketAddrUnix::new(path).and_then(|address| bind(&socket, &address));
    rustix::process::umask(previous);
    bound?;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes a directory beneath `parent` with what is in it, following no link.
fn remove_tree(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)?.flatten() {
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        if entry_name == "." || entry_name == ".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_tree(&dir, &entry_name)?;
        } else {
            unlinkat(&dir, entry_name, AtFlags::empty())?;
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

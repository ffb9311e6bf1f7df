//! Puts a planned root together in a new mount namespace and makes it the only one.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::plan::{EMPTY_DIR, Plan, RUNNER_DIRS};
use super::{Step, WallError};
use crate::spec;
use crate::sys::{self, MountAttributes};

/// Every host has this directory; a fresh tmpfs covers it in the new mount namespace only.
const BASE: &str = "/tmp";

/// The root itself holds directories, links and a few small files.
const ROOT_OPTIONS: &str = "mode=0755,size=4m,nr_inodes=4096";

/// Private scratch space, in memory. Bounded so that it cannot take all of it.
const TMP_OPTIONS: &str = "mode=1777,size=2g,nr_inodes=1m";

/// Shared memory segments.
const SHM_OPTIONS: &str = "mode=1777,size=512m,nr_inodes=64k";

/// A terminal file system that shares nothing with the host's.
const PTS_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620";

/// Parts of `/proc` that configure the kernel or its devices: readable at most.
const READ_ONLY: &[&str] = &[
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
    "/proc/mtrr",
];

/// Parts of `/proc` that tell about the kernel's memory, the host's keys or its devices.
const HIDDEN: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];

/// Cuts this mount namespace off from the host's, so that nothing mounted here shows there.
pub(crate) fn make_private() -> Result<(), WallError> {
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .step(|| "make the mount namespace private".into())
}

/// Builds the root of `plan` from `trees` (as [`Plan::open`] gave them), moves into it and
/// lets go of the host's. Afterwards everything that belongs to the root is read-only.
pub(crate) fn enter(plan: &Plan, trees: Vec<OwnedFd>) -> Result<(), WallError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_tmpfs(BASE, flags, ROOT_OPTIONS)?;
    chdir(BASE).step(|| "enter the new root".into())?;
    for dir in &plan.dirs {
        make_dir(dir)?;
    }
    for (path, text) in &plan.files {
        let path = make_parent(path)?;
        fs::write(&path, text).step(|| format!("write {}", path.display()))?;
    }
    for (link, target) in &plan.links {
        let link = make_parent(link)?;
        std::os::unix::fs::symlink(target, &link).step(|| format!("link {}", link.display()))?;
    }
    for (planned, tree) in plan.mounts.iter().zip(trees) {
        attach(&tree, &planned.target, planned.is_dir)?;
    }
    mount_tmpfs("tmp", flags, TMP_OPTIONS)?;
    mount_tmpfs("dev/shm", flags | MountFlags::NOEXEC, SHM_OPTIONS)?;
    // While the host's /proc is still in sight: the kernel lets a user namespace mount a
    // new one only if it could see all of an old one already.
    mount_proc("proc")?;
    mount_terminals("dev/pts")?;
    pivot_root(".", ".").step(|| "make the new root the root".into())?;
    unmount(".", UnmountFlags::DETACH).step(|| "let go of the host's root".into())?;
    chdir("/").step(|| "enter the new root".into())?;
    set_read_only("/")
}

/// Gives a runner its own `/proc`, `/dev/shm`, terminals and channel, inside the
/// workbench's root.
pub(crate) fn enter_runner(channel: Option<&str>) -> Result<(), WallError> {
    make_private()?;
    if let Some(name) = channel {
        let source = Path::new(RUNNER_DIRS).join(name);
        let tree = clone_tree(
            &source,
            MountAttributes {
                read_only: true,
                no_dev: true,
                no_exec: true,
            },
        )?;
        place(&tree, Path::new(spec::CHANNEL_DIR))?;
    }
    cover(Path::new(RUNNER_DIRS))?;
    // Segments there have names that nobody agreed on: no other command's are in sight.
    mount_tmpfs(
        "/dev/shm",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        SHM_OPTIONS,
    )?;
    mount_proc("/proc")?;
    mask_proc()?;
    mount_terminals("/dev/pts")
}

/// Takes the sharp parts out of a fresh `/proc`. Not done to a workbench's own, because a
/// masked one would keep its runners from mounting theirs.
pub(crate) fn mask_proc() -> Result<(), WallError> {
    for path in READ_ONLY.iter().map(Path::new).filter(|path| path.exists()) {
        let tree = clone_tree(
            path,
            MountAttributes {
                read_only: true,
                no_dev: true,
                no_exec: true,
            },
        )?;
        place(&tree, path)?;
    }
    for path in HIDDEN.iter().map(Path::new).filter(|path| path.exists()) {
        cover(path)?;
    }
    Ok(())
}

fn mount_tmpfs(target: &str, flags: MountFlags, options: &str) -> Result<(), WallError> {
    mount_new("tmpfs", target, flags, Some(options))
}

fn mount_proc(target: &str) -> Result<(), WallError> {
    mount_new(
        "proc",
        target,
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )
}

fn mount_terminals(target: &str) -> Result<(), WallError> {
    mount_new(
        "devpts",
        target,
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(PTS_OPTIONS),
    )
}

fn mount_new(
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: Option<&str>,
) -> Result<(), WallError> {
    let options = options.and_then(|text| std::ffi::CString::new(text).ok());
    mount(kind, target, kind, flags, options.as_deref()).step(|| format!("mount a new {kind}"))
}

/// Lays an empty file or directory over `path`.
fn cover(path: &Path) -> Result<(), WallError> {
    let source = if path.is_dir() {
        Path::new(EMPTY_DIR)
    } else {
        Path::new("/dev/null")
    };
    let attributes = MountAttributes {
        read_only: true,
        no_dev: false,
        no_exec: true,
    };
    place(&clone_tree(source, attributes)?, path)
}

fn clone_tree(source: &Path, attributes: MountAttributes) -> Result<OwnedFd, WallError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = || -> io::Result<OwnedFd> {
        let tree = open_tree(CWD, source, flags)?;
        sys::mount_setattr(tree.as_fd(), attributes, false)?;
        Ok(tree)
    };
    clone().step(|| format!("clone {}", source.display()))
}

/// Mounts a detached tree at a path relative to the working directory, making it first.
fn attach(tree: &OwnedFd, target: &Path, is_dir: bool) -> Result<(), WallError> {
    let target = if is_dir {
        make_dir(target)?
    } else {
        let target = make_parent(target)?;
        fs::File::create(&target).step(|| format!("make {}", target.display()))?;
        target
    };
    place(tree, &target)
}

fn place(tree: &OwnedFd, target: &Path) -> Result<(), WallError> {
    move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step(|| format!("mount {}", target.display()))
}

fn make_parent(path: &Path) -> Result<PathBuf, WallError> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    Ok(relative(path))
}

fn make_dir(path: &Path) -> Result<PathBuf, WallError> {
    let path = relative(path);
    if !path.as_os_str().is_empty() {
        fs::create_dir_all(&path).step(|| format!("make {}", path.display()))?;
    }
    Ok(path)
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn set_read_only(path: &str) -> Result<(), WallError> {
    let set = || -> io::Result<()> {
        let root = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let attributes = MountAttributes {
            read_only: true,
            no_dev: true,
            no_exec: false,
        };
        sys::mount_setattr(root.as_fd(), attributes, false)
    };
    set().step(|| "make the root read-only".into())
}

/// Tries what [`enter`] needs of the kernel, with an empty root.
pub(crate) fn try_private_root() -> Result<(), WallError> {
    make_private()?;
    let tree = clone_tree(
        Path::new("/usr"),
        MountAttributes {
            read_only: true,
            no_dev: true,
            no_exec: false,
        },
    )?;
    mount_tmpfs(BASE, MountFlags::NOSUID | MountFlags::NODEV, ROOT_OPTIONS)?;
    chdir(BASE).step(|| "enter the new root".into())?;
    attach(&tree, Path::new("usr"), true)?;
    pivot_root(".", ".").step(|| "make the new root the root".into())?;
    unmount(".", UnmountFlags::DETACH).step(|| "let go of the host's root".into())
}

/// Tries to mount a new `/proc`.
pub(crate) fn try_fresh_proc() -> Result<(), WallError> {
    make_private()?;
    mount_proc("/proc")
}

/// Maps the one user and group that exist inside to the ones this process has outside.
pub(crate) fn map_ids(outer_uid: u32, outer_gid: u32) -> Result<(), WallError> {
    let inner = spec::INNER_ID;
    let write = |path: &str, text: String| -> io::Result<()> {
        fs::OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(text.as_bytes())
    };
    // Without setgroups nobody inside can shed a group that a file denies something to;
    // the kernel demands it before an ordinary user may map a group.
    write("/proc/self/setgroups", "deny".into()).step(|| "forbid setgroups".into())?;
    write("/proc/self/uid_map", format!("{inner} {outer_uid} 1"))
        .step(|| "map the user id".into())?;
    write("/proc/self/gid_map", format!("{inner} {outer_gid} 1")).step(|| "map the group id".into())
}

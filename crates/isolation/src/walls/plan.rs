//! What a sandbox's or a workbench's root will look like, decided before anything is
//! mounted and while the host's paths are still in sight.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Step, WallError, etc};
use crate::spec::{self, SandboxSpec};
use crate::sys::{self, MountAttributes};

/// Where a workbench keeps the channel directories of its runners. A runner covers it
/// before its command starts.
pub(crate) const RUNNER_DIRS: &str = "/run/choir/runners";

/// An empty directory, laid over what shall not be seen.
pub(crate) const EMPTY_DIR: &str = "/run/choir/empty";

/// Where a desktop that replaces the embedded one is shown to the guest.
const DESKTOP: &str = "/choir/desktop";

/// Directories of the host's system that are shown read-only. On most systems all but
/// `/usr` are links into it, and are reproduced as links.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
];

/// Links of NixOS through which programs are found.
const SYSTEM_LINKS: &[&str] = &["/run/current-system", "/run/booted-system"];

/// Device nodes that programs take for granted; none leads to hardware.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// How a part of the root may be reached under Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Directories may be listed.
    List,
    /// Files may be read.
    Read,
    /// Files may be read and executed.
    Execute,
    /// A device may be read, written and controlled.
    Device,
    /// Terminals.
    Terminals,
    /// Anything but making devices.
    Write,
}

/// One mount from the host.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) is_dir: bool,
    attributes: MountAttributes,
}

/// The whole of a root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) mounts: Vec<Mount>,
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) reach: Vec<(PathBuf, Reach)>,
}

impl Plan {
    /// What a guest sees.
    pub(crate) fn guest(spec: &SandboxSpec) -> Result<Self, WallError> {
        let mut plan = Self::shared(spec)?;
        plan.show(&spec.data, spec::DATA, Reach::Write)?;
        plan.show(&spec.run_dir.join("app"), spec::APP_DIR, Reach::Write)?;
        plan.show(
            &spec.run_dir.join("channel"),
            spec::CHANNEL_DIR,
            Reach::Read,
        )?;
        if let Some(desktop) = &spec.desktop_override {
            plan.show(desktop, DESKTOP, Reach::Read)?;
        }
        Ok(plan)
    }

    /// What a workbench sees; its runners see a little less.
    pub(crate) fn workbench(spec: &SandboxSpec) -> Result<Self, WallError> {
        let mut plan = Self::shared(spec)?;
        plan.show(&spec.run_dir.join("runners"), RUNNER_DIRS, Reach::Read)?;
        plan.dirs.push(spec::CHANNEL_DIR.into());
        plan.reach.push((spec::CHANNEL_DIR.into(), Reach::Read));
        Ok(plan)
    }

    fn shared(spec: &SandboxSpec) -> Result<Self, WallError> {
        let mut plan = Self::default();
        plan.reach.push(("/".into(), Reach::List));
        for path in SYSTEM {
            plan.show_or_link(path, Reach::Execute)?;
        }
        for path in SYSTEM_LINKS.iter().chain(etc::LINKS) {
            plan.link(path);
        }
        plan.system_configuration(&spec.hostname)?;
        plan.devices()?;
        plan.dirs
            .extend(["/proc", "/tmp", EMPTY_DIR].map(PathBuf::from));
        plan.reach.push(("/proc".into(), Reach::Read));
        plan.reach.push(("/tmp".into(), Reach::Write));
        plan.show(&spec.workspace, spec::WORKSPACE, Reach::Write)?;
        plan.show(&spec.home, spec::HOME, Reach::Write)?;
        plan.show(&spec.guest_binary, spec::GUEST_BINARY, Reach::Execute)?;
        for bind in &spec.extra_mounts {
            plan.show_extra(&bind.source, &bind.target)?;
        }
        Ok(plan)
    }

    fn system_configuration(&mut self, hostname: &str) -> Result<(), WallError> {
        self.files = etc::files(hostname);
        for path in etc::SHOWN {
            if Path::new(path).exists() {
                self.show(Path::new(path), path, Reach::Read)?;
            }
        }
        for entry in fs::read_dir("/etc").into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(etc::SHOWN_PREFIX)
            {
                self.show(&entry.path(), entry.path(), Reach::Read)?;
            }
        }
        self.reach.push(("/etc".into(), Reach::Read));
        Ok(())
    }

    fn devices(&mut self) -> Result<(), WallError> {
        for name in DEVICES {
            let path = Path::new("/dev").join(name);
            let attributes = MountAttributes {
                no_exec: true,
                ..MountAttributes::default()
            };
            self.add(&path, path.clone(), attributes)?;
            self.reach.push((path, Reach::Device));
        }
        self.dirs
            .extend(["/dev/pts", "/dev/shm"].map(PathBuf::from));
        self.reach.push(("/dev/pts".into(), Reach::Terminals));
        self.reach.push(("/dev/shm".into(), Reach::Write));
        for (link, target) in [
            ("/dev/ptmx", "pts/ptmx"),
            ("/dev/fd", "/proc/self/fd"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/stdout", "/proc/self/fd/1"),
            ("/dev/stderr", "/proc/self/fd/2"),
        ] {
            self.links.push((link.into(), target.into()));
        }
        Ok(())
    }

    /// Shows a directory, or reproduces the link that the host has there, or nothing.
    fn show_or_link(&mut self, path: &str, reach: Reach) -> Result<(), WallError> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
            return self.show(Path::new(path), path, reach);
        }
        self.link(path);
        Ok(())
    }

    fn link(&mut self, path: &str) {
        if let Ok(target) = fs::read_link(path) {
            self.links.push((path.into(), target));
        }
    }

    fn show(
        &mut self,
        source: &Path,
        target: impl Into<PathBuf>,
        reach: Reach,
    ) -> Result<(), WallError> {
        let target = target.into();
        let attributes = MountAttributes {
            read_only: reach != Reach::Write,
            no_dev: true,
            no_exec: false,
        };
        self.add(source, target.clone(), attributes)?;
        self.reach.push((target, reach));
        Ok(())
    }

    /// Shows what the installation added, which must not reach into what is shown already.
    fn show_extra(&mut self, source: &Path, target: &Path) -> Result<(), WallError> {
        let plain = target.is_absolute()
            && target
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && target.components().count() > 1;
        let taken = self
            .mounts
            .iter()
            .map(|mount| &mount.target)
            .chain(&self.dirs);
        let overlaps = taken
            .chain(self.links.iter().map(|(link, _)| link))
            .any(|other| target.starts_with(other) || other.starts_with(target));
        if !plain || overlaps {
            return Err(WallError {
                step: format!("show {} at {}", source.display(), target.display()),
                reason: "the target is not an absolute path of its own".into(),
                errno: None,
            });
        }
        self.show(source, target, Reach::Execute)
    }

    fn add(
        &mut self,
        source: &Path,
        target: PathBuf,
        attributes: MountAttributes,
    ) -> Result<(), WallError> {
        let is_dir = fs::metadata(source)
            .step(|| format!("find {} on the host", source.display()))?
            .is_dir();
        self.mounts.push(Mount {
            source: source.to_owned(),
            target,
            is_dir,
            attributes,
        });
        Ok(())
    }

    /// Takes hold of everything that will be mounted, as detached copies of the host's
    /// mounts in the order of [`Plan::mounts`]. Needs CAP_SYS_ADMIN over this mount
    /// namespace: root does it before dropping its identity (paths may lie where only
    /// root can look), an ordinary user within the new namespaces.
    pub(crate) fn open(&self) -> Result<Vec<OwnedFd>, WallError> {
        self.mounts
            .iter()
            .map(|mount| {
                mount
                    .open()
                    .step(|| format!("take hold of {}", mount.source.display()))
            })
            .collect()
    }
}

impl Mount {
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &self.source, flags)?;
        sys::mount_setattr(std::os::fd::AsFd::as_fd(&tree), self.attributes, true)?;
        Ok(tree)
    }
}

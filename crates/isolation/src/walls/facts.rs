//! What this machine says about itself that decides whether walls can be built.

use std::fs;
use std::path::Path;

/// A container engine, as its traces tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Docker,
    Podman,
    Other,
}

/// Settings of a machine. Absent: the machine has no such setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) root: bool,
    pub(super) max_user_namespaces: Option<u64>,
    pub(super) unprivileged_clone: Option<bool>,
    pub(super) apparmor_restricts: bool,
    pub(super) apparmor_profile: Option<String>,
    pub(super) container: Option<Container>,
    /// Whether something is mounted over parts of `/proc`: container engines do that, and
    /// protections of systemd units.
    pub(super) covered_proc: bool,
    /// Whether this runs in a user namespace that is not the first.
    pub(super) nested: bool,
    /// The security modules that run, as the kernel lists them.
    pub(super) lsm: Option<String>,
    /// Major and minor version of the kernel.
    pub(super) kernel: Option<(u32, u32)>,
}

impl Facts {
    /// Of this machine.
    pub(super) fn read() -> Self {
        Self::read_in(Path::new("/"), rustix::process::geteuid().is_root())
    }

    /// Of a machine whose files lie below `top`.
    pub(super) fn read_in(top: &Path, root: bool) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(top.join(path)).ok()?;
            let text = text.trim_end_matches(['\n', '\0']).trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let exists = |path: &str| top.join(path).exists();
        let container = if exists("run/.containerenv") {
            Some(Container::Podman)
        } else if exists(".dockerenv") {
            Some(Container::Docker)
        } else {
            let by_groups = text("proc/self/cgroup").is_some_and(|text| in_engine(&text));
            let by_root = text("proc/self/mountinfo").is_some_and(|text| on_engine_root(&text));
            (exists("run/systemd/container") || by_groups || by_root).then_some(Container::Other)
        };
        Self {
            root,
            max_user_namespaces: text("proc/sys/user/max_user_namespaces")
                .and_then(|text| text.parse().ok()),
            unprivileged_clone: text("proc/sys/kernel/unprivileged_userns_clone")
                .map(|text| text != "0"),
            apparmor_restricts: text("proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|text| text == "1"),
            apparmor_profile: text("proc/self/attr/apparmor/current")
                .filter(|name| name != "unconfined"),
            container,
            covered_proc: text("proc/self/mountinfo").is_some_and(|text| covers_proc(&text)),
            nested: text("proc/self/uid_map").is_some_and(|map| {
                let first: Vec<&str> = map.split_whitespace().take(3).collect();
                first != ["0", "0", "4294967295"]
            }),
            lsm: text("sys/kernel/security/lsm"),
            kernel: text("proc/sys/kernel/osrelease").and_then(|release| version(&release)),
        }
    }
}

/// Whether this process's groups are named as an engine names those of containers: containerd
/// and Kubernetes leave no file behind.
fn in_engine(groups: &str) -> bool {
    [
        "/kubepods",
        "/docker/",
        "/docker-",
        "cri-containerd",
        "/libpod",
        "/crio-",
        "/lxc/",
    ]
    .iter()
    .any(|name| groups.contains(name))
}

/// The mounts of a mountinfo: mount point, and what comes behind the separator (proc(5)).
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        Some((before.split(' ').nth(4)?, after))
    })
}

/// Whether the root is layers that an engine keeps; a live system has an overlay as well, of
/// other directories.
fn on_engine_root(mountinfo: &str) -> bool {
    mounts(mountinfo).any(|(at, what)| {
        at == "/"
            && what.starts_with("overlay ")
            && ["/containerd/", "/docker/", "/containers/storage/"]
                .iter()
                .any(|dir| what.contains(dir))
    })
}

fn covers_proc(mountinfo: &str) -> bool {
    // Mounted by systemd on every machine, over an empty directory.
    mounts(mountinfo).any(|(at, _)| at.starts_with("/proc/") && at != "/proc/sys/fs/binfmt_misc")
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

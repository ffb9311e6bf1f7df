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
            exists("run/systemd/container").then_some(Container::Other)
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
            nested: text("proc/self/uid_map").is_some_and(|map| {
                let first: Vec<&str> = map.split_whitespace().take(3).collect();
                first != ["0", "0", "4294967295"]
            }),
            lsm: text("sys/kernel/security/lsm"),
            kernel: text("proc/sys/kernel/osrelease").and_then(|release| version(&release)),
        }
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

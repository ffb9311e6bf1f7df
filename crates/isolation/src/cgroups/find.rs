//! Where this process's own groups are, read from `/proc`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{CgroupError, Group};

/// The group that this process is in, with the controllers that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Its directories.
    pub group: Group,
    /// Whether it is the root of what this process can see: of the machine, or of its
    /// cgroup namespace.
    pub is_root: bool,
}

/// The name of the leaf that the hypervisor itself is in, under version 2. A service with
/// `DelegateSubgroup=hypervisor` begins there.
pub(crate) const LEAF: &str = "hypervisor";

#[derive(PartialEq)]
struct Mount<'a> {
    id: &'a str,
    parent: &'a str,
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Home {
    /// Looks at `/proc/self`.
    ///
    /// # Errors
    /// No hierarchy carries what is needed.
    pub fn find() -> Result<Self, CgroupError> {
        let read =
            |path: &'static str| fs::read_to_string(path).map_err(CgroupError::io("read", path));
        Self::parse(
            &read("/proc/self/cgroup")?,
            &read("/proc/self/mountinfo")?,
            |dir| fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default(),
        )
    }

    /// The same from texts in the form of `/proc/PID/cgroup` (cgroups(7)) and
    /// `/proc/PID/mountinfo` (proc(5)); `controllers` reads `cgroup.controllers`.
    ///
    /// # Errors
    /// No hierarchy carries what is needed.
    pub fn parse(
        cgroup: &str,
        mountinfo: &str,
        controllers: impl Fn(&Path) -> String,
    ) -> Result<Self, CgroupError> {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(mount).collect();
        let unified =
            own(cgroup, "").and_then(|path| locate(&mounts, path, |mount| mount.kind == "cgroup2"));
        if let Some((dir, is_root)) = &unified {
            let have = controllers(dir);
            if has(&have, "memory") && has(&have, "pids") {
                let (dir, is_root) = outside_leaf(dir, *is_root);
                return Ok(Self {
                    group: Group::V2 {
                        dir,
                        cpu: has(&have, "cpu"),
                    },
                    is_root,
                });
            }
        }
        let legacy = |controller: &str| {
            locate(&mounts, own(cgroup, controller)?, |mount| {
                mount.kind == "cgroup" && mount.options.split(',').any(|one| one == controller)
            })
        };
        match (legacy("memory"), legacy("pids"), unified) {
            (Some((memory, is_root)), Some((pids, _)), _) => Ok(Self {
                group: Group::V1 {
                    memory,
                    pids,
                    cpu: legacy("cpu").map(|(dir, _)| dir),
                },
                is_root,
            }),
            (None, None, Some((dir, _))) => Err(CgroupError::MissingControllers {
                have: controllers(&dir).trim().to_owned(),
                dir,
            }),
            _ => Err(CgroupError::NoControllers),
        }
    }
}

/// The path of this process in the hierarchy of a controller; the empty name is version 2.
fn own<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = if controller.is_empty() {
            number == "0" && names.is_empty()
        } else {
            names.split(',').any(|name| name == controller)
        };
        fits.then_some(path)
    })
}

fn mount(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let mut back = back.split(' ');
    Some(Mount {
        id: front.next()?,
        parent: front.next()?,
        // Behind the device.
        root: front.nth(1)?,
        point: front.next()?,
        kind: back.next()?,
        options: back.nth(1)?,
    })
}

/// Where a path of a hierarchy appears in the file system, and whether it is the top there.
fn locate(
    mounts: &[Mount<'_>],
    path: &str,
    fits: impl Fn(&Mount<'_>) -> bool,
) -> Option<(PathBuf, bool)> {
    let mut seen = mounts
        .iter()
        .filter(|mount| fits(mount) && is_reached(mounts, mount));
    seen.find_map(|mount| {
        let below = Path::new(path).strip_prefix(mount.root).ok()?;
        let plain = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| {
            let point = Path::new(mount.point);
            if below.as_os_str().is_empty() {
                (point.to_owned(), true)
            } else {
                (point.join(below), false)
            }
        })
    })
}

/// Whether the path of a mount leads to it: nothing is mounted on it, nor on the way to it.
fn is_reached(mounts: &[Mount<'_>], mount: &Mount<'_>) -> bool {
    let is_on = |parent: &str, fits: &dyn Fn(&str) -> bool| {
        let mut mounts = mounts.iter();
        mounts.any(|other| other.parent == parent && fits(other.point))
    };
    if is_on(mount.id, &|point| point == mount.point) {
        return false;
    }
    let mut at = mount;
    // Each step goes one mount up, so there are no more of them than mounts.
    for _ in mounts {
        let Some(parent) = mounts.iter().find(|other| other.id == at.parent) else {
            break;
        };
        let way = Path::new(at.point);
        if is_on(parent.id, &|point| {
            point != at.point && way.starts_with(point)
        }) {
            return false;
        }
        at = parent;
    }
    true
}

fn outside_leaf(dir: &Path, is_root: bool) -> (PathBuf, bool) {
    match dir.parent() {
        Some(parent) if !is_root && dir.ends_with(LEAF) => (parent.to_owned(), false),
        _ => (dir.to_owned(), is_root),
    }
}

fn has(controllers: &str, wanted: &str) -> bool {
    controllers.split_whitespace().any(|one| one == wanted)
}

#[cfg(test)]
mod tests {
    use super::{Group, Home};
    use crate::cgroups::CgroupError;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const UNIFIED: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";

    #[test]
    fn version_1_takes_each_controller_from_its_own_hierarchy() {
        let own = "4:memory:/box/one\n3:pids:/\n2:cpu,cpuacct:/box\n0::/\n";
        let home = Home::parse(own, HYBRID, |_| "hugetlb\n".into()).unwrap();
        let Group::V1 { memory, pids, cpu } = home.group else {
            panic!("version 1");
        };
        assert_eq!(memory.to_str(), Some("/sys/fs/cgroup/memory/box/one"));
        assert_eq!(pids.to_str(), Some("/sys/fs/cgroup/pids"));
        assert_eq!(
            cpu.unwrap().to_str(),
            Some("/sys/fs/cgroup/cpu,cpuacct/box")
        );
        assert!(!home.is_root);
    }

    #[test]
    fn version_2_wins_where_it_carries_memory_and_pids() {
        let own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n";
        let home = Home::parse(own, UNIFIED, |dir| {
            assert!(dir.ends_with("run-1.scope"));
            "memory pids\n".into()
        })
        .unwrap();
        let Group::V2 { dir, cpu } = home.group else {
            panic!("version 2");
        };
        assert!(dir.starts_with("/sys/fs/cgroup/user.slice") && !cpu);
    }

    #[test]
    fn a_hypervisor_in_its_leaf_builds_beside_it() {
        let own = "0::/system.slice/choir.service/hypervisor\n";
        let home = Home::parse(own, UNIFIED, |_| "cpu memory pids\n".into()).unwrap();
        let Group::V2 { dir, cpu } = home.group else {
            panic!("version 2");
        };
        assert!(dir.ends_with("choir.service") && cpu);
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let mounts = "29 23 0:26 /docker/ab12 /sys/fs/cgroup ro - cgroup2 cgroup rw";
        let home = Home::parse("0::/docker/ab12\n", mounts, |_| "memory pids".into()).unwrap();
        assert!(home.is_root);
        let outside = Home::parse("0::/../other\n", mounts, |_| "memory pids".into());
        assert!(matches!(outside, Err(CgroupError::NoControllers)));
    }

    #[test]
    fn a_hierarchy_that_something_is_mounted_over_is_not_taken() {
        let own = "2:memory,pids:/box\n0::/box\n";
        let under = "\
1 0 8:1 / / rw - ext4 /dev/vda rw
5 1 0:5 / /sys rw - sysfs sysfs rw
6 5 0:6 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let directly = "7 6 0:7 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        let on_the_way = "7 5 0:7 / /sys/fs rw - tmpfs tmpfs rw\n";
        let beside =
            "7 5 0:7 / /sys/fs/bpf rw - bpf bpf rw\n8 6 0:8 / /sys/fs/cgroup/x rw - tmpfs x rw\n";
        let find = |mounts: &str| Home::parse(own, mounts, |_| "memory pids".into());
        for over in [directly, on_the_way] {
            let gone = find(&format!("{under}{over}"));
            assert!(matches!(gone, Err(CgroupError::NoControllers)), "{over}");
            let legacy = "9 7 0:9 / /sys/fs/cgroup/all rw - cgroup cgroup rw,memory,pids\n";
            let home = find(&format!("{under}{over}{legacy}")).unwrap();
            assert!(matches!(home.group, Group::V1 { .. }), "{over}");
        }
        let home = find(&format!("{under}{beside}")).unwrap();
        assert!(matches!(home.group, Group::V2 { .. }));
    }

    #[test]
    fn what_is_missing_is_named() {
        let bare = Home::parse("0::/init.scope\n", UNIFIED, |_| "hugetlb\n".into());
        let error = bare.unwrap_err();
        assert!(error.to_string().contains("hugetlb"), "{error}");
        assert!(error.hint().contains("Delegate=memory pids cpu"));
        let nothing = Home::parse("", "", |_| String::new()).unwrap_err();
        assert!(matches!(nothing, CgroupError::NoControllers));
    }
}

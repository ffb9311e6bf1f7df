use std::fs;
use std::path::Path;

use super::super::WallError;
use super::super::facts::Facts;
use super::explain;

/// What a machine's files were, by path below its root.
fn machine(files: &[(&str, &str)], root: bool) -> Facts {
    let top = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = top.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    }
    Facts::read_in(top.path(), root)
}

fn error(step: &str, errno: i32) -> WallError {
    WallError {
        step: step.into(),
        reason: "refused".into(),
        errno: Some(errno),
    }
}

fn no_namespaces() -> WallError {
    error(
        "create user, mount, pid, net, ipc and uts namespaces",
        libc::EPERM,
    )
}

/// Of Ubuntu 24.04, for an ordinary user.
const UBUNTU: &[(&str, &str)] = &[
    ("proc/sys/user/max_user_namespaces", "95622\n"),
    ("proc/sys/kernel/unprivileged_userns_clone", "1\n"),
    (
        "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1\n",
    ),
    ("proc/self/attr/apparmor/current", "unconfined\n"),
    ("proc/self/uid_map", "         0          0 4294967295\n"),
    ("proc/sys/kernel/osrelease", "6.8.0-31-generic\n"),
    (
        "sys/kernel/security/lsm",
        "lockdown,capability,landlock,yama,apparmor",
    ),
];

#[test]
fn each_cause_is_told_from_what_a_machine_says() {
    type Recorded = &'static [(&'static str, &'static str)];
    let cases: &[(Recorded, WallError, &str)] = &[
        (
            UBUNTU,
            no_namespaces(),
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            &[("proc/sys/user/max_user_namespaces", "0\n")],
            error("create the namespace", libc::ENOSPC),
            "sysctl -w user.max_user_namespaces=15000",
        ),
        (
            &[
                ("proc/sys/user/max_user_namespaces", "0\n"),
                ("proc/self/uid_map", "0 1000 1\n"),
            ],
            error("create the namespace", libc::ENOSPC),
            "bwrap --disable-userns",
        ),
        (
            &[("proc/sys/user/max_user_namespaces", "64\n")],
            error("create the namespace", libc::ENOSPC),
            "user.max_user_namespaces=128",
        ),
        (
            &[("proc/sys/kernel/unprivileged_userns_clone", "0\n")],
            no_namespaces(),
            "kernel.unprivileged_userns_clone=1",
        ),
        (
            &[(".dockerenv", "")],
            no_namespaces(),
            "docker run --security-opt seccomp=unconfined",
        ),
        (
            &[("run/.containerenv", "engine=podman")],
            no_namespaces(),
            "podman run --security-opt",
        ),
        (
            &[("run/.containerenv", "")],
            error("mount a new proc", libc::EPERM),
            "unmask=ALL",
        ),
        // As containerd leaves it for a pod of Kubernetes: no file of its own.
        (
            &[(
                "proc/self/mountinfo",
                "1 0 0:1 / / rw - overlay overlay rw,lowerdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs\n",
            )],
            no_namespaces(),
            "this is a container",
        ),
        (
            &[("proc/self/cgroup", "5:pids:/kubepods/besteffort/pod1/2\n")],
            no_namespaces(),
            "this is a container",
        ),
        (
            &[(
                "proc/self/mountinfo",
                "2 1 0:2 / /proc rw - proc proc rw\n3 2 0:3 / /proc/kcore rw - tmpfs tmpfs rw\n",
            )],
            error("mount a new proc", libc::EPERM),
            "procMount",
        ),
        (
            &[("proc/sys/kernel/osrelease", "5.10.0-30-amd64\n")],
            error("create a Landlock ruleset", libc::ENOSYS),
            "older than 5.13",
        ),
        (
            &[
                ("proc/sys/kernel/osrelease", "6.1.0-21-amd64\n"),
                ("sys/kernel/security/lsm", "lockdown,capability,yama\n"),
            ],
            error("enter the Landlock domain", libc::EOPNOTSUPP),
            "lsm=landlock,lockdown,capability,yama",
        ),
        (
            UBUNTU,
            error("create a Landlock ruleset", libc::EOPNOTSUPP),
            "landlock_scopes",
        ),
        (
            &[],
            error("find /dev/full on the host", libc::ENOENT),
            "device",
        ),
        (&[], error("clone /usr", libc::ENOENT), "no /usr here"),
        (
            &[],
            error("find /opt/tools on the host", libc::ENOENT),
            "check the configuration",
        ),
    ];
    for (files, error, remedy) in cases {
        let hint = explain(error, &machine(files, false)).unwrap_or_default();
        assert!(hint.contains(remedy), "{files:?} {error}: {hint}");
    }
}

#[test]
fn a_setting_that_does_not_concern_root_or_the_step_is_not_blamed() {
    let as_root = explain(&no_namespaces(), &machine(UBUNTU, true));
    assert_eq!(as_root, None);
    // A live system's root, and a mount that every machine has.
    let live = machine(
        &[(
            "proc/self/mountinfo",
            "1 0 0:1 / / rw - overlay overlay rw,lowerdir=/run/live/rootfs,upperdir=/run/live/rw\n\
             2 1 0:2 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n",
        )],
        false,
    );
    assert_eq!(explain(&no_namespaces(), &live), None);
    assert_eq!(
        explain(&error("mount a new proc", libc::EPERM), &live),
        None
    );
    let mut elsewhere = error("write /etc/hosts", libc::EIO);
    elsewhere.errno = Some(libc::EIO);
    assert_eq!(
        explain(&elsewhere, &machine(&[(".dockerenv", "")], false)),
        None
    );
}

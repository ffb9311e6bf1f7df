//! Drills on this process itself: what it holds, what it is, whom it can reach.

use crate::attempt::{Outcome, call};
use crate::{Context, Drill};

/// Descriptors are looked for below this number.
const DESCRIPTORS: i32 = 4096;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "capabilities",
        attempt: |_| capabilities(),
    },
    Drill {
        name: "no_new_privileges",
        attempt: |_| status_is("NoNewPrivs", "1"),
    },
    Drill {
        name: "seccomp_filter",
        attempt: |_| status_is("Seccomp", "2"),
    },
    Drill {
        name: "root_identity",
        attempt: |_| root_identity(),
    },
    Drill {
        name: "host_process",
        attempt: host_process,
    },
    Drill {
        name: "foreign_processes",
        attempt: |_| foreign_processes(),
    },
    Drill {
        name: "provider_credential",
        attempt: |_| provider_credential(),
    },
    Drill {
        name: "core_dump",
        attempt: |_| core_dump(),
    },
];

/// The inode of the machine's first pid namespace (PROC_PID_INIT_INO).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether the kernel loaded this program without a loader of somebody else's.
pub(crate) fn is_static() -> bool {
    // SAFETY: getauxval reads what the kernel left this process, and touches no memory of ours.
    unsafe { libc::getauxval(libc::AT_BASE) == 0 }
}

/// Whether this runs in user and pid namespaces that are not the machine's first ones.
pub(crate) fn is_enclosed() -> bool {
    // The first user namespace maps every id to itself.
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let own_user = ids.split_whitespace().ne(["0", "0", "4294967295"]);
    let own_pid = std::fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|found| std::os::unix::fs::MetadataExt::ino(&found) != FIRST_PID_NAMESPACE);
    own_user && own_pid
}

/// The descriptors that are open now.
pub(crate) fn open_descriptors() -> Vec<i32> {
    (3..DESCRIPTORS)
        .filter(|fd| {
            let fd = usize::try_from(*fd).unwrap_or_default();
            call(libc::SYS_fcntl, [fd, libc::F_GETFD as usize, 0, 0, 0, 0]).is_ok()
        })
        .collect()
}

/// Nothing but the standard streams may come from outside.
pub(crate) fn inherited(open: &[i32]) -> Outcome {
    if open.is_empty() {
        Outcome::Denied("none".to_owned())
    } else {
        Outcome::Open(format!("{open:?}"))
    }
}

fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(|value| value.trim().to_owned())
    })
}

fn status_is(field: &str, wanted: &str) -> Outcome {
    match status_field(field) {
        Some(value) if value == wanted => Outcome::Denied(format!("{field} is {value}")),
        other => Outcome::Open(format!("{field} is {other:?}")),
    }
}

fn capabilities() -> Outcome {
    Outcome::all(
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| {
            let outcome = match status_field(set) {
                Some(value) if value.bytes().all(|digit| digit == b'0') => {
                    Outcome::Denied("none".to_owned())
                }
                other => Outcome::Open(format!("{other:?}")),
            };
            (set.to_owned(), outcome)
        }),
    )
}

/// Neither root inside, nor mapped to the host's root.
fn root_identity() -> Outcome {
    if rustix::process::geteuid().is_root() {
        return Outcome::Open("root inside".to_owned());
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let Ok(text) = std::fs::read_to_string(map) else {
            return Outcome::Open(format!("{map} cannot be read, so nothing is known"));
        };
        let outside_root = text
            .lines()
            // Inside, outside and length: neither side may begin with root, and none may reach it.
            .any(|line| line.split_whitespace().take(2).any(|id| id == "0"));
        if outside_root {
            return Outcome::Open(format!("{map}: {}", text.trim()));
        }
    }
    Outcome::Denied("an ordinary user".to_owned())
}

fn host_process(context: &Context) -> Outcome {
    let Some(pid) = context.host_pid else {
        return Outcome::Open("no process was named, so none was tried".to_owned());
    };
    let pid = usize::try_from(pid).unwrap_or_default();
    Outcome::any_error(call(libc::SYS_kill, [pid, 0, 0, 0, 0, 0]))
}

/// `/proc` shows this pid namespace alone, in which nothing of the hypervisor runs.
fn foreign_processes() -> Outcome {
    let names = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let is_process = entry
                .file_name()
                .to_str()?
                .bytes()
                .all(|byte| byte.is_ascii_digit());
            is_process
                .then(|| std::fs::read_to_string(entry.path().join("comm")).ok())
                .flatten()
        });
    for name in names {
        if matches!(
            name.trim(),
            "hypervisor" | "systemd" | "dbus-daemon" | "sshd"
        ) {
            return Outcome::Open(format!("{} is visible", name.trim()));
        }
    }
    Outcome::Denied("only our own".to_owned())
}

fn provider_credential() -> Outcome {
    for (name, value) in std::env::vars() {
        if types::keyless::credential(&name, &value).is_some() {
            return Outcome::Open(format!("{name} holds one"));
        }
    }
    Outcome::Denied("none".to_owned())
}

fn core_dump() -> Outcome {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
    // 1 is stricter than 0: it keeps the kernel from running the host's core_pattern program
    // over a crashed process, and a file is never that short (core(5)).
    if matches!(limit.maximum, Some(0 | 1)) {
        Outcome::Denied("no core dumps".to_owned())
    } else {
        Outcome::Open(format!("up to {:?} bytes", limit.maximum))
    }
}

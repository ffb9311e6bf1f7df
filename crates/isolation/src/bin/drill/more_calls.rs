//! Drills that are a call with a twist, or many calls of one kind.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::fd::AsFd;

use crate::Drill;
use crate::attempt::{Outcome, address, call, number};

/// A null pointer, a zero, or an empty set of flags.
const NONE: usize = 0;

/// A descriptor that is not open.
const NO_FD: usize = usize::MAX;

/// Calls that only exist to be refused: each is tried with arguments that do nothing.
const REFUSED: &[(&str, libc::c_long)] = &[
    ("fsconfig", libc::SYS_fsconfig),
    ("fspick", libc::SYS_fspick),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_setup", libc::SYS_io_setup),
    ("fanotify_mark", libc::SYS_fanotify_mark),
    ("process_madvise", libc::SYS_process_madvise),
    ("process_mrelease", libc::SYS_process_mrelease),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("quotactl_fd", libc::SYS_quotactl_fd),
    ("adjtimex", libc::SYS_adjtimex),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("setdomainname", libc::SYS_setdomainname),
    ("swapoff", libc::SYS_swapoff),
    ("migrate_pages", libc::SYS_migrate_pages),
    ("mbind", libc::SYS_mbind),
    ("set_mempolicy", libc::SYS_set_mempolicy),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("remap_file_pages", libc::SYS_remap_file_pages),
    ("nfsservctl", libc::SYS_nfsservctl),
    ("statmount", 457),
    ("listmount", 458),
    ("open_tree_attr", 467),
];

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "rare_calls",
        attempt: |_| rare_calls(),
    },
    Drill {
        name: "unnumbered_calls",
        attempt: |_| unnumbered_calls(),
    },
    Drill {
        name: "seccomp_listener_of_its_own",
        attempt: |_| seccomp_listener(),
    },
    Drill {
        name: "seccomp_allow_all_on_top",
        attempt: |_| seccomp_allow_all(),
    },
    Drill {
        name: "no_new_privileges_taken_back",
        attempt: |_| prctl(libc::PR_SET_NO_NEW_PRIVS, 0),
    },
    Drill {
        name: "ambient_capability",
        attempt: |_| {
            let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
            Outcome::any_error(call(
                libc::SYS_prctl,
                [libc::PR_CAP_AMBIENT as usize, raise, 21, 0, 0, 0],
            ))
        },
    },
    Drill {
        name: "secure_bits_loosened",
        attempt: |_| prctl(libc::PR_SET_SECUREBITS, 0),
    },
    Drill {
        name: "executable_of_a_process_replaced",
        attempt: |_| prctl(libc::PR_SET_MM, 13),
    },
    Drill {
        name: "capabilities_raised",
        attempt: |_| capset(),
    },
    Drill {
        name: "priority_raised",
        attempt: |_| {
            Outcome::any_error(call(
                libc::SYS_setpriority,
                [NONE, NONE, (-20_isize).cast_unsigned(), 0, 0, 0],
            ))
        },
    },
    Drill {
        name: "real_time_priority",
        attempt: |_| {
            Outcome::any_error(call(
                libc::SYS_sched_setscheduler,
                [NONE, 1, address(&1_i32), 0, 0, 0],
            ))
        },
    },
    Drill {
        name: "descriptor_limit_raised",
        attempt: |_| raise(libc::RLIMIT_NOFILE),
    },
    Drill {
        name: "process_limit_raised",
        attempt: |_| raise(libc::RLIMIT_NPROC),
    },
    Drill {
        name: "core_limit_raised",
        attempt: |_| raise(libc::RLIMIT_CORE),
    },
    Drill {
        name: "namespace_of_the_parent",
        attempt: |_| parent_namespace(),
    },
    Drill {
        name: "line_discipline",
        attempt: |_| ioctl(libc::TIOCSETD as usize, address(&21_i32)),
    },
    Drill {
        name: "console_redirected",
        attempt: |_| any_ioctl(libc::TIOCCONS as usize),
    },
    Drill {
        name: "terminal_stolen",
        attempt: |_| any_ioctl(libc::TIOCSCTTY as usize),
    },
    Drill {
        name: "mknodat_character",
        attempt: |_| mknodat(libc::S_IFCHR, libc::makedev(1, 1)),
    },
    Drill {
        name: "mknodat_whiteout",
        attempt: |_| mknodat(libc::S_IFCHR, 0),
    },
    Drill {
        name: "file_capabilities",
        attempt: |_| file_attribute(c"security.capability"),
    },
    Drill {
        name: "trusted_attribute",
        attempt: |_| file_attribute(c"trusted.overlay.opaque"),
    },
];

fn path(text: &CStr) -> usize {
    text.as_ptr() as usize
}

fn rare_calls() -> Outcome {
    Outcome::all(REFUSED.iter().map(|&(name, number)| {
        let outcome = Outcome::refusal(call(number, [NO_FD, NONE, NONE, NONE, NONE, NONE]));
        (name.to_owned(), outcome)
    }))
}

/// Numbers that no call has, or none had when the profiles were written: what a newer kernel
/// brings has to stay shut until somebody looked at it. `-1` is what tracers leave.
fn unnumbered_calls() -> Outcome {
    Outcome::all(
        [340, 400, 470, 500, 547, 600, 1000, 4095, -1].map(|number| {
            (
                format!("call {number}"),
                Outcome::refusal(call(number, [NONE; 6])),
            )
        }),
    )
}

/// A filter that lets everything through and has `flags`. `Ok` when the kernel took it.
fn install_filter(flags: usize) -> io::Result<libc::c_long> {
    // BPF_RET|BPF_K, SECCOMP_RET_ALLOW.
    let instruction = libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: std::ptr::from_ref(&instruction).cast_mut(),
    };
    let set = libc::SECCOMP_SET_MODE_FILTER as usize;
    call(libc::SYS_seccomp, [set, flags, address(&program), 0, 0, 0])
}

/// Whoever listens to a filter could let calls go on that another filter denies.
fn seccomp_listener() -> Outcome {
    let flag = usize::try_from(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER).unwrap_or_default();
    Outcome::any_error(install_filter(flag))
}

fn seccomp_allow_all() -> Outcome {
    let installed = install_filter(0);
    let after = Outcome::refusal(call(
        libc::SYS_keyctl,
        [NONE, NO_FD, NONE, NONE, NONE, NONE],
    ));
    match installed {
        Ok(_) => after,
        Err(error) => Outcome::Denied(error.to_string()),
    }
}

fn prctl(option: libc::c_int, value: usize) -> Outcome {
    let option = usize::try_from(option).unwrap_or_default();
    Outcome::any_error(call(libc::SYS_prctl, [option, value, 0, 0, 0, 0]))
}

fn capset() -> Outcome {
    // Version 3, this process; CAP_SYS_ADMIN in all sets.
    let header = [0x2008_0522_u32, 0];
    let data = [1_u32 << 21, 1 << 21, 0, 0, 0, 0];
    Outcome::any_error(call(
        libc::SYS_capset,
        [address(&header), address(&data), 0, 0, 0, 0],
    ))
}

fn raise(resource: libc::__rlimit_resource_t) -> Outcome {
    let wanted = [u64::MAX, u64::MAX];
    let resource = usize::try_from(resource).unwrap_or_default();
    Outcome::any_error(call(
        libc::SYS_prlimit64,
        [NONE, resource, address(&wanted), NONE, 0, 0],
    ))
}

/// NS_GET_PARENT and NS_GET_USERNS lead from a namespace to the ones around it.
fn parent_namespace() -> Outcome {
    Outcome::all(
        [("user", 0xb702), ("pid", 0xb702), ("user", 0xb701)].map(|(kind, request)| {
            let outcome = match File::open(format!("/proc/self/ns/{kind}")) {
                Ok(file) => Outcome::any_error(call(
                    libc::SYS_ioctl,
                    [number(file.as_fd()), request, 0, 0, 0, 0],
                )),
                Err(error) => Outcome::any_error::<()>(Err(error)),
            };
            (format!("{kind} {request:#x}"), outcome)
        }),
    )
}

/// On standard input, whatever it is: a wall answers before the terminal layer does.
fn ioctl(request: usize, argument: usize) -> Outcome {
    Outcome::refusal(call(libc::SYS_ioctl, [0, request, argument, 0, 0, 0]))
}

fn any_ioctl(request: usize) -> Outcome {
    Outcome::any_error(call(libc::SYS_ioctl, [0, request, 1, 0, 0, 0]))
}

fn mknodat(kind: libc::mode_t, device: libc::dev_t) -> Outcome {
    let mode = usize::try_from(kind | 0o600).unwrap_or_default();
    let device = usize::try_from(device).unwrap_or_default();
    let here = libc::AT_FDCWD as usize;
    let name = path(c"/tmp/choir-drill-node");
    let outcome = Outcome::refusal(call(libc::SYS_mknodat, [here, name, mode, device, 0, 0]));
    let _ = std::fs::remove_file("/tmp/choir-drill-node");
    outcome
}

fn file_attribute(name: &CStr) -> Outcome {
    const FILE: &CStr = c"/tmp/choir-drill-attribute";
    let made = File::create("/tmp/choir-drill-attribute");
    // A version 2 capability: effective, CAP_SYS_ADMIN permitted.
    let value = [0x0200_0001_u32, 1 << 21, 0, 0, 0];
    let outcome = Outcome::any_error(made.and_then(|_| {
        call(
            libc::SYS_setxattr,
            [path(FILE), path(name), address(&value), 20, NONE, 0],
        )
    }));
    let _ = std::fs::remove_file("/tmp/choir-drill-attribute");
    outcome
}

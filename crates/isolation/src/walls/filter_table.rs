//! The seccomp allowlist, as data: what a sandboxed program may ask of the kernel, and who
//! needs it. What is not here is refused with EPERM; what was left out on purpose stands,
//! with its reason, in [`LEFT_OUT`], which a test holds against the table.

use libc::c_long;

use Gate::{All, Args};
use Test::{Equal, MaskedZero, NotEqual};

/// One argument of a call and what its low 32 bits must be. Those alone count because the
/// kernel, too, looks at no more for every argument tested here; a comparison of all 64
/// could be evaded by setting bits that it ignores.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    /// Argument equals the value.
    Equal(u8, u32),
    /// Argument differs from the value.
    NotEqual(u8, u32),
    /// Argument has none of the bits of the mask.
    MaskedZero(u8, u32),
    /// Argument has, of the bits of the first value, exactly those of the second.
    Masked(u8, u32, u32),
}

/// When a call is let through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate {
    /// Always.
    All,
    /// When every test of any one line holds.
    Args(&'static [&'static [Test]]),
    /// It fails with ENOSYS, so that libraries use what came before it.
    Missing,
}

/// Whom an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Guests and runners.
    Both,
    /// Guests only: the runner's profile is the tighter one (arch §1).
    Guest,
}

/// Calls that share a gate and a reason.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) calls: &'static [c_long],
    pub(crate) gate: Gate,
    pub(crate) who: Who,
    /// Who needs them, or why the gate is what it is.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for readers, and a test demands it")
    )]
    pub(crate) why: &'static str,
}

const fn both(calls: &'static [c_long], why: &'static str) -> Entry {
    Entry {
        calls,
        gate: All,
        who: Who::Both,
        why,
    }
}

const fn gated(calls: &'static [c_long], gate: Gate, why: &'static str) -> Entry {
    Entry {
        calls,
        gate,
        who: Who::Both,
        why,
    }
}

/// Every namespace flag that clone(2) takes. Its lowest byte is the exit signal, so
/// CLONE_NEWTIME does not exist there.
const CLONE_NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

const UNIX: u32 = libc::AF_UNIX as u32;
const INET: u32 = libc::AF_INET as u32;
const INET6: u32 = libc::AF_INET6 as u32;
const STREAM: u32 = libc::SOCK_STREAM as u32;
const DGRAM: u32 = libc::SOCK_DGRAM as u32;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
/// The bits of a socket's type that are the type; the others are flags.
const TYPE: u32 = 0xf;

// Newer than the libc crate; calls of this age have one number on every architecture.
const CACHESTAT: c_long = 451;
const MAP_SHADOW_STACK: c_long = 453;
const FUTEX_WAKE: c_long = 454;
const FUTEX_WAIT: c_long = 455;
const FUTEX_REQUEUE: c_long = 456;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const MSEAL: c_long = 462;

/// The allowlist for all architectures.
pub(crate) const TABLE: &[Entry] = &[
    both(
        &[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_preadv2,
            libc::SYS_pwritev2,
            libc::SYS_lseek,
            libc::SYS_close,
            libc::SYS_close_range,
        ],
        "every program: reading and writing",
    ),
    both(
        &[
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_newfstatat,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_statfs,
            libc::SYS_fstatfs,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_getdents64,
            libc::SYS_getcwd,
            libc::SYS_chdir,
            libc::SYS_fchdir,
        ],
        "every program: finding and opening files; openat2 for RESOLVE_BENEATH in the files API",
    ),
    both(
        &[
            libc::SYS_mkdirat,
            libc::SYS_unlinkat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchmodat2,
            libc::SYS_fchown,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
            libc::SYS_umask,
            libc::SYS_truncate,
            libc::SYS_ftruncate,
            libc::SYS_fallocate,
        ],
        "shells, compilers, git, tar: changing files",
    ),
    gated(
        &[libc::SYS_mknodat],
        Args(&[
            &[Test::Masked(2, libc::S_IFMT, libc::S_IFIFO)],
            &[Test::Masked(2, libc::S_IFMT, libc::S_IFREG)],
            &[Test::Masked(2, libc::S_IFMT, libc::S_IFSOCK)],
            &[Test::Masked(2, libc::S_IFMT, 0)],
        ]),
        "mkfifo; never a device node",
    ),
    both(
        &[
            libc::SYS_getxattr,
            libc::SYS_lgetxattr,
            libc::SYS_fgetxattr,
            libc::SYS_listxattr,
            libc::SYS_llistxattr,
            libc::SYS_flistxattr,
            libc::SYS_setxattr,
            libc::SYS_lsetxattr,
            libc::SYS_fsetxattr,
            libc::SYS_removexattr,
            libc::SYS_lremovexattr,
            libc::SYS_fremovexattr,
        ],
        "cp -a, tar, ls: extended attributes of one's own files",
    ),
    both(
        &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync_file_range,
            libc::SYS_syncfs,
            libc::SYS_sync,
            libc::SYS_flock,
            libc::SYS_fadvise64,
            libc::SYS_readahead,
            libc::SYS_copy_file_range,
            libc::SYS_sendfile,
            libc::SYS_splice,
            libc::SYS_tee,
            libc::SYS_vmsplice,
        ],
        "databases (SQLite, PostgreSQL), cp, cat, web servers",
    ),
    both(
        &[
            libc::SYS_dup,
            libc::SYS_dup3,
            libc::SYS_fcntl,
            libc::SYS_pipe2,
            libc::SYS_eventfd2,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_ppoll,
            libc::SYS_pselect6,
            libc::SYS_signalfd4,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_timerfd_gettime,
            libc::SYS_inotify_init1,
            libc::SYS_inotify_add_watch,
            libc::SYS_inotify_rm_watch,
            libc::SYS_memfd_create,
        ],
        "event loops (tokio, Node, Go, Python), file watchers, wasm and JIT runtimes",
    ),
    gated(
        &[libc::SYS_ioctl],
        Args(&[&[
            NotEqual(1, libc::TIOCSTI as u32),
            NotEqual(1, libc::TIOCLINUX as u32),
        ]]),
        "terminals and FIONBIO; never TIOCSTI or TIOCLINUX, which type into a terminal",
    ),
    both(
        &[
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_mprotect,
            libc::SYS_brk,
            libc::SYS_madvise,
            libc::SYS_msync,
            libc::SYS_mincore,
            libc::SYS_mlock,
            libc::SYS_mlock2,
            libc::SYS_munlock,
            libc::SYS_munlockall,
            libc::SYS_membarrier,
            libc::SYS_pkey_alloc,
            libc::SYS_pkey_free,
            libc::SYS_pkey_mprotect,
            libc::SYS_get_mempolicy,
        ],
        "allocators, JIT runtimes (V8), key-holding libraries (mlock, within RLIMIT_MEMLOCK)",
    ),
    both(
        &[
            libc::SYS_shmget,
            libc::SYS_shmat,
            libc::SYS_shmdt,
            libc::SYS_shmctl,
            libc::SYS_semget,
            libc::SYS_semop,
            libc::SYS_semtimedop,
            libc::SYS_semctl,
            libc::SYS_msgget,
            libc::SYS_msgsnd,
            libc::SYS_msgrcv,
            libc::SYS_msgctl,
            libc::SYS_mq_open,
            libc::SYS_mq_unlink,
            libc::SYS_mq_timedsend,
            libc::SYS_mq_timedreceive,
            libc::SYS_mq_notify,
            libc::SYS_mq_getsetattr,
        ],
        "PostgreSQL, Python's multiprocessing; the ipc namespace keeps them apart",
    ),
    gated(
        &[libc::SYS_clone],
        Args(&[&[MaskedZero(0, CLONE_NAMESPACES)]]),
        "every program: processes and threads; never a namespace",
    ),
    both(
        &[
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_wait4,
            libc::SYS_waitid,
            libc::SYS_set_tid_address,
            libc::SYS_gettid,
            libc::SYS_getpid,
            libc::SYS_getppid,
            libc::SYS_getpgid,
            libc::SYS_setpgid,
            libc::SYS_getsid,
            libc::SYS_setsid,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
        ],
        "every program: its own life and that of its children",
    ),
    both(
        &[
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_tgkill,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigsuspend,
            libc::SYS_rt_sigpending,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_sigaltstack,
            libc::SYS_restart_syscall,
        ],
        "every program: signals; the pid namespace bounds whom they reach",
    ),
    both(
        &[
            libc::SYS_futex,
            libc::SYS_futex_waitv,
            libc::SYS_set_robust_list,
            libc::SYS_get_robust_list,
            libc::SYS_rseq,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_getparam,
            libc::SYS_sched_getscheduler,
            libc::SYS_sched_getattr,
            libc::SYS_sched_get_priority_max,
            libc::SYS_sched_get_priority_min,
            libc::SYS_sched_rr_get_interval,
            libc::SYS_getcpu,
            libc::SYS_getpriority,
            libc::SYS_setpriority,
            libc::SYS_ioprio_get,
        ],
        "threads; nice (which only lowers); runtimes that size pools by affinity",
    ),
    Entry {
        calls: &[
            libc::SYS_sched_setparam,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_setattr,
            libc::SYS_ioprio_set,
            libc::SYS_mlockall,
        ],
        gate: All,
        who: Who::Guest,
        why: "the guest may order its own background work; a runner keeps what it was given",
    },
    both(
        &[
            libc::SYS_clock_gettime,
            libc::SYS_clock_getres,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_times,
            libc::SYS_getitimer,
            libc::SYS_setitimer,
            libc::SYS_timer_create,
            libc::SYS_timer_settime,
            libc::SYS_timer_gettime,
            libc::SYS_timer_getoverrun,
            libc::SYS_timer_delete,
        ],
        "every program: reading clocks and setting one's own timers",
    ),
    both(
        &[
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getegid,
            libc::SYS_getresuid,
            libc::SYS_getresgid,
            libc::SYS_getgroups,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setreuid,
            libc::SYS_setregid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_setfsuid,
            libc::SYS_setfsgid,
            libc::SYS_setgroups,
            libc::SYS_capget,
            libc::SYS_capset,
        ],
        "daemons that drop privileges they do not have; one id is mapped, so no other exists",
    ),
    both(
        &[
            libc::SYS_uname,
            libc::SYS_sysinfo,
            libc::SYS_getrusage,
            libc::SYS_getrlimit,
            libc::SYS_setrlimit,
            libc::SYS_prlimit64,
            libc::SYS_getrandom,
        ],
        "every program: facts, random bytes, limits (which only go down)",
    ),
    both(
        &[libc::SYS_prctl],
        "thread names, allocators, runtimes; without capabilities it concerns only the caller",
    ),
    gated(
        &[libc::SYS_personality],
        Args(&[
            &[Equal(0, 0)],
            &[Equal(0, 0xffff_ffff)],
            &[Equal(0, 0x0004_0000)],
        ]),
        "setarch -R and sanitizers (no address randomisation), or asking for the present one",
    ),
    both(
        &[
            libc::SYS_seccomp,
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_restrict_self,
        ],
        "programs that lock themselves further down (OpenSSH, Chromium); they can only tighten",
    ),
    gated(
        &[libc::SYS_socket],
        Args(&[
            &[Equal(0, UNIX)],
            &[Equal(0, INET), Test::Masked(1, TYPE, STREAM), Equal(2, 0)],
            &[Equal(0, INET), Test::Masked(1, TYPE, STREAM), Equal(2, TCP)],
            &[Equal(0, INET), Test::Masked(1, TYPE, DGRAM), Equal(2, 0)],
            &[Equal(0, INET), Test::Masked(1, TYPE, DGRAM), Equal(2, UDP)],
            &[Equal(0, INET6), Test::Masked(1, TYPE, STREAM), Equal(2, 0)],
            &[
                Equal(0, INET6),
                Test::Masked(1, TYPE, STREAM),
                Equal(2, TCP),
            ],
            &[Equal(0, INET6), Test::Masked(1, TYPE, DGRAM), Equal(2, 0)],
            &[Equal(0, INET6), Test::Masked(1, TYPE, DGRAM), Equal(2, UDP)],
        ]),
        "Unix, TCP and UDP; no netlink, packet, vsock, alg or raw socket, no rarer protocol",
    ),
    gated(
        &[libc::SYS_socketpair],
        Args(&[&[Equal(0, UNIX)]]),
        "shells, tokio, Node: pairs",
    ),
    both(
        &[
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_connect,
            libc::SYS_getsockname,
            libc::SYS_getpeername,
            libc::SYS_getsockopt,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_sendmmsg,
            libc::SYS_recvmmsg,
        ],
        "servers and clients on loopback and on Unix sockets",
    ),
    gated(
        &[libc::SYS_clone3],
        Gate::Missing,
        "its flags are in memory, out of a filter's sight; libc falls back to clone",
    ),
    gated(
        &[
            libc::SYS_memfd_secret,
            libc::SYS_set_mempolicy_home_node,
            libc::SYS_process_mrelease,
            CACHESTAT,
            MAP_SHADOW_STACK,
            FUTEX_WAKE,
            FUTEX_WAIT,
            FUTEX_REQUEUE,
            STATMOUNT,
            LISTMOUNT,
            MSEAL,
        ],
        Gate::Missing,
        "nobody needs them yet; ENOSYS makes those who ask fall back",
    ),
];

/// What x86-64 has beside the general table: the calls that newer ones replaced.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH_TABLE: &[Entry] = &[
    both(
        &[
            libc::SYS_open,
            libc::SYS_creat,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_readlink,
            libc::SYS_getdents,
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_chmod,
            libc::SYS_chown,
            libc::SYS_lchown,
            libc::SYS_utime,
            libc::SYS_utimes,
            libc::SYS_futimesat,
        ],
        "older programs and musl: files",
    ),
    gated(
        &[libc::SYS_mknod],
        Args(&[
            &[Test::Masked(1, libc::S_IFMT, libc::S_IFIFO)],
            &[Test::Masked(1, libc::S_IFMT, libc::S_IFREG)],
            &[Test::Masked(1, libc::S_IFMT, libc::S_IFSOCK)],
            &[Test::Masked(1, libc::S_IFMT, 0)],
        ]),
        "older mkfifo; never a device node",
    ),
    both(
        &[
            libc::SYS_pipe,
            libc::SYS_dup2,
            libc::SYS_poll,
            libc::SYS_select,
            libc::SYS_eventfd,
            libc::SYS_signalfd,
            libc::SYS_epoll_create,
            libc::SYS_epoll_wait,
            libc::SYS_inotify_init,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_getpgrp,
            libc::SYS_pause,
            libc::SYS_alarm,
            libc::SYS_time,
            libc::SYS_arch_prctl,
        ],
        "older programs, musl and Go: processes and event loops; arch_prctl for libc's start",
    ),
];

/// Other architectures began without the replaced calls.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const ARCH_TABLE: &[Entry] = &[];

/// What the table leaves out on purpose: the kernel surface that escapes are made of.
#[cfg(test)]
pub(crate) const LEFT_OUT: &[(c_long, &str)] = &[
    (libc::SYS_mount, "mounts change what a path means"),
    (libc::SYS_umount2, "what a mount hides would show"),
    (libc::SYS_pivot_root, "mounts"),
    (libc::SYS_open_tree, "mounts"),
    (libc::SYS_move_mount, "mounts"),
    (libc::SYS_fsopen, "mounts"),
    (libc::SYS_fsconfig, "mounts"),
    (libc::SYS_fsmount, "mounts"),
    (libc::SYS_fspick, "mounts"),
    (libc::SYS_mount_setattr, "mounts"),
    (libc::SYS_chroot, "a root without walls"),
    (
        libc::SYS_unshare,
        "new namespaces give capabilities over kernel code",
    ),
    (libc::SYS_setns, "other namespaces"),
    (libc::SYS_ptrace, "control over other processes"),
    (libc::SYS_process_vm_readv, "other processes' memory"),
    (libc::SYS_process_vm_writev, "other processes' memory"),
    (libc::SYS_process_madvise, "other processes' memory"),
    (libc::SYS_pidfd_getfd, "other processes' descriptors"),
    (libc::SYS_kcmp, "kernel addresses"),
    (libc::SYS_keyctl, "keyrings are not namespaced"),
    (libc::SYS_add_key, "keyrings are not namespaced"),
    (libc::SYS_request_key, "runs a host program"),
    (libc::SYS_bpf, "programs in the kernel"),
    (
        libc::SYS_perf_event_open,
        "kernel attack surface; other processes' timing",
    ),
    (libc::SYS_userfaultfd, "widens kernel races"),
    (
        libc::SYS_io_uring_setup,
        "does what the filter refuses, unseen by it",
    ),
    (libc::SYS_io_uring_enter, "as io_uring_setup"),
    (libc::SYS_io_uring_register, "as io_uring_setup"),
    (
        libc::SYS_open_by_handle_at,
        "opens files by number, past every path",
    ),
    (libc::SYS_name_to_handle_at, "the numbers for it"),
    (libc::SYS_fanotify_init, "watches whole file systems"),
    (libc::SYS_quotactl, "file systems"),
    (libc::SYS_swapon, "the host's memory"),
    (libc::SYS_swapoff, "the host's memory"),
    (libc::SYS_kexec_load, "the host's kernel"),
    (libc::SYS_kexec_file_load, "the host's kernel"),
    (libc::SYS_init_module, "the host's kernel"),
    (libc::SYS_finit_module, "the host's kernel"),
    (libc::SYS_delete_module, "the host's kernel"),
    (libc::SYS_reboot, "the host"),
    (libc::SYS_settimeofday, "the host's clock"),
    (libc::SYS_clock_settime, "the host's clock"),
    (libc::SYS_adjtimex, "the host's clock"),
    (libc::SYS_clock_adjtime, "the host's clock"),
    (libc::SYS_sethostname, "the supervisor set it"),
    (libc::SYS_setdomainname, "the supervisor set it"),
    (libc::SYS_acct, "the host's accounting"),
    (libc::SYS_syslog, "the host's kernel log"),
    (libc::SYS_vhangup, "terminals of others"),
    (libc::SYS_set_mempolicy, "the host's memory"),
    (libc::SYS_mbind, "the host's memory"),
    (libc::SYS_migrate_pages, "the host's memory"),
    (libc::SYS_move_pages, "the host's memory"),
];

//! Drills that are one forbidden system call each.

use std::ffi::CStr;

use crate::Drill;
use crate::attempt::{Outcome, address, call};

/// A null pointer, a zero, or an empty set of flags.
const NONE: usize = 0;

/// A descriptor that is not open.
const NO_FD: usize = usize::MAX;

const ROOT: &CStr = c"/";
const TMP: &CStr = c"/tmp";
const USR: &CStr = c"/usr";
const TMPFS: &CStr = c"tmpfs";

macro_rules! drills {
    ($($name:ident => $attempt:expr;)*) => {
        pub(crate) const DRILLS: &[Drill] =
            &[$(Drill { name: stringify!($name), attempt: $attempt }),*];
    };
}

drills! {
    unshare_user => |_| unshare(libc::CLONE_NEWUSER);
    unshare_mount => |_| unshare(libc::CLONE_NEWNS);
    unshare_pid => |_| unshare(libc::CLONE_NEWPID);
    unshare_network => |_| unshare(libc::CLONE_NEWNET);
    unshare_ipc => |_| unshare(libc::CLONE_NEWIPC);
    unshare_uts => |_| unshare(libc::CLONE_NEWUTS);
    unshare_cgroup => |_| unshare(libc::CLONE_NEWCGROUP);
    unshare_time => |_| unshare(0x80);
    clone_user => |_| clone(libc::CLONE_NEWUSER);
    clone_mount => |_| clone(libc::CLONE_NEWNS);
    clone_all => |_| clone(
        libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET,
    );
    clone3_user => |_| clone3();
    setns_own => |_| setns(c"/proc/self/ns/user");
    setns_init => |_| setns(c"/proc/1/ns/mnt");
    mount_tmpfs => |_| mount(TMPFS, TMP, Some(TMPFS), 0);
    mount_bind => |_| mount(USR, TMP, None, libc::MS_BIND | libc::MS_REC);
    mount_proc => |_| mount(c"proc", TMP, Some(c"proc"), 0);
    remount_writable => |_| mount(c"none", USR, None, libc::MS_REMOUNT | libc::MS_BIND);
    make_shared => |_| mount(c"none", ROOT, None, libc::MS_SHARED | libc::MS_REC);
    umount => |_| refused(libc::SYS_umount2, [path(c"/proc"), libc::MNT_DETACH as usize, 0, 0, 0, 0]);
    pivot_root => |_| refused(libc::SYS_pivot_root, [path(TMP), path(TMP), 0, 0, 0, 0]);
    chroot => |_| refused(libc::SYS_chroot, [path(TMP), 0, 0, 0, 0, 0]);
    open_tree => |_| refused(libc::SYS_open_tree, [libc::AT_FDCWD as usize, path(USR), 1, 0, 0, 0]);
    move_mount => |_| refused(libc::SYS_move_mount, [NO_FD, path(USR), NO_FD, path(TMP), 0, 0]);
    fsopen => |_| refused(libc::SYS_fsopen, [path(TMPFS), NONE, 0, 0, 0, 0]);
    fsmount => |_| refused(libc::SYS_fsmount, [NO_FD, NONE, NONE, 0, 0, 0]);
    mount_setattr => |_| refused(libc::SYS_mount_setattr, [NO_FD, path(USR), NONE, NONE, NONE, 0]);
    ptrace_traceme => |_| refused(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0, 0]);
    ptrace_seize => |_| refused(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, 1, 0, 0, 0, 0]);
    process_vm_readv => |_| vm(libc::SYS_process_vm_readv);
    process_vm_writev => |_| vm(libc::SYS_process_vm_writev);
    pidfd_getfd => |_| refused(libc::SYS_pidfd_getfd, [NO_FD, NONE, NONE, 0, 0, 0]);
    kcmp => |_| refused(libc::SYS_kcmp, [1, 1, NONE, NONE, NONE, 0]);
    keyctl => |_| refused(libc::SYS_keyctl, [0, NO_FD, NONE, 0, 0, 0]);
    add_key => |_| refused(
        libc::SYS_add_key,
        [path(c"user"), path(c"choir-drill"), path(c"x"), 1, NO_FD - 1, 0],
    );
    request_key => |_| refused(
        libc::SYS_request_key,
        [path(c"user"), path(c"choir-drill"), NONE, NONE, 0, 0],
    );
    bpf => |_| refused(libc::SYS_bpf, [NONE, NONE, NONE, 0, 0, 0]);
    perf_event_open => |_| refused(libc::SYS_perf_event_open, [NONE, NONE, NO_FD, NO_FD, NONE, 0]);
    userfaultfd => |_| refused(libc::SYS_userfaultfd, [NONE, 0, 0, 0, 0, 0]);
    io_uring_setup => |_| refused(libc::SYS_io_uring_setup, [NONE, NONE, 0, 0, 0, 0]);
    io_uring_enter => |_| refused(libc::SYS_io_uring_enter, [NO_FD, NONE, NONE, NONE, NONE, 0]);
    open_by_handle_at => |_| refused(libc::SYS_open_by_handle_at, [NO_FD, NONE, NONE, 0, 0, 0]);
    name_to_handle_at => |_| refused(
        libc::SYS_name_to_handle_at,
        [NO_FD, path(USR), NONE, NONE, NONE, 0],
    );
    kexec_load => |_| refused(libc::SYS_kexec_load, [NONE, NONE, NONE, usize::MAX, 0, 0]);
    init_module => |_| refused(libc::SYS_init_module, [NONE, NONE, path(c""), 0, 0, 0]);
    finit_module => |_| refused(libc::SYS_finit_module, [NO_FD, path(c""), NONE, 0, 0, 0]);
    delete_module => |_| refused(libc::SYS_delete_module, [path(c"choir_no_such"), NONE, 0, 0, 0, 0]);
    reboot => |_| refused(libc::SYS_reboot, [NONE, NONE, NONE, NONE, 0, 0]);
    settimeofday => |_| refused(libc::SYS_settimeofday, [address(&[0_i64, 2_000_000]), NONE, 0, 0, 0, 0]);
    clock_settime => |_| refused(libc::SYS_clock_settime, [NONE, address(&[0_i64, -1]), 0, 0, 0, 0]);
    sethostname => |_| refused(libc::SYS_sethostname, [NONE, usize::MAX, 0, 0, 0, 0]);
    swapon => |_| refused(libc::SYS_swapon, [path(c"/choir-no-such"), NONE, 0, 0, 0, 0]);
    acct => |_| refused(libc::SYS_acct, [path(c"/choir-no-such"), 0, 0, 0, 0, 0]);
    quotactl => |_| refused(libc::SYS_quotactl, [NO_FD, NONE, NONE, NONE, 0, 0]);
    syslog => |_| refused(libc::SYS_syslog, [10, NONE, NONE, 0, 0, 0]);
    iopl => |_| refused(libc::SYS_iopl, [3, 0, 0, 0, 0, 0]);
    ioperm => |_| refused(libc::SYS_ioperm, [0x80, 1, 1, 0, 0, 0]);
    fanotify_init => |_| refused(libc::SYS_fanotify_init, [NONE, NONE, 0, 0, 0, 0]);
    lookup_dcookie => |_| refused(libc::SYS_lookup_dcookie, [NONE, NONE, NONE, 0, 0, 0]);
    move_pages => |_| refused(libc::SYS_move_pages, [1, NONE, NONE, NONE, NONE, NONE]);
    vhangup => |_| refused(libc::SYS_vhangup, [0; 6]);
    personality => |_| refused(libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0, 0]);
    tiocsti => |_| ioctl(libc::TIOCSTI as usize);
    tiocsti_high_bits => |_| ioctl(libc::TIOCSTI as usize | (1 << 32));
    tioclinux => |_| ioctl(0x541C);
    tioclinux_high_bits => |_| ioctl(0x541C | (7 << 32));
    x32_call => |_| refused(0x4000_0000 | libc::SYS_getpid, [0; 6]);
    i386_call => |_| i386();
    mknod_character => |_| mknod(libc::S_IFCHR, libc::makedev(1, 1));
    mknod_block => |_| mknod(libc::S_IFBLK, libc::makedev(8, 0));
    setuid_root => |_| refused_any(libc::SYS_setuid, [0; 6]);
    setgroups => |_| refused_any(libc::SYS_setgroups, [1, address(&0_u32), 0, 0, 0, 0]);
}

/// Makes a call that no profile lets through; whether it was refused.
pub(crate) fn is_refused() -> bool {
    let refused = call(libc::SYS_keyctl, [0, NO_FD, NONE, 0, 0, 0]);
    refused.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

fn path(text: &CStr) -> usize {
    text.as_ptr() as usize
}

fn refused(number: libc::c_long, arguments: [usize; 6]) -> Outcome {
    Outcome::refusal(call(number, arguments))
}

fn refused_any(number: libc::c_long, arguments: [usize; 6]) -> Outcome {
    Outcome::any_error(call(number, arguments))
}

fn unshare(flags: libc::c_int) -> Outcome {
    refused(libc::SYS_unshare, [flags as usize, 0, 0, 0, 0, 0])
}

/// A clone that would work without the walls. Its child, if there is one, ends at once.
fn clone(flags: libc::c_int) -> Outcome {
    let flags = flags as usize | libc::SIGCHLD as usize;
    exit_if_child(call(libc::SYS_clone, [flags, NONE, NONE, NONE, NONE, 0]))
}

fn clone3() -> Outcome {
    // `struct clone_args` of the first kernel that had it: eight words.
    let mut arguments = [0_u64; 8];
    if let Some(flags) = arguments.first_mut() {
        *flags = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    }
    if let Some(exit_signal) = arguments.get_mut(4) {
        *exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    exit_if_child(call(
        libc::SYS_clone3,
        [address(&arguments), 64, 0, 0, 0, 0],
    ))
}

fn exit_if_child(result: std::io::Result<libc::c_long>) -> Outcome {
    if let Ok(0) = result {
        // SAFETY: the new child has nothing to clean up.
        unsafe { libc::_exit(0) }
    }
    Outcome::refusal(result)
}

fn setns(namespace: &CStr) -> Outcome {
    let file = std::fs::File::open(std::path::Path::new(namespace.to_str().unwrap_or_default()));
    match file {
        Ok(file) => refused(
            libc::SYS_setns,
            [crate::attempt::number(&file), NONE, 0, 0, 0, 0],
        ),
        Err(error) => Outcome::any_error::<()>(Err(error)),
    }
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> Outcome {
    let kind = kind.map_or(NONE, path);
    let flags = usize::try_from(flags).unwrap_or_default();
    refused(
        libc::SYS_mount,
        [path(source), path(target), kind, flags, NONE, 0],
    )
}

/// Reads or writes nothing of pid 1: permission is checked all the same.
fn vm(number: libc::c_long) -> Outcome {
    let byte = 0_u8;
    let vector = [address(&byte), 1];
    refused(number, [1, address(&vector), 1, address(&vector), 1, 0])
}

/// On standard input, whatever it is: a wall answers before the terminal layer does.
fn ioctl(request: usize) -> Outcome {
    refused(libc::SYS_ioctl, [0, request, path(c"x"), 0, 0, 0])
}

fn mknod(kind: libc::mode_t, device: libc::dev_t) -> Outcome {
    let mode = usize::try_from(kind | 0o600).unwrap_or_default();
    let device = usize::try_from(device).unwrap_or_default();
    let path = path(c"/tmp/choir-drill-device");
    let outcome = refused(libc::SYS_mknod, [path, mode, device, 0, 0, 0]);
    let _ = std::fs::remove_file("/tmp/choir-drill-device");
    outcome
}

/// `getpid` through the 32-bit entry of the kernel.
#[cfg(target_arch = "x86_64")]
fn i386() -> Outcome {
    let result: i64;
    // SAFETY: the call takes no arguments and changes no memory; registers that the entry
    // may clobber are named.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") 20_i64 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 {
        Outcome::Denied(format!("errno {}", -result))
    } else {
        Outcome::Open("succeeded".to_owned())
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn i386() -> Outcome {
    Outcome::Denied("not on this architecture".to_owned())
}

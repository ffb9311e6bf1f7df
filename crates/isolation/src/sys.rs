//! The kernel calls that no safe wrapper offers. All `unsafe` of the supervisor is here.
//!
//! The supervisor and everything it forks are single-threaded, which is what makes
//! `fork` without `exec` sound: no lock can be held by a thread that the child lacks.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old one, with the pid of the new one and, from [`clone_into`], its pidfd.
    Parent(Pid, Option<OwnedFd>),
}

/// Namespaces, as clone3(2) and unshare(2) name them.
pub(crate) const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
pub(crate) const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub(crate) const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
pub(crate) const NEW_NET: u64 = libc::CLONE_NEWNET as u64;
pub(crate) const NEW_IPC: u64 = libc::CLONE_NEWIPC as u64;
pub(crate) const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;
pub(crate) const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Forks into new namespaces and returns a pidfd, all in one step (clone3(2)).
///
/// The child has a copy of this process's memory and must end in [`exit`] or an exec.
pub(crate) fn clone_into(namespaces: u64) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let args = libc::clone_args {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: `args` outlives the call and its only pointer is to `pidfd`, which does too.
    // No CLONE_VM and no stack: the child goes on with a copy of this one's memory, as
    // after fork, and this process has no other thread.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    })?;
    forked(pid, pidfd)
}

/// Moves this process into new namespaces (unshare(2)).
pub(crate) fn unshare(namespaces: u64) -> io::Result<()> {
    let flags = libc::c_int::try_from(namespaces).map_err(io::Error::other)?;
    // SAFETY: without CLONE_FILES and CLONE_FS nothing that this process's memory refers to
    // changes; it has no other thread.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

fn forked(pid: libc::c_long, pidfd: RawFd) -> io::Result<Forked> {
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no pid"))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows its number.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Forked::Parent(pid, pidfd))
}

/// Forks (fork(2)); the child must end in [`exit`] or an exec.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: this process has no other thread, so the child's memory is consistent.
    let pid = check(unsafe { libc::fork() }.into())?;
    forked(pid, -1)
}

/// Ends this process without running destructors, which belong to the parent's memory.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// Replaces this process's program. Returns only to say why it could not.
pub(crate) fn exec(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts
            .iter()
            .map(|text| text.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and point to null-terminated strings that
    // live until the call returns, which it does only on failure.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes every descriptor but standard ones and those given.
pub(crate) fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .filter(|&number| number > 2)
        .collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if first < number {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor but the standard ones to be closed by the next exec.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the caller is a forked child that uses none of these descriptors again; it
    // never runs the destructors of their owners (it ends in `exit` or an exec).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Makes `fd` one of the three standard descriptors.
pub(crate) fn dup_to_standard(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 only replaces a descriptor whose number is 0, 1 or 2, which no `OwnedFd`
    // of this program owns.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// What [`mount_setattr`] sets; the names are those of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountAttributes {
    pub(crate) read_only: bool,
    pub(crate) no_dev: bool,
    pub(crate) no_exec: bool,
}

/// Makes the mount behind `tree` private and nosuid, and whatever else is asked for; with
/// `recursive` also the mounts beneath it.
pub(crate) fn mount_setattr(
    tree: BorrowedFd<'_>,
    wanted: MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let mut set = libc::MOUNT_ATTR_NOSUID;
    if wanted.read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    if wanted.no_dev {
        set |= libc::MOUNT_ATTR_NODEV;
    }
    if wanted.no_exec {
        set |= libc::MOUNT_ATTR_NOEXEC;
    }
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` and the empty path outlive the call, and the size is that of `attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which is what it is given.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
        .map(drop)
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: `sigset_t` is plain data, initialised by sigemptyset below.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writing.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` was initialised above.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn set_signal_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised (its type is made only by `signal_set`); the old mask
    // is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    check(result.into()).map(drop)
}

/// Blocks `signals` and makes a non-blocking descriptor from which they can be read.
pub(crate) fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    set_signal_mask(&set)?;
    // SAFETY: `set` is initialised.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads one signal from a [`signal_descriptor`], if there is one.
pub(crate) fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        Ok(length) if length == info.len() => info
            .first_chunk()
            .and_then(|number| i32::try_from(u32::from_ne_bytes(*number)).ok()),
        _ => None,
    }
}

/// Gives every signal its default action and blocks none, as a new program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // Fails for SIGKILL and SIGSTOP and for those that libc keeps, which have no other
        // action than their default one.
        // SAFETY: SIG_DFL is a valid action and runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_signal_mask(&signal_set(&[]))
}

/// Ignores `signal`. Ignoring SIGCHLD also makes the kernel reap children.
pub(crate) fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid action and runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Sends a signal to every process that this one can see and may signal, but itself; in
/// the first process of a pid namespace that is every other process of the namespace.
pub(crate) fn signal_all(signal: i32) {
    // SAFETY: kill has no precondition. It fails only when there is nobody left.
    unsafe { libc::kill(-1, signal) };
}

/// Sends a signal to one process, if it is there and may be signalled.
pub(crate) fn signal_one(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: kill has no precondition; a positive number names one process.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Has the dirty pages of a file written out, and waits for it (sync_file_range(2)).
pub(crate) fn write_out(file: &OwnedFd) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // A file that cannot be written out is no worse off than before.
    // SAFETY: the call takes a descriptor and numbers; length 0 means to the end.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}
/// One instruction of a seccomp filter.
pub(crate) use libc::sock_filter as BpfInstruction;

/// Installs a seccomp filter for this process and all it will fork.
pub(crate) fn install_filter(program: &[BpfInstruction]) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// The same, and returns the descriptor on which the calls arrive that the filter holds for an
/// answer ([`next_held_call`]).
pub(crate) fn install_listening_filter(program: &[BpfInstruction]) -> io::Result<OwnedFd> {
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Once we have taken a call in, only a fatal signal ends its wait: no call is restarted, and
    // counted again, because of a timer. Linux has that since 5.19.
    let steady = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd = match set_filter(program, listen | steady) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set_filter(program, listen),
        other => other,
    }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us (it closes on exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_filter(program: &[BpfInstruction], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the instructions that it points to outlive the call, which only
    // reads them; the length is theirs.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
}

/// A call that the kernel holds until it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldCall {
    id: u64,
    /// The number of the call.
    pub(crate) number: u32,
}

/// Takes in a call that a filter holds. Call it only when the descriptor is readable; then it
/// does not wait. `None` when its caller ended meanwhile.
pub(crate) fn next_held_call(listener: &OwnedFd) -> io::Result<Option<HeldCall>> {
    // SAFETY: `seccomp_notif` is plain data for which all zeroes are valid, and the kernel
    // demands zeroes.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the call writes one `seccomp_notif`, which is what it is given.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut call) };
    match check(result.into()) {
        Ok(_) => Ok(Some(HeldCall {
            id: call.id,
            number: call.data.nr.cast_unsigned(),
        })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a held call fail with EPERM. The only answer that there is: a call is never let go on,
/// because its caller could change what its arguments point to meanwhile.
pub(crate) fn refuse_held_call(listener: &OwnedFd, call: HeldCall) {
    let answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: -libc::EPERM,
        flags: 0,
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // Fails only when the caller ended meanwhile.
    // SAFETY: the call reads one `seccomp_notif_resp`, which is what it is given.
    unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const answer) };
}

/// Sets the terminal behind `fd` up as the controlling one of this (new) session.
pub(crate) fn take_terminal(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(fd)?)
}

/// Drops the host's identity: no supplementary groups, then group, then user.
pub(crate) fn become_host_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no group list is given, so none is read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) }.into())?;
    // SAFETY: setresgid has no precondition.
    check(unsafe { libc::setresgid(gid, gid, gid) }.into())?;
    // SAFETY: setresuid has no precondition.
    check(unsafe { libc::setresuid(uid, uid, uid) }.into()).map(drop)
}

/// The version of Landlock that this kernel has; 0 where there is none.
pub(crate) fn landlock_abi() -> i64 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no pointer and only answers a number
    // (landlock_create_ruleset(2)).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    version.max(0)
}

/// A descriptor of `/dev/null`.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        "/dev/null",
        flags,
        rustix::fs::Mode::empty(),
    )?)
}

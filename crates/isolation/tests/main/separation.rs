//! Two commands of one sandbox: what one can do to the other. They share the workspace,
//! `/tmp` and loopback, and may pass anything through them that both want to pass; neither
//! may trace, signal or read the other.

use types::CommandExit;

use crate::harness::{Sandbox, runner};

const IDLE: &[&str] = &["/bin/sh", "-c", "sleep 1000"];

/// Lives, holds a secret wherever a process can hold one, and answers on loopback.
const VICTIM: &str = r#"
import ctypes, mmap, os, socket, sys
secret = b"victims-" + b"secret"
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0x4711, 4096, 0o1666)
queue = libc.msgget(0x4712, 0o1666)
shared = open("/dev/shm/victim", "wb"); shared.write(secret); shared.flush()
listener = socket.socket(socket.AF_UNIX); listener.bind("\0victim"); listener.listen(8)
kept = open("/workspace/kept-open", "wb"); kept.write(secret); kept.flush(); os.unlink("/workspace/kept-open")
server = socket.create_server(("127.0.0.1", 7070))
print("up", os.getpid(), os.stat("/proc/self/ns/ipc").st_ino, segment >= 0, queue >= 0, flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"alive"); connection.close()
"#;

/// Tries everything, and says of each attempt what came of it.
const ATTACKER: &str = r#"
import ctypes, errno, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return "ok" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")
def tried(name, outcome): print(f"{name}={outcome}", flush=True)
def attempt(name, what):
    try: tried(name, "ok" if what() is not None else "nothing")
    except OSError as error: tried(name, errno.errorcode.get(error.errno, "?"))
own = {os.getpid(), os.getppid(), 1}
seen = {int(p) for p in os.listdir("/proc") if p.isdigit()}
tried("strangers-listed", len(seen - own))
others = [p for p in range(2, 500) if p not in own]
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
def all_of(name, what):
    outcomes = sorted({what(p) for p in others})
    tried(name, "+".join(outcomes))
all_of("kill-0", lambda p: call("kill", 62, p, 0))
all_of("kill", lambda p: call("kill", 62, p, signal.SIGKILL))
all_of("tgkill", lambda p: call("tgkill", 234, p, p, signal.SIGKILL))
all_of("ptrace-attach", lambda p: call("ptrace", 101, PTRACE_ATTACH, p, 0, 0))
all_of("ptrace-seize", lambda p: call("ptrace", 101, PTRACE_SEIZE, p, 0, 0))
buffer = ctypes.create_string_buffer(64)
class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
local = iovec(ctypes.cast(buffer, ctypes.c_void_p), 64); remote = iovec(0x400000, 64)
all_of("process_vm_readv", lambda p: call("readv", 310, p, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
all_of("process_vm_writev", lambda p: call("writev", 311, p, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
all_of("pidfd_open", lambda p: call("pidfd_open", 434, p, 0))
for part in ["mem", "environ", "root", "fd/0", "cwd", "maps"]:
    attempt(f"init-{part.replace('/', '-')}", lambda: os.open(f"/proc/1/{part}", os.O_RDONLY))
pidfd = os.pidfd_open(1)
tried("pidfd_getfd-init", call("pidfd_getfd", 438, pidfd, 0, 0))
tried("kcmp", call("kcmp", 312, os.getpid(), 1, 0, 0, 0))
attempt("dev-shm", lambda: os.open("/dev/shm/victim", os.O_RDONLY))
tried("sysv-segment", "ok" if libc.shmget(0x4711, 0, 0) >= 0 else errno.errorcode[ctypes.get_errno()])
tried("sysv-queue", "ok" if libc.msgget(0x4712, 0) >= 0 else errno.errorcode[ctypes.get_errno()])
def abstract():
    s = socket.socket(socket.AF_UNIX); s.connect("\0victim"); return s
attempt("abstract-socket", abstract)
def everybody():
    os.kill(-1, signal.SIGTERM); return True
signal.signal(signal.SIGTERM, signal.SIG_IGN)
attempt("kill-everybody", everybody)
tried("ipc-namespace", os.stat("/proc/self/ns/ipc").st_ino)
tried("victim", socket.create_connection(("127.0.0.1", 7070)).recv(9).decode())
"#;

#[test]
fn runners_of_one_sandbox_cannot_trace_signal_or_read_each_other() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let mut victim = runner(&["python3", "-c", VICTIM]);
    victim
        .env
        .push(("VICTIM_SECRET".into(), "victims-secret".into()));
    let id = client.spawn(victim);
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    let up = follower.await_output("\n");
    assert!(
        up.ends_with("True True\n"),
        "the victim has shared memory and a queue: {up}"
    );
    let ipc_of_victim = up.split_whitespace().nth(2).unwrap().to_owned();

    let outcome = sandbox.run(runner(&["python3", "-c", ATTACKER]));
    println!("{}{}", outcome.stdout, outcome.stderr);
    let of = |name: &str| {
        let line = outcome
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name} was not tried"))
            .to_owned()
    };
    let expected = [
        // Pid namespaces: there is nobody to name.
        ("strangers-listed", "0"),
        ("kill-0", "ESRCH"),
        ("kill", "ESRCH"),
        ("tgkill", "ESRCH"),
        ("pidfd_open", "ESRCH"),
        // Seccomp: whoever could be named.
        ("ptrace-attach", "EPERM"),
        ("ptrace-seize", "EPERM"),
        ("process_vm_readv", "EPERM"),
        ("process_vm_writev", "EPERM"),
        ("pidfd_getfd-init", "EPERM"),
        ("kcmp", "EPERM"),
        // Undumpable: the one process of ours that a command sees.
        ("init-mem", "EACCES"),
        ("init-environ", "EACCES"),
        ("init-root", "EACCES"),
        ("init-fd-0", "EACCES"),
        ("init-cwd", "EACCES"),
        // A mount, an IPC namespace and a Landlock domain of one's own.
        ("dev-shm", "ENOENT"),
        ("sysv-segment", "ENOENT"),
        ("sysv-queue", "ENOENT"),
        ("abstract-socket", "EPERM"),
        // The namespace's first process is out of its own command's reach, too.
        ("victim", "alive"),
    ];
    for (name, wanted) in expected {
        assert_eq!(of(name), wanted, "{name}");
    }
    assert_ne!(of("ipc-namespace"), ipc_of_victim);
    assert_eq!(
        outcome.exit,
        CommandExit {
            code: Some(0),
            wall_ms: outcome.exit.wall_ms,
            ..CommandExit::default()
        }
    );
}

#[test]
fn what_two_commands_share_is_what_both_put_there() {
    let sandbox = Sandbox::start(IDLE);
    assert_eq!(
        sandbox
            .sh("echo w > /workspace/w; echo t > /tmp/t; echo s > /dev/shm/s; echo h > ~/h")
            .exit
            .code,
        Some(0)
    );
    let seen = sandbox.sh("cat /workspace/w /tmp/t ~/h; ls -A /dev/shm");
    assert_eq!(
        seen.stdout, "w\nt\nh\n",
        "workspace, /tmp and HOME, not /dev/shm"
    );
}

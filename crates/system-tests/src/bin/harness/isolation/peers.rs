//! bubblewrap and crun with the view of the files that a runner of ours has.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::processes::Process;
use system_tests::{Binaries, identity, walls};
use tempfile::TempDir;

use super::await_health;

/// Who runs inside.
const INNER_ID: u32 = 1000;

/// Links at the root of a file system whose programs all lie in `/usr`.
const LINKS: &[&str] = &["bin", "lib", "lib64", "sbin"];

/// Files of `/etc` that a runner sees, or their like.
const ETC: &[&str] = &["ld.so.cache", "ssl", "alternatives"];

/// The directories of a sandbox of the peers.
struct Dirs {
    scratch: TempDir,
}

impl Dirs {
    /// bubblewrap maps who runs inside to its caller; crun runs the bare id.
    fn new(owner: Option<u32>) -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("choir-peer-")
            .tempdir()
            .expect("a scratch directory");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let dirs = Self { scratch };
        for name in ["workspace", "home", "data", "app", "channel"] {
            fs::create_dir(dirs.path(name)).expect("a directory");
            chown(dirs.path(name), owner, owner).expect("chown");
        }
        dirs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// What a guest connects to; nobody answers.
    fn channel(&self) -> UnixListener {
        UnixListener::bind(self.path("channel/channel.sock")).expect("a socket")
    }
}

/// A program that is ended with the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let family = Process::of(self.0.id()).map(Process::descendants);
        let _ = self.0.kill();
        let _ = self.0.wait();
        for process in family.into_iter().flatten() {
            process.signal(Signal::KILL);
        }
    }
}

/// `bwrap --unshare-all`.
pub(super) struct Bubblewrap {
    dirs: Dirs,
}

impl Bubblewrap {
    pub(super) fn new() -> Self {
        Self {
            dirs: Dirs::new(None),
        }
    }

    /// Runs a program to its end.
    pub(super) fn run(&self, argv: &[&str]) {
        let status = self.command().args(argv).status().expect("bwrap runs");
        assert!(status.success(), "bwrap: {status}");
    }

    fn command(&self) -> Command {
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--die-with-parent", "--new-session"]);
        command.args(["--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]);
        command.args(["--hostname", "peer", "--ro-bind", "/usr", "/usr"]);
        for name in present_links() {
            command.args(["--symlink", &format!("usr/{name}"), &format!("/{name}")]);
        }
        for path in present_etc() {
            command.args(["--ro-bind", &path, &path]);
        }
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        for (name, inside) in [("workspace", "/workspace"), ("home", "/home/choir")] {
            command.args(["--bind", &self.dirs.text(name), inside]);
        }
        command.args(["--chdir", "/workspace", "--clearenv"]);
        for (name, value) in walls::environment() {
            command.args(["--setenv", name, value]);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// How long a guest takes in bubblewrap.
pub(super) fn start_in_bubblewrap() -> Duration {
    let begun = Instant::now();
    let bubblewrap = Bubblewrap::new();
    let dirs = &bubblewrap.dirs;
    let _channel = dirs.channel();
    let binary = Binaries::find().program("sandbox");
    let mut command = bubblewrap.command();
    command.args(["--ro-bind", &binary.to_string_lossy(), "/choir/bin/sandbox"]);
    command.args(["--ro-bind", &dirs.text("channel"), "/run/choir/channel"]);
    command.args(["--bind", &dirs.text("app"), "/run/choir/app"]);
    command.args(["--bind", &dirs.text("data"), "/var/lib/choir"]);
    for (name, value) in walls::guest_environment() {
        command.args(["--setenv", name, &value]);
    }
    let child = command
        .arg("/choir/bin/sandbox")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("bwrap runs");
    let _running = Running(child);
    await_health(&dirs.path("app/app.sock"));
    begun.elapsed()
}

/// `crun run` of bundles, by a shell in a mount namespace of its own: crun refuses to work
/// where cgroups of both versions are mounted, so version 2 is out of its sight there.
pub(super) struct Crun {
    dirs: Dirs,
    _shell: Running,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// The shell's loop: one `crun run` per line, which names the container.
const LOOP: &str = "umount /sys/fs/cgroup/unified 2>/dev/null
while read -r name; do crun --cgroup-manager=disabled run -b \"$1\" \"$name\" </dev/null; echo $?; done";

impl Crun {
    /// `None`, with a word on standard error, where crun cannot be measured.
    pub(super) fn new() -> Option<Self> {
        if !identity::caller_is_root() {
            eprintln!(
                "crun is left out: without cgroups of its own it wants to be started by root"
            );
            return None;
        }
        let dirs = Dirs::new(Some(INNER_ID));
        let bundle = bundle(&dirs, &["/usr/bin/true"], &[]);
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", LOOP, "sh"])
            .arg(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let orders = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut crun = Self {
            dirs,
            _shell: Running(child),
            orders,
            answers,
        };
        crun.run_true();
        Some(crun)
    }

    /// Runs the bundle of `true` to its end.
    pub(super) fn run_true(&mut self) {
        writeln!(self.orders, "choir-{}", uuid::Uuid::new_v4()).expect("the shell listens");
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the shell answers");
        assert_eq!(line.trim(), "0", "crun run");
    }

    /// How long a guest takes in crun.
    pub(super) fn start_guest(&self) -> Duration {
        // The shell of `true` is not needed here; the cost of a second one is not counted.
        let _ = &self.dirs;
        let begun = Instant::now();
        let dirs = Dirs::new(Some(INNER_ID));
        let _channel = dirs.channel();
        let mounts = [
            ("channel", "/run/choir/channel", "ro"),
            ("app", "/run/choir/app", "rw"),
            ("data", "/var/lib/choir", "rw"),
        ];
        let bundle = bundle(&dirs, &["/choir/bin/sandbox"], &mounts);
        let name = format!("choir-{}", uuid::Uuid::new_v4());
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg("umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled run -b \"$1\" \"$2\"")
            .arg("sh")
            .arg(bundle)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let _running = Running(child);
        await_health(&dirs.path("app/app.sock"));
        begun.elapsed()
    }
}

/// Writes a bundle with a runner's view, and whatever more is mounted.
fn bundle(dirs: &Dirs, argv: &[&str], more: &[(&str, &str, &str)]) -> PathBuf {
    let bundle = dirs.path("bundle");
    let root = bundle.join("rootfs");
    fs::create_dir_all(&root).expect("a directory");
    for name in present_links() {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("a link");
    }
    let bind = |source: &str, target: &str, how: &str| json!({ "destination": target, "type": "bind", "source": source, "options": ["bind", how, "nosuid", "nodev"] });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] }),
        bind("/usr", "/usr", "ro"),
        bind(&dirs.text("workspace"), "/workspace", "rw"),
        bind(&dirs.text("home"), "/home/choir", "rw"),
    ];
    mounts.extend(present_etc().map(|path| bind(&path, &path, "ro")));
    for (name, inside, how) in more {
        mounts.push(bind(&dirs.text(name), inside, how));
    }
    let mut env: Vec<String> = walls::environment()
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !more.is_empty() {
        let binary = Binaries::find().program("sandbox");
        mounts.push(bind(&binary.to_string_lossy(), "/choir/bin/sandbox", "ro"));
        env.extend(
            walls::guest_environment()
                .into_iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
    }
    // Mount points have to be there; the root is read-only for who runs inside.
    for mount in &mounts {
        let target = root.join(text(&mount["destination"]).trim_start_matches('/'));
        if Path::new(text(&mount["source"])).is_file() {
            fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
            fs::write(target, "").expect("a file");
        } else {
            fs::create_dir_all(target).expect("a directory");
        }
    }
    let namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let config = json!({
        "ociVersion": "1.0.0",
        "hostname": "peer",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "args": argv, "env": env, "cwd": "/workspace", "noNewPrivileges": true,
            "user": { "uid": INNER_ID, "gid": INNER_ID },
        },
        "mounts": mounts,
        "linux": { "namespaces": namespaces },
    });
    fs::write(bundle.join("config.json"), config.to_string()).expect("a file");
    bundle
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn present_links() -> impl Iterator<Item = &'static str> {
    let is_link = |name: &&&str| fs::read_link(Path::new("/").join(name)).is_ok();
    LINKS.iter().filter(is_link).copied()
}

fn present_etc() -> impl Iterator<Item = String> {
    ETC.iter()
        .map(|name| format!("/etc/{name}"))
        .filter(|path| Path::new(path).exists())
}

//! The same guest binary under other sandboxes: from their being run to the guest's first
//! answer on its socket, and what they hold while it idles. What is not installed is left out.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::Binaries;
use system_tests::processes::Process;

use super::start::RUNS;

/// How long a peer's guest may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Where a peer notes the number of a guest that it leaves to itself.
const PID_FILE: &str = "guest.pid";

/// What the guest has of its own: host directory and where it is shown.
const OWN: &[(&str, &str)] = &[
    ("workspace", "/workspace"),
    ("home", "/home/choir"),
    ("data", "/var/lib/choir"),
    ("app", "/run/choir/app"),
    ("channel", "/run/choir/channel"),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/choir/bin:/usr/bin:/bin"),
    ("HOME", "/home/choir"),
    ("LANG", "C.UTF-8"),
    ("DATABASE_URL", "sqlite:///var/lib/choir/events.db"),
    (
        "CHOIR_PROVIDER_GATEWAY_BASE_URL",
        "http://127.0.0.1:9090/provider/v1",
    ),
    (
        "CHOIR_PROVIDER_GATEWAY_TOKEN",
        "choirgw_0000000000000000000000000000000000000000000000",
    ),
];

/// A peer: what it is called, and its command for a directory and a guest.
type Peer = (&'static str, Build);
type Build = fn(&Path, &Path) -> Command;

const BWRAP: Peer = ("bwrap --unshare-all, same guest", bwrap);
const CRUN: Peer = ("crun, same guest", crun);
const CRUN_CREATED: Peer = (
    "crun start of what it created before, same guest",
    crun_created,
);

/// Milliseconds of each start, by peer.
pub(crate) async fn starts(binaries: &Binaries) -> Vec<(&'static str, Vec<f64>)> {
    let guest = binaries.program("sandbox");
    measured(&[BWRAP, CRUN, CRUN_CREATED], move |build| {
        let scratch = own()?;
        (0..RUNS)
            .map(|_| begin(scratch.path(), &guest, build).map(|(_, ms)| ms))
            .collect()
    })
    .await
}

/// So many of each peer, whose guests have answered once and idle since `settle` ago: what
/// `read` makes of all their processes.
pub(crate) async fn idle<T: Send + 'static>(
    binaries: &Binaries,
    number: usize,
    settle: Duration,
    read: fn(&[Process]) -> T,
) -> Vec<(&'static str, T)> {
    let guest = binaries.program("sandbox");
    measured(&[BWRAP, CRUN], move |build| {
        let mut all = Vec::new();
        for _ in 0..number {
            let scratch = own()?;
            let (running, _) = begin(scratch.path(), &guest, build)?;
            all.push((running, scratch));
        }
        std::thread::sleep(settle);
        let processes: Vec<Process> = all
            .iter()
            .filter_map(|(running, _)| Process::of(running.child.id()))
            .flat_map(|process| process.descendants().into_iter().chain([process]))
            .collect();
        Ok(read(&processes))
    })
    .await
}

/// What `measure` says of each peer; one that is not here, or does not do it, is left out in a
/// line.
async fn measured<T: Send + 'static>(
    peers: &'static [Peer],
    measure: impl Fn(Build) -> Result<T, String> + Send + 'static,
) -> Vec<(&'static str, T)> {
    let all = move || {
        let mut measured = Vec::new();
        for (name, build) in peers {
            match measure(*build) {
                Ok(found) => measured.push((*name, found)),
                Err(why) => eprintln!("{name}: left out: {why}"),
            }
        }
        measured
    };
    let all = tokio::task::spawn_blocking(all).await;
    all.expect("the peers are measured")
}

/// A directory with what a guest has of its own.
fn own() -> Result<tempfile::TempDir, String> {
    let scratch = tempfile::Builder::new()
        .prefix("choir-peer-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    for (name, _) in OWN {
        fs::create_dir(scratch.path().join(name)).map_err(|error| error.to_string())?;
    }
    Ok(scratch)
}

/// A peer whose guest has answered, and after how many milliseconds.
fn begin(dir: &Path, guest: &Path, build: Build) -> Result<(Running, f64), String> {
    let socket = dir.join("app/app.sock");
    let _ = fs::remove_file(&socket);
    let child = build(dir, guest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut running = Running {
        child,
        pid_file: dir.join(PID_FILE),
    };
    let mut ready = [0_u8; 1];
    if let Some(stdout) = &mut running.child.stdout {
        stdout
            .read_exact(&mut ready)
            .map_err(|_| format!("it did not get ready: {}", last_words(&mut running.child)))?;
    }
    let begun = Instant::now();
    if let Some(stdin) = &mut running.child.stdin {
        stdin.write_all(b"\n").map_err(|error| error.to_string())?;
    }
    while !answers(&socket) {
        if running
            .child
            .try_wait()
            .is_ok_and(|status| status.is_some())
        {
            return Err(last_words(&mut running.child));
        }
        if begun.elapsed() > ANSWER_WITHIN {
            return Err(format!("no answer within {ANSWER_WITHIN:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    Ok((running, took))
}

/// What a peer that has ended said.
fn last_words(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    said.trim().to_owned()
}

fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    let asked =
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n");
    let mut head = [0_u8; 12];
    asked.is_ok() && stream.read_exact(&mut head).is_ok() && head.ends_with(b" 200")
}

/// A peer with all that it started; ends with the measurement.
struct Running {
    child: Child,
    /// Where the number of a guest stands that is no descendant.
    pid_file: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let started = Process::of(self.child.id())
            .map(|process| process.descendants().into_iter().chain([process]));
        let created = fs::read_to_string(&self.pid_file).ok();
        let created = created.and_then(|text| Process::of(text.trim().parse().ok()?));
        for one in started.into_iter().flatten().chain(created) {
            one.signal(Signal::KILL);
        }
        let _ = fs::remove_file(&self.pid_file);
        let _ = self.child.wait();
    }
}

/// Says that it is ready, waits for a line, and becomes the peer, so that what only this
/// machine needs is not counted.
const WAIT: &str = r#"echo; read go; exec "$@" </dev/null >/dev/null"#;

fn bwrap(dir: &Path, guest: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WAIT, "sh", "bwrap"]);
    command.args([
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ]);
    command.args([
        "--ro-bind",
        "/usr",
        "/usr",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]);
    command.args(["--tmpfs", "/tmp", "--hostname", "peer"]);
    for name in links() {
        command.args(["--symlink", &format!("usr/{name}"), &format!("/{name}")]);
    }
    for (name, target) in OWN {
        command.arg("--bind").arg(dir.join(name)).arg(target);
    }
    command
        .arg("--ro-bind")
        .arg(guest)
        .arg("/choir/bin/sandbox");
    for (name, value) in ENVIRONMENT {
        command.args(["--setenv", name, value]);
    }
    command.args(["--chdir", "/workspace", "/choir/bin/sandbox"]);
    command
}

/// Directories that are links into `/usr` here.
fn links() -> impl Iterator<Item = &'static str> {
    ["bin", "sbin", "lib", "lib64"]
        .into_iter()
        .filter(|name| Path::new("/").join(name).is_symlink())
}

fn crun(dir: &Path, guest: &Path) -> Command {
    let mut command = with_cgroups_of_one_version(dir, guest, WAIT);
    command.args(["run", "--bundle"]).arg(dir).arg(name());
    command
}

/// Everything but the guest's own program is there before the clock starts.
fn crun_created(dir: &Path, guest: &Path) -> Command {
    let name = name();
    let create = format!(
        "\"$@\" create --bundle {dir} --pid-file {dir}/{PID_FILE} {name} </dev/null >/dev/null || exit 1; \
         echo; read go; \"$@\" start {name} || exit 1; read end",
        dir = dir.display()
    );
    with_cgroups_of_one_version(dir, guest, &create)
}

fn name() -> String {
    format!("choir-peer-{}", uuid::Uuid::new_v4())
}

/// `crun` with a bundle, as the arguments of a script. It refuses a host that has cgroups of both
/// versions, even when it is to leave them alone.
fn with_cgroups_of_one_version(dir: &Path, guest: &Path, script: &str) -> Command {
    bundle(dir, guest);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg(format!(
            "umount --lazy /sys/fs/cgroup/unified 2>/dev/null; {script}"
        ))
        .args(["sh", "crun", "--root"])
        .arg(dir.join("state"))
        .args(["--cgroup-manager", "disabled"]);
    command
}

/// Writes an OCI bundle once.
fn bundle(dir: &Path, guest: &Path) {
    let root = dir.join("rootfs");
    if root.exists() {
        return;
    }
    let made = || -> std::io::Result<()> {
        for below in ["usr", "proc", "dev", "tmp", "choir/bin"] {
            fs::create_dir_all(root.join(below))?;
        }
        fs::write(root.join("choir/bin/sandbox"), "")?;
        fs::set_permissions(
            root.join("choir/bin/sandbox"),
            fs::Permissions::from_mode(0o755),
        )?;
        for name in links() {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        for (_, target) in OWN {
            fs::create_dir_all(root.join(target.trim_start_matches('/')))?;
        }
        fs::write(
            dir.join("config.json"),
            configuration(dir, guest).to_string(),
        )
    };
    made().expect("a bundle for crun");
}

fn configuration(dir: &Path, guest: &Path) -> Value {
    let bind = |source: PathBuf, target: &str, way: &str| {
        json!({ "destination": target, "type": "bind", "source": source,
                "options": ["rbind", way, "nosuid", "nodev"] })
    };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev"] }),
        bind("/usr".into(), "/usr", "ro"),
        bind(guest.into(), "/choir/bin/sandbox", "ro"),
    ];
    mounts.extend(
        OWN.iter()
            .map(|(name, target)| bind(dir.join(name), target, "rw")),
    );
    let env: Vec<String> = ENVIRONMENT
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount"]
        .map(|kind| json!({ "type": kind }))
        .to_vec();
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/choir/bin/sandbox"],
            "env": env,
            "cwd": "/workspace",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "peer",
        "mounts": mounts,
        "linux": { "namespaces": namespaces },
    })
}

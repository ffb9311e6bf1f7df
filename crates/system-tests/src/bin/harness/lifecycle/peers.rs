//! The same guest binary under other sandboxes: from their being run to the guest's first
//! answer on its socket. What is not installed is left out.

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

/// Milliseconds of each start, by peer.
pub(crate) async fn starts(binaries: &Binaries) -> Vec<(&'static str, Vec<f64>)> {
    let guest = binaries.program("sandbox");
    tokio::task::spawn_blocking(move || {
        let peers: [(&'static str, Build); 2] = [
            ("bwrap --unshare-all, same guest", bwrap),
            ("crun, same guest", crun),
        ];
        let mut measured = Vec::new();
        for (name, build) in peers {
            match series(&guest, build) {
                Ok(values) => measured.push((name, values)),
                Err(why) => eprintln!("{name}: left out: {why}"),
            }
        }
        measured
    })
    .await
    .expect("the peers are measured")
}

type Build = fn(&Path, &Path) -> Command;

fn series(guest: &Path, build: Build) -> Result<Vec<f64>, String> {
    let scratch = tempfile::Builder::new()
        .prefix("choir-peer-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    let dir = scratch.path();
    for (name, _) in OWN {
        fs::create_dir(dir.join(name)).map_err(|error| error.to_string())?;
    }
    (0..RUNS).map(|_| once(dir, guest, build)).collect()
}

fn once(dir: &Path, guest: &Path, build: Build) -> Result<f64, String> {
    let socket = dir.join("app/app.sock");
    let _ = fs::remove_file(&socket);
    let child = build(dir, guest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut running = Running(child);
    let mut ready = [0_u8; 1];
    if let Some(stdout) = &mut running.0.stdout {
        stdout
            .read_exact(&mut ready)
            .map_err(|error| error.to_string())?;
    }
    let begun = Instant::now();
    drop(running.0.stdin.take());
    while !answers(&socket) {
        if running.0.try_wait().is_ok_and(|status| status.is_some()) {
            let mut said = String::new();
            if let Some(stderr) = &mut running.0.stderr {
                let _ = stderr.read_to_string(&mut said);
            }
            return Err(said.trim().to_owned());
        }
        if begun.elapsed() > ANSWER_WITHIN {
            return Err(format!("no answer within {ANSWER_WITHIN:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
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
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = Process::of(self.0.id()) {
            for one in process.descendants().into_iter().chain([process]) {
                one.signal(Signal::KILL);
            }
        }
        let _ = self.0.wait();
    }
}

/// Says that it is ready, waits for the end of its input, and becomes the peer, so that
/// what only this machine needs is not counted.
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
    bundle(dir, guest);
    let name = format!("choir-peer-{}", uuid::Uuid::new_v4());
    // It refuses a host that has cgroups of both versions, even when it is to leave them alone.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg(format!(
            "umount --lazy /sys/fs/cgroup/unified 2>/dev/null; {WAIT}"
        ))
        .args(["sh", "crun"])
        .arg("--root")
        .arg(dir.join("state"))
        .args(["--cgroup-manager", "disabled", "run", "--bundle"])
        .arg(dir)
        .arg(name);
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

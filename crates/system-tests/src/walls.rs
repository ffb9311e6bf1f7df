//! A sandbox without a hypervisor: the real supervisor, with a program of ours as guest.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use isolation::protocol::{Decoder, Frame, Message, Reply, Request, Stream, encode_json};
use isolation::spec::{GUEST_BINARY, Nonce, RunnerSpec};
use rustix::net::SocketAddrUnix;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use types::{CommandExit, CommandId, SandboxId, StartId};

use crate::binaries::STATIC_DRILL;
use crate::processes::Process;
use crate::wait::PATIENCE;
use crate::{Binaries, Identity};

/// Host ids of the sandbox's processes when root starts it; nobody else has them.
const HOST_ID: u32 = 2_000_000_123;

/// What a guest does that only has to be there. `sleep` gets no further signal than TERM.
const IDLE: &[&str] = &["/usr/bin/sleep", "infinity"];

/// What a program inside did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
    /// How it ended.
    pub exit: CommandExit,
}

/// A sandbox under the real supervisor. Dropping it takes it down.
pub struct Sandbox {
    scratch: TempDir,
    start_dir: PathBuf,
    nonce: Nonce,
    supervisor: Process,
}

impl Sandbox {
    /// Starts one whose guest only waits.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn idle(identity: Identity) -> Self {
        Self::start(identity, "sandbox", IDLE).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// Starts one with a program of an installation mounted as the guest's, and `argv` run.
    ///
    /// # Errors
    /// What the supervisor said instead of being ready.
    ///
    /// # Panics
    /// The supervisor cannot be run at all.
    pub fn start(identity: Identity, program: &str, argv: &[&str]) -> Result<Self, Value> {
        Self::launch(identity, program, argv, &[])
    }

    /// Starts one with the real guest runtime in it, to whose channel nobody answers.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn guest(identity: Identity) -> Self {
        Self::launch(identity, "sandbox", &[GUEST_BINARY], &guest_environment())
            .unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn launch(
        identity: Identity,
        program: &str,
        argv: &[&str],
        more: &[(&'static str, String)],
    ) -> Result<Self, Value> {
        let mut env: Vec<(&str, String)> = environment()
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
            .collect();
        env.extend(more.iter().cloned());
        let scratch = tempfile::Builder::new()
            .prefix("choir-walls-")
            .tempdir()
            .expect("a scratch directory");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let binaries = Binaries::find().reachable_for(identity, scratch.path());
        let data = scratch.path().join("data");
        fs::create_dir(&data).expect("a data directory");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o711)).expect("chmod");
        identity.own(&data);
        let as_root = identity.name() == "root";
        let start_id = StartId::generate();
        let start_dir = data.join("run").join(start_id.to_string());
        let homes = ["workspace", "home", "data"].map(|name| data.join("sandboxes/one").join(name));
        for dir in homes.iter().chain([&start_dir]) {
            fs::create_dir_all(dir).expect("a directory");
        }
        give(identity, as_root, &data);
        let nonce = Nonce::new(format!("{:032x}", uuid::Uuid::new_v4().as_u128()));
        let mut spec = json!({
            "sandbox_id": SandboxId::generate(),
            "start_id": start_id,
            "nonce": nonce.reveal(),
            "hostname": "drill",
            "run_dir": start_dir,
            "workspace": homes[0],
            "home": homes[1],
            "data": homes[2],
            "guest_binary": binaries.program(program),
            // No hypervisor makes groups for it.
            "accept_missing": ["cgroup_limits"],
            "guest": { "argv": argv, "env": env, "cwd": "/workspace" },
        });
        if as_root {
            spec["host_ids"] = json!({ "uid": HOST_ID, "gid": HOST_ID });
        }
        let mut child = identity
            .command(&binaries.program("supervisor"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .current_dir("/")
            .spawn()
            .expect("the supervisor starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(spec.to_string().as_bytes())
            .expect("it reads its spec");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("it answers");
        let answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        if answer["ready"] != true {
            let _ = child.wait();
            return Err(answer);
        }
        let pid = u32::try_from(answer["pid"].as_u64().expect("a pid")).expect("a pid");
        let supervisor = Process::of(pid).expect("a living supervisor");
        // It goes on by itself; what we started is waited for so that no zombie is left.
        std::thread::spawn(move || child.wait());
        Ok(Self {
            scratch,
            start_dir,
            nonce,
            supervisor,
        })
    }

    /// The supervisor.
    #[must_use]
    pub fn supervisor(&self) -> Process {
        self.supervisor
    }

    /// The workspace, as the host sees it.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.scratch.path().join("data/sandboxes/one/workspace")
    }

    /// The directory of the start, with its sockets.
    #[must_use]
    pub fn start_dir(&self) -> &Path {
        &self.start_dir
    }

    /// The guest's output, once it has ended.
    ///
    /// # Panics
    /// The supervisor breaks off.
    #[must_use]
    pub fn guest_output(&self) -> String {
        let mut connection = self.open();
        connection.send(&Request::GuestLog { from: 0 });
        let mut output = Vec::new();
        while let Some(frame) = connection.receive() {
            if let Frame::Data { bytes, .. } = frame {
                output.extend(bytes);
            }
        }
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Runs a program in a runner and waits for its end.
    ///
    /// # Panics
    /// It does not start, or the supervisor breaks off.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Done {
        self.run_in(argv, false)
    }

    /// The same, in a terminal if that is wanted.
    ///
    /// # Panics
    /// It does not start, or the supervisor breaks off.
    #[must_use]
    pub fn run_in(&self, argv: &[&str], terminal: bool) -> Done {
        let command_id = CommandId::generate();
        let size = terminal.then(|| json!({ "cols": 80, "rows": 24 }));
        let spec: RunnerSpec = serde_json::from_value(json!({
            "command_id": command_id,
            "argv": argv,
            "env": environment(),
            "terminal": size,
        }))
        .expect("a spec");
        let mut connection = self.open();
        connection.ask(&Request::Spawn {
            spec: Box::new(spec),
        });
        connection.ask(&Request::Attach {
            command_id,
            from: 0,
        });
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match connection.receive().expect("the supervisor stays") {
                Frame::Data {
                    stream: Stream::Stderr,
                    bytes,
                    ..
                } => errors.extend(bytes),
                Frame::Data { bytes, .. } => output.extend(bytes),
                Frame::Json(body) => match Message::parse(&body).expect("a message") {
                    Message::Reply(Reply::Exited { exit, .. }) => {
                        return Done {
                            output: String::from_utf8_lossy(&output).into_owned(),
                            errors: String::from_utf8_lossy(&errors).into_owned(),
                            exit,
                        };
                    }
                    other => panic!("unexpected: {other:?}"),
                },
            }
        }
    }

    fn open(&self) -> Connection {
        // Through a directory descriptor: the name may be longer than a socket address.
        let dir = fs::File::open(&self.start_dir).expect("the start's directory");
        let path = format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd());
        let stream = UnixStream::connect(path).expect("the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut connection = Connection {
            stream,
            decoder: Decoder::default(),
        };
        connection.ask(&Request::Hello {
            nonce: self.nonce.clone(),
        });
        connection
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let family: Vec<Process> = self.supervisor.descendants();
        if self.supervisor.is_alive() && !std::thread::panicking() {
            let mut connection = self.open();
            connection.send(&Request::Stop { grace_ms: 500 });
            while connection.receive().is_some() {}
        }
        self.supervisor.signal(Signal::KILL);
        for process in family {
            process.signal(Signal::KILL);
        }
    }
}

/// Root's supervisor gives the sandbox's directories to the sandbox's host user; an
/// ordinary one keeps them.
fn give(identity: Identity, as_root: bool, data: &Path) {
    for dir in ["run", "sandboxes", "sandboxes/one"] {
        let dir = data.join(dir);
        identity.own(&dir);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("chmod");
    }
    for dir in [
        "sandboxes/one/workspace",
        "sandboxes/one/home",
        "sandboxes/one/data",
    ] {
        let dir = data.join(dir);
        if as_root {
            std::os::unix::fs::chown(&dir, Some(HOST_ID), Some(HOST_ID)).expect("chown");
        } else {
            identity.own(&dir);
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    for start in fs::read_dir(data.join("run"))
        .expect("a directory")
        .flatten()
    {
        identity.own(&start.path());
    }
}

/// What every program inside gets.
#[must_use]
pub fn environment() -> Vec<(&'static str, &'static str)> {
    vec![
        ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
        ("HOME", "/home/choir"),
        ("LANG", "C.UTF-8"),
    ]
}

/// What the guest runtime gets beyond it (arch §5).
#[must_use]
pub fn guest_environment() -> Vec<(&'static str, String)> {
    vec![
        (
            "CHOIR_PROVIDER_GATEWAY_BASE_URL",
            "http://127.0.0.1:9090/provider/v1".to_owned(),
        ),
        (
            "CHOIR_PROVIDER_GATEWAY_TOKEN",
            format!("choirgw_{}", "t".repeat(43)),
        ),
        ("CHOIR_SANDBOX_ID", SandboxId::generate().to_string()),
        (
            "DATABASE_URL",
            "sqlite:///var/lib/choir/events.db".to_owned(),
        ),
    ]
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    fn send(&mut self, request: &Request) {
        self.stream
            .write_all(&encode_json(request).expect("a frame"))
            .expect("the supervisor listens");
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        match self.receive().expect("an answer") {
            Frame::Json(body) => match Message::parse(&body).expect("a message") {
                Message::Reply(reply) => reply,
                other => panic!("the supervisor refused: {other:?}"),
            },
            Frame::Data { .. } => panic!("data instead of an answer"),
        }
    }

    fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a frame") {
                return Some(frame);
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.decoder.feed(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the supervisor broke off: {error}"),
            }
        }
    }
}

/// What one drill saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drill {
    /// What was tried.
    pub name: String,
    /// What the drill says should come of it.
    pub expected: String,
    /// What the walls answered.
    pub seen: String,
    /// Whether that is a denial.
    pub denied: bool,
}

/// Where a battery ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// As the guest.
    Sandbox,
    /// In a runner.
    Runner,
    /// In a runner with a terminal.
    Terminal,
}

/// Things of the host that drills look for. They exist as long as this does.
pub struct Bait {
    scratch: TempDir,
    name: String,
    loopback: std::net::TcpListener,
    _abstract_socket: rustix::fd::OwnedFd,
    _listener: UnixListener,
}

impl Bait {
    /// Lays out an abstract socket, a loopback service, a file, and a Unix socket.
    ///
    /// # Panics
    /// Something of it cannot be made.
    #[must_use]
    pub fn lay() -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("choir-bait-")
            .tempdir()
            .expect("a scratch directory");
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(scratch.path().join("file"), "of the host").expect("a file");
        let listener = UnixListener::bind(scratch.path().join("socket")).expect("a socket");
        let name = format!("choir-bait-{}", uuid::Uuid::new_v4());
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        )
        .expect("a socket");
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("an address");
        rustix::net::bind(&socket, &address).expect("an abstract socket");
        rustix::net::listen(&socket, 8).expect("a listener");
        Self {
            scratch,
            name,
            loopback: std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback service"),
            _abstract_socket: socket,
            _listener: listener,
        }
    }

    /// The drill's arguments that name all this.
    ///
    /// # Panics
    /// The loopback service has no port.
    #[must_use]
    pub fn arguments(&self, further: &[PathBuf]) -> Vec<String> {
        let port = self.loopback.local_addr().expect("an address").port();
        let mut arguments = vec![
            "--abstract-socket".to_owned(),
            self.name.clone(),
            "--loopback-port".to_owned(),
            port.to_string(),
            "--host-pid".to_owned(),
            std::process::id().to_string(),
        ];
        let own = ["file", "socket"].map(|name| self.scratch.path().join(name));
        for path in own.iter().chain(further) {
            arguments.push("--forbidden".to_owned());
            arguments.push(path.to_string_lossy().into_owned());
        }
        arguments
    }
}

/// Runs the whole battery in one place.
///
/// # Panics
/// The sandbox does not start, or the drills say nothing.
#[must_use]
pub fn battery(identity: Identity, place: Place) -> Vec<Drill> {
    let bait = Bait::lay();
    // The sockets of another sandbox, and the ones of its own that are not for it.
    let neighbour = Sandbox::idle(identity);
    let start = neighbour.start_dir();
    let forbidden: Vec<PathBuf> = ["control.sock", "channel/channel.sock", "start.json", "app"]
        .iter()
        .map(|name| start.join(name))
        .chain([neighbour.workspace()])
        .collect();
    let arguments = bait.arguments(&forbidden);
    let mut argv = vec![GUEST_BINARY];
    argv.extend(arguments.iter().map(String::as_str));
    let output = match place {
        Place::Sandbox => {
            let sandbox = Sandbox::start(identity, "drill", &argv)
                .unwrap_or_else(|refusal| panic!("{refusal}"));
            sandbox.guest_output()
        }
        Place::Runner | Place::Terminal => {
            let sandbox = Sandbox::start(identity, "drill", IDLE)
                .unwrap_or_else(|refusal| panic!("{refusal}"));
            let done = sandbox.run_in(&argv, place == Place::Terminal);
            assert!(done.errors.is_empty(), "{}", done.errors);
            done.output
        }
    };
    parse(&output)
}

/// Reads the lines that the drill program prints.
///
/// # Panics
/// There are none, or they are of another program than the static one that was named.
#[must_use]
pub fn parse(output: &str) -> Vec<Drill> {
    let drills: Vec<Drill> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert!(!drills.is_empty(), "the drills said nothing: {output}");
    assert!(
        std::env::var_os(STATIC_DRILL).is_none() || output.contains(r#"{"linked":"static"}"#),
        "the drills that ran are not the static ones: {output}"
    );
    drills
}

//! Starts the real supervisor and talks to it, synchronously.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use isolation::protocol::{
    Decoder, Event, Frame, Message, Refusal, Reply, Request, Stream, encode_data, encode_json,
};
use isolation::spec::{
    Bind, DiskLimits, GuestSpec, HostIds, Nonce, OptionalWall, Rlimits, RunnerSpec, SandboxSpec,
    TreeLimits,
};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::PidfdFlags;
use types::{CommandExit, CommandId, CommandLimits, SandboxId, StartId, TerminalSize};

/// A wait that lasts longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the drill binary is shown in every test's sandbox.
pub(crate) const DRILL: &str = "/opt/drill";

/// A running sandbox; stopped when dropped.
pub(crate) struct Sandbox {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: SandboxSpec,
    child: Child,
}

/// A client of the control socket.
pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    fds: Vec<OwnedFd>,
    unread: Vec<u8>,
}

/// What a command did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: CommandExit,
}

pub(crate) fn spec(dir: &Path, guest: &[&str]) -> SandboxSpec {
    let root = rustix::process::geteuid().is_root();
    let start_id = StartId::generate();
    SandboxSpec {
        sandbox_id: SandboxId::generate(),
        start_id,
        nonce: Nonce::new("0123456789abcdef".repeat(2)),
        hostname: "choir-test".into(),
        host_ids: root.then_some(HostIds {
            uid: 61_234,
            gid: 61_234,
        }),
        run_dir: dir.join("run").join(start_id.to_string()),
        workspace: dir.join("workspace"),
        home: dir.join("home"),
        data: dir.join("data"),
        guest_binary: PathBuf::from(env!("CARGO_BIN_EXE_drill")),
        extra_mounts: vec![Bind {
            source: env!("CARGO_BIN_EXE_drill").into(),
            target: DRILL.into(),
        }],
        path_additions: Vec::new(),
        desktop_override: None,
        guest: GuestSpec {
            argv: guest.iter().map(|&text| text.to_owned()).collect(),
            env: vec![
                ("PATH".into(), PATH.into()),
                ("HOME".into(), "/home/choir".into()),
            ],
            cwd: "/workspace".into(),
        },
        rlimits: Rlimits::default(),
        limits: TreeLimits::default(),
        cgroup: None,
        disk: DiskLimits::default(),
        accept_missing: vec![OptionalWall::CgroupLimits],
        log_bytes: 1 << 20,
    }
}

/// Runs the supervisor on a spec; its one line, and the process if it goes on.
pub(crate) fn launch(spec: &SandboxSpec) -> Result<Child, Refusal> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .env("HOST_CANARY", "canary-of-the-host")
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&serde_json::to_vec(spec).unwrap()).unwrap();
    drop(stdin);
    // The supervisor closes the pipe once it stands, or exits.
    let mut line = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut line)
        .unwrap();
    if line.contains("\"ready\"") {
        return Ok(child);
    }
    child.wait().unwrap();
    Err(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
}

impl Sandbox {
    pub(crate) fn start(guest: &[&str]) -> Self {
        Self::start_with(guest, |_| {})
    }

    pub(crate) fn start_with(guest: &[&str], change: impl FnOnce(&mut SandboxSpec)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let mut spec = spec(dir.path(), guest);
        change(&mut spec);
        let child = launch(&spec).unwrap_or_else(|refusal| {
            panic!("the sandbox must start on a machine that runs these tests: {refusal:?}")
        });
        Self { dir, spec, child }
    }

    pub(crate) fn kill_supervisor(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn supervisor_pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the supervisor has ended by itself.
    pub(crate) fn await_end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let patience = PATIENCE.try_into().unwrap();
        let ended = rustix::event::poll(&mut ended, Some(&patience)).unwrap();
        assert_eq!(ended, 1, "the supervisor goes on");
        self.child.wait().unwrap();
    }

    pub(crate) fn connect(&self) -> Client {
        let mut client = self.connect_raw();
        let hello = client.ask(&Request::Hello {
            nonce: self.spec.nonce.clone(),
        });
        assert!(
            matches!(hello, Message::Reply(Reply::Hello { .. })),
            "{hello:?}"
        );
        client
    }

    pub(crate) fn connect_raw(&self) -> Client {
        let stream = UnixStream::connect(self.spec.run_dir.join("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            stream,
            decoder: Decoder::new(),
            fds: Vec::new(),
            unread: Vec::new(),
        }
    }

    /// Everything the guest writes until it is gone.
    pub(crate) fn guest_output(&self) -> String {
        let mut client = self.connect();
        let reply = client.ask(&Request::GuestLog { from: 0 });
        assert!(matches!(
            reply,
            Message::Reply(Reply::Attached { offset: 0, .. })
        ));
        let mut text = Vec::new();
        while let Some(frame) = client.frame() {
            if let Frame::Data { bytes, .. } = frame {
                text.extend(bytes);
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn guest_exit(&self) -> CommandExit {
        let mut client = self.connect();
        client.send(&Request::Watch {});
        loop {
            if let Message::Event(Event::GuestExited { exit }) = client.message() {
                return exit;
            }
        }
    }

    /// Runs a shell script in a fresh runner.
    pub(crate) fn sh(&self, script: &str) -> Outcome {
        self.run(runner(&["/bin/sh", "-c", script]))
    }

    pub(crate) fn run(&self, spec: RunnerSpec) -> Outcome {
        let mut client = self.connect();
        let id = client.spawn(spec);
        client.follow(id)
    }

    pub(crate) fn stop(&mut self, grace_ms: u64) {
        let mut client = self.connect();
        assert_eq!(
            client.ask(&Request::Stop { grace_ms }),
            Message::Reply(Reply::Done)
        );
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The kernel ends everything in the sandbox with its supervisor.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn runner(argv: &[&str]) -> RunnerSpec {
    RunnerSpec {
        command_id: CommandId::generate(),
        argv: argv.iter().map(|&text| text.to_owned()).collect(),
        cwd: None,
        env: vec![
            ("PATH".into(), PATH.into()),
            ("HOME".into(), "/home/choir".into()),
            ("TERM".into(), "xterm".into()),
        ],
        relay_env: Vec::new(),
        stdin: None,
        stdin_open: false,
        terminal: None,
        detach: false,
        channel: false,
        network: types::NetworkMode::None,
        limits: CommandLimits {
            wall_ms: Some(60_000),
            ..CommandLimits::default()
        },
        label: None,
    }
}

pub(crate) fn terminal(argv: &[&str]) -> RunnerSpec {
    RunnerSpec {
        terminal: Some(TerminalSize { cols: 80, rows: 24 }),
        ..runner(argv)
    }
}

impl Client {
    pub(crate) fn send(&mut self, request: &Request) {
        self.stream
            .write_all(&encode_json(request).unwrap())
            .unwrap();
    }

    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(&encode_data(Stream::Stdin, 0, bytes).unwrap())
            .unwrap();
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Message {
        self.send(request);
        self.message()
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn spawn(&mut self, spec: RunnerSpec) -> CommandId {
        match self.ask(&Request::Spawn {
            spec: Box::new(spec),
        }) {
            Message::Reply(Reply::Spawned { command_id }) => command_id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attach(&mut self, id: CommandId, from: u64) -> u64 {
        match self.ask(&Request::Attach {
            command_id: id,
            from,
        }) {
            Message::Reply(Reply::Attached { offset, .. }) => offset,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn follow(&mut self, id: CommandId) -> Outcome {
        self.attach(id, 0);
        self.collect()
    }

    /// Collects an attachment's output until the command has ended.
    pub(crate) fn collect(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.frame().expect("the stream ended without an exit") {
                Frame::Data {
                    stream: Stream::Stderr,
                    bytes,
                    ..
                } => stderr.extend(bytes),
                Frame::Data { bytes, .. } => stdout.extend(bytes),
                Frame::Json(body) => match Message::parse(&body).unwrap() {
                    Message::Reply(Reply::Exited { exit, .. }) => {
                        outcome.exit = exit;
                        break;
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
        outcome.stdout = String::from_utf8_lossy(&stdout).into_owned();
        outcome.stderr = String::from_utf8_lossy(&stderr).into_owned();
        outcome
    }

    /// Reads an attachment's output until it contains `text`, and returns it up to there;
    /// the next call goes on behind it.
    pub(crate) fn await_output(&mut self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            let so_far = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(at) = so_far.find(text) {
                let (seen, rest) = so_far.split_at(at + text.len());
                self.unread = rest.as_bytes().to_vec();
                return seen.to_owned();
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{text:?} did not come: {so_far:?}"
            );
            match self.frame() {
                Some(Frame::Data { bytes, .. }) => self.unread.extend(bytes),
                other => panic!("{other:?} after {so_far:?}"),
            }
        }
    }

    pub(crate) fn message(&mut self) -> Message {
        match self.frame() {
            Some(Frame::Json(body)) => Message::parse(&body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The descriptor that rode with the last message.
    pub(crate) fn rider(&mut self) -> OwnedFd {
        self.fds.pop().expect("no descriptor came")
    }

    /// Whether the other side closed the connection without a word.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub(crate) fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = vec![0; 64 << 10];
            let mut space = [std::mem::MaybeUninit::uninit(); 64];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.stream,
                &mut [std::io::IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .unwrap();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            if received.bytes == 0 {
                return None;
            }
            self.decoder.feed(&bytes[..received.bytes]);
        }
    }
}

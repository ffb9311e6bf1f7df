//! A whole installation: a hypervisor with a data directory of its own.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::http::Ask;
use crate::processes::Process;
use crate::wait::{until, until_blocking};
use crate::{Binaries, Client, Identity};

/// How long a hypervisor may take to stop its sandboxes before it is ended.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How the command line of a guest begins.
const GUEST: &str = "/choir/bin/sandbox";

/// Lines of the log shown when a test fails.
const LOG_TAIL: usize = 60;

/// A port that is free now, for what has to know its own before it starts.
///
/// # Panics
/// There is none.
#[must_use]
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").port()
}

/// What an installation is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    identity: Identity,
    config: toml::Table,
    env: Vec<(String, String)>,
    port: u16,
    hostile: bool,
    demand_cgroups: bool,
    leave_running: bool,
    taken_away: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        // Tests sign in far more often than a person does.
        let config = toml::toml! {
            [auth]
            attempts_per_address = 1000000
            attempts_per_account = 1000000
        };
        Self {
            identity: Identity::Caller,
            config,
            env: Vec::new(),
            port: 0,
            hostile: false,
            demand_cgroups: false,
            leave_running: false,
            taken_away: None,
        }
    }
}

impl Setup {
    /// Runs it as somebody else.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Adds to the configuration: a TOML document whose tables are merged in.
    ///
    /// # Panics
    /// It is no TOML.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        merge(&mut self.config, text.parse().expect("TOML"));
        self
    }

    /// Adds a variable to the hypervisor's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Listens on a port that was chosen before; otherwise a free one is taken.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Demands cgroups also of an ordinary user's hypervisor, which elsewhere goes without:
    /// machines that run tests seldom delegate one.
    #[must_use]
    pub fn demand_cgroups(mut self) -> Self {
        self.demand_cgroups = true;
        self
    }

    /// Has a shell take something away from the machine before the hypervisor starts, in a mount
    /// namespace of the two. Takes root.
    #[must_use]
    pub fn take_away(mut self, script: &str) -> Self {
        self.taken_away = Some(script.to_owned());
        self
    }

    /// Puts the hostile guest (`src/bin/hostile`) in the place of `sandbox`.
    #[must_use]
    pub fn hostile_guest(mut self) -> Self {
        self.hostile = true;
        self
    }

    /// Leaves sandboxes running when the hypervisor ends, as a service does.
    #[must_use]
    pub fn leave_running(mut self) -> Self {
        self.leave_running = true;
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn start(self) -> Installation {
        Installation::start(self).await
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(more)) => merge(inner, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// A running hypervisor. Dropping it stops its sandboxes, ends it and removes its data.
#[derive(Debug)]
pub struct Installation {
    setup: Setup,
    scratch: TempDir,
    binaries: Binaries,
    child: Option<Child>,
    port: u16,
    link: String,
    output: Arc<Mutex<String>>,
}

impl Installation {
    async fn start(mut setup: Setup) -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("choir-")
            .tempdir()
            .expect("a scratch directory");
        // Users of sandboxes pass through it to their own directories.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let binaries = Binaries::find().reachable_for(setup.identity, scratch.path());
        let data = scratch.path().join("data");
        fs::create_dir(&data).expect("a data directory");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o711)).expect("chmod");
        setup.identity.own(&data);
        if setup.identity.name() != "root" && !setup.demand_cgroups {
            setup = setup.config("[sandbox]\naccept_missing = [\"cgroup_limits\"]");
        }
        if setup.hostile {
            let dir = binaries.with_hostile_guest(scratch.path());
            let key = format!("[sandbox]\nbinaries_dir = {dir:?}");
            setup = setup.config(&key);
        }
        let mut installation = Self {
            port: setup.port,
            setup,
            scratch,
            binaries,
            child: None,
            link: String::new(),
            output: Arc::default(),
        };
        installation.spawn().await;
        installation
    }

    /// Starts the hypervisor, again on the same port and data after [`Self::end`].
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn spawn(&mut self) {
        let config = self.scratch.path().join("hypervisor.toml");
        fs::write(&config, toml::to_string(&self.setup.config).expect("TOML"))
            .expect("the configuration");
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).expect("chmod");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let program = self.binaries.program("hypervisor");
        let mut command = match &self.setup.taken_away {
            None => self.setup.identity.command(&program),
            Some(script) => {
                let mut command = Command::new("unshare");
                let script = format!("{script} && exec \"$0\" \"$@\"");
                command.args(["--mount", "--", "sh", "-c", &script]);
                command.arg(program);
                command
            }
        };
        let mut child = command
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--port", &self.port.to_string()])
            .args((!self.setup.leave_running).then_some("--stop-on-exit"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.scratch.path())
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the hypervisor starts");
        self.output = Arc::default();
        let stdout = child.stdout.take().expect("a pipe");
        let output = Arc::clone(&self.output);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut text = output.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        });
        self.child = Some(child);
        self.link = until("the line `ready: URL`", async || {
            self.demand_alive();
            self.output()
                .lines()
                .find_map(|line| line.strip_prefix("ready: ").map(str::to_owned))
        })
        .await;
        self.port = self
            .link
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split('/').next()?.rsplit_once(':')?.1.parse().ok())
            .unwrap_or(self.port);
        if self.is_plain() {
            let client = self.client();
            until("/readyz to say yes", async || {
                let answer = client.send(Ask::new("GET", "localhost", "/readyz")).await;
                (answer.status == 200).then_some(())
            })
            .await;
        }
    }

    fn is_plain(&self) -> bool {
        self.link.starts_with("http://localhost:")
    }

    fn demand_alive(&mut self) {
        let status = self
            .child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = status {
            panic!(
                "the hypervisor ended: {status}\n{}\n{}",
                self.output(),
                self.log()
            );
        }
    }

    /// The link that `ready:` named: the set-up link while there is no admin.
    #[must_use]
    pub fn link(&self) -> &str {
        &self.link
    }

    /// The port of the public listener.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The control origin.
    #[must_use]
    pub fn control(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// The runtime origin of a user.
    #[must_use]
    pub fn runtime(&self, user: &str) -> String {
        format!("http://{user}.localhost:{}", self.port)
    }

    /// A client with empty cookie jars.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// The hypervisor's data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// A directory outside the data directory, for what a test needs.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The programs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// What the hypervisor wrote to its standard output.
    #[must_use]
    pub fn output(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("hypervisor.log")
    }

    /// The hypervisor's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The hypervisor's process.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn process(&self) -> Process {
        let child = self.child.as_ref().expect("a running hypervisor");
        Process::of(child.id()).expect("a running hypervisor")
    }

    /// Every process of this installation but the hypervisor itself: supervisors, and
    /// whatever they started.
    #[must_use]
    pub fn others(&self) -> Vec<Process> {
        let mut found = self
            .child
            .as_ref()
            .and_then(|child| Process::of(child.id()))
            .map(Process::descendants)
            .unwrap_or_default();
        for supervisor in self.supervisors() {
            found.push(supervisor);
            found.extend(supervisor.descendants());
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The guests among them.
    #[must_use]
    pub fn guests(&self) -> Vec<Process> {
        let mut others = self.others();
        others.retain(|process| process.command_line().starts_with(GUEST));
        others
    }

    /// The supervisors, as the records of their starts name them.
    #[must_use]
    pub fn supervisors(&self) -> Vec<Process> {
        let starts = fs::read_dir(self.data_dir().join("run"))
            .into_iter()
            .flatten()
            .flatten();
        starts
            .filter_map(|start| {
                let record: serde_json::Value =
                    serde_json::from_slice(&fs::read(start.path().join("start.json")).ok()?)
                        .ok()?;
                let process = Process {
                    pid: u32::try_from(record["process"]["pid"].as_u64()?).ok()?,
                    start_ticks: record["process"]["start_ticks"].as_u64()?,
                };
                process.is_alive().then_some(process)
            })
            .collect()
    }

    /// The command line client, with nothing of the caller's environment.
    #[must_use]
    pub fn choir(&self) -> Command {
        let mut command = Command::new(self.binaries.program("choir"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.scratch.path())
            .stdin(Stdio::null());
        command
    }

    /// Sends the hypervisor a signal and waits until it has ended.
    ///
    /// # Panics
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.process().signal(signal);
        let child = self.child.as_mut().expect("a running hypervisor");
        let status = until_blocking("the end of the hypervisor", || {
            child.try_wait().expect("wait")
        });
        self.child = None;
        status
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let others = self.others();
        if let Some(mut child) = self.child.take() {
            if let Some(process) = Process::of(child.id()) {
                process.signal(Signal::TERM);
            }
            let deadline = Instant::now() + STOP_WITHIN;
            while child.try_wait().is_ok_and(|status| status.is_none()) {
                if Instant::now() > deadline {
                    let _ = child.kill();
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        // Only what we saw as ours, and only if it is still the same process.
        for process in others {
            process.signal(Signal::KILL);
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the hypervisor's log ends with");
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_TAIL)) {
                eprintln!("{line}");
            }
        }
    }
}

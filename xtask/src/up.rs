//! `cargo xtask up`: from a checkout to a running installation.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::prerequisites::{self, Purpose};
use crate::process::{self, step};
use crate::workspace::{Profile, Workspace};
use crate::{build, desktop};

/// How long the hypervisor may take from its start to its first answer. Two sandboxes'
/// worth of start-up on a slow disk stays far below.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often `/readyz` is asked.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// The line by which the hypervisor names the link to open.
const READY: &str = "ready: ";

/// Where sandboxes find the Rust toolchain that built all this.
const TOOLCHAIN: &str = "/opt/rust";

/// Lines of the log shown when the hypervisor dies.
const LOG_TAIL: usize = 20;

/// Gives a program a cgroup of its own that it may divide, from an ordinary user's systemd.
const USER_SCOPE: &[&str] = &[
    "systemd-run",
    "--user",
    "--scope",
    "--quiet",
    "--collect",
    "--property=Delegate=yes",
    "--",
];

/// The same from the system's.
const SYSTEM_SCOPE: &[&str] = &[
    "systemd-run",
    "--scope",
    "--quiet",
    "--collect",
    "--property=Delegate=yes",
    "--",
];

/// What wakes the main thread.
enum Event {
    /// A line of the hypervisor's standard output.
    Line(String),
    /// The hypervisor closed its standard output: it has ended, or soon will.
    Closed,
    /// Somebody wants us to stop.
    Signal(Signal),
}

/// Builds everything, runs the hypervisor until a signal, and ends once it has stopped
/// its sandboxes.
pub(crate) fn run(workspace: &Workspace, data_dir: &Path, port: u16) -> Result<ExitCode> {
    let data_dir = std::path::absolute(data_dir)?;
    check_port(port)?;
    step("prerequisites", || {
        prerequisites::ensure(Purpose::Build, "cargo xtask up")
    })?;
    step("desktop", || desktop::build(workspace))?;
    step("programs", || build::programs(workspace, Profile::Release))?;
    make_data_dir(&data_dir)?;
    let config = write_config(workspace, &data_dir, None)?;
    let hypervisor = workspace.binaries(Profile::Release).join("hypervisor");
    let wrapper = match find_cgroups(&hypervisor, &config, &data_dir, port) {
        Ok(wrapper) => wrapper,
        Err(why) => {
            eprintln!(
                "\nWARNING: no limits of memory, processes and processor time for whole sandboxes.\n\
                 {why}\n\
                 This start goes on without: up.toml says sandbox.accept_missing = [\"cgroup_limits\"].\n"
            );
            write_config(workspace, &data_dir, Some("cgroup_limits"))?;
            &[]
        }
    };
    let log = data_dir.join("hypervisor.log");
    serve(&hypervisor, wrapper, &data_dir, &config, &log, port)
}

/// Finds a way to start the hypervisor in which it has cgroups to keep sandboxes in limits:
/// as it is, or in a scope that systemd makes and delegates. Otherwise why there is none.
fn find_cgroups(
    hypervisor: &Path,
    config: &Path,
    data_dir: &Path,
    port: u16,
) -> Result<&'static [&'static str], String> {
    let root = rustix::process::geteuid().is_root();
    let scope = if root { SYSTEM_SCOPE } else { USER_SCOPE };
    let mut last = String::new();
    for wrapper in [&[], scope] {
        let mut doctor = wrapped(wrapper, hypervisor);
        doctor.arg("--config").arg(config);
        doctor.arg("--data-dir").arg(data_dir);
        doctor.args(["--port", &port.to_string(), "doctor", "--json"]);
        let Ok(answer) = doctor.stdin(Stdio::null()).stderr(Stdio::null()).output() else {
            continue;
        };
        let found: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let check = found
            .get("checks")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .find(|check| {
                check
                    .get("name")
                    .is_some_and(|name| name == "cgroup limits")
            });
        match check {
            Some(check) if check.get("ok").is_some_and(|ok| ok == true) => return Ok(wrapper),
            Some(check) => {
                let text = |key: &str| {
                    let text = check.get(key).and_then(serde_json::Value::as_str);
                    text.unwrap_or_default().to_owned()
                };
                last = format!("Cause: {}.\nRemedy: {}.", text("detail"), text("remedy"));
            }
            None => {}
        }
    }
    Err(last)
}

/// A command that is started through a wrapper, which replaces itself by it.
fn wrapped(wrapper: &[&str], program: &Path) -> Command {
    match wrapper {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// Says early what would otherwise be found out after minutes of compiling.
fn check_port(port: u16) -> Result<()> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .with_context(|| format!("port {port} is taken; choose another with --port N"))
}

/// Users of sandboxes pass through it to their own directories, so it is not 0700.
fn make_data_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// The embedded defaults, and what only this machine knows: where its Rust toolchain is.
fn write_config(
    workspace: &Workspace,
    data_dir: &Path,
    accept_missing: Option<&str>,
) -> Result<PathBuf> {
    let sysroot = process::output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(workspace.root()),
    )?;
    let sysroot = sysroot.trim();
    let mut text = String::from("# Written by `cargo xtask up` at every start.\n");
    writeln!(text, "[log]\nformat = \"text\"\n\n[sandbox]")?;
    if let Some(name) = accept_missing {
        writeln!(
            text,
            "# This machine delegates no cgroup to this user; `hypervisor doctor` says why."
        )?;
        writeln!(text, "accept_missing = [\"{name}\"]")?;
    }
    if Path::new(sysroot).starts_with("/usr") {
        writeln!(
            text,
            "# The Rust toolchain lies in /usr, which every sandbox has."
        )?;
    } else {
        writeln!(
            text,
            "path = \"/choir/bin:{TOOLCHAIN}/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\""
        )?;
        // A JSON string is a TOML basic string too (TOML 1.0, "String").
        writeln!(
            text,
            "mounts = [{{ source = {}, target = \"{TOOLCHAIN}\" }}]",
            serde_json::to_string(sysroot)?
        )?;
    }
    let path = data_dir.join("up.toml");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn serve(
    hypervisor: &Path,
    wrapper: &[&str],
    data_dir: &Path,
    config: &Path,
    log: &Path,
    port: u16,
) -> Result<ExitCode> {
    let errors = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    // Registered before there is anything to stop, so that no signal falls in between.
    let signals = Signals::new([SIGINT, SIGTERM]).context("cannot take signals")?;
    let mut hypervisor = wrapped(wrapper, hypervisor)
        .arg("--config")
        .arg(config)
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--port", &port.to_string(), "--stop-on-exit"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        // A group of its own: a terminal's Ctrl-C reaches us alone, and is passed on once.
        .process_group(0)
        .spawn()
        .context("cannot start the hypervisor")?;
    let events = events(
        hypervisor
            .stdout
            .take()
            .context("the hypervisor has no output")?,
        signals,
    );
    let outcome = watch(&mut hypervisor, &events, data_dir, log, port);
    if outcome.is_err() {
        // Whatever went wrong: nothing stays behind.
        signal(&hypervisor, Signal::TERM);
    }
    let status = hypervisor.wait()?;
    report(outcome?, status, log)
}

fn events(stdout: ChildStdout, mut signals: Signals) -> Receiver<Event> {
    let (lines, events) = mpsc::channel();
    let wanted = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(Event::Line(line)).is_err() {
                return;
            }
        }
        let _ = lines.send(Event::Closed);
    });
    thread::spawn(move || {
        for number in signals.forever() {
            let signal = if number == SIGINT {
                Signal::INT
            } else {
                Signal::TERM
            };
            if wanted.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    events
}

/// Passes lines and signals on until the hypervisor has ended. True: it was asked to.
fn watch(
    hypervisor: &mut Child,
    events: &Receiver<Event>,
    data_dir: &Path,
    log: &Path,
    port: u16,
) -> Result<bool> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut link = None;
    let mut announced = false;
    let mut stopping = false;
    loop {
        let event = if announced || stopping {
            events.recv().ok()
        } else if link.is_some() {
            events.recv_timeout(POLL_EVERY).ok()
        } else {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => Some(event),
                Err(_) => bail!(
                    "the hypervisor did not get ready in {READY_WITHIN:?}; its log is {}",
                    log.display()
                ),
            }
        };
        match event {
            Some(Event::Line(line)) => match line.strip_prefix(READY) {
                Some(url) if link.is_none() => link = Some(url.to_owned()),
                _ => println!("{line}"),
            },
            Some(Event::Closed) => return Ok(stopping),
            Some(Event::Signal(wanted)) => {
                if !stopping {
                    eprintln!("stopping the sandboxes");
                }
                stopping = true;
                signal(hypervisor, wanted);
            }
            None => {}
        }
        if let (Some(url), false, false) = (&link, announced, stopping) {
            if is_ready(port) {
                println!("data: {}", data_dir.display());
                println!("log: {}", log.display());
                println!("{READY}{url}");
                std::io::stdout().flush()?;
                announced = true;
            } else if Instant::now() > deadline {
                bail!(
                    "/readyz did not say yes in {READY_WITHIN:?}; the log is {}",
                    log.display()
                );
            }
        }
    }
}

fn signal(hypervisor: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(hypervisor.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself; then there is nobody left to tell.
        let _ = kill_process(pid, signal);
    }
}

fn report(asked: bool, status: ExitStatus, log: &Path) -> Result<ExitCode> {
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(LOG_TAIL)) {
        eprintln!("{line}");
    }
    if asked {
        bail!("the hypervisor did not stop as it should: {status}");
    }
    bail!(
        "the hypervisor ended: {status}; its log is {}",
        log.display()
    );
}

/// Whether `/readyz` answers 200. Spelled out over a socket: one request needs no client.
fn is_ready(port: u16) -> bool {
    ask(port).unwrap_or(false)
}

fn ask(port: u16) -> std::io::Result<bool> {
    let limit = Some(Duration::from_secs(2));
    let mut stream = TcpStream::connect_timeout(
        &SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Duration::from_secs(2),
    )?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    write!(
        stream,
        "GET /readyz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

//! Connects the command line to the terminal, and ends with its exit code.

mod tty;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use cli::{Context, Io};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Ctrl-C presses that may wait to be seen.
const INTERRUPTS: usize = 4;

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let code = runtime.block_on(async {
        let mut context = context();
        cli::run(env::args_os(), &mut context).await
    });
    Ok(ExitCode::from(code))
}

fn context() -> Context {
    let shown = cli::browser_wanted(
        env::var_os("DISPLAY").as_deref(),
        env::var_os("WAYLAND_DISPLAY").as_deref(),
    );
    Context {
        io: Io {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            stdin: Box::new(io::stdin()),
            stdin_is_terminal: io::stdin().is_terminal(),
            stdout_is_terminal: io::stdout().is_terminal(),
        },
        server: variable("CHOIR_SERVER").and_then(|value| value.into_string().ok()),
        token_file: variable("CHOIR_TOKEN_FILE").map(PathBuf::from),
        config_dir: config_dir(),
        programs: env::current_exe()
            .ok()
            .and_then(|path| Some(path.parent()?.to_owned())),
        machine: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        browser: shown.then(|| Box::new(cli::open_with_desktop) as Box<_>),
        interrupts: Box::new(interrupts),
        terminal: io::stdin()
            .is_terminal()
            .then(|| Box::new(tty::enter) as Box<_>),
        now: Timestamp::now,
    }
}

/// A variable; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Catches Ctrl-C from here on. Where it cannot be caught it ends the program as before.
fn interrupts() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(INTERRUPTS);
    if let Ok(mut presses) = signal(SignalKind::interrupt()) {
        tokio::spawn(async move {
            while presses.recv().await.is_some() && sender.send(()).await.is_ok() {}
        });
    }
    receiver
}

/// The XDG base directory specification: relative paths and empty values count as unset.
fn config_dir() -> Option<PathBuf> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    env::var_os("XDG_CONFIG_HOME")
        .and_then(absolute)
        .or_else(|| Some(env::var_os("HOME").and_then(absolute)?.join(".config")))
        .map(|config| config.join("choir"))
}

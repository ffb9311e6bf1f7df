//! Escape drills: tries, from inside a sandbox or a runner, what an attacker would try
//! (threats.md, "Elevation of privilege"), and says what the walls answered.
//!
//! A JSON line that says whether a loader and libraries came between the drills and the kernel,
//! then one per drill; exit code 0 exactly when every drill was denied. Each drill
//! runs in a process of its own, so that a wall that kills is an answer too, and each is
//! harmless when it succeeds. It still belongs inside namespaces, not on a bare machine.

mod attempt;
mod calls;
mod files;
mod more_calls;
mod more_files;
mod network;
mod process;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use attempt::Outcome;
use serde::Serialize;

/// What the host tells the drills about itself, so that they can look for it.
#[derive(Default)]
struct Context {
    /// An abstract Unix socket that listens on the host.
    abstract_socket: Option<String>,
    /// A TCP port that listens on the host's loopback.
    loopback_port: Option<u16>,
    /// Paths that exist on the host and must not be reachable.
    forbidden: Vec<PathBuf>,
    /// A process of the host.
    host_pid: Option<i32>,
    /// Instead of drilling, make so many denied calls.
    flood: Option<u64>,
    /// Run only the drills whose name contains this.
    only: Option<String>,
}

/// One drill.
struct Drill {
    name: &'static str,
    attempt: fn(&Context) -> Outcome,
}

/// What is said about one drill.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    expected: &'static str,
    seen: String,
    denied: bool,
}

const USAGE: &str = "\
usage: drill [--abstract-socket NAME] [--loopback-port PORT] [--forbidden PATH]…
             [--host-pid PID] [--only TEXT]
       drill --flood COUNT

Tries escapes from the sandbox it runs in; prints a JSON line for each. With
--flood it makes that many denied calls instead.
";

fn main() -> ExitCode {
    if !process::is_enclosed() {
        let _ = writeln!(
            std::io::stderr(),
            "drill: refused: this is no sandbox. Drills that get through would change this machine; \
             they run only in user and pid namespaces of their own (cargo xtask drills)."
        );
        return ExitCode::from(2);
    }
    // Before anything else is opened: what was inherited is then all there is.
    let inherited = process::open_descriptors();
    let context = match parse(std::env::args().skip(1)) {
        Ok(context) => context,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "drill: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(times) = context.flood {
        let refused = (0..times).filter(|_| calls::is_refused()).count();
        let _ = writeln!(std::io::stdout(), "{refused} refused");
        return ExitCode::SUCCESS;
    }
    let linked = if process::is_static() {
        "static"
    } else {
        "dynamic"
    };
    let _ = writeln!(std::io::stdout(), "{{\"linked\":\"{linked}\"}}");
    let mut all_denied = say("inherited_descriptors", &process::inherited(&inherited));
    for drill in [
        calls::DRILLS,
        more_calls::DRILLS,
        files::DRILLS,
        more_files::DRILLS,
        network::DRILLS,
        process::DRILLS,
    ]
    .concat()
    {
        if context
            .only
            .as_ref()
            .is_some_and(|text| !drill.name.contains(text.as_str()))
        {
            continue;
        }
        let outcome = attempt::in_child(|| (drill.attempt)(&context));
        all_denied &= say(drill.name, &outcome);
    }
    if all_denied {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Clone for Drill {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            attempt: self.attempt,
        }
    }
}

/// Prints a drill's line; returns whether it was denied.
fn say(name: &str, outcome: &Outcome) -> bool {
    let line = Line {
        name,
        expected: "denied",
        seen: outcome.seen().to_owned(),
        denied: outcome.is_denied(),
    };
    if let Ok(json) = serde_json::to_string(&line) {
        let _ = writeln!(std::io::stdout(), "{json}");
    }
    line.denied
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Context, String> {
    let mut context = Context::default();
    while let Some(flag) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{flag} wants a value"))
        };
        match flag.as_str() {
            "--abstract-socket" => context.abstract_socket = Some(value()?),
            "--loopback-port" => context.loopback_port = Some(number(&value()?)?),
            "--forbidden" => context.forbidden.push(value()?.into()),
            "--host-pid" => context.host_pid = Some(number(&value()?)?),
            "--flood" => context.flood = Some(number(&value()?)?),
            "--only" => context.only = Some(value()?),
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    Ok(context)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("not a number that fits: {text}"))
}

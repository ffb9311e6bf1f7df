//! The supervisor: one small process per sandbox start (arch §4). It builds the walls,
//! is parent of the guest and of every runner, keeps the channel listeners, terminals and
//! bounded output, and outlives the hypervisor.

mod births;
mod connection;
mod denials;
mod dirs;
mod disk;
mod freezing;
mod log;
mod ports;
mod requests;
mod runner;
mod serve;
mod start;
mod task;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use zeroize::Zeroizing;

use crate::protocol::{Ready, Refusal};
use crate::spec::SandboxSpec;

/// Longest spec, in bytes.
const MAX_SPEC: u64 = 4 << 20;

/// Longer than specs usually are, in bytes.
const USUAL_SPEC: usize = 256 << 10;

/// The `supervisor` binary: reads a [`SandboxSpec`] as JSON from standard input until its
/// end, answers one line on standard output ([`Ready`] or [`Refusal`]), and, if the
/// sandbox stands, serves its control socket until it is stopped. With the argument
/// `probe` it writes what [`crate::probe::probe`] finds as JSON and ends; with `copy` it is
/// the copier (see [`crate::copying`]).
#[must_use]
pub fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    if argument.as_ref().is_some_and(|argument| argument == "copy") {
        return crate::copier::main();
    }
    if argument.is_some_and(|argument| argument == "probe") {
        return match say(&crate::probe::probe(&[])) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    match start() {
        Ok(supervisor) => match supervisor.serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(refusal) => {
            // The exit code says it to a caller that does not listen.
            let _ = say(&refusal);
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<serve::Supervisor, Refusal> {
    let internal = |error: io::Error| Refusal::new("internal", error.to_string());
    let mut spec = read_spec()?;
    // A session of its own: what ends the hypervisor's terminal does not end a sandbox.
    // It fails when this process leads one already, which is as good.
    let _ = rustix::process::setsid();
    let built = start::build(&mut spec, Instant::now())?;
    let ready = Ready {
        ready: true,
        pid: std::process::id(),
        start_id: spec.start_id,
    };
    let supervisor = serve::Supervisor::new(spec, built).map_err(internal)?;
    crate::walls::filter::lock_supervisor()
        .map_err(|error| crate::walls::hints::refusal(&error))?;
    say(&ready).map_err(internal)?;
    detach().map_err(internal)?;
    Ok(supervisor)
}

fn read_spec() -> Result<SandboxSpec, Refusal> {
    let bad = |message: String| Refusal::new("bad_spec", message);
    let read = || -> io::Result<Zeroizing<Vec<u8>>> {
        // Not through `std::io::stdin`, whose buffer would keep a copy of the secrets in it;
        // and with room from the start, so that growing leaves none behind either.
        let stdin = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut text = Zeroizing::new(Vec::with_capacity(USUAL_SPEC));
        stdin.take(MAX_SPEC).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| bad(format!("the spec cannot be read: {error}")))?;
    // serde's message names fields and positions, and values only by their type.
    serde_json::from_slice(&text).map_err(|error| bad(format!("the spec is malformed: {error}")))
}

fn say<T: Serialize>(message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// Lets go of the descriptors that tie this process to whoever started it.
fn detach() -> io::Result<()> {
    let null = crate::sys::null()?;
    for number in 0..3 {
        crate::sys::dup_to_standard(null.as_fd(), number)?;
    }
    rustix::process::chdir("/")?;
    Ok(())
}

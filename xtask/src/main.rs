//! `cargo xtask`: builds, runs, tests and measures ChoirOS.
//!
//! Every command here can be typed on a fresh machine: what is missing is installed where
//! that is possible without asking, and named with the exact command where it is not.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a terminal program: its output is what it is for"
)]

mod bench;
mod build;
mod clients;
mod dependencies;
mod desktop;
mod dist;
mod drills;
mod elf;
mod graph;

mod prerequisites;
mod process;
mod screens;
mod test;
mod up;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, runs, tests and measures ChoirOS.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and run it in the foreground until SIGINT or SIGTERM.
    Up {
        /// Where the state lives.
        #[arg(long, default_value = ".choir", value_name = "DIR")]
        data_dir: PathBuf,
        /// The port of the public listener, on loopback.
        #[arg(long, default_value_t = 9090, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Build the programs as they are to be installed, into `target/dist`. The hypervisor is
    /// trained on calls, streams and pages: a call then takes a quarter less of the processor.
    /// Takes as long as three builds, and needs what a sandbox needs to run.
    Dist,
    /// Check formatting, lints, crate directions and licences, and run every test.
    Test {
        /// Leave out the desktop and the tests that drive the real binaries.
        #[arg(long)]
        fast: bool,
    },
    /// Measure what `dist` builds: `proxy` (against nginx), `start` (cold start), `memory` (idle),
    /// `lifecycle` (starting, waking, cost by number, taking over),
    /// `isolation` (a runner's `true` and a start, against bubblewrap and crun),
    /// `gateway` (model calls, against nginx).
    Bench {
        /// Which one; all when absent.
        name: Option<bench::Name>,
        /// One JSON document instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Try to escape from a sandbox and from a runner, and count what was denied.
    Drills {
        /// One JSON document before the closing line.
        #[arg(long)]
        json: bool,
    },
    /// Save pictures of every page, in both themes and at both widths, for people to look at.
    Screens {
        /// Where the PNG files go; made if missing.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.command {
        Command::Up { data_dir, port } => up::run(&workspace, &data_dir, port),
        Command::Dist => dist::run(&workspace),
        Command::Test { fast } => test::run(&workspace, fast),
        Command::Bench { name, json } => bench::run(&workspace, name, json),
        Command::Drills { json } => drills::run(&workspace, json),
        Command::Screens { dir } => screens::run(&workspace, &dir),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

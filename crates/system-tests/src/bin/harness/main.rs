//! What `cargo xtask drills`, `bench` and `screens` run: whole installations, measured and
//! attacked from outside.

mod bombs;
mod drills;
mod gateway;
mod idle;
mod isolation;
mod lifecycle;
mod load;
mod nginx;
mod screens;
mod smoke;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every escape drill in a sandbox and in a runner, as every identity there is.
    Drills {
        /// One JSON document before the closing line.
        #[arg(long)]
        json: bool,
    },
    /// Requests per second and latency of the proxy, and of others on the same socket.
    Proxy {
        /// The program of `crates/gateway/benches/proxy.rs`: the engine without a hypervisor.
        #[arg(long)]
        engine: Option<PathBuf>,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Time from the request to start a sandbox to its being healthy.
    Start {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Resident memory of an idle hypervisor and an idle sandbox.
    Memory {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Starting, waking, cost by number, taking over, copies, swaps.
    Lifecycle {
        /// Only this section; may be given more than once.
        #[arg(long)]
        section: Vec<lifecycle::Section>,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// A runner's `true` and the start of a sandbox, next to bubblewrap and crun; a
    /// neighbour's latency under each bomb.
    Isolation {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// The host's ends of a sandbox that was started by hand: its channel and its proxy.
    Smoke {
        /// The directory in which `channel.sock` is made.
        #[arg(long)]
        channel: PathBuf,
        /// The directory in which the sandbox makes `app.sock`.
        #[arg(long)]
        app: PathBuf,
        /// The token that the sandbox shows.
        #[arg(long)]
        token: String,
    },
    /// Model calls through the gateway, next to nginx and others on the same upstream.
    Gateway {
        /// How long each measurement goes on.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
        /// Only these, separated by commas; the upstream itself is always measured.
        #[arg(long, value_delimiter = ',')]
        only: Vec<gateway::Who>,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Put the loads on a hypervisor that it is trained with: calls and streams, to providers
    /// with and without TLS, and requests through the proxy.
    Train {
        /// How long each load goes on.
        #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
        millis: u64,
    },
    /// The upstream of `gateway`, which is a process of its own.
    #[command(hide = true)]
    Upstream {
        /// A certificate and its key, each a PEM file: with them it speaks TLS.
        #[arg(num_args = 2)]
        certificate: Vec<PathBuf>,
    },
    /// A load of `gateway` that is a process of its own.
    #[command(hide = true)]
    Caller {
        /// Whom to call how, in JSON.
        order: String,
    },
    /// A neighbour's latency through the proxy under each bomb.
    Bombs {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Save pictures of every page.
    Screens {
        /// Where the PNG files go.
        dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Drills { json } => return drills::run(json),
        Command::Proxy { engine, json } => load::run(engine.as_deref(), json).await,
        Command::Start { json } => idle::start(json).await,
        Command::Memory { json } => idle::memory(json).await,
        Command::Lifecycle { section, json } => return lifecycle::run(&section, json).await,
        Command::Isolation { json } => isolation::run(json).await,
        Command::Smoke {
            channel,
            app,
            token,
        } => {
            if let Err(error) = smoke::run(&channel, &app, &token).await {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
        Command::Gateway {
            seconds,
            only,
            json,
        } => return gateway::run(Duration::from_secs(seconds), &only, json).await,
        Command::Train { millis } => return gateway::train(Duration::from_millis(millis)).await,
        Command::Upstream { certificate } => {
            let certificate = match &*certificate {
                [chain, key] => Some((&**chain, &**key)),
                _ => None,
            };
            upstream::run(certificate).await;
        }
        Command::Caller { order } => gateway::caller(&order).await,
        Command::Bombs { json } => bombs::run(json).await,
        Command::Screens { dir } => screens::run(&dir).await,
    }
    ExitCode::SUCCESS
}

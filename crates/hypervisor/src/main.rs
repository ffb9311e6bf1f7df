//! Parses arguments, loads the configuration, serves until signalled, drains (style 1).

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hypervisor::app::App;
use hypervisor::clock::Clock;
use hypervisor::config::{Config, RawConfig};
use hypervisor::data_dir::DataDir;
use hypervisor::http::{Listener, control};
use hypervisor::{services, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// The ChoirOS control plane.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration file. Without one, defaults serve a single machine on localhost.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the persistent state lives; overrides `data_dir`.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The port to listen on at 127.0.0.1; overrides `listen.address`. 0 takes a free one.
    #[arg(long, global = true, value_name = "N")]
    port: Option<u16>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate the configuration and say what is wrong with it.
    CheckConfig,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut raw = RawConfig::read(arguments.config.as_deref(), std::env::vars())?;
    if let Some(dir) = arguments.data_dir {
        raw.data_dir = Some(dir);
    }
    if let Some(port) = arguments.port {
        raw.listen.address = Some(format!("127.0.0.1:{port}"));
    }
    match arguments.command {
        None => serve(raw),
        Some(Command::CheckConfig) => {
            Config::build(raw)?;
            writeln!(std::io::stdout(), "the configuration is valid")?;
            Ok(())
        }
    }
}

fn serve(mut raw: RawConfig) -> anyhow::Result<()> {
    // Bound before the configuration is complete: with port 0 the origins need the real one.
    let address = Config::build(raw.clone())?.listen.address;
    let socket =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    raw.listen.address = Some(socket.local_addr()?.to_string());
    let config = Config::build(raw)?;
    telemetry::begin(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(config, socket))
}

async fn run(config: Config, socket: TcpListener) -> anyhow::Result<()> {
    let _lock = DataDir::lock(&config.data_dir)?;
    let listener = Listener::new(socket, config.listen.tls.as_ref())?;
    let app = App::open(config, Clock::system()).await?;
    services::sandboxes::start(&app).await?;
    let router = control::router(&app);
    let served = tokio::spawn(listener.serve(Arc::clone(&app), router));
    writeln!(std::io::stdout(), "ready: {}/", app.config.origins.control)?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    app.draining.cancel();
    served.await?;
    app.store.close().await;
    Ok(())
}

//! Parses arguments, loads the configuration, serves until signalled, drains (style 1).

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hypervisor::app::App;
use hypervisor::clock::Clock;
use hypervisor::config::{Config, RawConfig, RuntimeOrigins, wait_for_restart};
use hypervisor::data_dir::DataDir;
use hypervisor::http::{Listener, control, metrics};
use hypervisor::telemetry::otlp::Exporter;
use hypervisor::{doctor, hardening, services, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use types::SandboxId;

/// A model call allocates sixty times, some of it to be freed by another thread (ADR 0019).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The ChoirOS control plane.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Every key of the configuration can be overridden by a variable: \
                  CHOIR_LISTEN__ADDRESS stands for listen.address."
)]
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
    /// Stop all sandboxes when this process is told to end; without it they go on.
    #[arg(long)]
    stop_on_exit: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate the configuration and say what is wrong with it.
    CheckConfig,
    /// Find out whether this machine can run sandboxes.
    Doctor {
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
    /// List every route of the control origin with who may use it.
    Routes {
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
    /// Stop the sandboxes that go on after the hypervisor has ended.
    Stop {
        /// All of them; there is no other way yet to say which.
        #[arg(long, required = true)]
        all: bool,
    },
}

fn main() -> ExitCode {
    match act(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The chain on one line; nothing is left to do when even that cannot be written.
            let _ = writeln!(std::io::stderr(), "hypervisor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let written = RawConfig::written(arguments.config.as_deref(), std::env::vars())?;
    let mut raw = RawConfig::parse(written.clone())?;
    if let Some(dir) = arguments.data_dir {
        raw.data_dir = Some(dir);
    }
    if let Some(port) = arguments.port {
        raw.listen.address = Some(format!("127.0.0.1:{port}"));
    }
    match arguments.command {
        None => {
            let source = Source {
                file: arguments.config,
                at_start: written,
            };
            serve(raw, source, arguments.stop_on_exit)?;
        }
        Some(Command::CheckConfig) => {
            let config = Config::build(raw)?;
            config
                .listen
                .tls
                .as_ref()
                .map(Listener::check_tls)
                .transpose()?;
            print("the configuration is valid\n")?;
        }
        Some(Command::Doctor { json }) => {
            let findings = doctor::examine(&Config::build(raw)?);
            let text = if json {
                serde_json::to_string_pretty(&findings)?
            } else {
                doctor::describe(&findings)
            };
            print(&format!("{}\n", text.trim_end()))?;
            return Ok(if findings.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Some(Command::Routes { json }) => {
            let routes = control::listing();
            if json {
                print(&format!("{}\n", serde_json::to_string_pretty(&routes)?))?;
            } else {
                for route in routes {
                    print(&format!(
                        "{:<7} {:<48} {}\n",
                        route.method, route.path, route.access
                    ))?;
                }
            }
        }
        Some(Command::Stop { .. }) => {
            let config = Config::build(raw)?;
            let _log = telemetry::begin(&config.log).context("cannot log")?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(stop_all(config))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Listens. A process that a killed hypervisor was just about to start holds its listener for
/// some milliseconds more, so an address in use is tried again for a second.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut tries = 20;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries > 0 => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            bound => return bound,
        }
    }
}

/// Where the configuration comes from, and what it said when this process began.
struct Source {
    file: Option<PathBuf>,
    at_start: toml::Table,
}

fn serve(mut raw: RawConfig, source: Source, stop_on_exit: bool) -> anyhow::Result<()> {
    hardening::keep_memory_private().context("cannot keep this process's memory private")?;
    // Bound before the configuration is complete: with port 0 the origins need the real one.
    let address = Config::build(raw.clone())?.listen.address;
    let socket = bind(address).with_context(|| {
        format!("cannot listen on {address}: is another program using the port?")
    })?;
    raw.listen.address = Some(socket.local_addr()?.to_string());
    let config = Config::build(raw)?;
    let _log = telemetry::begin(&config.log).context("cannot log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // What the kernel has for a quiet sandbox is looked at also while a loud one keeps
        // every thread at work.
        .event_interval(DRIVER_EVERY)
        .build()?;
    runtime.block_on(run(config, source, socket, stop_on_exit))
}

/// Pieces of work between two looks at what the kernel has to tell.
const DRIVER_EVERY: u32 = 4;

async fn run(
    config: Config,
    source: Source,
    socket: TcpListener,
    stop_on_exit: bool,
) -> anyhow::Result<()> {
    let _lock = DataDir::lock(&config.data_dir)?;
    if matches!(config.origins.runtime, RuntimeOrigins::SingleHost { .. }) {
        tracing::warn!(
            "origins.runtime = \"single_host\": two users in one browser profile are not protected \
             from each other's stored scripts"
        );
    }
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    let listener = Listener::new(socket, config.listen.tls.as_ref())?;
    let app = App::open(config, Clock::system()).await?;
    services::sandboxes::start(&app).await?;
    let link = services::auth::setup_link(&app).await?;
    metrics::begin(&app)
        .await
        .context("cannot listen on listen.metrics_address")?;
    let exporter = telemetry::otlp::begin(&app)?;
    let router = control::router(&app);
    let served = tokio::spawn(listener.serve(Arc::clone(&app), router));
    if let Some(link) = &link {
        print(
            "set-up: nobody administers this installation yet; the link below makes the first administrator, once\n",
        )?;
        print(&format!("ready: {link}\n"))?;
    } else {
        print(&format!("ready: {}/\n", app.config.origins.control))?;
    }
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => reload(&app, &source),
        }
    }
    tracing::info!(deadline = ?app.config.drain, stop_on_exit, "draining; a second signal ends this at once");
    tokio::select! {
        drained = drain(&app, served, stop_on_exit, exporter) => drained,
        _ = term.recv() => anyhow::bail!(HURRIED),
        _ = int.recv() => anyhow::bail!(HURRIED),
    }
}

/// Takes the model providers and the bounds of model calls of the configuration as it is now,
/// and names what else has changed. Calls under way go on; a configuration that is not valid
/// changes nothing.
fn reload(app: &App, source: &Source) {
    let reloaded = RawConfig::written(source.file.as_deref(), std::env::vars())
        .and_then(|written| Ok((written.clone(), Config::build(RawConfig::parse(written)?)?)))
        .map_err(anyhow::Error::from)
        .and_then(|(written, config)| {
            app.sandboxes.reload_config(&config)?;
            Ok(wait_for_restart(&source.at_start, &written))
        });
    match reloaded {
        Ok(waiting) if waiting.is_empty() => {
            tracing::info!("took the providers and the bounds of model calls of the configuration");
        }
        Ok(waiting) => tracing::warn!(
            keys = waiting.join(" "),
            "took the providers and the bounds of model calls of the configuration; the other \
             keys that have changed are taken by a restart"
        ),
        Err(error) => tracing::error!(
            error = format!("{error:#}"),
            "the configuration was not taken; the one before stays in use"
        ),
    }
}

/// How long calls that are cut may take to end, and what they used to be in the database.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// What the end is called that does not wait.
const HURRIED: &str = "told to end a second time: what was under way is cut off, and sandboxes \
                       that still run go on; stop them with `hypervisor stop --all`";

/// Lets what is under way finish, and stops the sandboxes when they are to end too.
async fn drain(
    app: &App,
    served: JoinHandle<()>,
    stop_on_exit: bool,
    exporter: Option<Exporter>,
) -> anyhow::Result<()> {
    app.draining.cancel();
    served.await?;
    if stop_on_exit {
        demand_stopped(app.sandboxes.stop_all(app.config.drain).await)?;
    }
    // Calls that go on through channels are nobody's whom the listener waited for.
    if tokio::time::timeout(SETTLE_WITHIN, app.sandboxes.close_calls())
        .await
        .is_err()
    {
        tracing::error!("what some model calls used could not be written down");
    }
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    app.store.close().await;
    Ok(())
}

/// Fails with the sandboxes that did not stop in time.
fn demand_stopped(left: Vec<SandboxId>) -> anyhow::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = left.iter().map(ToString::to_string).collect();
    anyhow::bail!(
        "{} sandboxes did not stop in time ({}): run `hypervisor stop --all`, or look what holds them with `choir doctor`",
        left.len(),
        names.join(", ")
    )
}

async fn stop_all(config: Config) -> anyhow::Result<()> {
    let _lock = DataDir::lock(&config.data_dir)?;
    let app = App::open(config, Clock::system()).await?;
    services::sandboxes::start(&app).await?;
    let left = app.sandboxes.stop_all(app.config.drain).await;
    app.draining.cancel();
    app.store.close().await;
    demand_stopped(left)?;
    print("all sandboxes are stopped\n")?;
    Ok(())
}

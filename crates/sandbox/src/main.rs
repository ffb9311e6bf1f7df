//! `sandbox`, the guest runtime: parses its arguments, refuses credentials, builds, runs
//! until signalled, drains.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use sandbox::app::{App, MAX_WEBSOCKETS};
use sandbox::channel::{Channel, RENEW_EVERY, keep_token};
use sandbox::config::{Config, Options, refuse_credentials};
use sandbox::files::Workspace;
use sandbox::home;
use sandbox::relay::Relay;
use sandbox::serve::{Listener, serve};
use sandbox::store::{EventStore, NewEvent, system_clock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;
/// How long everything may take to end once the process was told to.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that run async tasks: the guest mostly waits, and is one of many on its machine.
const WORKERS: usize = 2;

/// The guest runtime of a ChoirOS sandbox.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the OpenAPI document of the guest's API.
    Openapi,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Openapi) = arguments.command {
        return match print_openapi() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        };
    }
    let config = refuse_credentials(std::env::vars_os())
        .and_then(|()| Config::new(arguments.options, |name| std::env::var(name).ok()));
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            complain(&error.into());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("the async runtime does not start");
    match runtime.and_then(|runtime| runtime.block_on(run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn complain(error: &anyhow::Error) -> ExitCode {
    // Nothing is left to tell it to when standard error is closed.
    let _unheard = writeln!(std::io::stderr(), "sandbox: {error:#}");
    ExitCode::FAILURE
}

fn print_openapi() -> anyhow::Result<()> {
    let text = sandbox::http::openapi::text()?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = CancellationToken::new();
    let tasks = TaskTracker::new();

    let store = EventStore::open(&config.database, system_clock())
        .await
        .with_context(|| {
            format!(
                "the event store {} does not open",
                config.database.display()
            )
        })?;
    // Anywhere but inside, HOME is somebody's own.
    if std::env::var_os("HOME").is_some_and(|home| home == home::INSIDE) {
        let furnished = tokio::task::spawn_blocking(|| home::furnish(home::INSIDE.as_ref())).await;
        if let Err(error) = furnished.unwrap_or_else(|error| Err(error.into())) {
            tracing::warn!(%error, "HOME could not be furnished");
        }
    }
    let workspace = Workspace::open(&config.workspace)
        .with_context(|| format!("the workspace {} does not open", config.workspace.display()))?;
    let channel = Channel::new(&config.channel_socket, &config.token, &config.provider_path);
    let app = App::new(
        store.clone(),
        channel.clone(),
        workspace,
        config.identity,
        cancelled.clone(),
    );
    let version = env!("CARGO_PKG_VERSION");
    let started = NewEvent::new("runtime.started", serde_json::json!({"version": version}));
    store
        .append(started)
        .await
        .context("the event store cannot be written")?;

    let relay = Relay::bind(config.relay, &config.channel_socket)
        .await
        .with_context(|| format!("the relay cannot listen on {}", config.relay))?;
    tasks.spawn(relay.run(cancelled.clone()));
    tasks.spawn(keep_token(channel, RENEW_EVERY, cancelled.clone()));

    // Before anybody can ask for another run: those that were cut off keep their places.
    app.conductor
        .resume_interrupted()
        .await
        .context("interrupted runs were not resumed")?;
    let (conductor, websockets) = (app.conductor.clone(), app.websockets.clone());
    let router = sandbox::http::router(app);
    if let Some(port) = config.port {
        let listener = Listener::loopback(port).await.with_context(|| {
            format!("port {port} of the loopback address cannot be listened on")
        })?;
        if let Some(address) = listener.tcp_address() {
            tracing::info!(%address, "also serving on a port");
        }
        tasks.spawn(serve(listener, router.clone(), cancelled.clone()));
    }
    let listener = Listener::unix(&config.app_socket)
        .with_context(|| format!("{} cannot be listened on", config.app_socket.display()))?;
    tracing::info!(version, socket = %config.app_socket.display(), "serving");
    tasks.spawn(serve(listener, router, cancelled.clone()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    cancelled.cancel();
    tasks.close();
    let drained = async {
        conductor.drained().await;
        // Every WebSocket has said goodbye when all places are free.
        let _all = websockets.acquire_many(MAX_WEBSOCKETS).await;
        tasks.wait().await;
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::info!("some work was cut off because it took too long to end");
    }
    Ok(())
}

//! `choir service …`: commands that go on by themselves.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use types::{CommandLimits, CommandRequest, CommandState, CommandView, PortsView, Role};

use super::Target;
use crate::Error;
use crate::args::{Service, StartService};
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, ago, printable, printable_lines, table};

/// Between asking a service to end and killing it.
const GRACE: Duration = Duration::from_secs(5);

/// How often is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Digits at the end of an id that listings show; the beginning is the time, which services
/// that were started together share.
const SHORT_ID: usize = 8;

#[derive(Serialize, Deserialize)]
struct Commands {
    commands: Vec<CommandView>,
}

#[derive(Serialize)]
struct Signal {
    signal: &'static str,
}

pub(super) async fn run(
    target: &Target,
    command: Service,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    match command {
        Service::List { of, json } => list(&client, of.role(), json, context).await,
        Service::Start(start) => begin(&client, start, context).await,
        Service::Stop {
            service,
            role,
            kill,
        } => stop(&client, role, &service, kill, context).await,
        Service::Logs {
            service,
            role,
            follow,
        } => logs(&client, role, &service, follow, context).await,
    }
}

fn base(role: Role) -> String {
    format!("/me/sandboxes/{role}/commands")
}

async fn services(client: &Client, role: Role) -> Result<Vec<CommandView>, Error> {
    let listed: Commands = client.get(&base(role)).await?;
    let mut services: Vec<CommandView> = listed
        .commands
        .into_iter()
        .filter(|view| view.detach && !view.terminal)
        .collect();
    services.sort_by_key(|view| (view.state == CommandState::Exited, view.id));
    Ok(services)
}

async fn list(client: &Client, role: Role, json: bool, context: &mut Context) -> Result<u8, Error> {
    let services = services(client, role).await?;
    if json {
        let listed = serde_json::json!({ "services": services });
        context.io.print(&output::json(&listed))?;
        return Ok(0);
    }
    if services.is_empty() {
        context.io.print(&format!(
            "No services in {role}. Start one with: choir service start --role {role} -- CMD\n"
        ))?;
        return Ok(0);
    }
    let ports: PortsView = client.get(&format!("/me/sandboxes/{role}/ports")).await?;
    let now = (context.now)();
    let rows: Vec<_> = services
        .iter()
        .map(|view| {
            let of_service = ports
                .ports
                .iter()
                .filter(|port| port.listening.command_id == Some(view.id))
                .map(|port| port.listening.port.to_string());
            [
                name(view),
                short(view),
                state(view),
                since(view, now),
                of_service.collect::<Vec<_>>().join(","),
                view.argv.join(" "),
            ]
        })
        .collect();
    let titles = ["NAME", "ID", "STATE", "STARTED", "PORTS", "COMMAND"];
    context.io.print(&table(titles, &rows))?;
    Ok(0)
}

async fn begin(client: &Client, start: StartService, context: &mut Context) -> Result<u8, Error> {
    let role = start.role;
    let name = start.name.unwrap_or_else(|| program(&start.argv));
    let running = services(client, role).await?.into_iter().any(|view| {
        view.state == CommandState::Running && view.label.as_deref() == Some(name.as_str())
    });
    if running {
        return Err(Error::Cannot {
            what: format!(
                "a service named {} runs in {role} already",
                printable(&name)
            ),
            hint: format!(
                "stop it with `choir service stop {} --role {role}`, or give this one another --name",
                printable(&name)
            ),
        });
    }
    let request = CommandRequest {
        id: None,
        rejoin: false,
        argv: start.argv,
        cwd: start.cwd,
        env: start.env,
        stdin: None,
        terminal: None,
        detach: true,
        network: start.network,
        capabilities: start.capabilities,
        limits: CommandLimits::default(),
        label: Some(name),
    };
    let view: CommandView = client.post(&base(role), &request).await?;
    let text = if start.json {
        output::json(&view)
    } else {
        format!(
            "{name} runs in {role}; follow it with: choir service logs -f {name} --role {role}\n",
            name = printable(&self::name(&view))
        )
    };
    context.io.print(&text)?;
    Ok(0)
}

async fn stop(
    client: &Client,
    role: Role,
    service: &str,
    kill: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let view = find(client, role, service).await?;
    if view.state == CommandState::Running {
        let one = format!("{}/{}", base(role), view.id);
        let signal = |signal| {
            let one = &one;
            async move {
                client
                    .tell(&format!("{one}/signal"), &Signal { signal })
                    .await
            }
        };
        signal(if kill { "kill" } else { "term" }).await?;
        if !has_ended(client, &one).await? && !kill {
            signal("kill").await?;
            has_ended(client, &one).await?;
        }
    }
    context
        .io
        .print(&format!("{} has ended\n", printable(&name(&view))))?;
    Ok(0)
}

/// Waits a while for a command's end.
async fn has_ended(client: &Client, one: &str) -> Result<bool, Error> {
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        let view: CommandView = client.get(one).await?;
        if view.state == CommandState::Exited {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(false)
}

async fn logs(
    client: &Client,
    role: Role,
    service: &str,
    follow: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let view = find(client, role, service).await?;
    let query = if follow { "?follow=true" } else { "" };
    let mut log = client
        .stream(&format!("{}/{}/output{query}", base(role), view.id))
        .await?;
    while let Some(bytes) = log.chunk().await? {
        if context.io.stdout_is_terminal {
            // What runs inside is not trusted to steer the terminal of whoever reads it.
            context
                .io
                .print(&printable_lines(&String::from_utf8_lossy(&bytes)))?;
        } else {
            context.io.print_bytes(&bytes)?;
        }
    }
    Ok(0)
}

/// The service that a person means: by name or id, one that runs before one that ended.
async fn find(client: &Client, role: Role, text: &str) -> Result<CommandView, Error> {
    let services = services(client, role).await?;
    let means = |view: &&CommandView| {
        let id = view.id.to_string();
        view.label.as_deref() == Some(text)
            || id == text
            || (text.len() >= SHORT_ID && id.ends_with(text))
    };
    let mut running = services
        .iter()
        .filter(|view| view.state == CommandState::Running)
        .filter(means);
    match (running.next(), running.next()) {
        (Some(view), None) => Ok(view.clone()),
        (Some(_), Some(_)) => Err(Error::Cannot {
            what: format!("several services of {role} are called {}", printable(text)),
            hint: format!("name one by its id: choir service list {role}"),
        }),
        // The latest of those that ended.
        (None, _) => services
            .iter()
            .rev()
            .find(|view| means(view))
            .cloned()
            .ok_or_else(|| Error::Cannot {
                what: format!("there is no service {} in {role}", printable(text)),
                hint: format!("see which there are: choir service list {role}"),
            }),
    }
}

fn name(view: &CommandView) -> String {
    view.label.clone().unwrap_or_else(|| program(&view.argv))
}

/// The last part of a program's path.
fn program(argv: &[String]) -> String {
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or(program);
    name.chars().take(64).collect()
}

fn short(view: &CommandView) -> String {
    let id = view.id.to_string();
    let at = id.len().saturating_sub(SHORT_ID);
    id.get(at..).unwrap_or(&id).to_owned()
}

fn state(view: &CommandView) -> String {
    let Some(exit) = &view.exit else {
        return "running".to_owned();
    };
    match (exit.code, exit.signal) {
        _ if exit.timed_out => "timed out".to_owned(),
        (Some(code), _) => format!("exited {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

fn since(view: &CommandView, now: Timestamp) -> String {
    let started = view.started_at.as_deref().and_then(|at| at.parse().ok());
    started.map_or_else(|| "-".to_owned(), |at| ago(at, now))
}

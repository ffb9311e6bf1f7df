//! `choir sandbox …`.

use jiff::Timestamp;
use types::{Role, SandboxView, UserName};

use super::sandbox_explain::explain;
use super::{Nothing, Sandboxes, Target};
use crate::Error;
use crate::args::{One, Sandbox};
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, ago, printable, printable_lines, table};

pub(super) async fn run(
    target: &Target,
    command: Sandbox,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    let text = match command {
        Sandbox::List { all, json } => {
            let path = if all {
                "/admin/sandboxes"
            } else {
                "/me/sandboxes"
            };
            let mut listed: Sandboxes = client.get(path).await?;
            listed
                .sandboxes
                .sort_by(|a, b| (&a.user, a.role).cmp(&(&b.user, b.role)));
            if json {
                output::json(&listed)
            } else {
                overview(&listed.sandboxes, all, (context.now)())
            }
        }
        Sandbox::Start(one) => change(&client, "start", one).await?,
        Sandbox::Stop(one) => change(&client, "stop", one).await?,
        Sandbox::Restart(one) => change(&client, "restart", one).await?,
        Sandbox::Swap(asked) => return super::swap::run(&client, asked, context).await,
        Sandbox::Snapshot(asked) => return super::snapshots::take(&client, asked, context).await,
        Sandbox::Snapshots(command) => {
            return super::snapshots::manage(&client, command, context).await;
        }
        Sandbox::Restore(asked) => return super::snapshots::restore(&client, asked, context).await,
        Sandbox::Clone(asked) => return super::snapshots::clone(&client, asked, context).await,
        Sandbox::Explain { of, json } => explain(&client, of.role(), json, (context.now)()).await?,
        Sandbox::Logs { of, follow } => return logs(&client, of.role(), follow, context).await,
    };
    context.io.print(&text)?;
    Ok(0)
}

pub(super) fn base(user: Option<&UserName>) -> String {
    user.map_or_else(
        || "/me/sandboxes".to_owned(),
        |user| format!("/admin/sandboxes/{user}"),
    )
}

async fn change(client: &Client, act: &str, one: One) -> Result<String, Error> {
    let One { of, user, json } = one;
    let role = of.role();
    let path = format!("{}/{role}/{act}", base(user.as_ref()));
    let view: SandboxView = client.post(&path, &Nothing {}).await?;
    if json {
        return Ok(output::json(&view));
    }
    let mut text = format!("{role} of {} is {}", view.user, view.state);
    if view.state == types::SandboxState::Running {
        text.push_str(&format!(": {}", printable(&view.url)));
    }
    text.push('\n');
    Ok(text)
}

fn overview(sandboxes: &[SandboxView], all: bool, now: Timestamp) -> String {
    if sandboxes.is_empty() {
        return "No sandboxes.\n".to_owned();
    }
    let since = |view: &SandboxView| {
        let started = view
            .started_at
            .as_deref()
            .and_then(|at| at.parse::<Timestamp>().ok());
        started.map_or_else(|| "-".to_owned(), |at| ago(at, now))
    };
    let mut text = if all {
        let rows: Vec<_> = sandboxes
            .iter()
            .map(|v| {
                [
                    v.user.to_string(),
                    v.role.to_string(),
                    v.state.to_string(),
                    since(v),
                    v.network.to_string(),
                    v.url.clone(),
                ]
            })
            .collect();
        table(
            ["USER", "ROLE", "STATE", "STARTED", "NETWORK", "URL"],
            &rows,
        )
    } else {
        let rows: Vec<_> = sandboxes
            .iter()
            .map(|v| {
                [
                    v.role.to_string(),
                    v.state.to_string(),
                    since(v),
                    v.network.to_string(),
                    v.url.clone(),
                ]
            })
            .collect();
        table(["ROLE", "STATE", "STARTED", "NETWORK", "URL"], &rows)
    };
    for view in sandboxes {
        if let Some(reason) = &view.reason {
            text.push_str(&format!(
                "\n{} of {} {}: {}\n",
                view.role,
                view.user,
                view.state,
                printable(reason)
            ));
            if !view.log.is_empty() {
                text.push_str("its log ends with\n");
                for line in &view.log {
                    text.push_str(&format!("  | {}\n", printable(line)));
                }
            }
            if let Some(hint) = &view.hint {
                text.push_str(&format!("hint: {}\n", printable(hint)));
            }
        }
    }
    text
}

async fn logs(
    client: &Client,
    role: Role,
    follow: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let query = if follow { "?follow=true" } else { "" };
    let mut log = client
        .stream(&format!("/me/sandboxes/{role}/logs{query}"))
        .await?;
    while let Some(bytes) = log.chunk().await? {
        if context.io.stdout_is_terminal {
            // The guest is not trusted to steer the terminal of whoever reads its log.
            context
                .io
                .print(&printable_lines(&String::from_utf8_lossy(&bytes)))?;
        } else {
            context.io.print_bytes(&bytes)?;
        }
    }
    Ok(0)
}

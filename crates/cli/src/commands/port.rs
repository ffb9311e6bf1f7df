//! `choir port …`: the ports on which a sandbox's commands listen.

mod tunnel;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use types::{PortAddress, PortsView, Role};
use url::Url;

use super::Target;
use crate::Error;
use crate::args::{Forward, Port};
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, printable, table};

/// Connections that are forwarded at once, all ports together.
const MAX_CONNECTIONS: usize = 64;

/// Messages about connections that failed and wait to be printed.
const MAX_COMPLAINTS: usize = 16;

pub(super) async fn run(
    target: &Target,
    command: Port,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    match command {
        Port::List { of, json } => list(&client, of.role(), json, context).await,
        Port::Forward { ports, role, json } => {
            forward(Arc::new(client), role, &ports, json, context).await
        }
        Port::Open {
            port,
            role,
            print,
            json,
        } => open(&client, role, port, print, json, context).await,
    }
}

async fn ports(client: &Client, role: Role) -> Result<PortsView, Error> {
    client.get(&format!("/me/sandboxes/{role}/ports")).await
}

async fn list(client: &Client, role: Role, json: bool, context: &mut Context) -> Result<u8, Error> {
    let listed = ports(client, role).await?;
    if json {
        context.io.print(&output::json(&listed))?;
        return Ok(0);
    }
    if listed.ports.is_empty() {
        context.io.print(&format!(
            "Nothing listens in {role}. Start a server with: choir service start --role {role} -- CMD\n"
        ))?;
        return Ok(0);
    }
    let rows: Vec<_> = listed
        .ports
        .iter()
        .map(|port| {
            [
                port.listening.port.to_string(),
                port.listening.address.clone(),
                port.command.clone().unwrap_or_else(|| "-".to_owned()),
                port.url.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    context
        .io
        .print(&table(["PORT", "ADDRESS", "COMMAND", "URL"], &rows))?;
    if let Some(why) = &listed.no_preview {
        context
            .io
            .complain(&format!("note: {}\n", printable(why)))?;
    }
    Ok(0)
}

async fn open(
    client: &Client,
    role: Role,
    port: u16,
    print: bool,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let address: PortAddress = client
        .get(&format!("/me/sandboxes/{role}/ports/{port}"))
        .await?;
    if json {
        context.io.print(&output::json(&address))?;
        return Ok(0);
    }
    let Some(url) = address.url else {
        return Err(Error::Cannot {
            what: "a port cannot be opened in a browser here".to_owned(),
            hint: address
                .no_preview
                .as_deref()
                .map_or_else(|| "use choir port forward".to_owned(), printable),
        });
    };
    // It goes to the desktop's opener, which would also start other programs.
    let url = Url::parse(&url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| client.unexpected("an address that is none".to_owned()))?;
    context.io.print(&format!("{url}\n"))?;
    if !print && let Some(open) = &context.browser {
        open(&url);
    }
    Ok(0)
}

async fn forward(
    client: Arc<Client>,
    role: Role,
    ports: &[Forward],
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    // Whether the sandbox runs and the token carries this far is told now, not to the first
    // connection.
    let listed = self::ports(&client, role).await?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (complaints, mut complained) = mpsc::channel(MAX_COMPLAINTS);
    let mut listeners = JoinSet::new();
    for &Forward { port, local } in ports {
        let cannot = |source| Error::Listen {
            port: local,
            source,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local))
            .await
            .map_err(cannot)?;
        let local = listener.local_addr().map_err(cannot)?.port();
        let text = if json {
            format!("{}\n", json!({"role": role, "port": port, "local": local}))
        } else {
            format!("Forwarding 127.0.0.1:{local} to port {port} of {role}\n")
        };
        context.io.print(&text)?;
        if !listed.ports.iter().any(|open| open.listening.port == port) {
            context.io.complain(&format!(
                "note: nothing listens on port {port} of {role} yet\n"
            ))?;
        }
        let tunnel = tunnel::Tunnels {
            client: Arc::clone(&client),
            path: format!("/me/sandboxes/{role}/ports/{port}/connect"),
            places: Arc::clone(&places),
            complaints: complaints.clone(),
        };
        listeners.spawn(tunnel.serve(listener));
    }
    let mut presses = (context.interrupts)();
    let mut told = HashSet::new();
    loop {
        tokio::select! {
            Some(()) = presses.recv() => return Ok(0),
            Some(complaint) = complained.recv() => {
                // A page that is reloaded all the time would fill the screen.
                if told.len() < MAX_COMPLAINTS && !told.contains(&complaint) {
                    context.io.complain(&format!("choir: {}\n", printable(&complaint)))?;
                    told.insert(complaint);
                }
            }
        }
    }
}

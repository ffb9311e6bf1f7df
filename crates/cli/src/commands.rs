//! One file per command. Here is what they share.

mod audit;
mod completions;
mod doctor;
mod login;
mod logout;
mod network;
mod open;
mod port;
mod provider;
mod run;
mod sandbox;
mod sandbox_explain;
mod service;
mod snapshots;
mod swap;
mod usage;
mod user;
mod whoami;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{SandboxView, TokenId, UserId, UserName};

use crate::Error;
use crate::args::{Arguments, Command};
use crate::client::Client;
use crate::context::Context;
use crate::credentials::{Credentials, read_token};
use crate::server::Server;

/// Runs a parsed command line; the exit code.
pub(crate) async fn run(arguments: Arguments, context: &mut Context) -> Result<u8, Error> {
    let Arguments {
        server,
        token_file,
        command,
    } = arguments;
    let target = Target {
        server: server.or_else(|| context.server.clone()),
        token_file: token_file.or_else(|| context.token_file.clone()),
    };
    match command {
        Command::Login { no_browser } => login::run(&target, no_browser, context).await,
        Command::Logout => logout::run(&target, context).await,
        Command::Whoami { json } => whoami::run(&target, json, context).await,
        Command::Sandbox(command) => sandbox::run(&target, command, context).await,
        Command::Run(command) => run::run(&target, command, context).await,
        Command::Service(command) => service::run(&target, command, context).await,
        Command::Port(command) => port::run(&target, command, context).await,
        Command::Network(command) => network::run(&target, command, context).await,
        Command::Usage(command) => usage::run(&target, command, context).await,
        Command::Provider(command) => provider::run(&target, command, context).await,
        Command::User(command) => user::run(&target, command, context).await,
        Command::Audit(command) => audit::run(&target, command, context).await,
        Command::Open { of, print } => open::run(&target, of.role(), print, context).await,
        Command::Doctor { config, json } => doctor::run(config.as_deref(), json, context).await,
        Command::Completions { shell } => completions::run(shell, context),
    }
}

/// Which control plane, and with which token.
#[derive(Debug)]
struct Target {
    server: Option<String>,
    token_file: Option<PathBuf>,
}

impl Target {
    /// The server: as given, the one signed in to last, or the default.
    fn server(&self, credentials: Option<&Credentials>) -> Result<Server, Error> {
        match &self.server {
            Some(given) => Server::parse(given),
            None => credentials
                .and_then(Credentials::default_server)
                .map_or_else(|| Ok(Server::default()), Server::parse),
        }
    }

    /// A client with a token: from the file that was given, or as it was kept.
    fn client(&self, context: &mut Context) -> Result<Client, Error> {
        let dir = context.config_dir.as_deref();
        if let Some(path) = &self.token_file {
            // A token that was given needs no home and no credentials file.
            let credentials = self
                .server
                .is_none()
                .then(|| Credentials::load(dir).ok())
                .flatten();
            let server = self.server(credentials.as_ref())?;
            let token = read_token(path, context.io.stdin.as_mut())?;
            return Client::new(server, Some(&token));
        }
        let credentials = Credentials::load(dir)?;
        let server = self.server(Some(&credentials))?;
        let credential = credentials
            .get(&server)
            .ok_or_else(|| Error::SignedOut(server.clone()))?;
        Client::new(server, Some(&credential.token()?))
    }

    /// Whether the token comes from standard input, which then is nobody else's.
    fn takes_stdin(&self) -> bool {
        self.token_file.as_deref() == Some(Path::new("-"))
    }
}

/// The answer of `GET /auth/me`.
#[derive(Debug, Serialize, Deserialize)]
struct Me {
    id: UserId,
    name: UserName,
    is_admin: bool,
    /// The id of the token that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_id: Option<TokenId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    live_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dev_url: Option<String>,
}

/// The answer of `GET /me/sandboxes`.
#[derive(Debug, Serialize, Deserialize)]
struct Sandboxes {
    sandboxes: Vec<SandboxView>,
}

/// A request without content: what changes state is always sent as JSON.
#[derive(Debug, Serialize)]
struct Nothing {}

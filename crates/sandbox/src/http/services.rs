//! Services: commands that go on by themselves, and the ports on which commands listen. The
//! hypervisor's router runs them; this passes on what people ask for (arch §6).

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use types::{CommandId, CommandLimits, CommandRequest, CommandState, CommandView, PortView};
use utoipa::ToSchema;

use super::problem::{ApiError, JsonBody, id};
use super::terminals::{Opened, TerminalExit, shell};
use crate::app::App;

/// Longest command text in bytes.
const MAX_COMMAND: usize = 64 * 1024;

/// Longest name in characters, as the router takes it.
const MAX_NAME: usize = 64;

/// A service to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// What to run, for the shell; at most 64 KiB.
    pub command: String,
    /// What to call it; the command's first word when absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// One service.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServiceView {
    /// Its id; `/ws/terminal/{id}` carries its output.
    #[schema(value_type = String, format = "uuid")]
    pub id: CommandId,
    /// What it is called.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `running` or `exited`.
    #[schema(value_type = String)]
    pub state: CommandState,
    /// How it ended, once it has.
    pub exit: Option<TerminalExit>,
    /// When it was started, RFC 3339.
    pub started_at: Option<String>,
}

/// One port.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServicePort {
    /// Its number.
    pub port: u16,
    /// The address that it is bound to.
    pub address: String,
    /// The command that listens, where that can be told.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub command_id: Option<CommandId>,
    /// What that command is called.
    pub command: Option<String>,
    /// Where a browser opens it.
    pub url: Option<String>,
}

/// The services of a sandbox and its ports.
#[derive(Debug, Serialize, ToSchema)]
pub struct Services {
    /// Running ones first, then ended ones whose output is kept still.
    pub services: Vec<ServiceView>,
    /// Lowest first; of terminals and other commands too.
    pub ports: Vec<ServicePort>,
    /// Why ports have no address, where they have none.
    pub no_preview: Option<String>,
}

impl From<CommandView> for ServiceView {
    fn from(view: CommandView) -> Self {
        let exit = view.exit.map(|exit| TerminalExit {
            code: exit.code,
            signal: exit.signal,
            error: exit.error,
        });
        Self {
            id: view.id,
            name: view.label.unwrap_or_else(|| view.argv.join(" ")),
            argv: view.argv,
            state: view.state,
            exit,
            started_at: view.started_at,
        }
    }
}

impl From<PortView> for ServicePort {
    fn from(view: PortView) -> Self {
        Self {
            port: view.listening.port,
            address: view.listening.address,
            command_id: view.listening.command_id,
            command: view.command,
            url: view.url,
        }
    }
}

/// The sandbox's services and ports.
#[utoipa::path(get, operation_id = "listServices", path = "/api/services", tag = "services", responses((status = 200, body = Services), (status = 502, body = super::ProblemSchema)))]
pub async fn list(State(app): State<App>) -> Result<Json<Services>, ApiError> {
    let commands = app.channel.commands().await?;
    let ports = app.channel.ports().await?;
    let mut services: Vec<ServiceView> = commands
        .into_iter()
        .filter(|view| view.detach && !view.terminal)
        .map(Into::into)
        .collect();
    services.sort_by_key(|view| (view.state == CommandState::Exited, view.id));
    Ok(Json(Services {
        services,
        ports: ports.ports.into_iter().map(Into::into).collect(),
        no_preview: ports.no_preview,
    }))
}

/// Starts a service.
#[utoipa::path(
    post, operation_id = "startService", path = "/api/services", tag = "services", request_body = NewService,
    responses((status = 201, body = Opened), (status = 502, body = super::ProblemSchema)),
)]
pub async fn start(
    State(app): State<App>,
    JsonBody(NewService { command, name }): JsonBody<NewService>,
) -> Result<Response, ApiError> {
    let command = command.trim();
    if command.is_empty() || command.len() > MAX_COMMAND {
        return Err(ApiError::bad_request("a command has 1 to 65536 bytes"));
    }
    let first = command.split_whitespace().next().unwrap_or(command);
    let name = name
        .as_deref()
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let label = name.unwrap_or(first).chars().take(MAX_NAME).collect();
    let request = CommandRequest {
        id: None,
        rejoin: false,
        argv: vec![shell().to_owned(), "-c".to_owned(), command.to_owned()],
        cwd: None,
        env: Vec::new(),
        stdin: None,
        terminal: None,
        detach: true,
        network: None,
        capabilities: Vec::new(),
        limits: CommandLimits::default(),
        label: Some(label),
    };
    let view = app.channel.start_command(&request).await?;
    Ok((StatusCode::CREATED, Json(Opened { id: view.id })).into_response())
}

/// Asks a service to end; one that does not can be killed.
#[utoipa::path(
    post, operation_id = "stopService", path = "/api/services/{id}/stop", tag = "services",
    params(("id" = String, Path, description = "The service")),
    responses((status = 204), (status = 404, body = super::ProblemSchema)),
)]
pub async fn stop(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<StatusCode, ApiError> {
    let service: CommandId = id(&text, "service")?;
    app.channel.end_command(service).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Kills a service and everything that it started.
#[utoipa::path(
    delete, operation_id = "killService", path = "/api/services/{id}", tag = "services",
    params(("id" = String, Path, description = "The service")),
    responses((status = 204), (status = 404, body = super::ProblemSchema)),
)]
pub async fn kill(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<StatusCode, ApiError> {
    let service: CommandId = id(&text, "service")?;
    app.channel.kill_command(service).await?;
    Ok(StatusCode::NO_CONTENT)
}

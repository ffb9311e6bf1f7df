//! Terminals: pseudo-terminals in runners that the hypervisor starts next to the sandbox
//! (arch §1). The guest runtime passes their bytes through.

use std::path::Path as FilePath;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use types::{
    CommandId, CommandLimits, CommandRequest, CommandState, CommandView, NetworkMode,
    TerminalControl, TerminalSize,
};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, JsonBody, Params, id};
use super::upgrade::{Socket, bounds, say_goodbye, upgrade};
use crate::app::App;
use crate::channel::TerminalSocket;
use crate::store::{NewEvent, StoreError};

/// Largest message in either direction; large pastes come as several.
const MAX_MESSAGE: usize = 256 * 1024;
/// Time between pings that keep the connection and find out about dead clients.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long one message may take to be taken by either side.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest terminal, in cells of one direction.
const MAX_CELLS: u16 = 1000;
/// Terminals are commands with this label.
const LABEL: &str = "terminal";

/// A terminal to open.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTerminal {
    /// Columns, 1 to 1000.
    pub cols: u16,
    /// Rows, 1 to 1000.
    pub rows: u16,
    /// What its programs may reach: none, allowlist or open; the installation's default
    /// when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub network: Option<NetworkMode>,
}

/// The id of what was opened.
#[derive(Debug, Serialize, ToSchema)]
pub struct Opened {
    /// The terminal's id.
    #[schema(value_type = String, format = "uuid")]
    pub id: CommandId,
}

/// How a terminal's program ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct TerminalExit {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    pub signal: Option<i32>,
    /// Why it could not be started, when it could not.
    pub error: Option<String>,
}

/// One terminal.
#[derive(Debug, Serialize, ToSchema)]
pub struct TerminalView {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: CommandId,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What it is, for people.
    pub label: Option<String>,
    /// Always true; commands share this shape.
    pub terminal: bool,
    /// Whether it outlives its caller.
    pub detach: bool,
    /// What its programs may reach: none, allowlist or open.
    #[schema(value_type = String)]
    pub network: NetworkMode,
    /// `running` or `exited`.
    #[schema(value_type = String)]
    pub state: CommandState,
    /// How it ended, once it has.
    pub exit: Option<TerminalExit>,
}

/// The terminals of a sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct Terminals {
    /// Running ones, and ended ones whose output is kept still.
    pub terminals: Vec<TerminalView>,
}

/// Where a terminal's output begins.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AttachQuery {
    /// The first byte wanted, counted from the command's first; the oldest kept when absent.
    pub from: Option<u64>,
}

impl From<CommandView> for TerminalView {
    fn from(view: CommandView) -> Self {
        let exit = view.exit.map(|exit| TerminalExit {
            code: exit.code,
            signal: exit.signal,
            error: exit.error,
        });
        Self {
            id: view.id,
            argv: view.argv,
            label: view.label,
            terminal: view.terminal,
            detach: view.detach,
            network: view.network,
            state: view.state,
            exit,
        }
    }
}

/// Opens a terminal with a login shell.
#[utoipa::path(
    post, operation_id = "openTerminal", path = "/api/terminals", tag = "terminals", request_body = NewTerminal,
    responses((status = 201, body = Opened), (status = 502, body = super::ProblemSchema)),
)]
pub async fn open(
    State(app): State<App>,
    JsonBody(NewTerminal {
        cols,
        rows,
        network,
    }): JsonBody<NewTerminal>,
) -> Result<Response, ApiError> {
    if !(1..=MAX_CELLS).contains(&cols) || !(1..=MAX_CELLS).contains(&rows) {
        return Err(ApiError::bad_request(
            "a terminal has 1 to 1000 columns and rows",
        ));
    }
    let command = CommandRequest {
        id: None,
        rejoin: false,
        argv: vec![shell().to_owned(), "-l".to_owned()],
        cwd: None,
        env: Vec::new(),
        stdin: None,
        terminal: Some(TerminalSize { cols, rows }),
        detach: true,
        capabilities: vec!["provider:call".to_owned()],
        network,
        limits: CommandLimits::default(),
        label: Some(LABEL.to_owned()),
    };
    let view = app.channel.start_command(&command).await?;
    app.store
        .append(NewEvent::new("terminal.opened", json!({"id": view.id})))
        .await?;
    app.terminals().insert(view.id);
    Ok((StatusCode::CREATED, Json(Opened { id: view.id })).into_response())
}

/// The shell of the sandbox; its programs are those of the runner as well.
pub(crate) fn shell() -> &'static str {
    const BASH: &str = "/bin/bash";
    if FilePath::new(BASH).exists() {
        BASH
    } else {
        "/bin/sh"
    }
}

/// The sandbox's terminals.
#[utoipa::path(get, operation_id = "listTerminals", path = "/api/terminals", tag = "terminals", responses((status = 200, body = Terminals)))]
pub async fn list(State(app): State<App>) -> Result<Json<Terminals>, ApiError> {
    let commands = app.channel.commands().await?;
    let terminals = commands
        .into_iter()
        .filter(|view| view.terminal)
        .map(Into::into)
        .collect();
    Ok(Json(Terminals { terminals }))
}

/// Ends a terminal and everything that runs in it.
#[utoipa::path(
    delete, operation_id = "closeTerminal", path = "/api/terminals/{id}", tag = "terminals",
    params(("id" = String, Path, description = "The terminal")),
    responses((status = 204), (status = 404, body = super::ProblemSchema)),
)]
pub async fn close(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<StatusCode, ApiError> {
    let terminal: CommandId = id(&text, "terminal")?;
    app.channel.kill_command(terminal).await?;
    closed(&app, terminal).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A terminal's bytes, a WebSocket: binary messages carry them in both directions, text
/// messages are `TerminalControl`.
#[utoipa::path(
    get, operation_id = "connectTerminal", path = "/ws/terminal/{id}", tag = "terminals",
    params(("id" = String, Path, description = "The terminal"), AttachQuery),
    responses((status = 101, description = "WebSocket"), (status = 404, body = super::ProblemSchema)),
)]
pub async fn connect(
    State(app): State<App>,
    Path(text): Path<String>,
    Params(query): Params<AttachQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let terminal: CommandId = id(&text, "terminal")?;
    // Attached first, so that a terminal that is not there is a 404 and no closed socket.
    let upstream = app
        .channel
        .attach(terminal, query.from, bounds(MAX_MESSAGE))
        .await?;
    let places = app.websockets.clone();
    upgrade(
        request,
        &places,
        bounds(MAX_MESSAGE),
        move |client| async move {
            bridge(&app, terminal, client, upstream).await;
        },
    )
}

/// Passes messages on until either side ends. One message is under way in each direction
/// at most, so a slow reader slows the writer down.
async fn bridge(app: &App, terminal: CommandId, client: Socket, upstream: TerminalSocket) {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_upstream, mut from_upstream) = upstream.split();
    let output = async {
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut exited = false;
        loop {
            let message = tokio::select! {
                message = from_upstream.next() => match message {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(frame))) => {
                        return (exited, frame.map_or(CloseCode::Normal, |frame| frame.code));
                    }
                    Some(Ok(message)) => message,
                    Some(Err(_)) | None => return (exited, CloseCode::Away),
                },
                _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
            };
            exited |= ends(&message);
            let sent = timeout(SEND_TIMEOUT, to_client.send(message)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return (exited, CloseCode::Away);
            }
        }
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            if matches!(message, Message::Ping(_) | Message::Pong(_)) {
                continue;
            }
            let closes = message.is_close();
            match timeout(SEND_TIMEOUT, to_upstream.send(message)).await {
                Ok(Ok(())) if !closes => {}
                // The terminal is gone; the other direction says how it ended.
                Ok(Err(_)) if !closes => return std::future::pending().await,
                _ => break,
            }
        }
        (false, CloseCode::Normal)
    };
    let (exited, code) = tokio::select! {
        () = app.cancelled.cancelled() => (false, CloseCode::Away),
        ended = output => ended,
        ended = input => ended,
    };
    if exited && let Err(error) = closed(app, terminal).await {
        tracing::warn!(%error, "the end of a terminal was not recorded");
    }
    if let Ok(mut client) = to_client.reunite(from_client) {
        say_goodbye(&mut client, code, "").await;
    }
}

/// Records the end of a terminal, once however many watch it.
async fn closed(app: &App, terminal: CommandId) -> Result<(), StoreError> {
    if !app.terminals().remove(&terminal) {
        return Ok(());
    }
    let event = NewEvent::new("terminal.closed", json!({"id": terminal}));
    app.store.append(event).await.map(drop)
}

fn ends(message: &Message) -> bool {
    matches!(message, Message::Text(text)
        if matches!(serde_json::from_str(text), Ok(TerminalControl::Exited(_))))
}

//! `/ws`: the live relay of the event store. It resumes from the client's cursor and
//! neither skips nor invents.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use types::RunId;
use utoipa::ToSchema;

use super::problem::ApiError;
use super::upgrade::{Socket, bounds, say_goodbye, upgrade};
use crate::app::App;
use crate::store::{Delivery, Event, Fragment};

/// Largest message of a client: it only says hello.
const MAX_MESSAGE: usize = 4 * 1024;
/// How long a client may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between pings.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client that answered no ping for this long is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// How long one message may take to be taken by the client's side.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client sends: this, once, first.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Begin after this position; 0 for everything.
    Hello {
        /// The last position that the client has.
        since_seq: i64,
    },
}

/// What the server sends.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The next event.
    Event {
        /// The event.
        event: Event,
    },
    /// Everything up to this position was sent; what follows is live. A position before
    /// the client's own says that this is another store: begin again.
    CaughtUp {
        /// The position.
        seq: i64,
    },
    /// A piece of assistant text; the `run.text` event that follows has the whole.
    Delta {
        /// The run.
        #[schema(value_type = String, format = "uuid")]
        run_id: RunId,
        /// The next characters.
        text: String,
    },
    /// A piece of a running command's output; the `run.tool_result` event that follows
    /// has what is kept of it.
    Output {
        /// The run.
        #[schema(value_type = String, format = "uuid")]
        run_id: RunId,
        /// The tool call.
        call_id: String,
        /// The next characters.
        text: String,
    },
}

impl From<Delivery> for ServerMessage {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Event(event) => Self::Event {
                event: (*event).clone(),
            },
            Delivery::CaughtUp(seq) => Self::CaughtUp { seq },
            Delivery::Fragment(fragment) => match (*fragment).clone() {
                Fragment::Text { run_id, text } => Self::Delta { run_id, text },
                Fragment::Output {
                    run_id,
                    call_id,
                    text,
                } => Self::Output {
                    run_id,
                    call_id,
                    text,
                },
            },
        }
    }
}

/// The live relay, a WebSocket: `ClientMessage` in, `ServerMessage` out.
#[utoipa::path(get, operation_id = "connectLive", path = "/ws", tag = "events", responses((status = 101, description = "WebSocket")))]
pub async fn connect(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let places = app.websockets.clone();
    upgrade(request, &places, bounds(MAX_MESSAGE), move |socket| {
        serve(app, socket)
    })
}

async fn serve(app: App, mut socket: Socket) {
    let (code, reason) = relay(&app, &mut socket).await;
    say_goodbye(&mut socket, code, reason).await;
}

async fn relay(app: &App, socket: &mut Socket) -> (CloseCode, &'static str) {
    let Ok(Some(since_seq)) = timeout(HELLO_TIMEOUT, hello(socket)).await else {
        return (
            CloseCode::Policy,
            "expected {\"type\":\"hello\",\"since_seq\":N}",
        );
    };
    let Ok(mut subscription) = app.store.subscribe(since_seq).await else {
        return (CloseCode::Error, "the event store cannot be read");
    };
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            () = app.cancelled.cancelled() => return (CloseCode::Away, "the sandbox is stopping"),
            delivery = subscription.next() => match delivery {
                Ok(Some(delivery)) => match serde_json::to_string(&ServerMessage::from(delivery)) {
                    Ok(text) => Message::text(text),
                    Err(_) => return (CloseCode::Error, "an event cannot be sent"),
                },
                Ok(None) => return (CloseCode::Away, "the sandbox is stopping"),
                Err(error) => {
                    tracing::error!(%error, "the live relay failed");
                    return (CloseCode::Error, "the event store cannot be read");
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Close(_))) | None => return (CloseCode::Normal, ""),
                Some(Ok(_)) => {
                    heard = Instant::now();
                    continue;
                }
                Some(Err(_)) => return (CloseCode::Protocol, "that was not understood"),
            },
            _ = pings.tick() => {
                if heard.elapsed() > SILENCE {
                    return (CloseCode::Away, "no ping was answered");
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        // A client that does not read is cut off; it resumes from its cursor.
        match timeout(SEND_TIMEOUT, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return (CloseCode::Away, "too slow"),
        }
    }
}

async fn hello(socket: &mut Socket) -> Option<i64> {
    loop {
        match socket.next().await? {
            Ok(Message::Text(text)) => {
                let ClientMessage::Hello { since_seq } = serde_json::from_str(&text).ok()?;
                return Some(since_seq);
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

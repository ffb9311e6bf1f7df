//! Whether a sandbox answers: the fleet asks for its first health, a swap asks more.

use std::time::Duration;

use gateway::{
    ForwardError, Forwarder, HeaderRules, RequestBody, Scheme, ServiceWorkers, Upstream,
};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// How long each question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A root page larger than this is not read to its end.
const MAX_PAGE: usize = 4 << 20;

/// A health document has a few fields.
const MAX_HEALTH: usize = 64 << 10;

/// Why a sandbox is not healthy, in a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unhealthy {
    /// It does not run.
    #[error("it does not run")]
    NotRunning,
    /// No answer in time.
    #[error("{what} was not answered within {} s", ANSWER_WITHIN.as_secs())]
    Timeout { what: &'static str },
    /// It could not be asked.
    #[error("{what} could not be asked: {why}")]
    Unreachable { what: &'static str, why: String },
    /// It answered with something else than 200.
    #[error("{what} was answered with {status}")]
    Status {
        what: &'static str,
        status: StatusCode,
    },
    /// The handshake was refused.
    #[error("the WebSocket handshake on /ws failed: {0}")]
    WebSocket(String),
}

/// Asks `/health`, once.
pub(crate) async fn health(forwarder: &Forwarder, upstream: &Upstream) -> Result<(), Unhealthy> {
    get(forwarder, upstream, "/health", MAX_HEALTH).await
}

/// What a target of a swap has to prove: its root page and a WebSocket handshake (arch §4).
/// That its process runs is known to whoever has its upstream.
pub(crate) async fn ready_for_swap(
    forwarder: &Forwarder,
    upstream: &Upstream,
    socket: &gateway::AppSocket,
) -> Result<(), Unhealthy> {
    health(forwarder, upstream).await?;
    get(forwarder, upstream, "/", MAX_PAGE).await?;
    websocket(socket).await
}

async fn get(
    forwarder: &Forwarder,
    upstream: &Upstream,
    what: &'static str,
    most: usize,
) -> Result<(), Unhealthy> {
    let asked = async {
        let request = Request::get(what)
            .body(RequestBody::empty())
            .map_err(|error| Unhealthy::Unreachable {
                what,
                why: error.to_string(),
            })?;
        let response = forwarder
            .forward(request, upstream, &rules())
            .await
            .map_err(|error| Unhealthy::Unreachable {
                what,
                why: chain(&error),
            })?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Unhealthy::Status { what, status });
        }
        Limited::new(response.into_body(), most)
            .collect()
            .await
            .map_err(|error| Unhealthy::Unreachable {
                what,
                why: error.to_string(),
            })?;
        Ok(())
    };
    tokio::time::timeout(ANSWER_WITHIN, asked)
        .await
        .unwrap_or(Err(Unhealthy::Timeout { what }))
}

/// A handshake of our own on a connection of its own, closed again at once.
async fn websocket(socket: &gateway::AppSocket) -> Result<(), Unhealthy> {
    let handshake = async {
        let stream = socket
            .connect(ANSWER_WITHIN)
            .await
            .map_err(|error| Unhealthy::WebSocket(error.to_string()))?;
        let request = "ws://localhost/ws"
            .into_client_request()
            .map_err(|error| Unhealthy::WebSocket(error.to_string()))?;
        let (mut websocket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .map_err(|error| Unhealthy::WebSocket(error.to_string()))?;
        // Politeness only: the handshake has proved what it had to.
        let _ = websocket.close(None).await;
        Ok(())
    };
    tokio::time::timeout(ANSWER_WITHIN, handshake)
        .await
        .unwrap_or(Err(Unhealthy::Timeout {
            what: "the WebSocket handshake on /ws",
        }))
}

fn rules() -> HeaderRules {
    HeaderRules {
        scheme: Scheme::Http,
        host: HeaderValue::from_static("localhost"),
        client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        prefix: None,
        set: Vec::new(),
        service_workers: ServiceWorkers::Refuse,
        counts_as_activity: false,
    }
}

fn chain(error: &ForwardError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

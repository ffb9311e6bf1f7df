//! Whether a sandbox answers: the fleet asks for its first health, a swap asks more.
//!
//! Every answer comes from a guest that is not trusted: each question has a deadline of its
//! own and all of them together have one, and no answer is read beyond its bound.

use std::fmt;
use std::time::{Duration, Instant};

use gateway::{
    ForwardError, Forwarder, HeaderRules, RequestBody, Scheme, ServiceWorkers, Upstream,
};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// How long each question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long all questions of a swap may take together.
const PROVED_WITHIN: Duration = Duration::from_secs(10);

/// A root page larger than this is not read to its end.
const MAX_PAGE: usize = 4 << 20;

/// A health document has a few fields.
const MAX_HEALTH: usize = 64 << 10;

/// Where the WebSocket of a guest is whose health document does not say (ADR 0014).
const WEBSOCKET: &str = "/ws";

/// Longest path of a WebSocket that a health document may name.
const MAX_SOCKET_PATH: usize = 256;

/// What a target of a swap has to prove, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its process runs, and is the one that was asked before.
    Process,
    /// `/health` is answered.
    Health,
    /// The root page is answered, whole.
    Page,
    /// A WebSocket can be opened at this path.
    WebSocket(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("its process"),
            Self::Health => f.write_str("GET /health"),
            Self::Page => f.write_str("the root page, GET /,"),
            Self::WebSocket(path) => write!(f, "the WebSocket handshake on {path}"),
        }
    }
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process does not run.
    NotRunning,
    /// Another start runs than the one that was asked before.
    Restarted,
    /// No whole answer in time.
    Timeout,
    /// Another status than the one of success.
    Status(StatusCode),
    /// The answer is longer than its bound in bytes.
    TooLong(usize),
    /// The health document names a path that is none.
    BadPath,
    /// It could not be asked, or broke off.
    Broken(String),
}

/// Why a sandbox is not healthy, in a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub(crate) struct Unhealthy {
    /// Which step failed.
    pub(crate) step: Step,
    /// How.
    pub(crate) fault: Fault,
    /// How long that step took.
    pub(crate) took: Duration,
    /// The last line of the guest's log, when it could be had.
    pub(crate) last_log: Option<String>,
}

impl Unhealthy {
    /// A failed look at the process.
    pub(crate) const fn process(fault: Fault) -> Self {
        Self {
            step: Step::Process,
            fault,
            took: Duration::ZERO,
            last_log: None,
        }
    }

    /// The same with the last line of the guest's log.
    pub(crate) fn with_last_log(mut self, line: Option<String>) -> Self {
        self.last_log = line;
        self
    }

    fn sentence(&self) -> String {
        let step = &self.step;
        let took = self.took.as_millis();
        let mut text = match &self.fault {
            Fault::NotRunning => "it does not run".to_owned(),
            Fault::Restarted => "it was started anew while it was being examined".to_owned(),
            Fault::Timeout => format!("{step} was not answered to the end within {took} ms"),
            Fault::Status(status) => format!("{step} was answered with {status} after {took} ms"),
            Fault::TooLong(most) => {
                format!("{step} was answered with more than {most} bytes ({took} ms)")
            }
            Fault::BadPath => "its health document names a `websocket` that is no path".to_owned(),
            Fault::Broken(why) => format!("{step} failed after {took} ms: {why}"),
        };
        if let Some(line) = &self.last_log {
            text.push_str("; its last log line: ");
            text.push_str(line);
        }
        text
    }
}

/// Asks `/health`, once.
pub(crate) async fn health(forwarder: &Forwarder, upstream: &Upstream) -> Result<(), Unhealthy> {
    let whole = PROVED_WITHIN;
    get(forwarder, upstream, Step::Health, MAX_HEALTH, whole).await?;
    Ok(())
}

/// What a target of a swap has to prove: health, its root page and, unless its health
/// document says that it has none, a WebSocket handshake (arch §4). That its process runs is
/// known to whoever has its upstream.
pub(crate) async fn ready_for_swap(
    forwarder: &Forwarder,
    upstream: &Upstream,
    socket: &gateway::AppSocket,
) -> Result<(), Unhealthy> {
    let began = Instant::now();
    let left = || PROVED_WITHIN.saturating_sub(began.elapsed());
    let document = get(forwarder, upstream, Step::Health, MAX_HEALTH, left()).await?;
    get(forwarder, upstream, Step::Page, MAX_PAGE, left()).await?;
    match socket_path(&document) {
        Ok(Some(path)) => websocket(socket, path, left()).await,
        Ok(None) => Ok(()),
        Err(fault) => Err(Unhealthy {
            step: Step::Health,
            fault,
            took: began.elapsed(),
            last_log: None,
        }),
    }
}

/// Where the guest's WebSocket is: what the key `websocket` of its health document says,
/// `/ws` when it says nothing, nowhere when that is `null`.
fn socket_path(document: &[u8]) -> Result<Option<String>, Fault> {
    let document = serde_json::from_slice(document).unwrap_or(serde_json::Value::Null);
    match document.get("websocket") {
        None => Ok(Some(WEBSOCKET.to_owned())),
        Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(path))
            if path.starts_with('/')
                && !path.starts_with("//")
                && path.len() <= MAX_SOCKET_PATH
                && path
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'#') =>
        {
            Ok(Some(path.clone()))
        }
        Some(_) => Err(Fault::BadPath),
    }
}

async fn get(
    forwarder: &Forwarder,
    upstream: &Upstream,
    step: Step,
    most: usize,
    left: Duration,
) -> Result<Vec<u8>, Unhealthy> {
    let path = if step == Step::Page { "/" } else { "/health" };
    let asked = async {
        let request = Request::get(path)
            .body(RequestBody::empty())
            .map_err(|error| Fault::Broken(error.to_string()))?;
        let response = forwarder
            .forward(request, upstream, &rules())
            .await
            .map_err(|error| Fault::Broken(chain(&error)))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Fault::Status(status));
        }
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => Fault::TooLong(most),
            Err(error) => Fault::Broken(error.to_string()),
        })?;
        Ok(body.to_bytes().to_vec())
    };
    timed(step, left, asked).await
}

/// A handshake of our own on a connection of its own, closed again at once.
async fn websocket(
    socket: &gateway::AppSocket,
    path: String,
    left: Duration,
) -> Result<(), Unhealthy> {
    let url = format!("ws://localhost{path}");
    let handshake = async {
        let broken = |error: &dyn std::error::Error| Fault::Broken(error.to_string());
        let stream = socket
            .connect(ANSWER_WITHIN)
            .await
            .map_err(|error| broken(&error))?;
        let request = url.into_client_request().map_err(|error| broken(&error))?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((mut websocket, _)) => {
                // Politeness only: the handshake has proved what it had to.
                let _ = websocket.close(None).await;
                Ok(())
            }
            Err(tungstenite::Error::Http(answer)) => Err(Fault::Status(answer.status())),
            Err(error) => Err(broken(&error)),
        }
    };
    timed(Step::WebSocket(path), left, handshake).await
}

/// Runs one step within its deadline and within what is left of the whole.
async fn timed<T>(
    step: Step,
    left: Duration,
    asked: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Unhealthy> {
    let began = Instant::now();
    tokio::time::timeout(left.min(ANSWER_WITHIN), asked)
        .await
        .unwrap_or(Err(Fault::Timeout))
        .map_err(|fault| Unhealthy {
            step,
            fault,
            took: began.elapsed(),
            last_log: None,
        })
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

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;

//! The sandbox's side of the channel to the hypervisor (arch §1): HTTP/1.1 over the Unix
//! socket that the host put into `/run/choir/channel`.
//!
//! Every request has a connection of its own: they cost little on a Unix socket, and
//! dropping a response then always tells the other side that nobody listens any more.

mod commands;
mod renewal;
mod terminal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use types::Problem;

pub use renewal::{RENEW_EVERY, keep_token};
pub use terminal::TerminalSocket;

/// How long connecting to the socket may take; the listener is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an ordinary request may take to be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest JSON answer that is read.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Why the channel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody listens.
    #[error("the hypervisor cannot be reached over the channel")]
    Connect(#[source] std::io::Error),
    /// The connection broke or did not speak HTTP.
    #[error("the channel to the hypervisor broke")]
    Transport(#[source] hyper::Error),
    /// It took too long.
    #[error("the hypervisor did not answer within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// The hypervisor refused.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// It answered something that is not what was asked for.
    #[error("the hypervisor's answer is not understood: {0}")]
    Answer(String),
    /// The request could not be built, which a value of the caller's causes.
    #[error("the request is not valid")]
    Request(#[source] http::Error),
}

impl ChannelError {
    /// Whether nobody answered: the hypervisor is away, and comes back by itself.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Connect(_) | Self::Transport(_) | Self::Timeout(_)
        )
    }

    /// The status of a refusal.
    #[must_use]
    pub const fn refusal(&self) -> Option<u16> {
        match self {
            Self::Refused(problem) => Some(problem.status),
            _ => None,
        }
    }
}

/// A client of the channel; clones are cheap.
#[derive(Debug, Clone)]
pub struct Channel {
    socket: PathBuf,
    authorization: HeaderValue,
    provider_path: String,
}

impl Channel {
    /// A client that sends `token` with each request. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path, token: &SecretString, provider_path: &str) -> Self {
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        authorization.set_sensitive(true);
        Self {
            socket: socket.to_owned(),
            authorization,
            provider_path: provider_path.to_owned(),
        }
    }

    /// The models that the gateway offers.
    ///
    /// # Errors
    /// When the channel fails or refuses.
    pub async fn providers(&self) -> Result<crate::agent::Providers, ChannelError> {
        self.json(Method::GET, &self.provider_path, None).await
    }

    /// Sends JSON to a provider, with further headers; the answer's body streams.
    ///
    /// # Errors
    /// When the connection fails or no answer begins within `timeout`. A refusal is an
    /// answer here, because its status and headers decide about another try.
    pub async fn provider(
        &self,
        provider: &str,
        rest: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Response<Incoming>, ChannelError> {
        let path = format!("{}/{provider}/{rest}", self.provider_path);
        let mut request = self.request(Method::POST, &path, Some(body))?;
        request.headers_mut().extend(headers);
        self.send(request, timeout).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        json: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ChannelError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "choir")
            .header(AUTHORIZATION, self.authorization.clone());
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(json.unwrap_or_default()))
            .map_err(ChannelError::Request)
    }

    async fn connect(&self) -> Result<UnixStream, ChannelError> {
        tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| ChannelError::Timeout(CONNECT_TIMEOUT))?
            .map_err(ChannelError::Connect)
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, ChannelError> {
        let stream = self.connect().await?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            // Ends by itself once the response's body was read or dropped.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a channel connection ended early");
                }
            });
            sender.send_request(request).await
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| ChannelError::Timeout(timeout))?
            .map_err(ChannelError::Transport)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, ChannelError> {
        let response = self
            .send(self.request(method, path, body)?, ANSWER_TIMEOUT)
            .await?;
        let response = accepted(response).await?;
        let bytes = read(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|error| ChannelError::Answer(error.to_string()))
    }
}

/// Turns an answer that is no success into an error.
async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, ChannelError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = read(response.into_body()).await.unwrap_or_default();
    Err(ChannelError::Refused(Box::new(problem(status, &bytes))))
}

fn problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        code: types::ErrorCode::BadGateway,
        detail: format!("the hypervisor answered with status {status}"),
        hint: None,
        request_id: None,
    })
}

async fn read(body: Incoming) -> Result<Bytes, ChannelError> {
    let collected = tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(body, MAX_ANSWER).collect())
        .await
        .map_err(|_| ChannelError::Timeout(ANSWER_TIMEOUT))?;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| ChannelError::Answer(error.to_string()))
}

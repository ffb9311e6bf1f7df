//! Talking to the control plane: bearer token, never a cookie; every answer bounded.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crypto::Token;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    AUTHORIZATION, CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Upgraded, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use types::Problem;

use crate::Error;
use crate::server::{Server, is_localhost};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an ordinary answer may take; starting a sandbox and a swap are the slowest.
const ANSWER: Duration = Duration::from_secs(180);
/// Largest answer that is read as a whole.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Longest line of a stream of lines: a piece of output in base64, or an audit record.
const MAX_LINE: usize = 1024 * 1024;

/// Longest message of a terminal's output.
const MAX_MESSAGE: usize = 1024 * 1024;

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Upgraded>;

/// A client of one control plane.
pub(crate) struct Client {
    server: Server,
    http: reqwest::Client,
    bearer: Option<HeaderValue>,
}

impl Client {
    /// A client with or without a token.
    pub(crate) fn new(server: Server, token: Option<&Token>) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("choir/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            // A terminal's WebSocket begins as an upgrade, which HTTP/1.1 has.
            .http1_only()
            .dns_resolver(Arc::new(Resolver));
        if server.is_loopback() {
            // A proxy would look for the control plane on its own machine.
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| Error::Client(Box::new(error)))?;
        let bearer = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                    .map_err(|error| Error::Client(Box::new(error)))?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        Ok(Self {
            server,
            http,
            bearer,
        })
    }

    pub(crate) const fn server(&self) -> &Server {
        &self.server
    }

    /// Asks for a JSON document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let request = self.request(Method::GET, path).timeout(ANSWER);
        self.json(self.send(request).await?).await
    }

    /// Sends a JSON document and reads one.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let request = self.request(Method::POST, path).json(body).timeout(ANSWER);
        self.json(self.send(request).await?).await
    }

    /// Sends a JSON document and reads nothing.
    pub(crate) async fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let request = self.request(Method::POST, path).json(body).timeout(ANSWER);
        self.send(request).await.map(drop)
    }

    /// Sends a JSON document that changes something, and reads it back.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let request = self.request(Method::PATCH, path).json(body).timeout(ANSWER);
        self.json(self.send(request).await?).await
    }

    /// Deletes something.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), Error> {
        let request = self.request(Method::DELETE, path).timeout(ANSWER);
        self.send(request).await.map(drop)
    }

    /// Asks for an answer without end.
    pub(crate) async fn stream(&self, path: &str) -> Result<Stream<'_>, Error> {
        let response = self.send(self.request(Method::GET, path)).await?;
        Ok(Stream {
            client: self,
            response,
            buffer: Vec::new(),
            ended: false,
        })
    }

    /// Sends a JSON document and gets an answer without end.
    pub(crate) async fn post_stream(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Stream<'_>, Error> {
        let response = self
            .send(self.request(Method::POST, path).json(body))
            .await?;
        Ok(Stream {
            client: self,
            response,
            buffer: Vec::new(),
            ended: false,
        })
    }

    /// Opens a WebSocket (RFC 6455).
    pub(crate) async fn websocket(&self, path: &str) -> Result<Socket, Error> {
        let key = generate_key();
        let request = self
            .request(Method::GET, path)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = self.send(request).await?;
        let accepted = response
            .headers()
            .get(SEC_WEBSOCKET_ACCEPT)
            .map(HeaderValue::as_bytes);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(self.unexpected("no WebSocket where one was asked for".to_owned()));
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|error| self.failed(error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.server.at(path));
        match &self.bearer {
            Some(bearer) => request.header(AUTHORIZATION, bearer.clone()),
            None => request,
        }
    }

    /// Sends, and turns every answer that is no success into an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.failed(error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        if status.is_redirection() {
            return Err(self.unexpected(format!("a redirection ({status})")));
        }
        let body = self.read(response).await?;
        let problem = serde_json::from_slice::<Problem>(&body);
        match problem {
            _ if status == StatusCode::UNAUTHORIZED && self.bearer.is_some() => {
                Err(Error::TokenRefused(self.server.clone()))
            }
            _ if status == StatusCode::UNAUTHORIZED => Err(Error::SignedOut(self.server.clone())),
            Ok(problem) => Err(Error::Refused(Box::new(problem))),
            Err(_) => Err(self.unexpected(format!("status {status} without a reason"))),
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let body = self.read(response).await?;
        self.parse(&body)
    }

    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|error| self.unexpected(error.to_string()))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.unexpected("it is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failed(&self, error: reqwest::Error) -> Error {
        let server = self.server.clone();
        // The address stands in our own message already.
        let unreachable = error.is_connect();
        let source = Box::new(error.without_url());
        if unreachable {
            Error::Unreachable { server, source }
        } else {
            Error::Interrupted { server, source }
        }
    }

    pub(crate) fn unexpected(&self, what: String) -> Error {
        Error::Unexpected {
            server: self.server.clone(),
            what,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// An answer that comes piece by piece.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    client: &'a Client,
    response: Response,
    buffer: Vec<u8>,
    ended: bool,
}

impl Stream<'_> {
    /// The next piece as it comes; `None` at the end. May be dropped while it waits.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let chunk = self
            .response
            .chunk()
            .await
            .map_err(|error| self.client.failed(error))?;
        Ok(chunk.map(|chunk| chunk.to_vec()))
    }

    /// The next line, as JSON; `None` at the end. May be dropped while it waits: nothing is lost.
    pub(crate) async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            let line = match self.buffer.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let rest = self.buffer.split_off(end + 1);
                    std::mem::replace(&mut self.buffer, rest)
                }
                None if self.ended => std::mem::take(&mut self.buffer),
                None => {
                    if self.buffer.len() > MAX_LINE {
                        return Err(self.client.unexpected("a line is too long".to_owned()));
                    }
                    match self.chunk().await? {
                        Some(chunk) => self.buffer.extend_from_slice(&chunk),
                        None => self.ended = true,
                    }
                    continue;
                }
            };
            let line = line.trim_ascii();
            if !line.is_empty() {
                return self.client.parse(line).map(Some);
            }
            if self.ended && self.buffer.is_empty() {
                return Ok(None);
            }
        }
    }
}

/// The system's resolver, but `localhost` and all below it without asking anybody (arch §2).
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            if is_localhost(&name) {
                let both = [
                    IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(Ipv6Addr::LOCALHOST),
                ];
                return Ok(Box::new(both.map(|ip| SocketAddr::new(ip, 0)).into_iter()) as Addrs);
            }
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

//! A small HTTP client that sends exactly what it is told, to any host name, over loopback.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;

use crate::wait::within;

/// Answers longer than this are cut off.
const MAX_ANSWER: usize = 64 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// It is none; the message shows the body.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {}", self.status, self.text()))
    }

    /// A header as text; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The stable code of a problem document; empty when it is none.
    #[must_use]
    pub fn code(&self) -> String {
        if self.header("content-type") != "application/problem+json" {
            return String::new();
        }
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Demands a status.
    ///
    /// # Panics
    /// It is another one; the message shows the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {:?}", self.text(), self.headers);
        self
    }
}

/// A client with a cookie jar per host, as a browser has.
#[derive(Debug)]
pub struct Client {
    port: u16,
    jar: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

/// A request being put together.
#[derive(Debug, Clone)]
pub struct Ask {
    method: String,
    host: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    with_cookies: bool,
}

impl Ask {
    /// A request for a target at a host (without the port).
    #[must_use]
    pub fn new(method: &str, host: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            host: host.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            with_cookies: true,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends JSON.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.header("content-type", "application/json")
    }

    /// Sends bytes.
    #[must_use]
    pub fn bytes(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Leaves the cookies at home.
    #[must_use]
    pub fn without_cookies(mut self) -> Self {
        self.with_cookies = false;
        self
    }

    /// With an API token.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.without_cookies()
            .header("authorization", &format!("Bearer {token}"))
    }

    /// A navigation, as a browser sends it.
    #[must_use]
    pub fn navigation(self) -> Self {
        self.header("accept", "text/html,application/xhtml+xml")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-dest", "document")
            .header("sec-fetch-site", "none")
    }

    /// A `fetch` by a page of the same origin.
    #[must_use]
    pub fn same_origin(self, origin: &str) -> Self {
        self.header("origin", origin)
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-mode", "cors")
            .header("sec-fetch-dest", "empty")
    }
}

impl Client {
    /// A client of the listener at this port, with empty jars.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self {
            port,
            jar: Mutex::default(),
        }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The cookies for a host, as a `Cookie` header has them.
    #[must_use]
    pub fn cookies(&self, host: &str) -> String {
        let jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs: Vec<String> = jar
            .get(host)
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        pairs.join("; ")
    }

    /// Puts a cookie into a host's jar.
    pub fn set_cookie(&self, host: &str, name: &str, value: &str) {
        let mut jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
        jar.entry(host.to_owned())
            .or_default()
            .insert(name.to_owned(), value.to_owned());
    }

    /// Sends a request on a connection of its own and reads the whole answer.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn send(&self, ask: Ask) -> Response {
        self.try_send(ask).await.expect("an answer")
    }

    /// The same to somebody who may die over it.
    ///
    /// # Errors
    /// There is no answer, or not a whole one.
    pub async fn try_send(&self, ask: Ask) -> Result<Response, String> {
        let what = format!("{} {} {}", ask.method, ask.host, ask.target);
        within(&what, self.exchange(ask)).await
    }

    /// The same for what takes longer than anything else may.
    ///
    /// # Panics
    /// There is no answer within that time.
    pub async fn send_within(&self, patience: Duration, ask: Ask) -> Response {
        let what = format!("{} {} {}", ask.method, ask.host, ask.target);
        tokio::time::timeout(patience, self.exchange(ask))
            .await
            .unwrap_or_else(|_| panic!("waited {patience:?} in vain for {what}"))
            .expect("an answer")
    }

    async fn exchange(&self, ask: Ask) -> Result<Response, String> {
        let lost = |error: &dyn std::error::Error| error.to_string();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .map_err(|error| lost(&error))?;
        stream.set_nodelay(true).map_err(|error| lost(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| lost(&error))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(ask.method.as_str())
            .uri(&ask.target)
            .header("host", format!("{}:{}", ask.host, self.port));
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let cookies = self.cookies(&ask.host);
        if ask.with_cookies && !cookies.is_empty() {
            request = request.header("cookie", cookies);
        }
        let request = request
            .body(Full::new(Bytes::from(ask.body)))
            .expect("a request that can be sent");
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(|error| lost(&error))?
            .into_parts();
        let body = http_body_util::Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        self.keep_cookies(&ask.host, &head.headers);
        Ok(Response {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    fn keep_cookies(&self, host: &str, headers: &http::HeaderMap) {
        for cookie in headers
            .get_all("set-cookie")
            .iter()
            .filter_map(|value| value.to_str().ok())
        {
            let Some((pair, attributes)) = cookie.split_once(';').or(Some((cookie, ""))) else {
                continue;
            };
            let Some((name, value)) = pair.split_once('=') else {
                continue;
            };
            let mut jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
            let of_host = jar.entry(host.to_owned()).or_default();
            if value.is_empty() || attributes.to_ascii_lowercase().contains("max-age=0") {
                of_host.remove(name.trim());
            } else {
                of_host.insert(name.trim().to_owned(), value.to_owned());
            }
        }
    }

    /// A bare connection.
    ///
    /// # Panics
    /// Nobody listens.
    pub async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream
    }

    /// Sends bytes as they are and returns the status of the answer, or 0 when the
    /// connection was closed without one.
    pub async fn send_raw(&self, bytes: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        within("an answer to raw bytes", async {
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let mut piece = [0; 4096];
            // Until the end of the head; the body does not matter here.
            while let Ok(read) = stream.read(&mut piece).await {
                if read == 0 {
                    break;
                }
                answer.extend(&piece[..read]);
                if answer.windows(4).any(|end| end == b"\r\n\r\n") {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = text
                .split_whitespace()
                .nth(1)
                .and_then(|code| code.parse().ok())
                .unwrap_or(0);
            (status, text)
        })
        .await
    }

    /// Opens a WebSocket, or returns the status that it was refused with.
    ///
    /// # Errors
    /// The status of the answer, when it is not 101.
    ///
    /// # Panics
    /// There is no answer at all.
    pub async fn websocket(
        &self,
        host: &str,
        target: &str,
        origin: Option<&str>,
    ) -> Result<WebSocketStream<TcpStream>, u16> {
        let opened = self.websocket_with_head(host, target, origin).await?;
        Ok(opened.0)
    }

    /// The same, with the headers of the answer.
    ///
    /// # Errors
    /// The status of the answer, when it is not 101.
    ///
    /// # Panics
    /// There is no answer at all.
    pub async fn websocket_with_head(
        &self,
        host: &str,
        target: &str,
        origin: Option<&str>,
    ) -> Result<(WebSocketStream<TcpStream>, http::HeaderMap), u16> {
        let mut request = Request::builder()
            .uri(format!("ws://{host}:{}{target}", self.port))
            .header("host", format!("{host}:{}", self.port))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header(
                "sec-websocket-key",
                tungstenite::handshake::client::generate_key(),
            );
        let cookies = self.cookies(host);
        if !cookies.is_empty() {
            request = request.header("cookie", cookies);
        }
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let request = request.body(()).expect("a request");
        let stream = self.connect().await;
        match within(target, tokio_tungstenite::client_async(request, stream)).await {
            Ok((socket, answer)) => Ok((socket, answer.headers().clone())),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("no answer to a WebSocket handshake: {error}"),
        }
    }
}

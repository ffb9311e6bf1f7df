//! The small control plane: answers as it was told, and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    UPGRADE,
};
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::fresh_token;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) line: String,
    pub(super) bearer: Option<String>,
    pub(super) body: Value,
}

enum Answer {
    Json(StatusCode, Value),
    Text(String),
    Stream(mpsc::Receiver<Bytes>),
    Socket(oneshot::Sender<ServerSocket>),
}

/// The control plane's end of a WebSocket.
pub(super) type ServerSocket = WebSocketStream<TokioIo<Upgraded>>;

struct State {
    token: String,
    /// Answers by method and path with query; the last one of each stays.
    answers: Mutex<HashMap<String, Vec<Answer>>>,
    asked: Mutex<Vec<Asked>>,
    news: mpsc::UnboundedSender<Asked>,
}

/// A control plane on a free port.
pub(super) struct Plane {
    port: u16,
    state: Arc<State>,
    /// Each request, once it has come.
    pub(super) arrivals: mpsc::UnboundedReceiver<Asked>,
}

impl Plane {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (news, arrivals) = mpsc::unbounded_channel();
        let state = Arc::new(State {
            token: fresh_token(),
            answers: Mutex::default(),
            asked: Mutex::default(),
            news,
        });
        let plane = Self {
            port,
            state: Arc::clone(&state),
            arrivals,
        };
        plane.answer(
            "GET /auth/me",
            json!({
                "id": "018f0000-0000-7000-8000-000000000001", "name": "alice", "is_admin": true,
                "via": "token", "token_id": "018f0000-0000-7000-8000-0000000000aa",
                "live_url": "http://alice.localhost/", "dev_url": "http://dev--alice.localhost/",
            }),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        plane
    }

    /// `localhost`, so that every test also proves that it is found without a resolver.
    pub(super) fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    pub(super) fn token(&self) -> &str {
        &self.state.token
    }

    fn put(&self, line: &str, answer: Answer) {
        self.state
            .answers
            .lock()
            .unwrap()
            .entry(line.to_owned())
            .or_default()
            .push(answer);
    }

    /// The answer to the next request like this, and to all after it until another is given.
    pub(super) fn answer(&self, line: &str, body: Value) {
        self.put(line, Answer::Json(StatusCode::OK, body));
    }

    pub(super) fn refuse(&self, line: &str, status: StatusCode, body: Value) {
        self.put(line, Answer::Json(status, body));
    }

    pub(super) fn answer_text(&self, line: &str, text: &str) {
        self.put(line, Answer::Text(text.to_owned()));
    }

    /// An answer that comes as it is sent, and ends when the sender is dropped.
    pub(super) fn answer_stream(&self, line: &str) -> mpsc::Sender<Bytes> {
        let (sender, receiver) = mpsc::channel(16);
        self.put(line, Answer::Stream(receiver));
        sender
    }

    /// Takes a WebSocket when it is asked for one.
    pub(super) fn answer_socket(&self, line: &str) -> oneshot::Receiver<ServerSocket> {
        let (sender, receiver) = oneshot::channel();
        self.put(line, Answer::Socket(sender));
        receiver
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(super) fn last(&self) -> Asked {
        self.asked().pop().unwrap()
    }
}

pub(super) fn problem(status: u16, code: &str, detail: &str) -> Value {
    json!({"type": "about:blank", "title": "", "status": status, "code": code, "detail": detail})
}

async fn answer(
    state: Arc<State>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(header(COOKIE), None, "a token comes without any cookie");
    let bearer = header(AUTHORIZATION).map(|value| {
        value
            .strip_prefix("Bearer ")
            .expect("a bearer token")
            .to_owned()
    });
    let key = header(SEC_WEBSOCKET_KEY).unwrap_or_default();
    let upgrade = upgrade::on(&mut request);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let asked = Asked {
        line: line.clone(),
        bearer: bearer.clone(),
        body,
    };
    state.asked.lock().unwrap().push(asked.clone());
    let _ = state.news.send(asked);
    let free = line.starts_with("POST /auth/cli/");
    if !free && bearer.as_deref() != Some(&state.token) {
        let body = problem(401, "unauthenticated", "nobody is signed in");
        return Ok(respond(
            Answer::Json(StatusCode::UNAUTHORIZED, body),
            upgrade,
            &key,
        ));
    }
    let found = {
        let mut answers = state.answers.lock().unwrap();
        match answers.get_mut(&line).map(|of| (of.len(), of)) {
            None | Some((0, _)) => None,
            Some((1, of)) => match &of[0] {
                Answer::Json(status, body) => Some(Answer::Json(*status, body.clone())),
                Answer::Text(text) => Some(Answer::Text(text.clone())),
                Answer::Stream(_) | Answer::Socket(_) => of.pop(),
            },
            Some((_, of)) => Some(of.remove(0)),
        }
    };
    let missing = || Answer::Json(StatusCode::NOT_FOUND, problem(404, "not_found", &line));
    Ok(respond(found.unwrap_or_else(missing), upgrade, &key))
}

fn respond(answer: Answer, upgrade: OnUpgrade, key: &str) -> Response<Body> {
    match answer {
        Answer::Json(status, body) => {
            let mut response =
                Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
            *response.status_mut() = status;
            response
        }
        Answer::Text(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
            response
                .headers_mut()
                .insert(CONTENT_TYPE, "text/plain".parse().unwrap());
            response
        }
        Answer::Socket(taker) => {
            tokio::spawn(async move {
                let io = TokioIo::new(upgrade.await.unwrap());
                let _ = taker.send(WebSocketStream::from_raw_socket(io, Role::Server, None).await);
            });
            let mut response = Response::new(Full::default().boxed_unsync());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, "upgrade".parse().unwrap());
            headers.insert(UPGRADE, "websocket".parse().unwrap());
            headers.insert(
                SEC_WEBSOCKET_ACCEPT,
                derive_accept_key(key.as_bytes()).parse().unwrap(),
            );
            response
        }
        Answer::Stream(pieces) => {
            let pieces = stream::unfold(pieces, async |mut pieces| {
                let piece = pieces.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(piece)), pieces))
            });
            Response::new(StreamBody::new(Box::pin(pieces)).boxed_unsync())
        }
    }
}

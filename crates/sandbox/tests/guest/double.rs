//! A stand-in for the hypervisor's end of the channel: a real HTTP server on a Unix
//! socket that speaks the providers' wire formats by script, and runs commands for real.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use types::{CommandExit, CommandId, CommandRequest, CommandState, CommandView, TerminalControl};

use crate::jobs::{self, Job};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a provider does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Streams these bytes, split into pieces of this size.
    Stream(String, usize),
    /// Streams these bytes and then nothing, without an end.
    Hang(String),
    /// Answers with a status, a `Retry-After` and a body.
    Refuse(u16, Option<&'static str>, String),
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) scripts: VecDeque<Script>,
    /// Path and body of every model request.
    pub(crate) asked: Vec<(String, Value)>,
    pub(crate) renewals: usize,
    pub(crate) commands: Vec<CommandRequest>,
    pub(crate) killed: Vec<CommandId>,
    pub(crate) terminals: HashMap<CommandId, CommandView>,
    /// The agent's commands, as a supervisor keeps them.
    pub(crate) jobs: HashMap<CommandId, Job>,
    /// Commands that were let go of after their result.
    pub(crate) forgotten: Vec<CommandId>,
    /// Model streams whose client went away before their end.
    pub(crate) dropped: usize,
    /// Replies by their place in the conversation: what is asked again is answered again.
    pub(crate) plan: Vec<Script>,
}

#[derive(Clone)]
pub(crate) struct Double {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) workspace: PathBuf,
    socket: PathBuf,
    token: String,
    kind: &'static str,
    away: Arc<Mutex<CancellationToken>>,
}

impl Double {
    /// Serves on the socket until the test ends.
    pub(crate) fn start(socket: &Path, workspace: &Path, token: &str, kind: &'static str) -> Self {
        let double = Self {
            state: Arc::default(),
            changed: Arc::new(Notify::new()),
            workspace: workspace.to_owned(),
            socket: socket.to_owned(),
            token: token.to_owned(),
            kind,
            away: Arc::default(),
        };
        double.serve();
        double
    }

    /// Goes away as a hypervisor does that is killed: every connection breaks, nobody
    /// listens, and the commands go on.
    pub(crate) fn leave(&self) {
        self.away.lock().unwrap().cancel();
    }

    /// Comes back as its successor.
    pub(crate) fn come_back(&self) {
        *self.away.lock().unwrap() = CancellationToken::new();
        std::fs::remove_file(&self.socket).unwrap();
        self.serve();
    }

    /// Cancelled when it goes away.
    pub(crate) fn present(&self) -> CancellationToken {
        self.away.lock().unwrap().clone()
    }

    fn serve(&self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let away = self.present();
        let serving = self.clone();
        tokio::spawn(away.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let double = serving.clone();
                tokio::spawn(away.clone().run_until_cancelled_owned(async move {
                    let service = service_fn(move |request| {
                        let double = double.clone();
                        async move { Ok::<_, Infallible>(double.answer(request).await) }
                    });
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                }));
            }
        }));
    }

    pub(crate) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.state.lock().unwrap().scripts.extend(scripts);
    }

    /// Waits until the state is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if wanted(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("waited for {what}"));
    }

    /// Answers each request of a model by its place in the conversation.
    pub(crate) fn plan(&self, replies: impl IntoIterator<Item = Script>) {
        self.state.lock().unwrap().plan.extend(replies);
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let authorized = request
            .headers()
            .get("authorization")
            .is_some_and(|value| value == &format!("Bearer {}", self.token));
        if !authorized {
            return problem(401, "unauthenticated", "the token is not valid");
        }
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method().clone(), parts.as_slice()) {
            (Method::POST, ["token", "renew"]) => {
                self.change(|state| state.renewals += 1);
                answer(200, &json!({"expires_in_seconds": 900}))
            }
            (Method::GET, ["provider", "v1"]) => answer(
                200,
                &json!({
                    "providers": [{"name": "test", "kind": self.kind, "models": ["m"], "demo": false}],
                    "default": {"provider": "test", "model": "m"},
                }),
            ),
            (Method::POST, ["provider", "v1", "test", rest @ ..]) => {
                let rest = rest.join("/");
                self.model(rest, request).await
            }
            (Method::POST, ["commands"]) => self.command(request).await,
            (Method::GET, ["commands"]) => {
                let commands: Vec<_> = self
                    .state
                    .lock()
                    .unwrap()
                    .terminals
                    .values()
                    .cloned()
                    .collect();
                answer(200, &json!({"commands": commands}))
            }
            (Method::POST, ["commands", id, "signal"]) => {
                let id: CommandId = id.parse().unwrap();
                self.change(|state| {
                    state.killed.push(id);
                    state.terminals.remove(&id);
                    if let Some(job) = state.jobs.get(&id) {
                        job.kill.cancel();
                    }
                });
                answer(200, &json!({}))
            }
            (Method::DELETE, ["commands", id]) => {
                let id: CommandId = id.parse().unwrap();
                self.change(|state| {
                    state.jobs.remove(&id);
                    state.forgotten.push(id);
                });
                answer(200, &json!({}))
            }
            (Method::GET, ["commands", id, "stream"]) => {
                let known = |id: &CommandId| self.state.lock().unwrap().jobs.contains_key(id);
                match id.parse().ok().filter(known) {
                    Some(id) => jobs::follow(self, id, request),
                    None => self.terminal(id, request),
                }
            }
            _ => problem(404, "not_found", "there is nothing here"),
        }
    }

    async fn model(&self, path: String, request: Request<Incoming>) -> Response<Body> {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let mut script = None;
        self.change(|state| {
            let replies = body["messages"].as_array().unwrap().iter();
            let place = replies
                .filter(|message| message["role"] == "assistant")
                .count();
            state.asked.push((path, body.clone()));
            script = state
                .scripts
                .pop_front()
                .or_else(|| state.plan.get(place).cloned());
        });
        let (text, size, ends) = match script.expect("the script is at its end") {
            Script::Refuse(status, retry_after, body) => {
                let mut response = Response::builder()
                    .status(status)
                    .header("content-type", "application/json");
                if let Some(seconds) = retry_after {
                    response = response.header("retry-after", seconds);
                }
                return response.body(whole(body)).unwrap();
            }
            Script::Stream(text, size) => (text, size, true),
            Script::Hang(text) => (text, 64, false),
        };
        let (sender, body) = streaming();
        let double = self.clone();
        tokio::spawn(async move {
            for piece in text.as_bytes().chunks(size) {
                if sender.send(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
            }
            if !ends {
                sender.closed().await;
                double.change(|state| state.dropped += 1);
            }
        });
        Response::builder()
            .header("content-type", "text/event-stream; charset=utf-8")
            .body(body)
            .unwrap()
    }

    async fn command(&self, request: Request<Incoming>) -> Response<Body> {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let command: CommandRequest = serde_json::from_slice(&body).unwrap();
        let id = command.id.unwrap_or_else(CommandId::generate);
        if self.state.lock().unwrap().jobs.contains_key(&id) {
            return problem(409, "conflict", "there is a command with this id already");
        }
        self.change(|state| state.commands.push(command.clone()));
        if command.terminal.is_some() || command.detach {
            let view = CommandView {
                id,
                argv: command.argv,
                label: command.label,
                terminal: command.terminal.is_some(),
                detach: true,
                network: command.network.unwrap_or_default(),
                state: CommandState::Running,
                exit: None,
                started_at: None,
            };
            self.change(|state| {
                state.terminals.insert(id, view.clone());
            });
            return answer(201, &serde_json::to_value(&view).unwrap());
        }
        if command
            .argv
            .last()
            .is_some_and(|text| text.contains("forbidden"))
        {
            return problem(403, "forbidden", "policy forbids this command");
        }
        assert!(command.rejoin, "the agent comes back for its commands");
        let view = jobs::start(self, id, command);
        answer(201, &serde_json::to_value(&view).unwrap())
    }

    fn terminal(&self, id: &str, mut request: Request<Incoming>) -> Response<Body> {
        let known = id
            .parse()
            .is_ok_and(|id| self.state.lock().unwrap().terminals.contains_key(&id));
        if !known {
            return problem(404, "not_found", "there is no such command");
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let offset = query
            .strip_prefix("from=")
            .map_or(0, |from| from.parse().unwrap());
        let accept = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            let text =
                |control: &TerminalControl| Message::text(serde_json::to_string(control).unwrap());
            socket
                .send(text(&TerminalControl::Attached { offset }))
                .await
                .unwrap();
            // Echoes, until it is told to exit.
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Binary(bytes) if bytes == "exit\n" => {
                        let exit = CommandExit {
                            code: Some(0),
                            ..CommandExit::default()
                        };
                        socket
                            .send(text(&TerminalControl::Exited(exit)))
                            .await
                            .unwrap();
                        let _closed = socket.close(None).await;
                        return;
                    }
                    message @ (Message::Binary(_) | Message::Text(_)) => {
                        socket.send(message).await.unwrap();
                    }
                    _ => {}
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", accept)
            .body(whole(""))
            .unwrap()
    }
}

fn streaming() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(4);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver
            .recv()
            .await
            .map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), receiver))
    });
    (sender, StreamBody::new(stream.into_stream()).boxed_unsync())
}

pub(crate) fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

fn answer(status: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(whole(value.to_string()))
        .unwrap()
}

fn problem(status: u16, code: &str, detail: &str) -> Response<Body> {
    answer(
        status,
        &json!({"type": "about:blank", "title": "no", "status": status, "code": code, "detail": detail}),
    )
}

//! A guest runtime in this process, next to a double of its channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use sandbox::agent::RetryPolicy;
use sandbox::app::App;
use sandbox::channel::Channel;
use sandbox::config::Identity;
use sandbox::files::Workspace;
use sandbox::serve::{Listener, serve};
use sandbox::store::{EventStore, system_clock};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use crate::double::Double;

/// How long a test waits for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn token() -> String {
    format!("choirgw_{}", "t".repeat(43))
}

pub(crate) struct Guest {
    pub(crate) app: App,
    pub(crate) double: Double,
    pub(crate) client: Client,
    pub(crate) dir: TempDir,
    cancelled: CancellationToken,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}

impl Guest {
    pub(crate) async fn start(kind: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path().join("workspace");
        std::fs::create_dir(&workspace).unwrap();
        let socket = dir.path().join("channel.sock");
        let double = Double::start(&socket, &workspace, &token(), kind);
        let cancelled = CancellationToken::new();
        let store = EventStore::open(&dir.path().join("events.db"), system_clock())
            .await
            .unwrap();
        let mut app = App::new(
            store,
            Channel::new(&socket, &token().into(), "/provider/v1"),
            Workspace::open(&workspace).unwrap(),
            Identity {
                sandbox_id: "s1".into(),
                user: "alice".into(),
                role: "live".into(),
            },
            cancelled.clone(),
        );
        app.conductor = app.conductor.with_retries(RetryPolicy {
            first: Duration::from_millis(1),
            longest: Duration::from_secs(2),
            patience: PATIENCE,
        });
        let path = dir.path().join("app.sock");
        let listener = Listener::unix(&path).unwrap();
        tokio::spawn(serve(
            listener,
            sandbox::http::router(app.clone()),
            cancelled.clone(),
        ));
        Self {
            app,
            double,
            client: Client { path },
            dir,
            cancelled,
        }
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspace")
    }

    /// Starts a run and waits for its end; answers the run and its events.
    pub(crate) async fn run(&self, task: Value) -> (Value, Vec<Value>) {
        let (status, started) = self.client.post("/conductor/execute", task).await;
        assert_eq!(status, 202, "{started}");
        self.finished(started["run_id"].as_str().unwrap()).await
    }

    pub(crate) async fn finished(&self, id: &str) -> (Value, Vec<Value>) {
        self.event(id, "run.finished").await;
        let (_, detail) = self.client.get(&format!("/conductor/runs/{id}")).await;
        (
            detail["run"].clone(),
            detail["events"].as_array().unwrap().clone(),
        )
    }

    /// Waits for an event of a run.
    pub(crate) async fn event(&self, run_id: &str, kind: &str) -> Value {
        let mut live = self.client.live(0).await;
        loop {
            let message = live.next().await;
            let event = &message["event"];
            if message["type"] == "event" && event["run_id"] == run_id && event["kind"] == kind {
                return event["data"].clone();
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) path: PathBuf,
}

impl Client {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Response<Bytes> {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request.map(Full::new)).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x")
            .body(body.map(|body| body.to_string().into()).unwrap_or_default())
            .unwrap();
        let response = self.send(request).await;
        let value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status().as_u16(), value)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.json("GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("POST", path, Some(body)).await
    }

    pub(crate) async fn websocket(&self, path: &str) -> Live {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let (socket, _) = client_async(format!("ws://x{path}"), stream).await.unwrap();
        Live { socket }
    }

    /// The live relay, from a cursor.
    pub(crate) async fn live(&self, since_seq: i64) -> Live {
        let mut live = self.websocket("/ws").await;
        live.send(Message::text(
            json!({"type": "hello", "since_seq": since_seq}).to_string(),
        ))
        .await;
        live
    }
}

pub(crate) struct Live {
    pub(crate) socket: WebSocketStream<UnixStream>,
}

impl Live {
    pub(crate) async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    pub(crate) async fn message(&mut self) -> Message {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .unwrap();
            match message.unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The Close that comes next, which is answered.
    pub(crate) async fn closed(&mut self) -> Option<CloseFrame> {
        let Message::Close(frame) = self.message().await else {
            panic!("expected a Close");
        };
        assert!(self.socket.next().await.is_none());
        frame
    }

    pub(crate) async fn next(&mut self) -> Value {
        match self.message().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected JSON, got {other:?}"),
        }
    }
}

//! An installation for tests: a real database and ledger in a temporary directory, and a
//! driver whose guests are small servers in this process. Compiled for tests only.

use std::collections::HashMap;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use base64::Engine as _;
use crypto::{Token, TokenKind};
use http::{HeaderMap, Request, StatusCode};
use runtime::spec::Nonce;
use runtime::{Adopted, BoxFuture, Control, SandboxRuntime, StartError, StartRequest, Started};
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use types::{CommandExit, PasskeyId, Role, SandboxId, SandboxView, SessionId, StartId, UserId};

use super::{Sandboxes, Whose};
use crate::actor::{Actor, User, Via};
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, RawConfig};
use crate::http::metrics::Metrics;
use crate::store::{Entitlement, NewPasskey, NewSession, NewUser, Registration, SessionKind};

/// The present of every test, Unix milliseconds.
pub(crate) const NOW: i64 = 1_800_000_000_000;

/// An installation with one user.
pub(crate) struct Installation {
    pub(crate) app: Arc<App>,
    pub(crate) driver: Arc<FakeDriver>,
    pub(crate) user: User,
    pub(crate) session: SessionId,
    _dir: tempfile::TempDir,
}

impl Installation {
    /// With the user `alice`, signed in on the control origin. `toml` may add to the defaults.
    pub(crate) async fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choir.toml");
        std::fs::write(&file, toml).unwrap();
        let mut raw = RawConfig::read(Some(&file), Vec::new()).unwrap();
        raw.data_dir = Some(dir.path().join("data"));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let config = Config::build(raw).unwrap();
        let mut app = App::open(config, Clock::fixed(NOW)).await.unwrap();
        let driver = Arc::new(FakeDriver::new(dir.path().join("run")));
        let inner = Arc::get_mut(&mut app).unwrap();
        let sandboxes = Sandboxes::with_driver(
            &inner.config,
            &inner.store,
            &inner.audit,
            &inner.clock,
            &Arc::new(Metrics::new()),
            Arc::clone(&driver) as Arc<dyn SandboxRuntime>,
        )
        .await;
        inner.sandboxes = Arc::new(sandboxes.unwrap());
        let user = add_user(&app, "alice").await;
        let session = add_session(&app, &user, SessionKind::Control, None, "localhost")
            .await
            .0;
        Self {
            app,
            driver,
            user,
            session,
            _dir: dir,
        }
    }

    /// The user on the control origin.
    pub(crate) fn actor(&self) -> Actor {
        Actor {
            user: Some(self.user.clone()),
            via: Via::Session(self.session),
            request_id: types::RequestId::generate(),
            address: None,
        }
    }

    /// Starts a sandbox of the user's.
    pub(crate) async fn start(&self, role: Role) -> SandboxView {
        let sandboxes = &self.app.sandboxes;
        let started = sandboxes.start(&self.actor(), Whose::Own, role).await;
        started.unwrap()
    }

    /// The service of a later hypervisor on the same data, with nothing taken over yet.
    pub(crate) async fn again(&self) -> Sandboxes {
        Sandboxes::with_driver(
            &self.app.config,
            &self.app.store,
            &self.app.audit,
            &self.app.clock,
            &Arc::new(Metrics::new()),
            Arc::clone(&self.driver) as Arc<dyn SandboxRuntime>,
        )
        .await
        .unwrap()
    }

    /// The sandbox that has a role now.
    pub(crate) async fn sandbox(&self, role: Role) -> SandboxId {
        self.app
            .sandboxes
            .plane()
            .route(self.user.id)
            .await
            .unwrap()
            .sandbox(role)
    }
}

pub(crate) async fn add_user(app: &App, name: &str) -> User {
    let id = UserId::generate();
    let registration = Registration {
        user: NewUser {
            id,
            name: name.parse().unwrap(),
            is_admin: false,
            live: SandboxId::generate(),
            dev: SandboxId::generate(),
            host_uid_base: 2_000_000_000,
            now: NOW,
        },
        passkey: NewPasskey {
            id: PasskeyId::generate(),
            name: "key".into(),
            credential_id: id.to_string(),
            credential: "{}".into(),
        },
        codes: Vec::new(),
        entitlement: Entitlement::Open,
        session: session(
            id,
            SessionKind::Control,
            None,
            "elsewhere",
            TokenKind::Session,
            app,
        )
        .0,
    };
    assert!(app.store.register(&registration).await.unwrap());
    User {
        id,
        name: name.parse().unwrap(),
        is_admin: false,
    }
}

/// A session and its token.
pub(crate) async fn add_session(
    app: &App,
    user: &User,
    kind: SessionKind,
    parent: Option<SessionId>,
    host: &str,
) -> (SessionId, Token) {
    let token_kind = if kind == SessionKind::Runtime {
        TokenKind::Runtime
    } else {
        TokenKind::Session
    };
    let (session, token) = session(user.id, kind, parent, host, token_kind, app);
    app.store.add_session(&session).await.unwrap();
    (session.id, token)
}

fn session(
    user_id: UserId,
    kind: SessionKind,
    parent: Option<SessionId>,
    host: &str,
    token_kind: TokenKind,
    app: &App,
) -> (NewSession, Token) {
    let token = Token::generate(token_kind, &app.random).unwrap();
    let session = NewSession {
        id: SessionId::generate(),
        user_id,
        kind,
        parent,
        token_hash: token.hash().to_string(),
        host: host.into(),
        user_agent: String::new(),
        address: String::new(),
        now: NOW,
        expires_at: NOW + 3_600_000,
    };
    (session, token)
}

/// A driver whose guests are servers in this process.
pub(crate) struct FakeDriver {
    dir: PathBuf,
    guests: Mutex<HashMap<SandboxId, Guest>>,
    /// Starts take as long as this is set.
    held: tokio::sync::watch::Sender<bool>,
}

/// What a guest answers instead, and how many times still.
#[derive(Debug, Default)]
struct Illness {
    status: StatusCode,
    times: u32,
}

struct Guest {
    start: StartId,
    /// What the environment held.
    token: String,
    channel: PathBuf,
    end: Option<oneshot::Sender<CommandExit>>,
    server: tokio::task::JoinHandle<()>,
    ill: Arc<Mutex<Illness>>,
    starts: usize,
}

impl FakeDriver {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            guests: Mutex::new(HashMap::new()),
            held: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Has starts wait, or go on.
    pub(crate) fn hold_starts(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// The gateway token of the present start, as the guest has it.
    pub(crate) fn token(&self, sandbox: SandboxId) -> String {
        self.guests.lock().unwrap()[&sandbox].token.clone()
    }

    /// The channel as the guest sees it.
    pub(crate) fn channel(&self, sandbox: SandboxId) -> PathBuf {
        self.guests.lock().unwrap()[&sandbox].channel.clone()
    }

    /// How often it was started.
    pub(crate) fn starts(&self, sandbox: SandboxId) -> usize {
        self.guests
            .lock()
            .unwrap()
            .get(&sandbox)
            .map_or(0, |guest| guest.starts)
    }

    /// Stops the guest from answering while its process goes on.
    pub(crate) fn hang(&self, sandbox: SandboxId) {
        self.guests.lock().unwrap()[&sandbox].server.abort();
    }

    /// Makes the guest answer the next so many requests with this status.
    pub(crate) fn ail(&self, sandbox: SandboxId, status: StatusCode, times: u32) {
        *self.guests.lock().unwrap()[&sandbox].ill.lock().unwrap() = Illness { status, times };
    }

    /// How many requests will still be answered so.
    pub(crate) fn ails(&self, sandbox: SandboxId) -> u32 {
        self.guests.lock().unwrap()[&sandbox]
            .ill
            .lock()
            .unwrap()
            .times
    }

    /// Ends the guest's process as a crash does.
    pub(crate) fn crash(&self, sandbox: SandboxId) {
        let end = self
            .guests
            .lock()
            .unwrap()
            .get_mut(&sandbox)
            .unwrap()
            .end
            .take();
        let _ = end.unwrap().send(CommandExit::default());
    }

    fn begin(&self, request: &StartRequest) -> Started {
        let spec = &request.spec;
        let dir = self.dir.join(spec.start_id.as_uuid().simple().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        // Socket addresses are short; the directory of a test may not be.
        let handle =
            rustix::fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let at = |name: &str| {
            format!(
                "/proc/self/fd/{}/{name}",
                std::os::fd::AsRawFd::as_raw_fd(&handle)
            )
        };
        let channel = StdUnixListener::bind(at("channel.sock")).unwrap();
        let app = StdUnixListener::bind(at("app.sock")).unwrap();
        app.set_nonblocking(true).unwrap();
        let app = UnixListener::from_std(app).unwrap();
        let ill = Arc::new(Mutex::new(Illness::default()));
        let router =
            guest_router(spec.sandbox_id).layer(from_fn_with_state(Arc::clone(&ill), ailing));
        let server = tokio::spawn(async move { axum::serve(app, router).await.unwrap() });
        let (end, ended) = oneshot::channel();
        let token = spec
            .guest
            .env
            .iter()
            .find(|(name, _)| name == "CHOIR_PROVIDER_GATEWAY_TOKEN")
            .unwrap()
            .1
            .clone();
        let mut guests = self.guests.lock().unwrap();
        let starts = guests.get(&spec.sandbox_id).map_or(0, |guest| guest.starts) + 1;
        let guest = Guest {
            start: spec.start_id,
            token,
            channel: dir.join("channel.sock"),
            end: Some(end),
            server,
            ill,
            starts,
        };
        guests.insert(spec.sandbox_id, guest);
        Started {
            control: Control::new(dir, Nonce::new("0".repeat(32))),
            app_dir: handle,
            channel,
            exited: Box::pin(async move { ended.await.unwrap_or_default() }),
            events: tokio::sync::broadcast::Sender::new(1),
            host_record: request.host_record.clone(),
        }
    }
}

impl SandboxRuntime for FakeDriver {
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Started, StartError>> {
        let mut held = self.held.subscribe();
        Box::pin(async move {
            let _ = held.wait_for(|held| !held).await;
            Ok(self.begin(&request))
        })
    }

    fn restart(
        &self,
        _start: StartId,
        _control: Control,
    ) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async { Err(StartError::new("supervisor", "there is none")) })
    }

    fn stop(
        &self,
        start: StartId,
        _control: Control,
        _grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), StartError>> {
        let mut guests = self.guests.lock().unwrap();
        for guest in guests.values_mut().filter(|guest| guest.start == start) {
            guest.server.abort();
            guest.end.take();
        }
        Box::pin(async { Ok(()) })
    }

    fn adopt(&self) -> BoxFuture<'_, Vec<Adopted>> {
        Box::pin(async { Vec::new() })
    }
}

/// A guest: says what it was asked, and has a WebSocket that says hello.
fn guest_router(id: SandboxId) -> Router {
    Router::new()
        .route("/health", get(|| async { "{\"status\":\"ok\"}" }))
        .route("/ws", get(websocket))
        .route(
            "/liar",
            get(|| async { [("x-choir-generation", "77"), ("x-choir-role", "dev")] }),
        )
        .fallback(any(echo))
        .with_state(id)
}

async fn ailing(
    State(ill): State<Arc<Mutex<Illness>>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let status = {
        let mut ill = ill.lock().unwrap();
        ill.times.checked_sub(1).map(|left| {
            ill.times = left;
            ill.status
        })
    };
    match status {
        Some(status) => status.into_response(),
        None => next.run(request).await,
    }
}

async fn echo(State(id): State<SandboxId>, request: Request<Body>) -> Response {
    let headers: HashMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                value.to_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    axum::Json(serde_json::json!({
        "sandbox": id, "method": request.method().as_str(), "target": request.uri().to_string(), "headers": headers,
    }))
    .into_response()
}

/// Upgrades by hand and keeps the connection open until its end.
async fn websocket(headers: HeaderMap, mut request: Request<Body>) -> Response {
    let Some(key) = headers.get("sec-websocket-key") else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    base64::engine::general_purpose::STANDARD
        .decode(key)
        .unwrap();
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut io = hyper_util::rt::TokioIo::new(upgraded);
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut io, &mut sink).await;
    });
    let headers = [
        ("connection", "upgrade".to_owned()),
        ("upgrade", "websocket".to_owned()),
        ("sec-websocket-accept", accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

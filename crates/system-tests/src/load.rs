//! Load on a runtime origin that checks every answer: whole, and from one sandbox.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use types::Role;

use crate::Account;

/// The WebSocket close code of a swap.
const SERVICE_RESTART: u16 = 1012;

/// Clients come back after their socket was closed within this time, each at its own moment.
const RECONNECT_WITHIN_MS: u64 = 400;

/// Says whether an answer is what its sandbox would say. Arguments: target, generation of the
/// answer, body.
pub type Check = Arc<dyn Fn(&str, u64, &[u8]) -> Result<(), String> + Send + Sync>;

/// Connections that ask one thing after the other and keep alive.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    connections: JoinSet<Vec<String>>,
}

impl Load {
    /// Starts so many connections to `live`, each of which asks for `targets` in turn.
    #[must_use]
    pub fn start(account: &Account, connections: usize, targets: &[String], check: &Check) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let mut all = JoinSet::new();
        let host = account.host(Role::Live);
        for number in 0..connections {
            let connection = Connection {
                port: account.client.port(),
                cookies: account.client.cookies(&host),
                host: host.clone(),
                targets: targets.to_vec(),
                check: Arc::clone(check),
                stop: Arc::clone(&stop),
                answers: Arc::clone(&answers),
            };
            all.spawn(async move { connection.run(number).await });
        }
        Self {
            stop,
            answers,
            connections: all,
        }
    }

    /// Answers so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Lets what is under way finish, and returns how many answers there were and everything
    /// that was wrong with any of them.
    pub async fn finish(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut faults = Vec::new();
        while let Some(ended) = self.connections.join_next().await {
            match ended {
                Ok(more) => faults.extend(more),
                Err(error) => faults.push(error.to_string()),
            }
        }
        (self.answers(), faults)
    }
}

struct Connection {
    port: u16,
    host: String,
    cookies: String,
    targets: Vec<String>,
    check: Check,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
}

impl Connection {
    async fn run(self, number: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(fault) = self.ask_on(number).await {
            faults.push(format!("connection {number}: {fault}"));
        }
        faults
    }

    /// One connection for all requests: that it breaks off is a fault as well.
    async fn ask_on(&self, number: usize) -> Result<(), String> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .map_err(|error| format!("connect: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut last = 0;
        for target in self.targets.iter().cycle().skip(number) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let request = Request::get(target.as_str())
                .header("host", format!("{}:{}", self.host, self.port))
                .header("cookie", self.cookies.as_str())
                .header("sec-fetch-site", "same-origin")
                .body(Empty::<Bytes>::new())
                .map_err(|error| error.to_string())?;
            sender
                .ready()
                .await
                .map_err(|error| format!("{target}: {error}"))?;
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| format!("{target}: no answer: {error}"))?;
            let (head, body) = answer.into_parts();
            let body = body
                .collect()
                .await
                .map_err(|error| format!("{target}: not whole: {error}"))?
                .to_bytes();
            let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
            if head.status != 200 {
                let text = String::from_utf8_lossy(&body).into_owned();
                return Err(format!("{target}: {} {text}", head.status));
            }
            let generation: u64 = header("x-choir-generation")
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| format!("{target}: no generation"))?;
            if header("x-choir-role") != Some("live") {
                return Err(format!(
                    "{target}: answered as {:?}",
                    header("x-choir-role")
                ));
            }
            if generation < last {
                return Err(format!("{target}: generation {last}, then {generation}"));
            }
            last = generation;
            (self.check)(target, generation, &body)?;
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// WebSockets that come back when they are closed, after a pause of their own.
#[derive(Debug)]
pub struct Sockets {
    stop: Arc<AtomicBool>,
    state: Arc<State>,
    all: JoinSet<Option<String>>,
    count: usize,
}

#[derive(Debug, Default)]
struct State {
    opened: AtomicUsize,
    /// For each socket: the generation that it was opened by, and since when; none while it
    /// is closed.
    open: Mutex<Vec<Option<(u64, Instant)>>>,
    /// When each was last closed, and by the notice of which generation.
    closed: Mutex<Vec<Option<(u64, Instant)>>>,
}

impl Sockets {
    /// Opens so many WebSockets on `/ws` of `live`.
    #[must_use]
    pub fn open(account: &Arc<Account>, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let state = Arc::new(State::default());
        *lock(&state.open) = vec![None; count];
        *lock(&state.closed) = vec![None; count];
        let mut all = JoinSet::new();
        for number in 0..count {
            let (account, stop, state) =
                (Arc::clone(account), Arc::clone(&stop), Arc::clone(&state));
            all.spawn(async move { keep_open(&account, number, &stop, &state).await.err() });
        }
        Self {
            stop,
            state,
            all,
            count,
        }
    }

    /// How often any of them was opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.state.opened.load(Ordering::Relaxed)
    }

    /// Whether all are open by this generation.
    #[must_use]
    pub fn all_at(&self, generation: u64) -> bool {
        self.all_open_at(generation).is_some()
    }

    /// Since when all are open by this generation; `None` while one is not.
    #[must_use]
    pub fn all_open_at(&self, generation: u64) -> Option<Instant> {
        let open = lock(&self.state.open);
        let since = open.iter().map(|open| match open {
            Some((at, since)) if *at == generation => Some(*since),
            _ => None,
        });
        since.collect::<Option<Vec<Instant>>>()?.into_iter().max()
    }

    /// When the last of them was closed by the notice of this generation; `None` while one
    /// has not been.
    #[must_use]
    pub fn all_closed_by(&self, generation: u64) -> Option<Instant> {
        let closed = lock(&self.state.closed);
        let times: Vec<Instant> = closed
            .iter()
            .flatten()
            .filter(|(by, _)| *by == generation)
            .map(|(_, at)| *at)
            .collect();
        (times.len() == self.count)
            .then(|| times.into_iter().max())
            .flatten()
    }

    /// Closes them and returns everything that was wrong with any of them.
    pub async fn finish(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut faults = Vec::new();
        while let Some(ended) = self.all.join_next().await {
            match ended {
                Ok(fault) => faults.extend(fault),
                Err(error) => faults.push(error.to_string()),
            }
        }
        faults
    }
}

async fn keep_open(
    account: &Account,
    number: usize,
    stop: &AtomicBool,
    state: &State,
) -> Result<(), String> {
    let (host, origin) = (account.host(Role::Live), account.origin(Role::Live));
    let mut seed = number as u64;
    while !stop.load(Ordering::Relaxed) {
        let opened = account
            .client
            .websocket_with_head(&host, "/ws", Some(&origin))
            .await;
        let (mut socket, head) =
            opened.map_err(|status| format!("socket {number}: refused with {status}"))?;
        let generation: u64 = head
            .get("x-choir-generation")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or_else(|| format!("socket {number}: no generation"))?;
        let hello = "{\"type\":\"hello\",\"since_seq\":9007199254740991}";
        socket
            .send(Message::text(hello))
            .await
            .map_err(|error| format!("socket {number}: {error}"))?;
        state.opened.fetch_add(1, Ordering::Relaxed);
        set(&state.open, number, Some((generation, Instant::now())));
        let frame = loop {
            let next = tokio::time::timeout(Duration::from_millis(50), socket.next()).await;
            match next {
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
                Err(_) => {}
                Ok(Some(Ok(Message::Close(frame)))) => break frame,
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(format!("socket {number} broke: {error}")),
                Ok(None) => return Err(format!("socket {number} ended without a word")),
            }
        };
        set(&state.open, number, None);
        let frame = frame.ok_or_else(|| format!("socket {number}: closed without a code"))?;
        let reason: Value = serde_json::from_str(&frame.reason)
            .map_err(|error| format!("socket {number}: {error} in {}", frame.reason))?;
        let by = reason["generation"].as_u64().unwrap_or_default();
        if u16::from(frame.code) != SERVICE_RESTART || by <= generation {
            return Err(format!(
                "socket {number} of generation {generation}: closed with {frame:?}"
            ));
        }
        set(&state.closed, number, Some((by, Instant::now())));
        // A pause of its own, as a client that means well makes.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pause = (seed >> 33) % RECONNECT_WITHIN_MS;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

fn set<T>(all: &Mutex<Vec<T>>, number: usize, value: T) {
    if let Some(place) = lock(all).get_mut(number) {
        *place = value;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! Swaps under load, and a reload of nginx that changes the same upstream.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::json;
use system_tests::load::{Check, Load, Sockets};
use system_tests::processes::Process;
use system_tests::{Account, Installation, Setup, installation, wait};
use types::Role;

use super::report::{TIMES, Table, times};
use crate::nginx;

/// Swaps, and reloads of nginx.
const RUNS: usize = 20;

/// Connections that ask all the time, and WebSockets that stay open.
const CONNECTIONS: usize = 64;
const SOCKETS: usize = 50;

/// How long a peer's WebSockets have to move.
const MOVE_WITHIN: Duration = Duration::from_secs(3);

/// When the first answer of each generation came.
type Firsts = Arc<Mutex<HashMap<u64, Instant>>>;

pub(crate) async fn run() -> Vec<Table> {
    let installation = Setup::default().start().await;
    let alice = Arc::new(Account::admin(&installation, "alice").await);
    for role in Role::ALL {
        alice.start(role).await;
        alice.enter(role).await;
    }
    let mut took = Table::new(
        "swap",
        format!(
            "Swap with {CONNECTIONS} busy connections and {SOCKETS} WebSockets, from the request on"
        ),
        TIMES,
    );
    let mut lost = Table::new(
        "swap_losses",
        format!("What {RUNS} changes of the upstream cost"),
        &[
            "what",
            "answers",
            "requests_lost",
            "connections_cut",
            "sockets_moved",
        ],
    );
    ours(&alice, &mut took, &mut lost).await;
    // What was measured of ours is not lost over a peer.
    let peer = AssertUnwindSafe(reloads(&installation, &alice, &mut took, &mut lost));
    if peer.catch_unwind().await.is_err() {
        eprintln!("nginx: left out: it did not get through");
    }
    vec![took, lost]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

async fn ours(alice: &Arc<Account>, took: &mut Table, lost: &mut Table) {
    let firsts = Firsts::default();
    let check: Check = {
        let firsts = Arc::clone(&firsts);
        Arc::new(move |_, generation, _| {
            let mut firsts = firsts.lock().unwrap_or_else(PoisonError::into_inner);
            firsts.entry(generation).or_insert_with(Instant::now);
            Ok(())
        })
    };
    let load = Load::start(alice, CONNECTIONS, &["/".to_owned()], &check);
    let sockets = Sockets::open(alice, SOCKETS);
    let (mut answered, mut flipped, mut first) = (Vec::new(), Vec::new(), Vec::new());
    let (mut last, mut moved) = (Vec::new(), Vec::new());
    for run in 1..=RUNS as u64 {
        wait::until("all sockets open", async || {
            sockets.all_at(run - 1).then_some(())
        })
        .await;
        let begun = Instant::now();
        let swapped = alice
            .control("POST", "/me/sandboxes/swap", None)
            .await
            .expect(200);
        answered.push(ms(begun.elapsed()));
        let flip = swapped.json()["flip_us"].as_u64().expect("microseconds");
        flipped.push(ms(Duration::from_micros(flip)));
        let seen = wait::until("an answer of the new role", async || {
            let firsts = firsts.lock().unwrap_or_else(PoisonError::into_inner);
            firsts.get(&run).copied()
        })
        .await;
        first.push(ms(seen.saturating_duration_since(begun)));
        let told = wait::until("the last socket", async || sockets.all_closed_by(run)).await;
        last.push(ms(told.duration_since(begun)));
        let open = wait::until("the last socket again", async || sockets.all_open_at(run)).await;
        moved.push(ms(open.duration_since(begun)));
    }
    let (answers, faults) = load.finish().await;
    let broken = sockets.finish().await;
    for fault in faults.iter().chain(&broken) {
        eprintln!("{fault}");
    }
    took.push(times(
        "swap: health gate, ledger, pointer on disk and served",
        answered,
    ));
    took.push(times(
        "swap: of that the pointer alone, on disk and served",
        flipped,
    ));
    took.push(times("swap: to the first answer of the new role", first));
    took.push(times(
        "swap: to the last of the sockets told (window 1500 ms)",
        last,
    ));
    took.push(times(
        "swap: to the last of them moved (clients wait up to 400 ms)",
        moved,
    ));
    lost.push(json!({
        "what": "swap", "answers": answers, "requests_lost": faults.len(), "connections_cut": faults.len(),
        "sockets_moved": format!("{} of {}", SOCKETS * RUNS - broken.len(), SOCKETS * RUNS),
    }));
}

async fn reloads(
    installation: &Installation,
    alice: &Arc<Account>,
    took: &mut Table,
    lost: &mut Table,
) {
    let dir = nginx::directory(installation.scratch(), "nginx-swap");
    let mut sockets = Vec::new();
    for role in Role::ALL {
        let view = alice.sandbox(role).await;
        let start = view["start_id"].as_str().expect("a start");
        sockets.push(
            installation
                .data_dir()
                .join("run")
                .join(start)
                .join("app/app.sock"),
        );
    }
    let port = installation::free_port();
    configure(&dir, port, &sockets[0], 0);
    let Some(running) = nginx::start(&dir) else {
        eprintln!("nginx is not here: left out");
        return;
    };
    wait::until("nginx", async || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    })
    .await;
    let load = PeerLoad::start(port);
    let open = PeerSockets::open(port).await;
    let mut first = Vec::new();
    for run in 1..=RUNS {
        configure(&dir, port, &sockets[run % 2], run);
        let begun = Instant::now();
        Process::of(running.0.id())
            .expect("nginx")
            .signal(Signal::HUP);
        let seen = wait::until("an answer of the other upstream", async || {
            load.first_of(run)
        })
        .await;
        first.push(ms(seen.saturating_duration_since(begun)));
        // Its old workers have finished then; one reload at a time, as ours.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    tokio::time::sleep(MOVE_WITHIN).await;
    let moved = open.closed();
    let (answers, lost_requests, cut) = load.finish().await;
    took.push(times(
        "nginx reload: to the first answer of the new upstream",
        first,
    ));
    lost.push(json!({
        "what": "nginx reload", "answers": answers, "requests_lost": lost_requests, "connections_cut": cut,
        "sockets_moved": format!("{moved} of {}", SOCKETS),
    }));
    drop(running);
}

/// The configuration of one generation, which its answers name: measured the same way as ours.
fn configure(dir: &Path, port: u16, socket: &Path, generation: usize) {
    let http = format!(
        "map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         upstream guest {{ server unix:{socket}; keepalive 64; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{\n\
           add_header x-generation {generation} always;\n\
           proxy_pass http://guest; proxy_http_version 1.1; proxy_set_header Host $host;\n\
           proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; }} }}",
        socket = socket.display(),
    );
    nginx::configure(dir, &http);
}

/// The same load on nginx, which may cut connections: they are counted and made again.
struct PeerLoad {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    lost: AtomicU64,
    cut: AtomicU64,
    /// When the first answer of each generation came.
    firsts: Mutex<HashMap<usize, Instant>>,
}

impl PeerLoad {
    fn start(port: u16) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = (0..CONNECTIONS)
            .map(|_| {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    while !shared.stop.load(Ordering::Relaxed) {
                        shared.on_one_connection(port).await;
                    }
                })
            })
            .collect();
        Self { shared, tasks }
    }

    /// When the first answer of a generation came.
    fn first_of(&self, generation: usize) -> Option<Instant> {
        let firsts = self.shared.firsts.lock();
        let firsts = firsts.unwrap_or_else(PoisonError::into_inner);
        firsts.get(&generation).copied()
    }

    async fn finish(self) -> (u64, u64, u64) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&self.shared.answers),
            read(&self.shared.lost),
            read(&self.shared.cut),
        )
    }
}

impl Shared {
    async fn on_one_connection(&self, port: u16) {
        let Ok(stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Ok((mut sender, connection)) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await
        else {
            return;
        };
        tokio::spawn(connection);
        while !self.stop.load(Ordering::Relaxed) {
            if sender.ready().await.is_err() {
                self.cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let request = Request::get("/")
                .header("host", "localhost")
                .body(Empty::<Bytes>::new())
                .expect("a request");
            let answer = async {
                let answer = sender.send_request(request).await.ok()?;
                let ok = answer.status() == 200;
                let generation = answer.headers().get("x-generation")?.to_str().ok()?;
                let generation: usize = generation.parse().ok()?;
                answer.into_body().collect().await.ok()?;
                ok.then_some(generation)
            };
            match answer.await {
                Some(generation) => {
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    let firsts = self.firsts.lock();
                    let mut firsts = firsts.unwrap_or_else(PoisonError::into_inner);
                    firsts.entry(generation).or_insert_with(Instant::now);
                }
                None => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

/// WebSockets through nginx; those that are closed were told to move.
struct PeerSockets(Vec<tokio::task::JoinHandle<()>>);

impl PeerSockets {
    async fn open(port: u16) -> Self {
        let mut all = Vec::new();
        for _ in 0..SOCKETS {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .expect("a connection");
            let opened = tokio_tungstenite::client_async("ws://localhost/ws", stream).await;
            let (mut socket, _) = opened.expect("a WebSocket through nginx");
            let hello = "{\"type\":\"hello\",\"since_seq\":9007199254740991}";
            futures_util::SinkExt::send(
                &mut socket,
                tokio_tungstenite::tungstenite::Message::text(hello),
            )
            .await
            .expect("it takes a message");
            all.push(tokio::spawn(async move {
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() {
                        return;
                    }
                }
            }));
        }
        Self(all)
    }

    fn closed(&self) -> usize {
        self.0.iter().filter(|task| task.is_finished()).count()
    }
}

impl Drop for PeerSockets {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

//! The load: connections that make one call after the other and keep alive.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::places::{Address, Place};
use crate::upstream::find;

/// How many connections make which calls.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) streamed: bool,
    /// Whether a second caller makes every other connection, where the place knows one.
    pub(super) shared: bool,
}

/// What was seen, in seconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    whole: Vec<f64>,
    first: Vec<f64>,
    pub(super) errors: u64,
    /// The status of the first that failed; 0 when the connection broke or a stream ended early.
    pub(super) failed_with: Option<u16>,
}

impl Seen {
    pub(super) fn count(&self) -> usize {
        self.whole.len()
    }

    pub(super) fn per_second(&self, within: Duration) -> f64 {
        self.count() as f64 / within.as_secs_f64()
    }

    pub(super) fn p50(&self) -> f64 {
        percentile(&self.whole, 50)
    }

    pub(super) fn p99(&self) -> f64 {
        percentile(&self.whole, 99)
    }

    pub(super) fn first_p50(&self) -> f64 {
        percentile(&self.first, 50)
    }

    fn fail(&mut self, status: u16) {
        self.errors += 1;
        self.failed_with.get_or_insert(status);
    }

    fn add(&mut self, other: Self) {
        self.whole.extend(other.whole);
        self.first.extend(other.first);
        self.errors += other.errors;
        self.failed_with = self.failed_with.or(other.failed_with);
    }
}

fn percentile(sorted: &[f64], part: usize) -> f64 {
    let at = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// A load to put on somebody, as it is handed to another process.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Where callers connect, and what they send.
    callers: Vec<(Address, String)>,
    what: Load,
    within: Duration,
}

impl Order {
    fn new(place: &Place, what: Load, within: Duration) -> Self {
        let second = place.second.as_deref().filter(|_| what.shared);
        let callers = std::iter::once(place).chain(second);
        Self {
            callers: callers
                .map(|place| (place.address.clone(), place.request(what.streamed)))
                .collect(),
            what,
            within,
        }
    }

    async fn carry_out(self) -> Seen {
        let until = Instant::now() + self.within;
        let mut all = JoinSet::new();
        let turns = self.callers.iter().cycle();
        for (address, request) in turns.take(self.what.connections) {
            let (stream, request) = (address.connect().await, request.clone());
            all.spawn(calls(stream, request, self.what.streamed, until));
        }
        let mut seen = Seen::default();
        while let Some(one) = all.join_next().await {
            seen.add(one.expect("no panic"));
        }
        seen.whole.sort_by(f64::total_cmp);
        seen.first.sort_by(f64::total_cmp);
        seen
    }
}

/// Puts a load on a place.
pub(super) async fn load(place: &Place, what: Load, within: Duration) -> Seen {
    Order::new(place, what, within).carry_out().await
}

/// The same from a process of its own, which waits for no other load in this one.
pub(super) async fn load_apart(place: &Place, what: Load, within: Duration) -> Seen {
    let order = serde_json::to_string(&Order::new(place, what, within)).expect("JSON");
    let output = Command::new(std::env::current_exe().expect("our own path"))
        .args(["caller", &order])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .expect("a caller");
    serde_json::from_slice(&output.stdout).expect("what it saw")
}

/// What [`load_apart`] starts: carries out one order and prints what was seen.
pub(crate) async fn caller(order: &str) {
    let order: Order = serde_json::from_str(order).expect("an order");
    let seen = order.carry_out().await;
    println!("{}", serde_json::to_string(&seen).expect("JSON"));
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn calls(
    mut stream: Box<dyn Stream>,
    request: String,
    streamed: bool,
    until: Instant,
) -> Seen {
    let mut seen = Seen::default();
    let mut bytes = Vec::with_capacity(64 << 10);
    while Instant::now() < until {
        let began = Instant::now();
        bytes.clear();
        match call(&mut stream, request.as_bytes(), &mut bytes).await {
            Some((200, first)) if streamed == ends_as_a_stream(&bytes) => {
                seen.first.push((first - began).as_secs_f64());
                seen.whole.push(began.elapsed().as_secs_f64());
            }
            Some((200, _)) => seen.fail(0),
            Some((status, _)) => seen.fail(status),
            None => {
                // Without a connection there is nothing left to measure here.
                seen.fail(0);
                break;
            }
        }
    }
    seen
}

/// Whether a reply is a stream that came to its end: an error in place of one is no fast call.
fn ends_as_a_stream(bytes: &[u8]) -> bool {
    let tail = bytes.len().saturating_sub(64);
    find(&bytes[tail..], b"[DONE]").is_some()
}

/// One call: its status, and when its body began. `None` when the connection broke.
async fn call(
    stream: &mut Box<dyn Stream>,
    request: &[u8],
    bytes: &mut Vec<u8>,
) -> Option<(u16, Instant)> {
    stream.write_all(request).await.ok()?;
    let head = loop {
        if let Some(at) = find(bytes, b"\r\n\r\n") {
            break at + 4;
        }
        read(stream, bytes).await?;
    };
    let text = std::str::from_utf8(bytes.get(..head)?).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.eq_ignore_ascii_case("content-length");
        found.then(|| value.trim().parse::<usize>().ok())?
    });
    while bytes.len() == head && length != Some(0) {
        read(stream, bytes).await?;
    }
    let first = Instant::now();
    match length {
        Some(length) => {
            while bytes.len() < head + length {
                read(stream, bytes).await?;
            }
        }
        None => {
            while !bytes.ends_with(b"\r\n0\r\n\r\n") {
                read(stream, bytes).await?;
            }
        }
    }
    Some((status, first))
}

async fn read(stream: &mut Box<dyn Stream>, bytes: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(bytes).await.ok()?;
    (read > 0).then_some(())
}

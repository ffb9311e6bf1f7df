//! `kill -9` of the hypervisor at any point: random operations, some of them cut off after a
//! random time, against a model of what may be true afterwards.
//!
//! A failure prints the seed and every step. `CHOIR_SURVIVAL_SEED` replays it (as far as a
//! race can be replayed), `CHOIR_SURVIVAL_SEQUENCES` and `CHOIR_SURVIVAL_STEPS` ask for more.

mod model;
mod world;

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::json;
use system_tests::wait::within;
use system_tests::{Account, Setup};
use tokio_tungstenite::tungstenite::Message;
use types::Role;

use model::{Random, Step};
use world::{Kind, World};

/// One with each of the three kinds of world.
const SEQUENCES: u64 = 3;
const STEPS: u64 = 22;

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_orphaned_doubled_or_lost_whenever_the_hypervisor_is_killed() {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seed = asked(
        "CHOIR_SURVIVAL_SEED",
        u64::try_from(now.as_micros()).unwrap(),
    );
    for sequence in 0..asked("CHOIR_SURVIVAL_SEQUENCES", SEQUENCES) {
        let seed = seed.wrapping_add(sequence);
        let mut random = Random::new(seed);
        let kind = Kind::of(seed);
        eprintln!("CHOIR_SURVIVAL_SEED={seed}  # {kind:?}");
        let mut world = World::new(kind).await;
        for number in 0..asked("CHOIR_SURVIVAL_STEPS", STEPS) {
            let step = Step::random(&mut random, kind == Kind::Idle);
            eprintln!("{number:>3} {step:?}");
            world.take(number, &step).await;
            world.check().await;
        }
        world.finish().await;
    }
}

/// A terminal goes on while nobody keeps the hypervisor, and its page comes back to where it
/// was: no byte twice, none missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_met_again_at_its_offset_with_its_shell_alive() {
    let mut installation = Setup::default().leave_running().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let shell = json!({ "argv": ["sh"], "terminal": { "cols": 80, "rows": 24 } });
    let made = alice
        .control("POST", "/me/sandboxes/live/commands", Some(shell))
        .await
        .expect(201)
        .json();
    let id = made["id"].as_str().unwrap().to_owned();
    let open = async |from: usize| {
        let target = format!("/me/sandboxes/live/commands/{id}/stream?from={from}");
        let origin = format!("http://localhost:{}", alice.client.port());
        let opened = alice.client.websocket("localhost", &target, Some(&origin));
        opened.await.expect("a terminal")
    };
    let mut socket = open(0).await;
    let mut seen = Vec::new();
    let keys = "kept=21; echo one-$((kept * 2))\n";
    socket
        .send(Message::binary(keys.as_bytes().to_vec()))
        .await
        .unwrap();
    read_until(&mut socket, &mut seen, "one-42").await;
    // It writes while nobody is there to read.
    let keys = "sleep 1; echo mean''while\n";
    socket
        .send(Message::binary(keys.as_bytes().to_vec()))
        .await
        .unwrap();
    read_until(&mut socket, &mut seen, "while").await;
    installation.end(Signal::KILL);
    installation.spawn().await;
    let mut socket = open(seen.len()).await;
    read_until(&mut socket, &mut seen, "meanwhile\r\n").await;
    let keys = "echo two-$((kept * 4))\n";
    socket
        .send(Message::binary(keys.as_bytes().to_vec()))
        .await
        .unwrap();
    read_until(&mut socket, &mut seen, "two-84").await;
    // What was put together from both connections is what one connection sees.
    let mut whole = Vec::new();
    read_until(&mut open(0).await, &mut whole, "two-84").await;
    let length = seen.len().min(whole.len());
    assert_eq!(
        String::from_utf8_lossy(&seen[..length]),
        String::from_utf8_lossy(&whole[..length])
    );
    alice.stop(Role::Live).await;
}

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn read_until(socket: &mut Socket, seen: &mut Vec<u8>, text: &str) {
    within(text, async {
        while !String::from_utf8_lossy(seen).contains(text) {
            let message = socket.next().await.expect("the terminal goes on");
            if let Message::Binary(bytes) = message.expect("a message") {
                seen.extend_from_slice(&bytes);
            }
        }
    })
    .await;
}

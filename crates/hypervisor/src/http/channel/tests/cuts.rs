//! Whatever ends the right of a channel cuts each kind of connection on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crypto::OsRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use types::{CommandId, NetworkMode, Role};

use super::{LIFETIME, Wire, admin, hung_up, started};
use crate::actor::Grant;
use crate::http::channel::{Peer, serve};
use crate::services::accounts;
use crate::services::sandboxes::Whose;
use crate::services::sandboxes::testing::Installation;
use crate::services::sandboxes::tokens::Tokens;

/// What ends a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ender {
    Stop,
    Restart,
    AdminStop,
    Disable,
    Lapse,
    /// A command's, whose channel is its own.
    RunnerEnds,
    /// A command's, because its whole sandbox stops.
    StopAroundRunner,
}

const ENDERS: [Ender; 7] = [
    Ender::Stop,
    Ender::Restart,
    Ender::AdminStop,
    Ender::Disable,
    Ender::Lapse,
    Ender::RunnerEnds,
    Ender::StopAroundRunner,
];

/// A runner's own channel, and what ends it.
pub(super) struct Runner {
    pub(super) channel: PathBuf,
    pub(super) token: String,
    ended: CancellationToken,
    _dir: tempfile::TempDir,
}

/// Serves a channel as that of a command that was granted model calls.
pub(super) async fn runner(installation: &Installation) -> Runner {
    let sandbox = installation.sandbox(Role::Live).await;
    let instance = installation.app.sandboxes.running(sandbox).unwrap();
    let plane = installation.app.sandboxes.plane();
    let dir = tempfile::tempdir().unwrap();
    let handle = std::fs::File::open(dir.path()).unwrap();
    let short = format!(
        "/proc/self/fd/{}/s",
        std::os::fd::AsRawFd::as_raw_fd(&handle)
    );
    let listener = std::os::unix::net::UnixListener::bind(short).unwrap();
    let token = Tokens::mint(&OsRandom::new()).unwrap();
    let ended = instance.start_ended().child_token();
    let peer = Peer {
        instance,
        command: Some(CommandId::generate()),
        grant: Grant {
            provider: true,
            network: NetworkMode::None,
        },
        network: None,
        slot: plane.tokens.runner(sandbox, token.hash()),
        ended: ended.clone(),
    };
    serve(Arc::clone(plane), peer, listener);
    Runner {
        channel: dir.path().join("s"),
        token: token.expose().to_owned(),
        ended,
        _dir: dir,
    }
}

/// A connection of each kind, and what the provider sees of them.
struct Open {
    wires: [(&'static str, Wire); 4],
    upstreams: [(&'static str, TcpStream); 2],
}

impl Open {
    async fn new(channel: &std::path::Path, token: &str, provider: &TcpListener) -> Self {
        let mut idle = Wire::open(channel).await;
        assert_eq!(idle.ask("GET /provider/v1", Some(token), "").await.0, 200);
        let request = |length: usize, body: &str| {
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let mut upload = Wire::open(channel).await;
        upload
            .0
            .write_all(request(9, "{").as_bytes())
            .await
            .unwrap();
        let asking = async |stream: bool, reply: &str| {
            let mut wire = Wire::open(channel).await;
            let body = format!(r#"{{"model":"m","stream":{stream},"messages":[]}}"#);
            let request = request(body.len(), &body);
            wire.0.write_all(request.as_bytes()).await.unwrap();
            let (mut upstream, _) = provider.accept().await.unwrap();
            assert!(upstream.read(&mut [0; 4096]).await.unwrap() > 0);
            upstream.write_all(reply.as_bytes()).await.unwrap();
            (wire, upstream)
        };
        let (waiting, above_waiting) = asking(false, "").await;
        let (mut streaming, above_streaming) = asking(
            true,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n",
        )
        .await;
        let mut seen = Vec::new();
        while !seen.ends_with(b"data: 1\n\r\n") {
            seen.push(streaming.0.read_u8().await.unwrap());
        }
        Self {
            wires: [
                ("idle", idle),
                ("upload", upload),
                ("wait", waiting),
                ("stream", streaming),
            ],
            upstreams: [("wait", above_waiting), ("stream", above_streaming)],
        }
    }

    async fn demand_cut(mut self, by: Ender) {
        let patience = Duration::from_secs(20);
        for (kind, wire) in &mut self.wires {
            let mut left = Vec::new();
            let read = tokio::time::timeout(patience, wire.0.read_to_end(&mut left)).await;
            assert!(read.is_ok(), "{by:?}: {kind} goes on");
            let left = String::from_utf8_lossy(&left);
            // Who has no answer yet may still be told.
            let told = ["upload", "wait"].contains(kind)
                && (left.starts_with("HTTP/1.1 4") || left.starts_with("HTTP/1.1 5"));
            assert!(left.is_empty() || told, "{by:?}: {kind} ends with {left}");
        }
        for (kind, upstream) in &mut self.upstreams {
            let left = tokio::time::timeout(patience, hung_up(upstream)).await;
            assert!(left.is_ok(), "{by:?}: the provider of {kind} is not left");
        }
    }
}

#[tokio::test]
async fn every_end_of_a_right_cuts_every_kind_of_connection() {
    for by in ENDERS {
        let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", provider.local_addr().unwrap());
        let lifetime = if by == Ender::Lapse { "1s" } else { "15m" };
        let installation = Installation::new(&format!(
            "[gateway]\ntoken_lifetime = {lifetime:?}\n\
             [[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = {base:?}\nmodels = [\"m\"]\n\
             addresses = \"private_network_too\"\n"
        ))
        .await;
        let (guests, guests_token) = started(&installation, Role::Live).await;
        let runner = runner(&installation).await;
        let of_runner = matches!(by, Ender::RunnerEnds | Ender::StopAroundRunner);
        let (channel, token) = if of_runner {
            (&runner.channel, &runner.token)
        } else {
            (&guests, &guests_token)
        };
        let open = Open::new(channel, token, &provider).await;
        let (own, admin) = (installation.actor(), admin(&installation).await);
        let sandboxes = &installation.app.sandboxes;
        let alice = &installation.user.name;
        match by {
            Ender::Stop | Ender::StopAroundRunner => {
                let stop = sandboxes.stop(&own, Whose::Own, Role::Live);
                stop.await.map(drop).unwrap();
            }
            Ender::Restart => {
                let restart = sandboxes.restart(&own, Whose::Own, Role::Live);
                restart.await.map(drop).unwrap();
            }
            Ender::AdminStop => {
                let stop = sandboxes.stop(&admin, Whose::Of(alice), Role::Live);
                stop.await.map(drop).unwrap();
            }
            Ender::Disable => {
                let request = accounts::DisableRequest::default();
                let disable = accounts::disable(&installation.app, &admin, alice, &request);
                disable.await.map(drop).unwrap();
            }
            Ender::Lapse => installation.app.clock.advance(LIFETIME),
            Ender::RunnerEnds => runner.ended.cancel(),
        }
        open.demand_cut(by).await;
        match by {
            // The channel itself is there, and says why.
            Ender::Lapse => {
                let mut wire = Wire::open(channel).await;
                let (status, said) = wire.ask("GET /provider/v1", Some(token), "").await;
                assert_eq!(status, 401);
                assert!(said.contains("has expired"), "{said}");
            }
            // The guest's own goes on.
            Ender::RunnerEnds => {
                let mut wire = Wire::open(&guests).await;
                let asked = wire.ask("GET /provider/v1", Some(&guests_token), "");
                assert_eq!(asked.await.0, 200);
            }
            _ => {}
        }
    }
}

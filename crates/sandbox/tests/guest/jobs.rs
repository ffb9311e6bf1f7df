//! Commands of the agent as a supervisor keeps them: for real, known by their id, going on
//! whoever goes away, with their output until somebody lets go of them.

use std::process::Stdio;

use futures_util::SinkExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use types::{CommandExit, CommandId, CommandRequest, CommandState, CommandView, TerminalControl};

use crate::double::{Body, Double, whole};

/// One command.
#[derive(Debug, Default)]
pub(crate) struct Job {
    output: Vec<u8>,
    pub(crate) exit: Option<CommandExit>,
    pub(crate) kill: CancellationToken,
}

pub(crate) fn start(double: &Double, id: CommandId, command: CommandRequest) -> CommandView {
    let kill = CancellationToken::new();
    let job = Job {
        kill: kill.clone(),
        ..Job::default()
    };
    double.change(|state| {
        state.jobs.insert(id, job);
    });
    let view = CommandView {
        id,
        argv: command.argv.clone(),
        label: command.label.clone(),
        terminal: false,
        detach: false,
        network: command.network.unwrap_or_default(),
        state: CommandState::Running,
        exit: None,
        started_at: None,
    };
    let double = double.clone();
    tokio::spawn(async move {
        let exit = kill
            .run_until_cancelled(run(&double, id, &command))
            .await
            .unwrap_or(CommandExit {
                signal: Some(9),
                ..CommandExit::default()
            });
        double.change(|state| {
            if let Some(job) = state.jobs.get_mut(&id) {
                job.exit = Some(exit);
            }
        });
    });
    view
}

async fn run(double: &Double, id: CommandId, command: &CommandRequest) -> CommandExit {
    let (program, arguments) = command.argv.split_first().unwrap();
    let cwd = command
        .cwd
        .as_deref()
        .unwrap_or("/workspace")
        .strip_prefix("/workspace")
        .unwrap();
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(double.workspace.join(cwd.trim_start_matches('/')))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut buffer = vec![0; 4096];
    loop {
        let read = output.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        double.change(|state| {
            let job = state.jobs.get_mut(&id).unwrap();
            job.output.extend_from_slice(&buffer[..read]);
        });
    }
    CommandExit {
        code: child.wait().await.unwrap().code(),
        ..CommandExit::default()
    }
}

/// Streams a command's output from a byte on, and its end.
pub(crate) fn follow(
    double: &Double,
    id: CommandId,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let mut offset: usize = query
        .strip_prefix("from=")
        .map_or(0, |from| from.parse().unwrap());
    let accept = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    let (double, away) = (double.clone(), double.present());
    tokio::spawn(away.run_until_cancelled_owned(async move {
        let stream = TokioIo::new(upgrade.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let text =
            |control: &TerminalControl| Message::text(serde_json::to_string(control).unwrap());
        let attached = TerminalControl::Attached {
            offset: offset as u64,
        };
        let mut sent = socket.send(text(&attached)).await.is_ok();
        while sent {
            let changed = double.changed.notified();
            let next = double.state.lock().unwrap().jobs.get(&id).map(|job| {
                let more = job.output[offset..].to_vec();
                (more, job.exit.clone())
            });
            sent = match next {
                None => return,
                Some((more, _)) if !more.is_empty() => {
                    offset += more.len();
                    socket.send(Message::binary(more)).await.is_ok()
                }
                Some((_, Some(exit))) => {
                    let _gone = socket.send(text(&TerminalControl::Exited(exit))).await;
                    let _closed = socket.close(None).await;
                    return;
                }
                Some(_) => {
                    changed.await;
                    true
                }
            };
        }
    }));
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", accept)
        .body(whole(""))
        .unwrap()
}

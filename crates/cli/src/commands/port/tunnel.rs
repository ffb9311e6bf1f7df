//! One local listener, and a WebSocket for each of its connections.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use types::PortControl;

use crate::Error;
use crate::client::{Client, Socket};

/// Bytes read at once, and so the largest message.
const READ_SIZE: usize = 32 * 1024;

/// How long a program may go on sending to a port that has ended.
const GRACE: Duration = Duration::from_secs(5);

/// Where connections to one port go.
pub(super) struct Tunnels {
    pub(super) client: Arc<Client>,
    /// Of the WebSocket on the control plane.
    pub(super) path: String,
    pub(super) places: Arc<Semaphore>,
    pub(super) complaints: mpsc::Sender<String>,
}

impl Tunnels {
    /// Accepts as long as it is not dropped; connections end with it.
    pub(super) async fn serve(self, listener: TcpListener) {
        let mut open = JoinSet::new();
        loop {
            // Beyond the bound they wait in the system's own queue.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            let accepted = listener.accept().await;
            while open.try_join_next().is_some() {}
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    self.complain(format!("a connection could not be accepted: {error}"));
                    continue;
                }
            };
            let (client, path) = (Arc::clone(&self.client), self.path.clone());
            let complaints = self.complaints.clone();
            open.spawn(async move {
                if let Err(error) = carry(&client, &path, stream).await {
                    // When many fail at once the first few say enough.
                    let _ = complaints.try_send(error.to_string());
                }
                drop(place);
            });
        }
    }

    fn complain(&self, text: String) {
        let _ = self.complaints.try_send(text);
    }
}

async fn carry(client: &Client, path: &str, stream: TcpStream) -> Result<(), Error> {
    // Latency is what people feel; without it nothing is lost but that.
    let _ = stream.set_nodelay(true);
    let socket: Socket = client.websocket(path).await?;
    let (mut sink, mut source) = socket.split();
    let (mut from_local, mut to_local) = stream.into_split();
    let upward = async {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let message = match from_local.read(&mut buffer).await {
                Ok(0) => {
                    let end = serde_json::to_string(&PortControl::End).unwrap_or_default();
                    Message::Text(end.into())
                }
                Ok(length) => {
                    Message::Binary(buffer.get(..length).unwrap_or_default().to_vec().into())
                }
                // The program here has gone without saying so.
                Err(_) => return,
            };
            let ends = message.is_text();
            if sink.send(message).await.is_err() || ends {
                // The answer is still to come; the other direction says when it is over.
                std::future::pending::<()>().await;
            }
        }
    };
    let downward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => {
                    if to_local.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                // The server's end, or the tunnel's: all of it has been written.
                Message::Text(_) | Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        let _ = to_local.shutdown().await;
    };
    tokio::select! {
        () = upward => {}
        () = downward => {}
    }
    drop((sink, source));
    // A program that is answered before it has sent everything would be reset, and might not
    // read the answer.
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(&mut from_local, &mut nowhere);
    let _ = tokio::time::timeout(GRACE, rest).await;
    Ok(())
}

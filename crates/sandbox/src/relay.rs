//! Relays the loopback address that programs in the sandbox take for the gateway to the
//! channel socket, byte by byte: the hypervisor sees what the program sent, its token
//! included, and decides (arch §1).

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections relayed at a time; further ones wait in the listener's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection may carry nothing in either direction. Model streams can think
/// for minutes; an abandoned connection must not hold its place for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a client has to end by itself, once the channel takes no more and the client was
/// sent all that it said.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes read at once, per direction.
const BUFFER: usize = 16 * 1024;
/// Pause after the listener could not accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound relay that does not accept yet.
#[derive(Debug)]
pub struct Relay {
    listener: TcpListener,
    socket: PathBuf,
}

impl Relay {
    /// Binds the address.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn bind(address: SocketAddr, socket: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            listener,
            socket: socket.to_owned(),
        })
    }

    /// The address that is served.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Relays until cancelled; then every connection is cut.
    pub async fn run(self, cancelled: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accept = async {
                // The place first: who waits, waits in the kernel's bounded backlog.
                let place = places.clone().acquire_owned().await.ok()?;
                Some((place, self.listener.accept().await))
            };
            let accepted = tokio::select! {
                () = cancelled.cancelled() => return,
                accepted = accept => accepted,
            };
            match accepted {
                None => return,
                Some((place, Ok((stream, _)))) => {
                    let (socket, cancelled) = (self.socket.clone(), cancelled.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = cancelled.cancelled() => {}
                            result = relay(stream, &socket) => {
                                if let Err(error) = result {
                                    tracing::debug!(%error, "a relayed connection ended");
                                }
                            }
                        }
                        drop(place);
                    });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "the relay cannot accept connections for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn relay(client: TcpStream, socket: &Path) -> io::Result<()> {
    client.set_nodelay(true)?;
    let host = UnixStream::connect(socket).await?;
    carry(client.into_split(), host.into_split()).await
}

/// Copies both ways until both have ended.
async fn carry(
    (mut client_read, mut client_write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    (mut host_read, mut host_write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let moved = AtomicU64::new(0);
    let said = CancellationToken::new();
    let down = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            // However the channel goes, it has said its last.
            let read = host_read.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            client_write.write_all(bytes).await?;
            moved.fetch_add(1, Ordering::Relaxed);
        }
        said.cancel();
        client_write.shutdown().await
    };
    let up = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = client_read.read(&mut buffer).await?;
            if read == 0 {
                // One that is gone already has ended without it.
                let _ = host_write.shutdown().await;
                return Ok(());
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            if host_write.write_all(bytes).await.is_err() {
                break;
            }
            moved.fetch_add(1, Ordering::Relaxed);
        }
        // Taken off the line, so that the client is not reset before it has read everything.
        let unheard = async {
            while client_read.read(&mut buffer).await? != 0 {}
            Ok(())
        };
        let grace = async {
            said.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ended = unheard => ended,
            () = grace => Err(io::ErrorKind::TimedOut.into()),
        }
    };
    tokio::select! {
        result = async { tokio::try_join!(up, down) } => result.map(drop),
        () = until_idle(&moved) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Resolves once nothing was moved for [`IDLE_TIMEOUT`].
async fn until_idle(moved: &AtomicU64) {
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
    use tokio::net::{TcpStream, UnixListener};
    use tokio::time::{Instant, sleep};
    use tokio_util::sync::CancellationToken;

    use super::{GRACE, MAX_CONNECTIONS, Relay, carry};

    /// An echo that counts how many connections it has at most at a time.
    fn echo(listener: UnixListener) -> Arc<AtomicUsize> {
        let most = Arc::new(AtomicUsize::new(0));
        let (open, seen) = (Arc::new(AtomicUsize::new(0)), most.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let open = open.clone();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        most
    }

    async fn greet(stream: &mut TcpStream) {
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("channel.sock");
        let most = echo(UnixListener::bind(&socket).unwrap());
        let relay = Relay::bind("127.0.0.1:0".parse().unwrap(), &socket)
            .await
            .unwrap();
        let address = relay.local_addr().unwrap();
        let cancelled = CancellationToken::new();
        let running = tokio::spawn(relay.run(cancelled.clone()));
        let mut streams = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            greet(&mut stream).await;
            streams.push(stream);
        }
        let mut waiting = TcpStream::connect(address).await.unwrap();
        waiting.write_all(b"he").await.unwrap();
        // What a client said before it closed its side still arrives, and is answered.
        let mut first = streams.remove(0);
        first.write_all(b"last words").await.unwrap();
        first.shutdown().await.unwrap();
        let mut answer = String::new();
        first.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "last words");
        waiting.write_all(b"llo").await.unwrap();
        let mut answer = [0; 5];
        waiting.read_exact(&mut answer).await.unwrap();
        assert_eq!(most.load(Ordering::SeqCst), MAX_CONNECTIONS);
        // Told to end, it cuts every connection.
        cancelled.cancel();
        running.await.unwrap();
        assert_eq!(waiting.read(&mut answer).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn what_the_channel_says_last_reaches_whoever_goes_on_sending() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("channel.sock");
        let channel = UnixListener::bind(&socket).unwrap();
        let relay = Relay::bind("127.0.0.1:0".parse().unwrap(), &socket)
            .await
            .unwrap();
        let address = relay.local_addr().unwrap();
        tokio::spawn(relay.run(CancellationToken::new()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[7; 64 << 10]).await.unwrap();
        let (mut served, _) = channel.accept().await.unwrap();
        served.read_exact(&mut [0; 1024]).await.unwrap();
        served.write_all(b"refused").await.unwrap();
        // With what was sent unread: whoever writes or reads is told of a reset.
        drop(served);
        for _ in 0..100 {
            client.write_all(&[7; 64 << 10]).await.unwrap();
        }
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"refused");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_on_to_a_channel_that_is_gone_is_cut_after_a_while() {
        let (mut client, near) = duplex(64);
        let (far, channel) = duplex(64);
        drop(channel);
        let began = Instant::now();
        let carried = tokio::spawn(carry(split(near), split(far)));
        while client.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed() < 2 * GRACE, "it sends for ever");
        }
        assert!(began.elapsed() >= GRACE);
        let ended = carried.await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_missing_channel_closes_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::bind("127.0.0.1:0".parse().unwrap(), &dir.path().join("none"))
            .await
            .unwrap();
        let address = relay.local_addr().unwrap();
        tokio::spawn(relay.run(CancellationToken::new()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
}

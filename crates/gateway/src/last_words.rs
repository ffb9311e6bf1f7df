//! What a side says last, when it takes no more: it still reaches the client of a connection
//! that is carried both ways. A write that fails says nothing about what there is to read.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// How long a client has to end by itself, once it was sent all that the other side said.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes held per direction.
const BUFFER: usize = 32 << 10;

/// Whether the client was sent all.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    said: CancellationToken,
}

impl LastWords {
    /// Nothing more comes for the client.
    pub(crate) fn said(&self) {
        self.said.cancel();
    }

    /// Takes off the line what a client still sends to a side that takes no more, so that the
    /// client is not reset before it has read everything.
    ///
    /// # Errors
    /// The client broke off, or did not end within [`GRACE`].
    pub(crate) async fn hear_out<R>(&self, mut client: R, buffer: &mut [u8]) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
    {
        let drained = async {
            while client.read(buffer).await? != 0 {}
            Ok(())
        };
        let grace = async {
            self.said.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ended = drained => ended,
            () = grace => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Copies both ways until both have ended.
///
/// # Errors
/// The client broke off, or goes on sending to a side that is gone.
pub(crate) async fn copy_both<C, S>(client: C, side: S) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let last_words = LastWords::default();
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut side_read, mut side_write) = tokio::io::split(side);
    let down = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            // Whatever way the side goes, it has said its last.
            let count = side_read.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                break;
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            client_write.write_all(bytes).await?;
            client_write.flush().await?;
        }
        last_words.said();
        client_write.shutdown().await
    };
    let up = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = client_read.read(&mut buffer).await?;
            if count == 0 {
                // One that is gone already has ended without it.
                let _ = side_write.shutdown().await;
                return Ok(());
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            let written = match side_write.write_all(bytes).await {
                Ok(()) => side_write.flush().await,
                broken => broken,
            };
            if written.is_err() {
                return last_words.hear_out(client_read, &mut buffer).await;
            }
        }
    };
    tokio::try_join!(down, up).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_on_to_a_side_that_is_gone_is_cut_after_a_while() {
        let (mut client, near) = duplex(64);
        let (far, mut side) = duplex(64);
        side.write_all(b"last words").await.unwrap();
        drop(side);
        let began = Instant::now();
        let carried = tokio::spawn(copy_both(near, far));
        let mut heard = [0; 10];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"last words");
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed() < 2 * GRACE, "it sends for ever");
        }
        assert!(began.elapsed() >= GRACE);
        let ended = carried.await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }
}

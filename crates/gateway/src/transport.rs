//! The byte streams beneath HTTP.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::LocalSocket;

/// Pieces that come to no more bytes than these are written as one: copying them costs less than
/// telling the kernel of each.
const GATHERED: usize = 2048;

thread_local! {
    /// Where pieces are gathered: no more than [`GATHERED`] bytes, kept for the next ones.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Has pieces written as one. `None`: they are too many bytes, or one piece alone.
pub(crate) fn gathered<T>(pieces: &[io::IoSlice<'_>], write: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    if pieces.len() < 2 || length > GATHERED {
        return None;
    }
    let mut bytes = ROOM.take();
    bytes.clear();
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    let written = write(&bytes);
    ROOM.set(bytes);
    Some(written)
}

/// A connection to an upstream.
pub(crate) enum Transport {
    Unix(LocalSocket),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How many bytes an upstream may send before its response head is complete.
///
/// The HTTP parser skips 1xx heads without counting them, so a hostile app could keep it
/// busy for ever (threats, "a flood of 1xx"). Counting bytes bounds that, whatever they are.
#[derive(Debug)]
pub(crate) struct HeadBudget {
    left: AtomicUsize,
}

impl HeadBudget {
    const UNLIMITED: usize = usize::MAX;

    pub(crate) fn new() -> Self {
        Self {
            left: AtomicUsize::new(Self::UNLIMITED),
        }
    }

    /// Counts from here.
    pub(crate) fn arm(&self, bytes: usize) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// The head is there: the body has other bounds. Returns what was left.
    pub(crate) fn lift(&self) -> usize {
        self.left.swap(Self::UNLIMITED, Ordering::Relaxed)
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == Self::UNLIMITED {
            return Ok(());
        }
        // Only the task that drives the connection reads, so load and store need not be one.
        match left.checked_sub(bytes) {
            Some(left) => {
                self.left.store(left, Ordering::Relaxed);
                Ok(())
            }
            None => Err(io::Error::other("the response head is too large")),
        }
    }
}

/// A transport whose reads count against a [`HeadBudget`].
pub(crate) struct Metered {
    transport: Transport,
    budget: Arc<HeadBudget>,
}

impl Metered {
    pub(crate) fn new(transport: Transport, budget: Arc<HeadBudget>) -> Self {
        Self { transport, budget }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.transport {
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match read {
            Poll::Ready(Ok(())) => Poll::Ready(self.budget.spend(buf.filled().len() - before)),
            other => other,
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = gathered(bufs, |all| self.as_mut().poll_write(cx, all)) {
            return written;
        }
        match &mut self.transport {
            Transport::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Unix(stream) => stream.is_write_vectored(),
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_gathered_and_large_ones_are_not_copied() {
        let pieces = |pieces: &[&'static [u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
            gathered(&pieces, <[u8]>::to_vec)
        };
        assert_eq!(pieces(&[b"a", b"", b"bc"]).unwrap(), b"abc");
        assert_eq!(pieces(&[&[7; 2000], &[8; 48]]).unwrap().len(), 2048);
        assert_eq!(pieces(&[&[7; 2000], &[8; 49]]), None);
        assert_eq!(pieces(&[b"alone"]), None);
        assert_eq!(pieces(&[]), None);
    }

    #[test]
    fn a_budget_counts_only_while_it_is_armed() {
        let budget = HeadBudget::new();
        budget.spend(1 << 40).unwrap();
        budget.arm(10);
        budget.spend(6).unwrap();
        assert!(budget.spend(5).is_err());
        assert_eq!(budget.lift(), 4);
        budget.spend(1 << 40).unwrap();
    }
}

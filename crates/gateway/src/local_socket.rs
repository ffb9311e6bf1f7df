//! A Unix stream socket that wakes nobody without a reason.
//!
//! A Unix socket becomes writable anew whenever its other end reads. Whoever waits for that as
//! well as for something to read, as Tokio's `UnixStream` always does, is woken once more for
//! each message that it has sent. Tokio's ends of pipes wait for one of the two alone.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::pipe;

use crate::transport::gathered;

/// Most bytes of one read.
const READ: usize = 16 << 10;

/// A connected Unix stream socket. It waits for room to write only while a write has found none.
#[derive(Debug)]
pub struct LocalSocket {
    socket: Arc<pipe::Receiver>,
    /// A second descriptor, for as long as there is no room.
    full: Option<pipe::Sender>,
}

impl LocalSocket {
    /// Has to be called within the runtime that is to hear of the socket's events.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = pipe::Receiver::from_owned_fd_unchecked(socket.into())?;
        Ok(Self {
            socket: Arc::new(socket),
            full: None,
        })
    }

    /// An eye on the other end, also while the socket is in use.
    #[must_use]
    pub fn other_end(&self) -> OtherEnd {
        OtherEnd(Arc::clone(&self.socket))
    }

    /// Sends as soon as that is possible.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        send: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let send = || Ok(send(self.socket.as_fd())?);
            let sent = match &self.full {
                None => send(),
                Some(full) => {
                    ready!(full.poll_write_ready(cx))?;
                    full.try_io(send)
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.full.is_none() {
                        let second = self.socket.as_fd().try_clone_to_owned()?;
                        self.full = Some(pipe::Sender::from_owned_fd_unchecked(second)?);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => {
                    self.full = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }
}

impl AsyncRead for LocalSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); READ];
        let wanted = buf.remaining().min(READ);
        let space = space.get_mut(..wanted).unwrap_or_default();
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let mut emptied = false;
            let read = self.socket.try_io(|| {
                let ((read, _), _) =
                    rustix::net::recv(&*self.socket, &mut *space, RecvFlags::empty())?;
                buf.put_slice(read);
                // Whatever comes after the last byte is an event of its own.
                emptied = !read.is_empty() && read.len() < wanted;
                if emptied {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match read {
                Err(_) if emptied => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return Poll::Ready(read),
            }
        }
    }
}

impl AsyncWrite for LocalSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| {
            rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = gathered(pieces, |all| self.as_mut().poll_write(cx, all)) {
            return written;
        }
        self.poll_send(cx, |socket| {
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg(socket, pieces, &mut nothing, SendFlags::NOSIGNAL)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.socket, Shutdown::Write)?))
    }
}

/// Whether the other end of a [`LocalSocket`] is still there.
#[derive(Debug)]
pub struct OtherEnd(Arc<pipe::Receiver>);

impl OtherEnd {
    /// Resolves once it sends nothing any more, whether or not all of it was read.
    pub async fn left(&self) {
        // Nothing is ever told of this interest but the end.
        while let Ok(ready) = self.0.ready(Interest::PRIORITY).await {
            if ready.is_read_closed() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const EPOLLIN: u32 = 0x1;
    const EPOLLOUT: u32 = 0x4;

    /// The two ends, one of them as everybody else has it.
    fn pair() -> (LocalSocket, tokio::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        (LocalSocket::new(ours).unwrap(), theirs)
    }

    /// What the kernel is asked to tell of a descriptor (proc_pid_fdinfo(5)).
    fn waited_for(descriptor: &impl AsFd) -> Option<u32> {
        let wanted = descriptor.as_fd().as_raw_fd().to_string();
        fs::read_dir("/proc/self/fdinfo").unwrap().find_map(|info| {
            let text = fs::read_to_string(info.unwrap().path()).ok()?;
            text.lines().find_map(|line| {
                let (descriptor, rest) = line.strip_prefix("tfd:")?.split_once("events:")?;
                let events = rest.split_whitespace().next()?;
                (descriptor.trim() == wanted).then(|| u32::from_str_radix(events, 16).unwrap())
            })
        })
    }

    #[tokio::test]
    async fn room_is_waited_for_only_while_there_is_none() {
        let (mut ours, mut theirs) = pair();
        let asked = waited_for(&*ours.socket).unwrap();
        assert_eq!(asked & (EPOLLIN | EPOLLOUT), EPOLLIN);
        assert_eq!(waited_for(&theirs).unwrap() & EPOLLOUT, EPOLLOUT);

        let piece = [7; 64 << 10];
        let mut written = 0;
        let filled = std::future::poll_fn(|cx| {
            while let Poll::Ready(sent) = Pin::new(&mut ours).poll_write(cx, &piece) {
                written += sent.unwrap();
            }
            Poll::Ready(())
        });
        filled.await;
        let second = waited_for(ours.full.as_ref().unwrap()).unwrap();
        assert_eq!(second & (EPOLLIN | EPOLLOUT), EPOLLOUT);

        let mut taken = vec![0; written];
        let (more, read) = tokio::join!(ours.write_all(b"more"), theirs.read_exact(&mut taken));
        more.unwrap();
        read.unwrap();
        assert!(ours.full.is_none());
        assert_eq!(theirs.read(&mut taken).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn much_goes_both_ways_and_ends() {
        let (ours, theirs) = pair();
        let text: Vec<u8> = (0..3_000_017_u32).map(|at| (at % 251) as u8).collect();
        let side = async |stream: &mut (dyn Side + '_)| {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut seen = Vec::new();
            let send = async {
                let (first, second) = text.split_at(1_000_003);
                write.write_all(first).await.unwrap();
                // In pieces that are too many bytes to be gathered.
                let mut rest = second;
                while !rest.is_empty() {
                    let (left, right) = rest.split_at(rest.len() / 2);
                    let pieces = [IoSlice::new(left), IoSlice::new(right)];
                    let sent = write.write_vectored(&pieces).await.unwrap();
                    rest = rest.get(sent..).unwrap();
                }
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { read.read_to_end(&mut seen).await.unwrap() });
            seen
        };
        let (mut ours, mut theirs) = (ours, theirs);
        let (here, there) = tokio::join!(side(&mut ours), side(&mut theirs));
        assert!(here == text && there == text);
    }

    trait Side: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Side for T {}

    #[tokio::test]
    async fn the_other_end_is_seen_leaving_before_what_it_said_is_read() {
        let (mut ours, mut theirs) = pair();
        let other_end = ours.other_end();
        let mut left = std::pin::pin!(other_end.left());
        theirs.write_all(b"unread").await.unwrap();
        let mut first = [0; 2];
        ours.read_exact(&mut first).await.unwrap();
        assert!(futures_util::poll!(left.as_mut()).is_pending());
        theirs.shutdown().await.unwrap();
        left.await;
        let mut rest = String::new();
        ours.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "read");
        // It may still listen.
        ours.write_all(b"well").await.unwrap();
        assert_eq!(theirs.read(&mut first).await.unwrap(), 2);
        drop(theirs);
        let broken = ours.write_all(b"well").await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }
}

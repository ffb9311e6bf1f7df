//! A runner's loopback relay: TCP on 127.0.0.1 to the Unix socket of its channel.
//!
//! Runs in the runner's first process, which waits for the command anyway.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen, shutdown, socket_with, sockopt,
};

/// Connections relayed at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Bytes held per connection and direction.
const BUFFER: usize = 16 << 10;

/// Most bytes of a client that are thrown away once the channel takes and says no more.
const UNHEARD: usize = 16 << 20;

/// A listener and the connections it relays.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: OwnedFd,
    target: String,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    tcp: OwnedFd,
    unix: OwnedFd,
    up: Pipe,
    down: Pipe,
    /// Bytes that were thrown away after the channel had said its last.
    unheard: usize,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    held: Vec<u8>,
    sent: usize,
    ended: bool,
    /// Where it leads to takes no more.
    deaf: bool,
    shut: bool,
}

impl Relay {
    /// Listens on a loopback port that the kernel chooses, and returns the port.
    pub(crate) fn listen(target: String) -> io::Result<(Self, u16)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        listen(&listener, BACKLOG)?;
        let address = SocketAddrV4::try_from(getsockname(&listener)?)?;
        Ok((
            Self {
                listener,
                target,
                connections: Vec::new(),
            },
            address.port(),
        ))
    }

    /// What to wait for. The order is that of [`Relay::handle`]. A socket from which nothing is
    /// wanted is left out: the kernel would go on telling that its other end has hung up, while
    /// there is nothing to do before the slower side has taken what is held for it.
    pub(crate) fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let full = self.connections.len() >= MAX_CONNECTIONS;
        let mut wanted = vec![(
            self.listener.as_fd(),
            if full {
                PollFlags::empty()
            } else {
                PollFlags::IN
            },
        )];
        for connection in &self.connections {
            let sockets = [&connection.tcp, &connection.unix];
            for (socket, flags) in sockets.into_iter().zip(connection.wants()) {
                if !flags.is_empty() {
                    wanted.push((socket.as_fd(), flags));
                }
            }
        }
        wanted
    }

    /// Moves what can be moved; `seen` answers to [`Relay::interest`].
    pub(crate) fn handle(&mut self, seen: &[PollFlags]) {
        let mut pairs = seen.iter().skip(1);
        self.connections.retain_mut(|connection| {
            let mut idle = true;
            for wanted in connection.wants() {
                if !wanted.is_empty() {
                    idle &= pairs.next().is_none_or(PollFlags::is_empty);
                }
            }
            idle || connection.pump().unwrap_or(false)
        });
        if seen
            .first()
            .is_some_and(|flags| flags.contains(PollFlags::IN))
        {
            self.accept();
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            let Ok(tcp) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            else {
                return;
            };
            // A client whose channel cannot be reached sees its connection closed.
            if let Ok(connection) = Connection::open(tcp, &self.target) {
                self.connections.push(connection);
            }
        }
    }
}

impl Connection {
    fn open(tcp: OwnedFd, target: &str) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&tcp, true)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let unix = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&unix, &SocketAddrUnix::new(target)?)?;
        Ok(Self {
            tcp,
            unix,
            up: Pipe::default(),
            down: Pipe::default(),
            unheard: 0,
        })
    }

    /// What there is to wait for at the client and at the channel.
    fn wants(&self) -> [PollFlags; 2] {
        [
            self.up.reading() | self.down.writing(),
            self.down.reading() | self.up.writing(),
        ]
    }

    /// Moves bytes both ways. `false` once both ways have ended.
    ///
    /// A channel that takes no more may have said why, to a client that goes on sending: what
    /// it sends is taken off the line, so that it is not reset before it has read everything.
    fn pump(&mut self) -> io::Result<bool> {
        let unheard = self.up.fill(&self.tcp)?;
        if self.up.empty(&self.unix).is_err() {
            self.up.deafen();
        }
        if self.down.fill(&self.unix).is_err() {
            self.down.ended = true;
        }
        self.down.empty(&self.tcp)?;
        if self.down.shut {
            self.unheard += unheard;
        }
        Ok(!(self.up.shut && self.down.shut) && self.unheard <= UNHEARD)
    }
}

impl Pipe {
    fn reading(&self) -> PollFlags {
        if !self.ended && self.held.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        }
    }

    fn writing(&self) -> PollFlags {
        if self.held.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        }
    }

    /// Takes what there is. Returns how many bytes of it are thrown away.
    fn fill(&mut self, from: &OwnedFd) -> io::Result<usize> {
        if self.ended || !self.held.is_empty() {
            return Ok(0);
        }
        let mut buffer = [0; BUFFER];
        let Some(read) = unless_blocked(rustix::io::read(from, &mut buffer))? else {
            return Ok(0);
        };
        self.ended = read == 0;
        if self.deaf {
            return Ok(read);
        }
        self.held
            .extend_from_slice(buffer.get(..read).unwrap_or_default());
        Ok(0)
    }

    /// Gives what is held, and the end after it.
    fn empty(&mut self, to: &OwnedFd) -> io::Result<()> {
        if let Some(rest) = self.held.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let flags = rustix::net::SendFlags::NOSIGNAL;
            self.sent += unless_blocked(rustix::net::send(to, rest, flags))?.unwrap_or(0);
            if self.sent == self.held.len() {
                self.held.clear();
                self.sent = 0;
            }
        }
        if self.ended && self.held.is_empty() && !self.shut {
            // Tells the other side that no more will come; it may still answer.
            self.shut = true;
            if !self.deaf {
                shutdown(to, Shutdown::Write)?;
            }
        }
        Ok(())
    }

    fn deafen(&mut self) {
        self.deaf = true;
        self.held.clear();
        self.sent = 0;
        self.shut |= self.ended;
    }
}

fn unless_blocked<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::TcpStream;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{Relay, UNHEARD};

    /// One turn; whether anything had happened before the time was over.
    fn turn(relay: &mut Relay, within: Duration) -> bool {
        let seen: Vec<PollFlags> = {
            let mut fds: Vec<_> = relay
                .interest()
                .into_iter()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
                .collect();
            poll(&mut fds, Some(&Timespec::try_from(within).unwrap())).unwrap();
            fds.iter().map(PollFd::revents).collect()
        };
        relay.handle(&seen);
        seen.iter().any(|flags| !flags.is_empty())
    }

    /// A relay with one connection: its client, and the channel's end of it.
    fn connected() -> (Relay, TcpStream, UnixStream) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("channel.sock");
        let channel = UnixListener::bind(&path).unwrap();
        let (mut relay, port) = Relay::listen(path.to_str().unwrap().to_owned()).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        while relay.connections.is_empty() {
            turn(&mut relay, Duration::from_secs(5));
        }
        let (served, _) = channel.accept().unwrap();
        (relay, client, served)
    }

    #[test]
    fn what_a_channel_says_last_reaches_whoever_goes_on_sending() {
        let (mut relay, mut client, mut served) = connected();
        client.write_all(&[7; 32 << 10]).unwrap();
        turn(&mut relay, Duration::from_secs(5));
        served.read_exact(&mut [0; 1024]).unwrap();
        served.write_all(b"refused").unwrap();
        // With what was sent unread: whoever writes or reads is told of a reset.
        drop(served);
        for _ in 0..20 {
            client.write_all(&[7; 16 << 10]).unwrap();
            turn(&mut relay, Duration::from_secs(5));
        }
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"refused");
        drop(client);
        while !relay.connections.is_empty() {
            assert!(turn(&mut relay, Duration::from_secs(5)), "it does not end");
        }
    }

    #[test]
    fn whoever_sends_on_to_a_channel_that_is_gone_is_cut() {
        let (mut relay, mut client, served) = connected();
        drop(served);
        let mut sent = 0;
        while !relay.connections.is_empty() {
            assert!(sent <= UNHEARD + (4 << 20), "it sends for ever");
            match client.write(&[7; 16 << 10]) {
                Ok(length) => sent += length,
                Err(_) => break,
            }
            turn(&mut relay, Duration::from_secs(5));
        }
        assert!(sent >= UNHEARD);
    }

    #[test]
    fn a_client_that_reads_nothing_of_a_channel_that_hung_up_is_waited_for_at_rest() {
        let (mut relay, mut client, mut served) = connected();
        served.set_nonblocking(true).unwrap();
        // Until neither the client's socket nor the relay takes more.
        let mut written = 0;
        loop {
            match served.write(&[7; 64 << 10]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !turn(&mut relay, Duration::from_millis(200)) {
                        break;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        drop(served);
        let began = Instant::now();
        assert!(
            !turn(&mut relay, Duration::from_millis(200)),
            "there is nothing to do"
        );
        assert!(began.elapsed() >= Duration::from_millis(200));
        // What is held arrives all the same, and then the end.
        client.set_nonblocking(true).unwrap();
        let (mut read, mut bytes) = (0, vec![0; 1 << 20]);
        loop {
            match client.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => read += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    turn(&mut relay, Duration::from_secs(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(read, written);
    }
}

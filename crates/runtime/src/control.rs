//! The asynchronous client of a supervisor's control socket.
//!
//! One connection carries requests in sequence; `attach`, `guest_log` and `watch` take a
//! connection of their own over. Frames are those of [`isolation::protocol`].

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use isolation::protocol::{
    Decoder, Event, Frame, MAX_DATA, Message, ProtocolError, Refusal, Reply, Request, RunnerStatus,
    Signal, Stream, VERSION, encode_data, encode_json,
};
use isolation::spec::{Nonce, RunnerSpec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast;
use types::{CommandExit, CommandId, ListeningPort, OutputStream, TerminalSize};

/// How long a supervisor may take to answer a request that needs no waiting.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Bytes read at once.
const READ_SIZE: usize = 32 * 1024;

/// Bytes of a guest's log that [`Control::log_tail`] looks at.
const TAIL_BYTES: usize = 8 * 1024;

/// How long [`Control::log_tail`] waits for more of the log.
const TAIL_WITHIN: Duration = Duration::from_millis(200);

/// How long [`Control::log_tail`] reads at most: a guest may write without end.
const TAIL_TOTAL: Duration = Duration::from_secs(1);

/// What this machine or this process has too little of for the moment.
const PASSING: [rustix::io::Errno; 6] = [
    rustix::io::Errno::MFILE,
    rustix::io::Errno::NFILE,
    rustix::io::Errno::NOMEM,
    rustix::io::Errno::NOBUFS,
    // Also a full backlog of a Unix socket.
    rustix::io::Errno::AGAIN,
    rustix::io::Errno::INTR,
];

/// What can go wrong between a hypervisor and a supervisor.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("the control socket failed")]
    Io(#[source] io::Error),
    /// No answer in time.
    #[error("the supervisor did not answer within 10 s")]
    Timeout,
    /// It answered something that the protocol does not have there.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(&'static str),
    /// It is not the supervisor that was started.
    #[error("not our supervisor: {0}")]
    NotOurs(&'static str),
    /// It was started by another release of this program.
    #[error("the supervisor speaks version {0} of its protocol, and this hypervisor {VERSION}")]
    Version(u32),
    /// A frame of its cannot be read.
    #[error("the supervisor broke the protocol")]
    Frame(#[from] ProtocolError),
    /// It refused, and said why and what to do.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ControlError {
    /// Whether it says nothing about the supervisor: the same question may be answered in a
    /// moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Io(error) => {
                let errno = rustix::io::Errno::from_io_error(error);
                errno.is_some_and(|errno| PASSING.contains(&errno))
            }
            _ => false,
        }
    }
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How to reach one supervisor. Cheap to clone; every request makes its own connection.
#[derive(Clone)]
pub struct Control {
    dir: PathBuf,
    nonce: Nonce,
}

/// What a supervisor says about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    pub(crate) pid: u32,
    /// It takes its sandbox down.
    pub(crate) stopping: bool,
    /// It cannot count denied system calls.
    pub(crate) uncounted: bool,
}

/// A runner that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Its command.
    pub id: CommandId,
    /// Its own channel, when it was granted one.
    pub channel: Option<UnixListener>,
}

/// A piece of what a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It wrote.
    Data {
        /// Where to.
        stream: OutputStream,
        /// Offset of the first byte in the command's combined output.
        offset: u64,
        /// The bytes, at most 64 KiB.
        data: Vec<u8>,
    },
    /// It ended; nothing follows.
    Exited(CommandExit),
}

impl Control {
    /// Reaches the supervisor whose `control.sock` lies in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, nonce: Nonce) -> Self {
        Self { dir, nonce }
    }

    /// Checks that the supervisor answers and knows the nonce.
    pub(crate) async fn hello(&self) -> Result<Greeting, ControlError> {
        within(async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.hello(&self.nonce).await
        })
        .await
    }

    /// The guest's channel listener.
    pub(crate) async fn channel(&self) -> Result<UnixListener, ControlError> {
        let (_, fds) = self.ask(&Request::Channel {}).await?;
        listener(fds)
    }

    /// A runner's own channel listener, once more.
    pub(crate) async fn runner_channel(&self, id: CommandId) -> Result<UnixListener, ControlError> {
        let (_, fds) = self.ask(&Request::RunnerChannel { command_id: id }).await?;
        listener(fds)
    }

    pub(crate) async fn spawn(&self, spec: RunnerSpec) -> Result<Spawned, ControlError> {
        let wants_channel = spec.channel;
        let id = spec.command_id;
        let (_, fds) = self
            .ask(&Request::Spawn {
                spec: Box::new(spec),
            })
            .await?;
        let channel = if wants_channel {
            Some(listener(fds)?)
        } else {
            None
        };
        Ok(Spawned { id, channel })
    }

    pub(crate) async fn signal(&self, id: CommandId, signal: Signal) -> Result<(), ControlError> {
        self.ask(&Request::Signal {
            command_id: id,
            signal,
        })
        .await
        .map(drop)
    }

    pub(crate) async fn forget(&self, id: CommandId) -> Result<(), ControlError> {
        self.ask(&Request::Forget { command_id: id })
            .await
            .map(drop)
    }

    pub(crate) async fn runners(&self) -> Result<Vec<RunnerStatus>, ControlError> {
        match self.ask(&Request::Runners {}).await?.0 {
            Reply::Runners { runners } => Ok(runners),
            _ => Err(ControlError::Protocol("expected the runners")),
        }
    }

    /// A connection to a port of the workbench.
    pub(crate) async fn connect(&self, port: u16) -> Result<OwnedFd, ControlError> {
        match self.ask(&Request::Connect { port }).await? {
            (Reply::Connected, fds) => fds
                .into_iter()
                .next()
                .ok_or(ControlError::Protocol("no socket came along")),
            _ => Err(ControlError::Protocol("expected a connection")),
        }
    }

    /// The ports of the workbench on which somebody listens.
    pub(crate) async fn ports(&self) -> Result<Vec<ListeningPort>, ControlError> {
        match self.ask(&Request::Ports {}).await?.0 {
            Reply::Ports { ports } => Ok(ports),
            _ => Err(ControlError::Protocol("expected the ports")),
        }
    }

    /// Has the guest's program started again, which has ended.
    pub(crate) async fn restart_guest(&self) -> Result<(), ControlError> {
        self.ask(&Request::RestartGuest {}).await.map(drop)
    }

    /// Takes the sandbox down. Returns once the supervisor has cleaned up; the caller
    /// bounds the wait, because the guest's grace is part of it.
    pub(crate) async fn stop(&self, grace_ms: u64) -> Result<(), ControlError> {
        let mut connection = Connection::open(&self.dir).await?;
        connection.hello(&self.nonce).await?;
        connection
            .request(&Request::Stop { grace_ms })
            .await
            .map(drop)
    }

    pub(crate) async fn attach(
        &self,
        id: CommandId,
        from: u64,
    ) -> Result<Attachment, ControlError> {
        self.stream(&Request::Attach {
            command_id: id,
            from,
        })
        .await
    }

    pub(crate) async fn guest_log(&self, from: u64) -> Result<Attachment, ControlError> {
        self.stream(&Request::GuestLog { from }).await
    }

    /// The last few KiB of the guest's log, for an error text.
    pub(crate) async fn log_tail(&self) -> Result<String, ControlError> {
        let mut log = self.guest_log(0).await?;
        let mut tail = Vec::new();
        let deadline = tokio::time::Instant::now() + TAIL_TOTAL;
        while tokio::time::Instant::now() < deadline
            && let Ok(Ok(Some(Output::Data { data, .. }))) =
                tokio::time::timeout(TAIL_WITHIN, log.next()).await
        {
            tail.extend(data);
            let excess = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..excess);
        }
        Ok(String::from_utf8_lossy(&tail).into_owned())
    }

    /// Makes everything in the sandbox stand still, for at most `limit`.
    pub(crate) async fn freeze(&self, limit: Duration) -> Result<Frozen, ControlError> {
        within(async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.hello(&self.nonce).await?;
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            match connection.request(&Request::Freeze { limit_ms }).await?.0 {
                Reply::Frozen { processes } => Ok(Frozen {
                    connection,
                    processes,
                }),
                _ => Err(ControlError::Protocol("expected to hear of a freeze")),
            }
        })
        .await
    }

    pub(crate) async fn watch(&self) -> Result<Watch, ControlError> {
        within(async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.hello(&self.nonce).await?;
            connection.send(&Request::Watch {}).await?;
            Ok(Watch { connection })
        })
        .await
    }

    async fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        within(async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.hello(&self.nonce).await?;
            connection.request(request).await
        })
        .await
    }

    async fn stream(&self, request: &Request) -> Result<Attachment, ControlError> {
        within(async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.hello(&self.nonce).await?;
            let Reply::Attached { offset, end } = connection.request(request).await?.0 else {
                return Err(ControlError::Protocol("expected an attachment"));
            };
            let (read, write) = connection.stream.into_split();
            let is_log = matches!(request, Request::GuestLog { .. });
            let decoder = connection.decoder;
            let reader = AttachmentReader {
                read,
                decoder,
                offset,
                ended: false,
                is_log,
            };
            Ok(Attachment {
                written: end,
                reader,
                writer: AttachmentWriter { write },
            })
        })
        .await
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

async fn within<T>(
    future: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    tokio::time::timeout(ANSWER_WITHIN, future)
        .await
        .unwrap_or(Err(ControlError::Timeout))
}

fn gone() -> ControlError {
    ControlError::Io(io::ErrorKind::UnexpectedEof.into())
}

fn listener(fds: Vec<OwnedFd>) -> Result<UnixListener, ControlError> {
    let fd = fds
        .into_iter()
        .next()
        .ok_or(ControlError::Protocol("no listener came along"))?;
    Ok(UnixListener::from(fd))
}

/// A connection to a supervisor.
struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
}

impl Connection {
    async fn open(dir: &std::path::Path) -> Result<Self, ControlError> {
        // Through a directory descriptor: the name may be longer than a socket address.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(io::Error::from)?;
        let path = format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd());
        let stream = UnixStream::connect(path).await?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            fds: VecDeque::new(),
        })
    }

    async fn hello(&mut self, nonce: &Nonce) -> Result<Greeting, ControlError> {
        match self
            .request(&Request::Hello {
                nonce: nonce.clone(),
            })
            .await?
            .0
        {
            Reply::Hello {
                version: VERSION,
                pid,
                stopping,
                uncounted,
                ..
            } => Ok(Greeting {
                pid,
                stopping,
                uncounted,
            }),
            Reply::Hello { version, .. } => Err(ControlError::Version(version)),
            _ => Err(ControlError::Protocol("expected a greeting")),
        }
    }

    async fn request(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        self.send(request).await?;
        let Frame::Json(body) = self.receive().await? else {
            return Err(ControlError::Protocol("expected an answer, got data"));
        };
        match Message::parse(&body)? {
            Message::Reply(reply) => Ok((reply, self.fds.drain(..).collect())),
            Message::Refusal(refusal) => Err(refusal.into()),
            Message::Event(_) => Err(ControlError::Protocol("expected an answer, got news")),
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        self.stream.write_all(&encode_json(request)?).await?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Frame, ControlError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            let mut bytes = vec![0; READ_SIZE];
            let fds = &mut self.fds;
            let read = self
                .stream
                .async_io(Interest::READABLE, || {
                    receive(&self.stream, &mut bytes, fds)
                })
                .await?;
            if read == 0 {
                return Err(gone());
            }
            self.decoder.feed(bytes.get(..read).unwrap_or_default());
        }
    }
}

/// One `recvmsg`; descriptors that came along are appended to `fds`.
fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let received =
        rustix::net::recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(received.bytes)
}

/// A sandbox that stands still. Goes on when this is dropped.
pub struct Frozen {
    connection: Connection,
    processes: u32,
}

impl Frozen {
    /// How many processes stand still.
    #[must_use]
    pub const fn processes(&self) -> u32 {
        self.processes
    }

    /// Lets it go on, and tells for how long it stood still. `None`: it went on by itself,
    /// or ended, before this was asked.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub async fn thaw(mut self) -> Result<Option<Duration>, ControlError> {
        within(async {
            match self.connection.request(&Request::Thaw {}).await?.0 {
                Reply::Thawed { held, frozen_ms } => {
                    Ok(held.then(|| Duration::from_millis(frozen_ms)))
                }
                _ => Err(ControlError::Protocol("expected to hear of a thaw")),
            }
        })
        .await
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen")
            .field("processes", &self.processes)
            .finish_non_exhaustive()
    }
}

/// The events of a sandbox.
pub(crate) struct Watch {
    connection: Connection,
}

impl Watch {
    /// Waits until the guest is gone, and tells everything else meanwhile to `events`. A
    /// supervisor that goes away takes its guest along.
    pub(crate) async fn guest_exit(mut self, events: broadcast::Sender<Event>) -> CommandExit {
        loop {
            match self.connection.receive().await {
                Ok(Frame::Json(body)) => {
                    if let Ok(Message::Event(event)) = Message::parse(&body) {
                        // Nobody may be listening.
                        drop(events.send(event.clone()));
                        if let Event::GuestExited { exit } = event {
                            return exit;
                        }
                    }
                }
                Ok(Frame::Data { .. }) => {}
                Err(_) => {
                    let error = Some("its supervisor went away".to_owned());
                    return CommandExit {
                        error,
                        ..CommandExit::default()
                    };
                }
            }
        }
    }
}

/// A command's or guest's output being followed, and its input.
#[derive(Debug)]
pub struct Attachment {
    /// Offset after what had been written when this began.
    written: u64,
    reader: AttachmentReader,
    writer: AttachmentWriter,
}

/// The reading half of an [`Attachment`].
#[derive(Debug)]
pub struct AttachmentReader {
    read: OwnedReadHalf,
    decoder: Decoder,
    offset: u64,
    ended: bool,
    /// A guest's log has no last message: it ends with the connection.
    is_log: bool,
}

/// The writing half of an [`Attachment`].
#[derive(Debug)]
pub struct AttachmentWriter {
    write: OwnedWriteHalf,
}

impl Attachment {
    /// Where the next byte of the output stands; at first beyond what was asked for when older
    /// bytes were dropped.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.reader.offset
    }

    /// The next piece; `None` after the end.
    ///
    /// # Errors
    /// The supervisor went away or broke the protocol.
    pub async fn next(&mut self) -> Result<Option<Output>, ControlError> {
        self.reader.next().await
    }

    /// The next piece of what had been written when this began; `None` after that, whether or
    /// not more is being written.
    ///
    /// # Errors
    /// As for [`Self::next`].
    pub async fn next_written(&mut self) -> Result<Option<Output>, ControlError> {
        if self.reader.offset >= self.written {
            return Ok(None);
        }
        self.reader.next().await
    }

    /// Splits into halves that can be used at the same time.
    #[must_use]
    pub fn into_split(self) -> (AttachmentReader, AttachmentWriter) {
        (self.reader, self.writer)
    }
}

impl AttachmentReader {
    /// The next piece; `None` after the end. Cancel safe.
    ///
    /// # Errors
    /// The supervisor went away or broke the protocol.
    pub async fn next(&mut self) -> Result<Option<Output>, ControlError> {
        while !self.ended {
            match self.decoder.next_frame()? {
                Some(Frame::Data {
                    stream,
                    offset,
                    bytes,
                }) => {
                    let stream = match stream {
                        Stream::Stderr => OutputStream::Stderr,
                        Stream::Stdin | Stream::Stdout => OutputStream::Stdout,
                    };
                    self.offset = offset + bytes.len() as u64;
                    return Ok(Some(Output::Data {
                        stream,
                        offset,
                        data: bytes,
                    }));
                }
                Some(Frame::Json(body)) => match Message::parse(&body)? {
                    Message::Reply(Reply::Exited { exit, .. }) => {
                        self.ended = true;
                        return Ok(Some(Output::Exited(exit)));
                    }
                    Message::Refusal(refusal) => return Err(refusal.into()),
                    Message::Reply(_) | Message::Event(_) => {}
                },
                None => {
                    let mut bytes = vec![0; READ_SIZE];
                    let read = self.read.read(&mut bytes).await?;
                    if read == 0 {
                        self.ended = true;
                        return if self.is_log { Ok(None) } else { Err(gone()) };
                    }
                    self.decoder.feed(bytes.get(..read).unwrap_or_default());
                }
            }
        }
        Ok(None)
    }
}

impl AttachmentWriter {
    /// Writes to the command's standard input or terminal; waits while its pipe is full.
    ///
    /// # Errors
    /// The command or its supervisor is gone.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), ControlError> {
        for piece in data.chunks(MAX_DATA) {
            self.write
                .write_all(&encode_data(Stream::Stdin, 0, piece)?)
                .await?;
        }
        Ok(())
    }

    /// Changes the size of the command's terminal.
    ///
    /// # Errors
    /// The command or its supervisor is gone.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ControlError> {
        self.send(&Request::Resize(size)).await
    }

    /// Closes the command's standard input.
    ///
    /// # Errors
    /// The command or its supervisor is gone.
    pub async fn close_stdin(&mut self) -> Result<(), ControlError> {
        self.send(&Request::CloseStdin {}).await
    }

    async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        self.write.write_all(&encode_json(request)?).await?;
        Ok(())
    }
}

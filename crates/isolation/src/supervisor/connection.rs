//! One client of the control socket: framing, descriptors, and what it is doing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::Serialize;
use types::CommandId;

use crate::packet;
use crate::protocol::{Decoder, Frame, ProtocolError, Refusal, Stream, encode_data, encode_json};

/// Most bytes read from one client before others have their turn.
const READ_SLICE: usize = 64 << 10;

/// Most bytes that a client may send before it has proved itself.
const MAX_BEFORE_HELLO: usize = 4 << 10;

/// How long a client may take to prove itself.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Messages that wait for a client that does not read; beyond it the client is dropped.
const MAX_WAITING: usize = 1024;

/// What a connection is used for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It has not proved itself.
    New,
    /// Requests in sequence.
    Requests,
    /// A runner is being born for it.
    Spawning(CommandId),
    /// The workbench has been asked something for it.
    Asking(u64),
    /// It follows a runner.
    Attached(CommandId, Span),
    /// It follows the guest's log from this offset on.
    GuestLog(u64),
    /// It is told what ends.
    Watching,
    /// It waits for everything to stand still.
    Freezing,
    /// It waits for the end of the sandbox.
    Stopping,
}

/// Which of a runner's output a follower is sent while the runner goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Offset of the next byte.
    pub(crate) from: u64,
    /// What stands from here on waits for the runner's end, and then only what is still kept.
    pub(crate) until: u64,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) mode: Mode,
    socket: OwnedFd,
    decoder: Decoder,
    waiting: VecDeque<Outgoing>,
    opened: Instant,
    /// No more is read; once all is written it is closed.
    closing: bool,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    riders: Vec<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, now: Instant) -> Self {
        Self {
            mode: Mode::New,
            socket,
            decoder: Decoder::new(),
            waiting: VecDeque::new(),
            opened: now,
            closing: false,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What to wait for. `takes_input` says whether what it is attached to does.
    pub(crate) fn interest(&self, takes_input: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        let busy = self.is_busy();
        if !self.closing && !busy && takes_input {
            flags |= PollFlags::IN;
        }
        if !self.waiting.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Whether it waits for an answer that takes its time.
    const fn is_busy(&self) -> bool {
        matches!(
            self.mode,
            Mode::Spawning(_) | Mode::Asking(_) | Mode::Freezing | Mode::Stopping
        )
    }

    /// When it has to have proved itself, if it has not.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (self.mode == Mode::New).then(|| self.opened + HELLO_WITHIN)
    }

    /// Reads one slice. `Ok(false)` at the end of the conversation.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; READ_SLICE];
        match rustix::io::read(&self.socket, buffer.as_mut_slice()) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.decoder.feed(buffer.get(..length).unwrap_or_default());
                let early = self.mode == Mode::New && self.decoder.pending() > MAX_BEFORE_HELLO;
                Ok(!early)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The next complete frame, unless it is no time for one.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        if self.closing || self.is_busy() {
            return Ok(None);
        }
        self.decoder.next_frame()
    }

    /// Whether everything was written, so that the next piece of a log may follow.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.closing
    }

    /// Whether it is to be closed now.
    pub(crate) fn is_done(&self) -> bool {
        (self.closing && self.waiting.is_empty()) || self.waiting.len() > MAX_WAITING
    }

    /// Closes it once everything is written.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Queues a message, and tries to send it at once.
    pub(crate) fn say<T: Serialize>(&mut self, message: &T, riders: Vec<OwnedFd>) {
        match encode_json(message) {
            Ok(bytes) => self.queue(bytes, riders),
            Err(_) => self.closing = true,
        }
    }

    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        self.say(refusal, Vec::new());
    }

    pub(crate) fn say_data(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
        match encode_data(stream, offset, bytes) {
            Ok(bytes) => self.queue(bytes, Vec::new()),
            Err(_) => self.closing = true,
        }
    }

    fn queue(&mut self, bytes: Vec<u8>, riders: Vec<OwnedFd>) {
        self.waiting.push_back(Outgoing {
            bytes,
            sent: 0,
            riders,
        });
        self.write();
    }

    /// Writes what can be written now.
    pub(crate) fn write(&mut self) {
        while let Some(first) = self.waiting.front_mut() {
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            let riders: Vec<_> = first.riders.iter().map(AsFd::as_fd).collect();
            match packet::send_bytes(&self.socket, rest, &riders) {
                Ok(length) => {
                    first.sent += length;
                    // They rode with the first byte.
                    first.riders.clear();
                    if first.sent == first.bytes.len() {
                        self.waiting.pop_front();
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => {
                    self.waiting.clear();
                    self.closing = true;
                }
            }
        }
    }
}

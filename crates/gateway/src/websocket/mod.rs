//! WebSockets: framing, and closing them from the middle (RFC 6455).

mod frame;
mod handshake;
mod registry;
mod tunnel;

pub use frame::{FrameTracker, Tracked};
pub(crate) use handshake::{check_answer, prepare, wants_websocket};
pub(crate) use registry::Registry;
pub(crate) use tunnel::{Tunnel, TunnelEnds};

/// What a WebSocket belongs to, for closing some and not others. Both are the caller's own
/// numbers; 0 where they mean nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SocketTag {
    /// The session it was opened with.
    pub session: u128,
    /// The generation of the route that it was opened by.
    pub generation: u64,
}

/// What to tell both ends of a WebSocket when the proxy closes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseNotice {
    code: u16,
    reason: String,
}

impl CloseNotice {
    /// The code of a swap or a restart: "service restart" (IANA registry, 1012).
    pub const SERVICE_RESTART: u16 = 1012;
    /// The code for an end without a successor: "going away" (RFC 6455 §7.4.1).
    pub const GOING_AWAY: u16 = 1001;
    /// Longest reason in bytes: a control frame carries 125, two are the code.
    pub const MAX_REASON: usize = 123;

    /// A notice. A longer reason than [`Self::MAX_REASON`] is cut at a character boundary.
    #[must_use]
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(Self::MAX_REASON));
        Self { code, reason }
    }

    /// The close code.
    #[must_use]
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The Close frame. What goes to a server is masked (RFC 6455 §5.3); masking guards
    /// against intermediaries that take a frame for HTTP, and this frame's content is ours,
    /// so its key need not be random.
    pub(crate) fn frame(&self, masked: bool) -> Vec<u8> {
        const MASK: [u8; 4] = [0x5c, 0x1f, 0xa3, 0x76];
        let payload = self
            .code
            .to_be_bytes()
            .into_iter()
            .chain(self.reason.bytes());
        // FIN and opcode 8; the length is at most 125 by construction.
        let length = u8::try_from(2 + self.reason.len()).unwrap_or(125);
        if masked {
            let mut frame = vec![0x88, 0x80 | length];
            frame.extend_from_slice(&MASK);
            frame.extend(
                payload
                    .zip(MASK.into_iter().cycle())
                    .map(|(byte, key)| byte ^ key),
            );
            frame
        } else {
            let mut frame = vec![0x88, length];
            frame.extend(payload);
            frame
        }
    }
}

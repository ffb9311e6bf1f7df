//! Frame boundaries in a WebSocket's byte stream (RFC 6455 §5.2).

/// Longest frame header before the masking key: two bytes and a 64-bit length.
const MAX_HEADER: usize = 10;

const OPCODE_CLOSE: u8 = 0x8;

/// Data frames up to the size that a control frame may have are what applications send to
/// keep a connection alive; whether one is that shows in the one before it.
const SMALL: u64 = 125;

/// Follows one direction of a WebSocket and knows where frames begin and end, without
/// holding a byte back. Payloads, compressed or not, are not looked at.
///
/// A stream that is not made of valid frame headers is passed on all the same (its ends will
/// see to that), but it never again counts as being at a boundary.
#[derive(Debug, Clone)]
pub struct FrameTracker {
    state: State,
    close_seen: bool,
    /// Length of the latest data frame.
    latest: Option<u64>,
}

#[derive(Debug, Clone)]
enum State {
    Header {
        bytes: [u8; MAX_HEADER],
        have: usize,
    },
    Payload {
        left: u64,
        data: bool,
    },
    Broken,
}

/// What [`FrameTracker::feed`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tracked {
    /// Bytes that were followed; fewer than given only when asked to stop at a boundary.
    pub consumed: usize,
    /// Whether bytes of data frames were among them. Pings, pongs, closes and empty frames
    /// are none, nor is a small frame as long as the one before it: an application's own
    /// keepalive (`2` and `3` of Engine.IO, `{"type":"ping"}`).
    pub data: bool,
}

const EMPTY_HEADER: State = State::Header {
    bytes: [0; MAX_HEADER],
    have: 0,
};

impl Default for FrameTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameTracker {
    /// At the beginning of a stream, which is a boundary.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: EMPTY_HEADER,
            close_seen: false,
            latest: None,
        }
    }

    /// Whether the next byte begins a frame, so that another frame may be put before it.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Whether a Close frame has begun in this direction: nothing may follow it.
    #[must_use]
    pub const fn close_seen(&self) -> bool {
        self.close_seen
    }

    /// Follows `bytes`. With `stop`, it goes no further than the first boundary, which may
    /// be before the first byte.
    pub fn feed(&mut self, mut bytes: &[u8], stop: bool) -> Tracked {
        let given = bytes.len();
        let mut data_seen = false;
        while !bytes.is_empty() {
            if stop && self.at_boundary() {
                break;
            }
            match &mut self.state {
                State::Broken => {
                    bytes = &[];
                    data_seen = true;
                }
                State::Header {
                    bytes: header,
                    have,
                } => {
                    let Some((next, rest)) = bytes.split_first() else {
                        break;
                    };
                    if let Some(slot) = header.get_mut(*have) {
                        *slot = *next;
                    }
                    *have += 1;
                    bytes = rest;
                    let (header, have) = (*header, *have);
                    self.after_header_byte(header, have);
                }
                State::Payload { left, data } => {
                    let available = bytes.len() as u64;
                    let taken = available.min(*left);
                    *left -= taken;
                    data_seen |= *data;
                    bytes = usize::try_from(taken)
                        .ok()
                        .and_then(|taken| bytes.get(taken..))
                        .unwrap_or_default();
                    if *left == 0 {
                        self.state = EMPTY_HEADER;
                    }
                }
            }
        }
        Tracked {
            consumed: given - bytes.len(),
            data: data_seen,
        }
    }

    fn after_header_byte(&mut self, header: [u8; MAX_HEADER], have: usize) {
        let [first, second, length @ ..] = header;
        let opcode = first & 0x0f;
        if have == 1 {
            let control = opcode & 0x8 != 0;
            let reserved = matches!(opcode, 0x3..=0x7 | 0xb..=0xf);
            if reserved || (control && first & 0x80 == 0) {
                self.state = State::Broken;
            } else if opcode == OPCODE_CLOSE {
                self.close_seen = true;
            }
            return;
        }
        let (needed, length) = match second & 0x7f {
            126 => {
                let [high, low, ..] = length;
                (4, u64::from(u16::from_be_bytes([high, low])))
            }
            127 => (10, u64::from_be_bytes(length)),
            short => (2, u64::from(short)),
        };
        if have < needed {
            return;
        }
        let control = opcode & 0x8 != 0;
        // A control frame has a short length, and the top bit of a long one is zero.
        if (control && length > 125) || length >> 63 != 0 {
            self.state = State::Broken;
            return;
        }
        let data = !control && length > 0;
        let repeats = data && length <= SMALL && self.latest == Some(length);
        if data {
            self.latest = Some(length);
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let left = length + mask;
        self.state = if left == 0 {
            EMPTY_HEADER
        } else {
            State::Payload {
                left,
                data: data && !repeats,
            }
        };
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

//! Amazon's event streams (`application/vnd.amazon.eventstream`), in which Bedrock streams:
//! frames of a length, headers, a payload in JSON, and checksums. They are read for what they
//! tell of usage and passed on as they are, so the checksums are left to the client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Longest frame; Amazon's have 24 MiB at most.
const MAX_FRAME: u32 = 32 << 20;

/// Longest payload that is looked into; what tells usage is far shorter.
const MAX_PAYLOAD: usize = 64 << 10;

/// Length of the frame, length of its headers, a checksum of both.
const PRELUDE: usize = 12;

/// The checksum at the end.
const TAIL: usize = 4;

/// Takes an event stream apart.
#[derive(Debug, Default)]
pub(super) struct Frames {
    prelude: Vec<u8>,
    /// Bytes of this frame that are still to come.
    headers: usize,
    payload: usize,
    tail: usize,
    text: Vec<u8>,
    /// Whether this payload is longer than is looked into.
    is_long: bool,
    is_none: bool,
}

/// A payload of `InvokeModelWithResponseStream`: an event of the model's own API.
#[derive(Deserialize)]
struct Chunk {
    bytes: String,
}

impl Frames {
    /// Takes the next bytes, and gives the JSON text of each whole payload to `found`; nothing
    /// of one that is too long.
    pub(super) fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_none {
            if self.headers == 0 && self.payload == 0 && self.tail == 0 {
                let piece = take(&mut rest, PRELUDE - self.prelude.len());
                self.prelude.extend_from_slice(piece);
                if self.prelude.len() == PRELUDE {
                    self.begin();
                }
            } else if self.headers > 0 {
                self.headers -= take(&mut rest, self.headers).len();
            } else if self.payload > 0 {
                let piece = take(&mut rest, self.payload);
                self.payload -= piece.len();
                if !self.is_long {
                    self.text.extend_from_slice(piece);
                }
                if self.payload == 0 {
                    match chunk(&self.text) {
                        Some(event) => found(&event),
                        None => found(&self.text),
                    }
                }
            } else {
                self.tail -= take(&mut rest, self.tail).len();
            }
        }
    }

    fn begin(&mut self) {
        let number = |at: usize| {
            let bytes = self.prelude.get(at..at + 4).unwrap_or_default();
            bytes
                .iter()
                .fold(0_u32, |number, byte| (number << 8) | u32::from(*byte))
        };
        let (frame, headers) = (number(0), number(4));
        self.prelude.clear();
        self.text.clear();
        let overhead = u32::try_from(PRELUDE + TAIL).unwrap_or(u32::MAX);
        let payload = frame
            .checked_sub(overhead)
            .and_then(|rest| rest.checked_sub(headers))
            .filter(|_| frame <= MAX_FRAME);
        let Some(payload) = payload else {
            // Something else, and what follows cannot be told.
            self.is_none = true;
            return;
        };
        self.headers = usize::try_from(headers).unwrap_or(usize::MAX);
        self.payload = usize::try_from(payload).unwrap_or(usize::MAX);
        self.tail = TAIL;
        self.is_long = self.payload > MAX_PAYLOAD;
    }
}

fn take<'a>(rest: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (piece, left) = rest.split_at(most.min(rest.len()));
    *rest = left;
    piece
}

/// The event in a chunk, if it is one.
fn chunk(text: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(text, b"\"bytes\"")?;
    let chunk: Chunk = serde_json::from_slice(text).ok()?;
    STANDARD.decode(chunk.bytes).ok()
}

//! WebSockets: framing, and closing them from the middle (RFC 6455).

/// What to tell both ends of a WebSocket when the proxy closes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseNotice {
    code: u16,
    reason: String,
}

impl CloseNotice {
    /// The code of a swap or a restart: "service restart" (RFC 6455 registry, 1012).
    pub const SERVICE_RESTART: u16 = 1012;
    /// The code for an end without a successor: "going away".
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
}

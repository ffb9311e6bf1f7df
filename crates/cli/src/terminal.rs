//! The terminal that a person sits at, while a command in a sandbox has it.

use std::any::Any;
use std::fmt;
use std::io;

use tokio::sync::mpsc;
use types::TerminalSize;

/// A terminal in raw mode: every key goes to the command, Ctrl-C too. Dropping it restores
/// the mode it was in.
pub struct Terminal {
    /// Its size now.
    pub size: TerminalSize,
    /// What is typed.
    pub input: mpsc::Receiver<Vec<u8>>,
    /// Its size, each time it has changed.
    pub resizes: mpsc::Receiver<TerminalSize>,
    /// What restores the mode when it is dropped.
    pub restore: Box<dyn Any + Send>,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Puts the terminal into raw mode.
pub type EnterTerminal = Box<dyn Fn() -> io::Result<Terminal> + Send>;

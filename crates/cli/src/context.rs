//! What a command line works with: its streams, and what it knows of the machine.

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use tokio::sync::mpsc;
use url::Url;

use crate::Error;
use crate::terminal::EnterTerminal;

/// The streams.
pub struct Io {
    /// Results.
    pub stdout: Box<dyn Write + Send>,
    /// Everything else.
    pub stderr: Box<dyn Write + Send>,
    /// What is piped in.
    pub stdin: Box<dyn Read + Send>,
    /// Whether a person sits before `stdin`.
    pub stdin_is_terminal: bool,
    /// Whether a person looks at `stdout`.
    pub stdout_is_terminal: bool,
}

impl Io {
    /// Writes a result.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Error> {
        self.print_bytes(text.as_bytes())
    }

    /// Writes a result as it is, at once.
    pub(crate) fn print_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stdout
            .write_all(bytes)
            .and_then(|()| self.stdout.flush())
            .map_err(Error::Output)
    }

    /// Writes beside the results.
    pub(crate) fn complain(&mut self, text: &str) -> Result<(), Error> {
        self.complain_bytes(text.as_bytes())
    }

    /// Writes beside the results, as it is, at once.
    pub(crate) fn complain_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stderr
            .write_all(bytes)
            .and_then(|()| self.stderr.flush())
            .map_err(Error::Output)
    }
}

/// Opens an address in a browser; whether one could be started.
pub type OpenBrowser = Box<dyn Fn(&Url) -> bool + Send>;

/// Begins to catch Ctrl-C, and gives one message for each.
pub type Interrupts = Box<dyn Fn() -> mpsc::Receiver<()> + Send>;

/// All that a command line may touch.
pub struct Context {
    /// The streams.
    pub io: Io,
    /// The control plane, where the arguments name none.
    pub server: Option<String>,
    /// The file with the token, where the arguments name none.
    pub token_file: Option<PathBuf>,
    /// Where `credentials.toml` is, if there is a home at all.
    pub config_dir: Option<PathBuf>,
    /// Where the other programs of ChoirOS are.
    pub programs: Option<PathBuf>,
    /// The machine's name, by which a token is recognised in the console.
    pub machine: String,
    /// Opens a browser; absent where nobody would see it.
    pub browser: Option<OpenBrowser>,
    /// Begins to catch Ctrl-C; until then it ends the program, as it should.
    pub interrupts: Interrupts,
    /// Hands the terminal over to a command; absent where there is none.
    pub terminal: Option<EnterTerminal>,
    /// The present time.
    pub now: fn() -> Timestamp,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("config_dir", &self.config_dir)
            .field("programs", &self.programs)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

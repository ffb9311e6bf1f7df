//! What can go wrong, with what to do about it.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use types::{ErrorCode, Problem};

use crate::context::Io;
use crate::output::printable;
use crate::server::Server;

/// Why a command line failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The text after `--server` is no control plane's address.
    #[error("not an address of a control plane: {given}")]
    Server {
        /// What was given.
        given: String,
        /// What is wrong with it, and what would be right.
        why: &'static str,
    },
    /// No token for this server.
    #[error("not signed in to {0}")]
    SignedOut(Server),
    /// The server does not take the token.
    #[error("{0} does not accept this machine's token")]
    TokenRefused(Server),
    /// Nobody answers.
    #[error("cannot reach {server}")]
    Unreachable {
        /// Who was asked.
        server: Server,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The connection broke off.
    #[error("the connection to {server} broke off")]
    Interrupted {
        /// Who was asked.
        server: Server,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The allowlist has no such rule.
    #[error("the network allowlist has no rule {0}")]
    NoRule(String),
    /// The rule stands in the configuration.
    #[error("the rule {0} stands in the hypervisor's configuration")]
    ConfiguredRule(String),
    /// The server said no, and why.
    #[error("{}", printable(&.0.detail))]
    Refused(Box<Problem>),
    /// Something answers that is no ChoirOS of this version.
    #[error("{server} gave an answer that this program does not understand: {what}")]
    Unexpected {
        /// Who was asked.
        server: Server,
        /// What was wrong with it.
        what: String,
    },
    /// The stream of a command's output ended too early.
    #[error("the connection to {0} ended before the command did")]
    CutOff(Server),
    /// The server sends a person who signs in to another address than was asked.
    #[error("{server} wants the sign-in to be approved at {named}")]
    Elsewhere {
        /// Who was asked.
        server: Server,
        /// Where it sends a person: an origin, or its text if it is none.
        named: String,
    },
    /// The pairing ended without a token.
    #[error("{0}")]
    Pairing(&'static str),
    /// The credentials file cannot be used.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others can read the credentials file.
    #[error("others can read {0}")]
    Exposed(PathBuf),
    /// The credentials file is not what this program wrote.
    #[error("{path} is not a credentials file: {why}")]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it; never a value of it.
        why: String,
    },
    /// There is no directory for the credentials.
    #[error("there is no place for credentials: neither XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
    /// The token that was given is none.
    #[error("the given token cannot be used")]
    Token(#[source] crypto::TokenError),
    /// A terminal was asked for where there is none.
    #[error("there is no terminal to hand over")]
    NoTerminal(#[source] Option<io::Error>),
    /// The connection that carries a terminal failed.
    #[error("the terminal's connection to {server} broke off")]
    TerminalLost {
        /// Who was asked.
        server: Server,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// What was piped in cannot be the command's input.
    #[error("standard input cannot be passed on: {0}")]
    Stdin(&'static str),
    /// The command could not be started.
    #[error("the command could not be started: {}", printable(.0))]
    NotStarted(String),
    /// What was asked for is not possible as things stand.
    #[error("{what}")]
    Cannot {
        /// What, and why not.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A port of this machine cannot be listened on.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Listen {
        /// Which.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The audit log's files cannot be read.
    #[error("the audit log cannot be read")]
    Ledger(#[source] ledger::ReadError),
    /// The hypervisor's program is not there or does not answer.
    #[error("cannot ask the hypervisor's doctor: {0}")]
    Doctor(String),
    /// A provider could not be added.
    #[error("the provider was not added: {0}")]
    Provider(String),
    /// The client for HTTP could not be made.
    #[error("cannot prepare connections")]
    Client(#[source] Box<dyn StdError + Send + Sync>),
    /// It is not clear which snapshot is meant, or whether.
    #[error("{0}")]
    Snapshot(String),
    /// Nobody reads any more, or the disk is full.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Server { why, .. } => Some((*why).to_owned()),
            Self::SignedOut(server) | Self::TokenRefused(server) => {
                Some(format!("sign in with `choir login{}`", server.as_flag()))
            }
            Self::Unreachable { server, .. } if server.is_loopback() => {
                Some("start it with `cargo xtask up`, or look at `systemctl status choir`".to_owned())
            }
            Self::Unreachable { .. } => {
                Some("check the address after --server, and the network".to_owned())
            }
            Self::Elsewhere { named, .. } => Some(format!(
                "nothing was opened; if that is the server you mean: `choir login --server {named}`"
            )),
            Self::CutOff(_) => {
                Some("it was killed with the connection; look at `choir sandbox list`".to_owned())
            }
            Self::Interrupted { .. } => {
                Some("try again; if it happens again, look at the hypervisor's log".to_owned())
            }
            Self::NoRule(_) => Some("choir network rules lists them".to_owned()),
            Self::ConfiguredRule(_) => Some(
                "an administrator takes it out of [network] allow and restarts the hypervisor".to_owned(),
            ),
            Self::Refused(problem) => problem.hint.clone().or_else(|| hint_for(problem.code)),
            Self::Unexpected { .. } => {
                Some("check the address after --server, and that both sides have the same version".to_owned())
            }
            Self::Pairing(_) => Some("run `choir login` again".to_owned()),
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check who owns the file and its directory".to_owned())
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "check the path; without a token file the token of `choir login` is used".to_owned(),
            ),
            Self::Exposed(path) => Some(format!("chmod 600 {}", path.display())),
            Self::Credentials { path, .. } => {
                Some(format!("remove {} and sign in again", path.display()))
            }
            Self::NoHome => Some("set HOME, or give a token with --token-file".to_owned()),
            Self::Token(_) => Some("a token begins with choirpat_; make one in the console".to_owned()),
            Self::Stdin(_) => {
                Some("give it none with -n, or put the data into a file in the workspace".to_owned())
            }
            Self::NoTerminal(_) => Some("run it without --tty, or from a terminal".to_owned()),
            Self::TerminalLost { .. } => {
                Some("the desktop lists it under terminals: `choir open`".to_owned())
            }
            Self::Ledger(ledger::ReadError::Missing { .. }) => {
                Some("the log is in the directory `audit` of the hypervisor's data directory".to_owned())
            }
            Self::Ledger(ledger::ReadError::Fault { .. }) => {
                Some("`choir audit verify --dir DIR` tells more".to_owned())
            }
            Self::Cannot { hint, .. } => Some(hint.clone()),
            Self::Listen { port, .. } => Some(format!(
                "choose another port here, such as PORT:{}, or 0 for any free one",
                port.checked_add(1).unwrap_or(8080).max(1024)
            )),
            Self::Provider(_) => Some("nothing was changed; see choir provider add --help".to_owned()),
            Self::Doctor(_) => {
                Some("`choir doctor` runs on the hypervisor's machine, from the directory of its programs".to_owned())
            }
            Self::File { .. }
            | Self::NotStarted(_)
            | Self::Snapshot(_)
            | Self::Ledger(_)
            | Self::Client(_)
            | Self::Output(_) => None,
        }
    }

    /// Writes the error, its causes and its hint, and gives the exit code.
    pub(crate) fn report(&self, io: &mut Io) -> u8 {
        // Whoever closed our output has what they wanted.
        if matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe) {
            return 0;
        }
        let mut text = format!("error: {self}\n");
        for cause in self.causes() {
            text.push_str(&format!("cause: {}\n", printable(&cause)));
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("hint: {}\n", printable(&hint)));
        }
        if let Self::Refused(problem) = self
            && let Some(id) = &problem.request_id
            && problem.status >= 500
        {
            text.push_str(&format!("request: {}\n", printable(id)));
        }
        // Where even this cannot be written, the exit code has to do.
        let _ = io.complain(&text);
        self.exit_code()
    }

    /// What it came from. Of a failed connection only the last cause says something.
    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source();
        while let Some(error) = next {
            causes.push(error.to_string());
            next = error.source();
        }
        if matches!(
            self,
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::TerminalLost { .. }
        ) {
            causes = causes.pop().into_iter().collect();
        }
        causes
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::NotStarted(_) => 127,
            Self::Server { .. } | Self::Snapshot(_) => 2,
            _ => 1,
        }
    }
}

/// A hint where the server gives none.
fn hint_for(code: ErrorCode) -> Option<String> {
    let hint = match code {
        ErrorCode::SandboxNotRunning => "start it with `choir sandbox start`",
        ErrorCode::HostFull | ErrorCode::TooManyRunning => "stop one first: choir sandbox stop",
        ErrorCode::SandboxFailed => "look at `choir sandbox logs` and `choir doctor`",
        ErrorCode::UnhealthyTarget => "look at `choir sandbox logs dev`",
        ErrorCode::Forbidden => {
            "a token with more scopes comes from `choir login`; some acts need an admin"
        }
        ErrorCode::RateLimited => "wait a little and try again",
        ErrorCode::AuditUnavailable => {
            "the hypervisor's disk may be full: look at `systemctl status choir`"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

//! Whole command lines against a small control plane that speaks the contract.

mod accounts;
mod audit;
mod commands;
mod help;
mod network;
mod providers;
mod sandboxes;
mod server;
mod snapshot_commands;
mod usage;
mod users;
mod workbench;

use std::ffi::OsString;
use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};

use crypto::{OsRandom, Token, TokenKind};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::mpsc;

use self::server::Plane;
use crate::{Context, EnterTerminal, Io, Terminal};

/// What was written to a stream, to be read by the test meanwhile and afterwards.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a command line ended.
#[derive(Debug)]
struct Ended {
    code: u8,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// For snapshots: with what differs from run to run replaced.
    fn show(&self, plane: &Plane) -> String {
        let text = format!(
            "exit code {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.stdout, self.stderr
        );
        text.replace(&plane.url(), "http://localhost:PORT")
    }
}

/// A person's home and machine.
struct Person {
    home: TempDir,
    stdout: Written,
    stderr: Written,
    stdin: Option<Vec<u8>>,
    stdout_is_terminal: bool,
    presses: Option<mpsc::Receiver<()>>,
    terminal: Option<Terminal>,
    browsed: Arc<Mutex<Vec<String>>>,
}

impl Person {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            stdout: Written::default(),
            stderr: Written::default(),
            stdin: None,
            stdout_is_terminal: false,
            presses: None,
            terminal: None,
            browsed: Arc::default(),
        }
    }

    /// Somebody who is signed in to this control plane.
    async fn signed_in(plane: &Plane) -> Self {
        let mut person = Self::new();
        person.stdin = Some(plane.token().as_bytes().to_vec());
        let ended = person.run(plane, "login --token-file -").await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        person.stdin = None;
        person
    }

    /// Runs `choir` with arguments that are separated by spaces.
    async fn run(&mut self, plane: &Plane, arguments: &str) -> Ended {
        self.run_at(&plane.url(), arguments).await
    }

    async fn run_at(&mut self, server: &str, arguments: &str) -> Ended {
        let words = ["choir", "--server", server]
            .into_iter()
            .chain(arguments.split_whitespace());
        self.run_words(words.map(OsString::from).collect()).await
    }

    async fn run_words(&mut self, words: Vec<OsString>) -> Ended {
        self.stdout.0.lock().unwrap().clear();
        self.stderr.0.lock().unwrap().clear();
        let presses = Mutex::new(self.presses.take());
        let terminal = self.terminal.take().map(|terminal| {
            let terminal = Mutex::new(Some(terminal));
            Box::new(move || Ok(terminal.lock().unwrap().take().unwrap())) as EnterTerminal
        });
        let browsed = Arc::clone(&self.browsed);
        let mut context = Context {
            io: Io {
                stdout: Box::new(self.stdout.clone()),
                stderr: Box::new(self.stderr.clone()),
                stdin: Box::new(Cursor::new(self.stdin.clone().unwrap_or_default())),
                stdin_is_terminal: self.stdin.is_none(),
                stdout_is_terminal: self.stdout_is_terminal,
            },
            server: None,
            token_file: None,
            config_dir: Some(self.home.path().join("choir")),
            programs: Some(self.home.path().to_owned()),
            machine: "laptop".to_owned(),
            browser: Some(Box::new(move |url| {
                browsed.lock().unwrap().push(url.to_string());
                true
            })),
            interrupts: Box::new(move || {
                presses
                    .lock()
                    .unwrap()
                    .take()
                    .unwrap_or_else(|| mpsc::channel(1).1)
            }),
            terminal,
            now: || Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let code = crate::run(words, &mut context).await;
        Ended {
            code,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

fn fresh_token() -> String {
    Token::generate(TokenKind::Api, &OsRandom::new())
        .unwrap()
        .expose()
        .to_owned()
}

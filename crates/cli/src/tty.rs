//! The real terminal: raw mode, keys and sizes.

use std::io::{self, Read};
use std::thread;

use cli::Terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use types::TerminalSize;

/// Reads of the keyboard that may wait to be sent.
const INPUT: usize = 64;
/// Sizes that may wait to be sent.
const RESIZES: usize = 4;
/// Most bytes of one read of the keyboard; a paste comes in several.
const READ: usize = 16 * 1024;
/// Where the terminal does not know its size.
const USUAL: TerminalSize = TerminalSize { cols: 80, rows: 24 };
/// What the control plane takes.
const MOST: u16 = 1000;

/// Puts the terminal at standard input into raw mode.
pub(crate) fn enter() -> io::Result<Terminal> {
    let before = tcgetattr(io::stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
    // From here on whatever fails puts the old mode back.
    let restore = Restore(before);
    let (typed, input) = mpsc::channel(INPUT);
    // Ends with the process: a blocked read cannot be called back.
    thread::Builder::new()
        .name("keyboard".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; READ];
            while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
                let Some(bytes) = buffer.get(..count) else {
                    break;
                };
                if typed.blocking_send(bytes.to_vec()).is_err() {
                    break;
                }
            }
        })?;
    let (changed, resizes) = mpsc::channel(RESIZES);
    let mut changes = signal(SignalKind::window_change())?;
    tokio::spawn(async move {
        while changes.recv().await.is_some() && changed.send(size()).await.is_ok() {}
    });
    Ok(Terminal {
        size: size(),
        input,
        resizes,
        restore: Box::new(restore),
    })
}

fn size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => TerminalSize {
            cols: size.ws_col.min(MOST),
            rows: size.ws_row.min(MOST),
        },
        _ => USUAL,
    }
}

struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

//! `choir`, the command line for users and operators of ChoirOS.
//!
//! The library does no terminal I/O of its own: it writes to what its [`Context`] holds, so
//! that tests see exactly what a person would. `main.rs` connects it to the real terminal.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `choir run` passes on its command's code.

pub mod args;
mod browser;
mod client;
mod commands;
mod context;
mod credentials;
mod error;
mod output;
mod server;
mod terminal;

use std::ffi::OsString;

use clap::Parser as _;

pub use browser::{open_with_desktop, wanted as browser_wanted};
pub use context::{Context, Interrupts, Io, OpenBrowser};
pub use error::Error;
pub use terminal::{EnterTerminal, Terminal};

/// Runs one command line and gives its exit code. All errors were written to the context.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, context: &mut Context) -> u8 {
    let parsed = match args::Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(refusal) => {
            let text = refusal.render().to_string();
            // Help and version are asked for, so they are no errors.
            let written = if refusal.use_stderr() {
                context.io.complain(&text)
            } else {
                context.io.print(&text)
            };
            let code = u8::try_from(refusal.exit_code()).unwrap_or(2);
            return if written.is_ok() { code } else { 1 };
        }
    };
    match commands::run(parsed, context).await {
        Ok(code) => code,
        Err(error) => error.report(&mut context.io),
    }
}

#[cfg(test)]
mod tests;

//! What a hostile guest can do to the directories it was given.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use serde_json::{Value, json};

const APP_SOCKET: &str = "/run/choir/app/app.sock";
const CHANNEL_DIR: &str = "/run/choir/channel";

/// Listens where a guest listens.
pub(crate) fn listen() -> io::Result<UnixListener> {
    remove(Path::new(APP_SOCKET));
    UnixListener::bind(APP_SOCKET)
}

/// Replaces the socket: `symlink=TARGET`, `fifo`, `directory`, `file`, `nothing`.
/// The process keeps its listener, so that only the name is wrong.
pub(crate) fn become_something(query: &str) -> io::Result<()> {
    let path = Path::new(APP_SOCKET);
    remove(path);
    match query.split_once('=').unwrap_or((query, "")) {
        ("symlink", target) => symlink(target, path),
        ("fifo", _) => rustix::fs::mknodat(
            CWD,
            path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .map_err(Into::into),
        ("directory", _) => fs::create_dir(path),
        ("file", _) => fs::write(path, "not a socket"),
        ("nothing", _) => Ok(()),
        (other, _) => Err(io::Error::other(format!("cannot become {other}"))),
    }
}

/// Tries things from inside and tells what happened: `write-channel`, `connect=PATH`,
/// `environment`, `list=DIR`.
pub(crate) fn listing(query: &str) -> Value {
    match query.split_once('=').unwrap_or((query, "")) {
        ("write-channel", _) => json!({
            "create": outcome(fs::write(format!("{CHANNEL_DIR}/mine"), "x")),
            "remove": outcome(fs::remove_file(format!("{CHANNEL_DIR}/channel.sock"))),
            "bind": outcome(UnixListener::bind(format!("{CHANNEL_DIR}/second.sock")).map(drop)),
        }),
        ("connect", path) => json!({ "connect": outcome(UnixStream::connect(path).map(drop)) }),
        ("environment", _) => json!(std::env::vars().collect::<std::collections::BTreeMap<_, _>>()),
        ("list", dir) => json!(
            fs::read_dir(dir)
                .map(|entries| entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        ),
        _ => json!(null),
    }
}

fn outcome(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn remove(path: &Path) {
    // Whichever it is now; what is not there need not be removed.
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir(path);
}

//! The copier: copies, counts and removes the files of sandboxes (see [`crate::copying`]).
//!
//! Whoever owns a tree may be hostile, so nothing here is done as root. Root opens the few
//! directories that it made itself; then two processes go on without any privilege and
//! without a way back: the reader as the source's user, which can read the source and
//! nothing else, and the writer as the target's, which can write the target and nothing
//! else (Landlock). Open files pass from one to the other, so neither needs the other's
//! rights, and a name that is swapped for a link leads nowhere.

mod read;
mod remove;
mod wire;
mod write;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, mkdirat, openat};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask};

use crate::copying::{CopyBounds, CopyEvent, CopyJob, CopyReport, CopySpec, MAX_LINE};
use crate::init;
use crate::packet;
use crate::protocol::Refusal;
use crate::spec::HostIds;
use crate::sys::{self, Forked};
use crate::walls::{capabilities, landlock};
use read::Reader;
use write::Writer;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Runs one job; `supervisor copy` is this.
pub(crate) fn main() -> ExitCode {
    let ended = run().unwrap_or_else(|refusal| CopyEvent::Failed { refusal });
    let failed = matches!(ended, CopyEvent::Failed { .. });
    match tell(&ended) {
        Ok(()) if !failed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run() -> Result<CopyEvent, Refusal> {
    let job = read_job().map_err(|e| internal("read the job", e))?;
    umask(Mode::empty());
    rustix::process::chdir("/").map_err(|e| internal("leave the working directory", e))?;
    raise_descriptors();
    match job {
        CopyJob::Copy(spec) => copy(spec).map(|report| CopyEvent::Done { report }),
        CopyJob::Measure {
            source,
            ids,
            parts,
            bounds,
        } => measure(&source, ids, parts, bounds),
        CopyJob::Remove { dir, ids } => {
            remove_dir(&dir, ids)?;
            Ok(CopyEvent::Done {
                report: CopyReport::default(),
            })
        }
    }
}

fn copy(spec: CopySpec) -> Result<CopyReport, Refusal> {
    check(spec.source_ids)?;
    check(spec.target_ids)?;
    check_parts(&spec.parts)?;
    let from = open_parts(&spec.source, &spec.parts)?;
    let target = openat(CWD, &spec.target, DIRECTORY, Mode::empty())
        .map_err(|e| internal("open the target", e))?;
    // Whoever removes an unfinished copy takes this lock first, and so waits for this process.
    rustix::fs::flock(&target, rustix::fs::FlockOperation::NonBlockingLockShared)
        .map_err(|e| internal("lock the target", e))?;
    let parts = spec
        .parts
        .iter()
        .map(|name| Ok((name.clone(), make_part(&target, name, spec.target_ids)?)))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|e| internal("make the target's directories", e))?;
    let socket = start_reader(from, spec.source_ids, spec.parts, spec.bounds, &parts)?;
    let own: Vec<_> = parts.iter().map(|(_, dir)| dir).collect();
    confine(spec.target_ids, &own, landlock::Confined::Write)?;
    let orders = orders()?;
    Writer::new(socket, orders, &tell, spec.bounds, &target, parts).copy(spec.live)
}

fn measure(
    source: &Path,
    ids: Option<HostIds>,
    parts: Vec<String>,
    bounds: CopyBounds,
) -> Result<CopyEvent, Refusal> {
    check(ids)?;
    check_parts(&parts)?;
    let from = open_parts(source, &parts)?;
    let target = sys::null().map_err(|e| internal("open /dev/null", e))?;
    let socket = start_reader(from, ids, parts, bounds, &[])?;
    confine(ids, &[], landlock::Confined::Write)?;
    let orders = orders()?;
    let tally = Writer::new(socket, orders, &tell, bounds, &target, Vec::new()).measure()?;
    Ok(CopyEvent::Counted { tally })
}

/// Removes a directory that root made: its parts as their owner, the rest as this user.
fn remove_dir(dir: &Path, ids: Option<HostIds>) -> Result<(), Refusal> {
    check(ids)?;
    let top = match openat(CWD, dir, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(internal("open what is to be removed", error)),
    };
    // An orphaned copier notices that nobody waits for it; until then it holds this lock.
    rustix::fs::flock(&top, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| internal("wait for whoever writes there", e))?;
    let mut parts = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| internal("list what is to be removed", e))? {
        let entry = entry.map_err(|e| internal("list what is to be removed", e))?;
        let name = entry.file_name();
        match openat(&top, &name, DIRECTORY, Mode::empty()) {
            Ok(part) => parts.push(part),
            // A file of root's own, such as a manifest: removed below.
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
            Err(error) => return Err(internal("open what is to be removed", error)),
        }
    }
    let (near, far) = packet::pair().map_err(|e| internal("make a socket pair", e))?;
    match sys::fork().map_err(|e| internal("start the remover", e))? {
        Forked::Child => {
            let borrowed: Vec<_> = parts.iter().collect();
            let done = confine(ids, &borrowed, landlock::Confined::Write).and_then(|()| {
                parts
                    .iter()
                    .try_for_each(remove::contents)
                    .map_err(|e| internal("remove files", e))
            });
            let sent = packet::send(&far, &done.err(), &[]);
            sys::exit(i32::from(sent.is_err()))
        }
        Forked::Parent(..) => drop(far),
    }
    match packet::receive::<Option<Refusal>>(&near, true) {
        Ok(Some((None, _))) => {}
        Ok(Some((Some(refusal), _))) => return Err(refusal),
        Ok(None) | Err(_) => return Err(Refusal::new("internal", "the remover went away")),
    }
    // What is left are empty directories and files that this user made.
    fs::remove_dir_all(dir).map_err(|e| internal("remove an empty directory", e))
}

/// Forks the reader, which sees nothing but the source.
fn start_reader(
    from: Vec<Option<OwnedFd>>,
    ids: Option<HostIds>,
    names: Vec<String>,
    bounds: CopyBounds,
    writers: &[(String, OwnedFd)],
) -> Result<OwnedFd, Refusal> {
    let (near, far) = packet::pair().map_err(|e| internal("make a socket pair", e))?;
    match sys::fork().map_err(|e| internal("start the reader", e))? {
        Forked::Parent(..) => Ok(near),
        Forked::Child => {
            let _ = writers;
            let mut keep: Vec<_> = from.iter().flatten().map(AsFd::as_fd).collect();
            keep.push(far.as_fd());
            // The writer's descriptors, and the pipes to whoever asked, are not for it.
            let alone = sys::close_all_except(&keep)
                .and_then(|()| {
                    (0..3).try_for_each(|n| sys::dup_to_standard(sys::null()?.as_fd(), n))
                })
                .map_err(|e| internal("close inherited descriptors", e))
                .and_then(|()| {
                    let own: Vec<_> = from.iter().flatten().collect();
                    confine(ids, &own, landlock::Confined::Read)
                });
            match alone {
                Ok(()) => Reader::new(far, from, names, bounds).serve(),
                Err(refusal) => {
                    let _ = packet::send(&far, &wire::Step::Failed(refusal), &[]);
                }
            }
            sys::exit(0)
        }
    }
}

/// Gives up everything that the work does not need: identity, capabilities, and every file
/// outside `dirs`.
fn confine(
    ids: Option<HostIds>,
    dirs: &[&OwnedFd],
    may: landlock::Confined,
) -> Result<(), Refusal> {
    let give_up = || -> io::Result<()> {
        rustix::thread::set_no_new_privs(true)?;
        if let Some(HostIds { uid, gid }) = ids {
            capabilities::drop_bounding_set()?;
            sys::become_host_user(uid, gid)?;
        }
        capabilities::drop_current()?;
        init::hide().map_err(|e| io::Error::other(e.to_string()))
    };
    give_up().map_err(|e| internal("give up privileges", e))?;
    landlock::confine(dirs, may).map_err(|e| Refusal::new("wall_missing", e.to_string()))
}

fn open_parts(source: &Path, parts: &[String]) -> Result<Vec<Option<OwnedFd>>, Refusal> {
    let source = openat(CWD, source, DIRECTORY, Mode::empty())
        .map_err(|e| internal("open the source", e))?;
    parts
        .iter()
        .map(
            |name| match openat(&source, name, DIRECTORY, Mode::empty()) {
                Ok(dir) => Ok(Some(dir)),
                Err(rustix::io::Errno::NOENT) => Ok(None),
                Err(error) => Err(internal("open a part of the source", error)),
            },
        )
        .collect()
}

fn make_part(target: &OwnedFd, name: &str, ids: Option<HostIds>) -> io::Result<OwnedFd> {
    mkdirat(target, name, Mode::RWXU)?;
    let dir = openat(target, name, DIRECTORY, Mode::empty())?;
    if let Some(HostIds { uid, gid }) = ids {
        fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(dir)
}

fn check(ids: Option<HostIds>) -> Result<(), Refusal> {
    let fits = match ids {
        Some(HostIds { uid, gid }) => geteuid().is_root() && uid != 0 && gid != 0,
        None => !geteuid().is_root(),
    };
    if fits {
        Ok(())
    } else {
        Err(Refusal::new(
            "bad_spec",
            "host ids are given exactly when the copier is started by root, and are never root's",
        ))
    }
}

fn check_parts(parts: &[String]) -> Result<(), Refusal> {
    let plain =
        |name: &String| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if parts.iter().all(plain) {
        Ok(())
    } else {
        Err(Refusal::new("bad_spec", "a part is not a plain name"))
    }
}

/// Each level of nesting costs two descriptors, and files under way some more.
fn raise_descriptors() {
    let files = getrlimit(Resource::Nofile);
    // With fewer, only shallower trees can be copied, and the error says so.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    );
}

/// One line, read byte by byte: what follows it belongs to the writer.
fn read_job() -> io::Result<CopyJob> {
    let stdin = io::stdin();
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(&stdin, &mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
        if line.len() > MAX_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(serde_json::from_slice(&line)?)
}

fn orders() -> Result<OwnedFd, Refusal> {
    io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| internal("hold standard input", e))
}

fn tell(event: &CopyEvent) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

fn internal(what: &str, error: impl Into<io::Error>) -> Refusal {
    Refusal::new("internal", format!("cannot {what}: {}", error.into()))
}

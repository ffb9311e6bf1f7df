//! Ports of a workbench: who listens there, and connections to them.
//!
//! All this happens in the workbench's first process, because its network namespace is
//! where the ports are. Nothing waits here: a listener that does not accept costs a place
//! in a bounded list until its time is up, and no runner is born later for it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use types::{CommandId, ListeningPort};

/// How long a listener may take to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Connections under way at once.
const MAX_DIALS: usize = 64;

/// Ports in one listing; the answer is one packet.
pub(crate) const MAX_LISTED: usize = 100;

/// Bytes of the kernel's table that are looked at. Listeners come first in it.
const MAX_TABLE: u64 = 1 << 20;

/// Processes and descriptors that are looked at to tell whose a port is. Beyond them a port
/// is listed without its command.
const MAX_PROCESSES: usize = 2048;
const MAX_LINKS: usize = 16 << 10;

/// Runners whose first process is remembered; those that are gone are forgotten.
const MAX_RUNNERS: usize = 256;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DialFailure {
    /// Nobody listens on the port.
    NothingListens,
    /// Somebody listens and did not accept in time.
    TimedOut,
    /// Too many connections are under way.
    Busy,
    /// What the system said.
    Failed(String),
}

/// A connection under way.
#[derive(Debug)]
struct Dial {
    id: u64,
    port: u16,
    /// The loopback addresses that are still to be tried.
    rest: &'static [IpAddr],
    socket: OwnedFd,
    until: Instant,
}

/// The connections under way.
#[derive(Debug, Default)]
pub(crate) struct Dials {
    dials: Vec<Dial>,
}

/// A connection that came about, or did not.
pub(crate) type Dialled = (u64, Result<OwnedFd, DialFailure>);

/// Both addresses of loopback: some servers bind the one, some the other.
const LOOPBACK: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

impl Dials {
    /// Begins one, and returns it when it is decided at once.
    pub(crate) fn begin(&mut self, id: u64, port: u16, now: Instant) -> Option<Dialled> {
        if self.dials.len() >= MAX_DIALS {
            return Some((id, Err(DialFailure::Busy)));
        }
        self.attempt(id, port, LOOPBACK, now + CONNECT_WITHIN)
    }

    /// What to wait for. The order is that of [`Dials::handle`].
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.dials
            .iter()
            .map(|dial| (dial.socket.as_fd(), PollFlags::OUT))
    }

    /// When the first one's time is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.dials.iter().map(|dial| dial.until).min()
    }

    /// Takes in what happened; `seen` answers to [`Dials::interest`].
    pub(crate) fn handle(&mut self, seen: &[PollFlags], now: Instant) -> Vec<Dialled> {
        let mut decided = Vec::new();
        let dials = std::mem::take(&mut self.dials);
        let mut seen = seen.iter().copied();
        for dial in dials {
            let flags = seen.next().unwrap_or_else(PollFlags::empty);
            if flags.is_empty() {
                if dial.until <= now {
                    decided.push((dial.id, Err(DialFailure::TimedOut)));
                } else {
                    self.dials.push(dial);
                }
                continue;
            }
            let outcome = sockopt::socket_error(&dial.socket).and_then(|result| result);
            match outcome {
                Ok(()) => decided.push((dial.id, Ok(dial.socket))),
                Err(error) if dial.rest.is_empty() => decided.push((dial.id, Err(error.into()))),
                Err(_) => decided.extend(self.attempt(dial.id, dial.port, dial.rest, dial.until)),
            }
        }
        decided
    }

    /// Tries the addresses until one is under way or decided.
    fn attempt(
        &mut self,
        id: u64,
        port: u16,
        addresses: &'static [IpAddr],
        until: Instant,
    ) -> Option<Dialled> {
        let mut addresses = addresses;
        let mut last = DialFailure::NothingListens;
        while let Some((address, rest)) = addresses.split_first() {
            addresses = rest;
            match open(SocketAddr::new(*address, port)) {
                Ok((socket, true)) => return Some((id, Ok(socket))),
                Ok((socket, false)) => {
                    self.dials.push(Dial {
                        id,
                        port,
                        rest,
                        socket,
                        until,
                    });
                    return None;
                }
                Err(error) => last = error.into(),
            }
        }
        Some((id, Err(last)))
    }
}

impl From<Errno> for DialFailure {
    fn from(error: Errno) -> Self {
        match error {
            // The second: there is no such loopback, so nobody listens on it.
            Errno::CONNREFUSED | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Self::NothingListens,
            Errno::TIMEDOUT => Self::TimedOut,
            other => Self::Failed(io::Error::from(other).to_string()),
        }
    }
}

/// A socket on its way to `address`, and whether it has arrived.
fn open(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

/// The first processes of the runners that were born, to tell whose a port is.
#[derive(Debug, Default)]
pub(crate) struct Runners {
    born: Vec<(Pid, CommandId)>,
}

impl Runners {
    /// Remembers one.
    pub(crate) fn add(&mut self, pid: Pid, command: CommandId) {
        if self.born.len() >= MAX_RUNNERS {
            self.born.retain(|(pid, _)| is_first(*pid));
        }
        self.born.push((pid, command));
    }

    /// The ports on which somebody listens, lowest first, each once.
    pub(crate) fn listening(&mut self) -> Vec<ListeningPort> {
        let mut found: Vec<(ListeningPort, u64)> = Vec::new();
        for (table, parse) in [
            ("/proc/net/tcp", parse_v4 as fn(&str) -> Option<IpAddr>),
            ("/proc/net/tcp6", parse_v6),
        ] {
            for (port, inode) in listeners(&read_table(table), parse) {
                if !found.iter().any(|(have, _)| have.port == port.port) {
                    found.push((port, inode));
                }
            }
        }
        found.sort_by_key(|(port, _)| port.port);
        found.truncate(MAX_LISTED);
        self.attribute(&mut found);
        found.into_iter().map(|(port, _)| port).collect()
    }

    /// Finds the commands whose processes hold the listeners. Every process of a command
    /// descends from its runner's first one, which adopts the orphans of its namespace.
    fn attribute(&mut self, found: &mut [(ListeningPort, u64)]) {
        self.born.retain(|(pid, _)| is_first(*pid));
        let mut commands: HashMap<u32, CommandId> = self
            .born
            .iter()
            .filter_map(|(pid, id)| Some((u32::try_from(pid.as_raw_nonzero().get()).ok()?, *id)))
            .collect();
        let parents: HashMap<u32, u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .take(MAX_PROCESSES)
            .filter_map(|pid| Some((pid, parent(pid)?)))
            .collect();
        let mut links = 0;
        for &pid in parents.keys() {
            let Some(id) = command_of(pid, &parents, &mut commands) else {
                continue;
            };
            for link in fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                links += 1;
                if links > MAX_LINKS {
                    return;
                }
                let inode = fs::read_link(link.path()).ok().and_then(|to| socket(&to));
                let holds = |of: &u64| Some(*of) == inode;
                if let Some((port, _)) = found.iter_mut().find(|(_, of)| holds(of)) {
                    port.command_id = Some(id);
                }
            }
        }
    }
}

/// The command that a process belongs to; the way there is remembered in `commands`.
fn command_of(
    pid: u32,
    parents: &HashMap<u32, u32>,
    commands: &mut HashMap<u32, CommandId>,
) -> Option<CommandId> {
    let mut way = Vec::new();
    let mut at = pid;
    let id = loop {
        if let Some(id) = commands.get(&at) {
            break *id;
        }
        // What changes meanwhile could make a circle.
        if way.len() > MAX_PROCESSES {
            return None;
        }
        way.push(at);
        at = *parents.get(&at)?;
    };
    commands.extend(way.into_iter().map(|pid| (pid, id)));
    Some(id)
}

/// The parent of a process, field 4 of its `stat`.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; fields are counted behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

fn process(pid: Pid) -> std::path::PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string())
}

/// Whether a process is there and the first of a pid namespace below this one. Its number
/// may meanwhile be another's, who then is not.
fn is_first(pid: Pid) -> bool {
    let status = fs::read_to_string(process(pid).join("status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let mut numbers = numbers.split_whitespace();
        numbers.next().is_some() && numbers.next_back() == Some("1")
    })
}

/// The inode that `socket:[inode]` names.
fn socket(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn read_table(path: &str) -> String {
    let mut text = Vec::new();
    // A table that cannot be read has nothing to list: IPv6 may be switched off.
    let _ = fs::File::open(path).map(|file| file.take(MAX_TABLE).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// The listeners of a table as proc(5) has it, with their inodes.
fn listeners(table: &str, parse: fn(&str) -> Option<IpAddr>) -> Vec<(ListeningPort, u64)> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        if *fields.get(3)? != LISTEN {
            return None;
        }
        let port = ListeningPort {
            port: u16::from_str_radix(port, 16).ok()?,
            address: parse(address)?.to_string(),
            command_id: None,
        };
        Some((port, fields.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

fn parse_v4(hex: &str) -> Option<IpAddr> {
    let word = u32::from_str_radix(hex, 16).ok()?;
    Some(Ipv4Addr::from(word.to_ne_bytes()).into())
}

fn parse_v6(hex: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (index, chunk) in bytes.chunks_mut(4).enumerate() {
        let word = u32::from_str_radix(hex.get(index * 8..index * 8 + 8)?, 16).ok()?;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    (hex.len() == 32).then(|| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::{DialFailure, Dials, listeners, parse_v4, parse_v6};

    #[test]
    fn listeners_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0\n\
            1: 0100007F:0BB8 0100007F:A3D2 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 20 4 30 10 -1\n\
            broken\n";
        let found = listeners(table, parse_v4);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.port, 3000);
        assert_eq!(found[0].0.address, "127.0.0.1");
        assert_eq!(found[0].1, 4711);
        assert_eq!(
            parse_v6("00000000000000000000000001000000")
                .unwrap()
                .to_string(),
            "::1"
        );
        assert!(parse_v6("0000").is_none());
    }

    fn settle(dials: &mut Dials) -> Vec<super::Dialled> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let seen: Vec<PollFlags> = {
                let mut fds: Vec<PollFd<'_>> = dials
                    .interest()
                    .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
                    .collect();
                let wait = rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: 50_000_000,
                };
                poll(&mut fds, Some(&wait)).unwrap();
                fds.iter().map(PollFd::revents).collect()
            };
            let decided = dials.handle(&seen, Instant::now());
            if !decided.is_empty() {
                return decided;
            }
            assert!(Instant::now() < until, "nothing was decided");
        }
    }

    #[test]
    fn a_listener_is_connected_to_and_a_closed_port_is_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut dials = Dials::default();
        let decided = match dials.begin(1, port, Instant::now()) {
            Some(decided) => decided,
            None => settle(&mut dials).remove(0),
        };
        assert!(matches!(decided, (1, Ok(_))));
        drop(listener);
        let decided = match dials.begin(2, port, Instant::now()) {
            Some(decided) => decided,
            None => settle(&mut dials).remove(0),
        };
        assert!(
            matches!(decided, (2, Err(DialFailure::NothingListens))),
            "{decided:?}"
        );
    }

    #[test]
    fn who_does_not_accept_is_given_up_and_the_number_is_bounded() {
        // A backlog of one that nobody empties: further connections hang.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut dials = Dials::default();
        let now = Instant::now();
        let mut busy = 0;
        let mut held = Vec::new();
        for id in 0..200 {
            match dials.begin(id, port, now) {
                Some((_, Err(DialFailure::Busy))) => busy += 1,
                Some((_, Ok(socket))) => held.push(socket),
                Some((_, Err(other))) => panic!("{other:?}"),
                None => {}
            }
        }
        assert!(busy >= 100, "the list is bounded: {busy}");
        let waiting = dials.interest().count();
        let later = now + Duration::from_secs(60);
        let decided = dials.handle(&vec![PollFlags::empty(); waiting], later);
        assert_eq!(decided.len(), waiting);
        assert!(
            decided
                .iter()
                .all(|(_, result)| matches!(result, Err(DialFailure::TimedOut)))
        );
        assert!(dials.deadline().is_none());
    }
}

//! Whether this machine can build the walls, for `doctor`.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::packet;
use crate::sys::{self, Forked};
use crate::walls::filter::Filter;
use crate::walls::profile::Profile;
use crate::walls::{Step, WallError, capabilities, hints, landlock, root};

/// What was found about one wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The wall, such as `user namespace`.
    pub name: String,
    /// Whether it can be built.
    pub ok: bool,
    /// Whether nothing starts without it (arch §8).
    pub mandatory: bool,
    /// What was found, for people.
    pub detail: String,
    /// What to do when it is missing, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A wall and how to try it in a child process.
struct Wall {
    name: &'static str,
    mandatory: bool,
    attempt: fn() -> Result<(), WallError>,
}

const WALLS: &[Wall] = &[
    Wall {
        name: "user namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_USER),
    },
    Wall {
        name: "mount namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_MOUNT),
    },
    Wall {
        name: "pid namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_PID),
    },
    Wall {
        name: "network namespace",
        mandatory: true,
        attempt: network,
    },
    Wall {
        name: "ipc namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_IPC),
    },
    Wall {
        name: "uts namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_UTS),
    },
    Wall {
        name: "cgroup namespace",
        mandatory: true,
        attempt: || enter(sys::NEW_CGROUP),
    },
    Wall {
        name: "private root",
        mandatory: true,
        attempt: private_root,
    },
    Wall {
        name: "fresh /proc",
        mandatory: true,
        attempt: fresh_proc,
    },
    Wall {
        name: "nested namespaces",
        mandatory: true,
        attempt: nested,
    },
    Wall {
        name: "Landlock files",
        mandatory: true,
        attempt: || landlock::lock_in(&[], false),
    },
    Wall {
        name: "Landlock scopes",
        mandatory: false,
        attempt: || landlock::lock_in(&[], true),
    },
    Wall {
        name: "no_new_privs and no capabilities",
        mandatory: true,
        attempt: capabilities_away,
    },
    Wall {
        name: "seccomp",
        mandatory: true,
        attempt: seccomp,
    },
];

/// Tries every wall in child processes and tells what was found, each with its remedy.
///
/// Changes nothing of the calling process. It forks; a program with threads had better
/// run `supervisor probe`, which prints the same as JSON.
#[must_use]
pub fn probe() -> Vec<Check> {
    WALLS.iter().map(check).collect()
}

fn check(wall: &Wall) -> Check {
    let found = in_child(wall.attempt);
    let (ok, detail, remedy) = match found {
        Ok(()) => (true, "can be built".to_owned(), None),
        Err(error) => {
            let remedy = if wall.name.starts_with("Landlock") {
                Some(hints::landlock())
            } else {
                hints::cause(&error)
            };
            (false, error.to_string(), remedy)
        }
    };
    Check {
        name: wall.name.to_owned(),
        ok,
        mandatory: wall.mandatory,
        detail,
        remedy,
    }
}

/// Runs an attempt in a child and returns what it came to.
fn in_child(attempt: fn() -> Result<(), WallError>) -> Result<(), WallError> {
    let (near, far) = packet::pair().step(|| "make a socket pair".into())?;
    match sys::fork().step(|| "fork".into())? {
        Forked::Child => {
            let told = packet::send(&far, &attempt(), &[]);
            sys::exit(i32::from(told.is_err()))
        }
        Forked::Parent(pid, _) => {
            drop(far);
            let found = receive(&near);
            // The child has ended or is about to.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            found
        }
    }
}

fn receive(from: &OwnedFd) -> Result<(), WallError> {
    match packet::receive::<Result<(), WallError>>(from, true) {
        Ok(Some((found, _))) => found,
        _ => Err(WallError {
            step: "build the wall".into(),
            reason: "the attempt ended without a word".into(),
            errno: None,
        }),
    }
}

/// Clones into a user namespace and `more` and lets the child try something there.
fn within(more: u64, attempt: fn() -> Result<(), WallError>) -> Result<(), WallError> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let (near, far) = packet::pair().step(|| "make a socket pair".into())?;
    match sys::clone_into(sys::NEW_USER | more).step(|| "create the namespace".into())? {
        Forked::Child => {
            let tried = root::map_ids(uid, gid).and_then(|()| attempt());
            let told = packet::send(&far, &tried, &[]);
            sys::exit(i32::from(told.is_err()))
        }
        Forked::Parent(pid, _) => {
            drop(far);
            let found = receive(&near);
            // The child has ended or is about to.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            found
        }
    }
}

fn enter(namespace: u64) -> Result<(), WallError> {
    within(namespace, || Ok(()))
}

fn network() -> Result<(), WallError> {
    within(sys::NEW_NET, || {
        sys::loopback_up().step(|| "bring loopback up".into())
    })
}

fn private_root() -> Result<(), WallError> {
    within(sys::NEW_MOUNT, root::try_private_root)
}

fn fresh_proc() -> Result<(), WallError> {
    within(sys::NEW_MOUNT | sys::NEW_PID, root::try_fresh_proc)
}

/// What a runner needs: namespaces within those of its workbench.
fn nested() -> Result<(), WallError> {
    within(sys::NEW_MOUNT | sys::NEW_PID, || {
        within(sys::NEW_MOUNT | sys::NEW_PID, root::try_fresh_proc)
    })
}

fn capabilities_away() -> Result<(), WallError> {
    within(0, || {
        capabilities::drop_all().step(|| "drop all capabilities".into())
    })
}

fn seccomp() -> Result<(), WallError> {
    let filter = Filter::compile(Profile::Runner)?;
    rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".into())?;
    filter
        .install()
        .map(drop)
        .step(|| "install the seccomp filter".into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_wall_stands_on_a_machine_that_runs_the_tests() {
        let missing: Vec<_> = super::probe()
            .into_iter()
            .filter(|check| !check.ok)
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }
}

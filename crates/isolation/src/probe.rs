//! Whether this machine can build the walls, for `doctor`.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::spec::OptionalWall;
use crate::sys::{self, Forked};
use crate::walls::filter::Filter;
use crate::walls::profile::Profile;
use crate::walls::{Step, WallError, capabilities, hints, landlock, root};
use crate::{namespaces, packet};

/// What was found about one wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The wall, such as `user namespace`.
    pub name: String,
    /// Whether it can be built.
    pub ok: bool,
    /// Whether nothing starts without it (arch §8).
    pub mandatory: bool,
    /// What a configuration names to go without it, where that is possible at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<OptionalWall>,
    /// What was found, for people.
    pub detail: String,
    /// What to do when it is missing, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A wall and how to try it in a child process.
struct Wall {
    name: &'static str,
    /// What goes without it, when the configuration names that.
    accept: Option<OptionalWall>,
    attempt: fn() -> Result<(), WallError>,
}

const WALLS: &[Wall] = &[
    Wall {
        name: "user namespace",
        accept: None,
        attempt: || enter(sys::NEW_USER),
    },
    Wall {
        name: "mount namespace",
        accept: None,
        attempt: || enter(sys::NEW_MOUNT),
    },
    Wall {
        name: "pid namespace",
        accept: None,
        attempt: || enter(sys::NEW_PID),
    },
    Wall {
        name: "network namespace",
        accept: None,
        attempt: network,
    },
    Wall {
        name: "ipc namespace",
        accept: None,
        attempt: || enter(sys::NEW_IPC),
    },
    Wall {
        name: "uts namespace",
        accept: None,
        attempt: || enter(sys::NEW_UTS),
    },
    Wall {
        name: "cgroup namespace",
        accept: None,
        attempt: || enter(sys::NEW_CGROUP),
    },
    Wall {
        name: "private root",
        accept: None,
        attempt: private_root,
    },
    Wall {
        name: "fresh /proc",
        accept: None,
        attempt: fresh_proc,
    },
    Wall {
        name: "nested namespaces",
        accept: None,
        attempt: nested,
    },
    Wall {
        name: "Landlock files",
        accept: None,
        attempt: || landlock::lock_in(&[], false),
    },
    Wall {
        name: "Landlock scopes",
        accept: Some(OptionalWall::LandlockScopes),
        attempt: || landlock::lock_in(&[], true),
    },
    Wall {
        name: "no_new_privs and no capabilities",
        accept: None,
        attempt: capabilities_away,
    },
    Wall {
        name: "seccomp",
        accept: None,
        attempt: seccomp,
    },
];

/// What is no wall, and how to try it in a child process.
struct Extra {
    name: &'static str,
    /// What is found where it works, for people.
    works: &'static str,
    /// What goes on without it, and how to get it.
    remedy: &'static str,
    attempt: fn() -> Result<(), WallError>,
}

const EXTRAS: &[Extra] = &[
    Extra {
        name: "denied system calls are counted",
        works: "the kernel tells of each",
        remedy: "they are refused all the same; to see them counted, run the hypervisor where no \
                 other seccomp filter listens (that of a container engine or a tracer)",
        attempt: counting,
    },
    Extra {
        name: "inotify has limits of a sandbox's own",
        works: "can be set",
        remedy: "the host user's own limits hold for all sandboxes together; for limits of each, \
                 run the hypervisor where /proc/sys/user can be written to",
        attempt: inotify,
    },
];

/// Tries every wall in child processes and tells what was found, each with its remedy.
/// Those that `accept_missing` names are not mandatory, as for a start.
///
/// Changes nothing of the calling process. It forks; a program with threads had better
/// run `supervisor probe`, which prints the same as JSON.
#[must_use]
pub fn probe(accept_missing: &[OptionalWall]) -> Vec<Check> {
    let walls = WALLS
        .iter()
        .map(|wall| judge(wall, in_child(wall.attempt), accept_missing));
    let extras = EXTRAS
        .iter()
        .map(|extra| judge_extra(extra, in_child(extra.attempt)));
    walls.chain(extras).collect()
}

fn judge_extra(extra: &Extra, found: Result<(), WallError>) -> Check {
    let (ok, detail, remedy) = match found {
        Ok(()) => (true, extra.works.to_owned(), None),
        Err(error) => (false, error.to_string(), Some(extra.remedy.to_owned())),
    };
    Check {
        name: extra.name.to_owned(),
        ok,
        mandatory: false,
        accept: None,
        detail,
        remedy,
    }
}

fn judge(wall: &Wall, found: Result<(), WallError>, accept_missing: &[OptionalWall]) -> Check {
    let accepted = wall.accept.filter(|one| accept_missing.contains(one));
    let (ok, detail, remedy) = match found {
        Ok(()) => (true, "can be built".to_owned(), None),
        Err(error) => {
            let remedy = if wall.name.starts_with("Landlock") {
                hints::landlock()
            } else {
                hints::remedy(&error)
            };
            let remedy = match accepted {
                Some(one) => format!(
                    "{remedy}; sandbox.accept_missing names {}, so sandboxes start without",
                    one.as_str()
                ),
                None => remedy,
            };
            (false, error.to_string(), Some(remedy))
        }
    };
    Check {
        name: wall.name.to_owned(),
        ok,
        mandatory: accepted.is_none(),
        accept: wall.accept,
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

fn counting() -> Result<(), WallError> {
    let filter = Filter::compile(Profile::Runner)?;
    rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".into())?;
    let listener = filter
        .install()
        .step(|| "install the seccomp filter".into())?;
    listener.map(drop).ok_or_else(|| WallError {
        step: "be told of denied system calls".into(),
        reason: "this kernel gives no notification of them, or a filter around this process has \
                 it already"
            .into(),
        errno: None,
    })
}

fn inotify() -> Result<(), WallError> {
    within(0, || {
        let limited = namespaces::limit_of_user("max_inotify_instances", 1);
        limited.step(|| "limit user.max_inotify_instances".into())
    })
}

#[cfg(test)]
mod tests {
    use super::{WALLS, WallError, judge, probe};
    use crate::spec::OptionalWall;

    #[test]
    fn every_wall_stands_on_a_machine_that_runs_the_tests() {
        let missing: Vec<_> = probe(&[]).into_iter().filter(|check| !check.ok).collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }

    /// As `supervisor::start` does: what is missing keeps everything from starting, unless it
    /// was accepted by its name.
    #[test]
    fn a_missing_wall_is_mandatory_unless_it_was_accepted_by_name_and_has_a_remedy() {
        let missing = || {
            Err(WallError {
                step: "do what it takes".into(),
                reason: "there is none".into(),
                errno: Some(libc::ENOSYS),
            })
        };
        let all = [
            OptionalWall::LandlockScopes,
            OptionalWall::CgroupLimits,
            OptionalWall::CgroupCpu,
        ];
        for wall in WALLS {
            let check = judge(wall, missing(), &[]);
            assert!(!check.ok && check.mandatory, "{check:?}");
            assert!(check.remedy.is_some_and(|text| !text.is_empty()));
            let check = judge(wall, missing(), &all);
            assert_eq!(check.mandatory, wall.name != "Landlock scopes", "{check:?}");
        }
    }
}

//! The tree of one installation: users, and the starts of their sandboxes.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::find::LEAF;
use super::group::{read, subdirectories, write};
use super::{CgroupError, Group, GroupLimits, Home};
use crate::spec::HostIds;

/// Names of installations begin so.
const PREFIX: &str = "choir-";

/// How long the end of a killed group may take.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// The name of the group in which a start's supervisor is.
pub(crate) const SUPERVISOR: &str = "supervisor";

/// The name of the group in which a start's guest is.
pub(crate) const GUEST: &str = "guest";

/// The name of the group that holds the groups of a start's commands.
pub(crate) const COMMANDS: &str = "commands";

/// The share of what must go on answering while the processor is short.
const CONTROL_WEIGHT: u16 = 1000;

/// The tree of one installation.
pub struct Tree {
    root: Group,
    /// Held while a user's group is made or removed: an empty one goes away with its last start,
    /// and must not do so beneath the next one. Never held while something is waited for: a
    /// start that is slow to end holds up no other.
    changing: Mutex<()>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// Makes the tree of the installation called `name` beneath this process's own group.
    /// Under version 2 this process moves into a leaf first, because a group with processes
    /// in it has no limited children.
    ///
    /// # Errors
    /// There are no cgroups, or they are not this process's to use.
    pub fn open(name: &str) -> Result<Self, CgroupError> {
        Self::open_in(&Home::find()?, name)
    }

    /// The same beneath a given group.
    ///
    /// # Errors
    /// As for [`Tree::open`].
    pub fn open_in(home: &Home, name: &str) -> Result<Self, CgroupError> {
        if let Group::V2 { dir, .. } = &home.group {
            // Only the machine's real root may hold processes beside limited children; a
            // namespaced one says EBUSY like any other, and is tried again below.
            let opened = home.is_root.then(|| home.group.open_up());
            if !matches!(opened, Some(Ok(()))) {
                let leaf = home.group.child(LEAF);
                leaf.create()?;
                let all = home.is_root || is_delegated(dir);
                move_processes(&home.group, &leaf, all);
                home.group.open_up()?;
                leaf.limit(&GroupLimits {
                    weight: Some(CONTROL_WEIGHT),
                    ..GroupLimits::default()
                })?;
            }
        }
        let tree = Self::at(home.group.child(&format!("{PREFIX}{name}")));
        tree.root.create_inner()?;
        Self::tidy(&tree.root);
        Ok(tree)
    }

    /// A tree that was made before, perhaps by another process.
    #[must_use]
    pub fn at(root: Group) -> Self {
        Self {
            root,
            changing: Mutex::default(),
        }
    }

    /// Its root, which exists while a start is in it.
    #[must_use]
    pub fn root(&self) -> &Group {
        &self.root
    }

    /// Whether processor time can be limited.
    #[must_use]
    pub fn has_cpu(&self) -> bool {
        self.root.has_cpu()
    }

    /// The version, 1 or 2.
    #[must_use]
    pub fn version(&self) -> u8 {
        match self.root {
            Group::V2 { .. } => 2,
            Group::V1 { .. } => 1,
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards directories, which are sound after every step.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the groups of a start, given to `owner` where the sandbox is somebody else on
    /// the host than this process.
    ///
    /// # Errors
    /// The kernel refused; nothing of the start is left.
    pub fn begin(
        &self,
        user: &str,
        start: &str,
        of_user: &GroupLimits,
        of_sandbox: &GroupLimits,
        owner: Option<HostIds>,
    ) -> Result<Group, CgroupError> {
        let _changing = self.changing();
        self.root.create_inner()?;
        let users = self.root.child(user);
        users.create_inner()?;
        users.limit(of_user)?;
        let group = users.child(start);
        let make = || {
            group.create_inner()?;
            group.limit(of_sandbox)?;
            owner.map_or(Ok(()), |owner| group.delegate(owner))
        };
        make().inspect_err(|_| {
            // Nothing is in it yet.
            let _ = group.remove(Duration::ZERO);
        })?;
        Ok(group)
    }

    /// Ends whatever is left of a start and removes its groups, and its user's if that was
    /// the last. It waits: not for a thread that serves others.
    ///
    /// # Errors
    /// Something would not end.
    pub fn end(&self, start: &str) -> Result<(), CgroupError> {
        for user in self.children(&self.root) {
            let users = self.root.child(&user);
            if self.children(&users).contains(start) {
                users.child(start).remove(EMPTY_WITHIN)?;
                let _changing = self.changing();
                Self::tidy(&users);
            }
        }
        let _changing = self.changing();
        Self::tidy(&self.root);
        Ok(())
    }

    /// Removes a group if there is nothing in it.
    fn tidy(group: &Group) {
        for dir in group.dirs() {
            // It fails while there is something, which is what it is for.
            let _ = fs::remove_dir(dir);
        }
    }

    /// Removes every start but those that live, as after a crash, and returns how many.
    pub fn sweep(&self, alive: &BTreeSet<String>) -> usize {
        let mut starts = BTreeSet::new();
        for user in self.children(&self.root) {
            starts.extend(self.children(&self.root.child(&user)));
        }
        let gone: Vec<_> = starts.difference(alive).collect();
        gone.iter().filter(|start| self.end(start).is_ok()).count()
    }

    /// The group of a start, wherever it is.
    #[must_use]
    pub fn start(&self, start: &str) -> Option<Group> {
        self.children(&self.root).iter().find_map(|user| {
            let users = self.root.child(user);
            self.children(&users)
                .contains(start)
                .then(|| users.child(start))
        })
    }

    fn children(&self, group: &Group) -> BTreeSet<String> {
        group
            .dirs()
            .into_iter()
            .flat_map(subdirectories)
            .filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned()))
            .collect()
    }
}

/// What a supervisor makes inside the group of its start, while it has the rights to.
///
/// # Errors
/// The kernel refused.
pub(crate) fn settle(
    start: &Group,
    of_guest: &GroupLimits,
    owner: Option<HostIds>,
) -> Result<(), CgroupError> {
    let supervisor = start.child(SUPERVISOR);
    supervisor.create()?;
    supervisor.limit(&GroupLimits {
        weight: Some(CONTROL_WEIGHT),
        ..GroupLimits::default()
    })?;
    supervisor.enter()?;
    let guest = start.child(GUEST);
    guest.create()?;
    guest.limit(of_guest)?;
    guest.end_as_one();
    let commands = start.child(COMMANDS);
    commands.create_inner()?;
    match owner {
        Some(owner) => {
            supervisor.delegate(owner)?;
            guest.delegate(owner)?;
            commands.delegate(owner)
        }
        None => Ok(()),
    }
}

/// Whether this group was given to whoever may write it: an ordinary user could not write
/// what was not, and systemd marks what it delegates (systemd, "Control Group APIs and
/// Delegation").
fn is_delegated(dir: &Path) -> bool {
    let marked = |name: &str| {
        let mut value = [0_u8; 4];
        rustix::fs::getxattr(dir, name, &mut value[..])
            .is_ok_and(|length| length == 1 && value.starts_with(b"1"))
    };
    !rustix::process::geteuid().is_root() || marked("trusted.delegate") || marked("user.delegate")
}

/// Moves this process, or everything that is in `from`, into `to`. What cannot be moved is
/// noticed when `from` is opened up.
fn move_processes(from: &Group, to: &Group, all: bool) {
    let own = std::process::id().to_string();
    for (from, to) in from.dirs().into_iter().zip(to.dirs()) {
        let listed = read(from, "cgroup.procs");
        for pid in listed.lines().filter(|pid| all || *pid == own) {
            // A process that ended this moment needs no move.
            let _ = write(to, "cgroup.procs", pid);
        }
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;

//! The cgroups of an installation, across restarts of the hypervisor.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isolation::cgroups::{CgroupError, Group, Tree};
use isolation::spec::{OptionalWall, SandboxSpec};
use serde::{Deserialize, Serialize};
use types::{SandboxId, StartId};

use crate::driver::StartError;

/// Trees of earlier hypervisors that are still looked after, beside the present one.
const MAX_FORMER: usize = 4;

/// The present tree, and those in which starts of earlier hypervisors may still be: one
/// that was started from another session or service had another group of its own.
#[derive(Debug)]
pub(crate) struct Groups {
    present: Result<Tree, CgroupError>,
    former: Vec<Tree>,
}

/// What is kept in the data directory.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    name: String,
    roots: Vec<Group>,
}

impl Groups {
    /// Finds or makes the tree of the installation that `record` belongs to.
    pub(crate) fn open(record: &Path) -> Self {
        let mut kept: Record = fs::read(record)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        if kept.name.is_empty() {
            kept.name = SandboxId::generate().to_string();
        }
        let present = Tree::open(&kept.name);
        kept.roots.retain(|root| {
            root.dirs().iter().any(|dir| dir.exists())
                && present.as_ref().is_ok_and(|tree| tree.root() != root)
        });
        kept.roots.truncate(MAX_FORMER);
        let former = kept.roots.iter().cloned().map(Tree::at).collect();
        if let Ok(tree) = &present {
            kept.roots.insert(0, tree.root().clone());
            if let Err(error) = write(record, &kept) {
                tracing::warn!(record = %record.display(), %error, "cannot keep where the cgroups are");
            }
        }
        Self { present, former }
    }

    fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.present.iter().chain(&self.former)
    }

    /// Makes the groups of a start and names them in its spec, which it returns.
    ///
    /// # Errors
    /// There are none, and the configuration does not say that this is accepted.
    pub(crate) async fn begin(
        self: Arc<Self>,
        mut spec: SandboxSpec,
    ) -> Result<SandboxSpec, StartError> {
        // The kernel may take its time with a group, and other threads with theirs.
        let made = tokio::task::spawn_blocking(move || {
            self.make(&mut spec)?;
            Ok(spec)
        });
        made.await.unwrap_or_else(|_| {
            Err(
                StartError::new("internal", "making the cgroups of the start failed")
                    .with_hint("this is a defect: see the hypervisor's log"),
            )
        })
    }

    fn make(&self, spec: &mut SandboxSpec) -> Result<(), StartError> {
        let tree = match &self.present {
            Ok(tree) => tree,
            Err(_) if spec.accept_missing.contains(&OptionalWall::CgroupLimits) => return Ok(()),
            Err(error) => return Err(missing(error)),
        };
        let limits = &spec.limits;
        let user = if limits.user.is_empty() {
            "nobody"
        } else {
            &limits.user
        };
        let start = spec.start_id.to_string();
        let group = tree
            .begin(
                user,
                &start,
                &limits.of_user,
                &limits.of_sandbox,
                spec.host_ids,
            )
            .map_err(|error| missing(&error))?;
        spec.cgroup = Some(group);
        Ok(())
    }

    /// The walls that this host does not give.
    pub(crate) fn missing(&self) -> Vec<OptionalWall> {
        match &self.present {
            Err(_) => vec![OptionalWall::CgroupLimits],
            Ok(tree) if !tree.has_cpu() => vec![OptionalWall::CgroupCpu],
            Ok(_) => Vec::new(),
        }
    }

    /// Removes the groups of a start with whatever still runs in them.
    pub(crate) async fn end(self: Arc<Self>, start: StartId) {
        self.in_background(move |groups| {
            for tree in groups.trees() {
                if let Err(error) = tree.end(&start.to_string()) {
                    tracing::warn!(%start, %error, "the cgroup of a start cannot be removed");
                }
            }
        })
        .await;
    }

    /// Removes what crashes left: every start but those that live.
    pub(crate) async fn sweep(self: Arc<Self>, alive: BTreeSet<String>) {
        self.in_background(move |groups| {
            let removed: usize = groups.trees().map(|tree| tree.sweep(&alive)).sum();
            if removed > 0 {
                tracing::info!(removed, "removed cgroups of starts that are gone");
            }
        })
        .await;
    }

    async fn in_background(self: Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        if tokio::task::spawn_blocking(move || work(&self))
            .await
            .is_err()
        {
            tracing::error!("looking after cgroups failed");
        }
    }
}

fn missing(error: &CgroupError) -> StartError {
    let mut message = format!("the sandbox was not started: no limits by cgroups: {error}");
    if let Some(source) = std::error::Error::source(error) {
        message = format!("{message}: {source}");
    }
    StartError::new("wall_missing", message).with_hint(format!(
        "{}; to go without limits of memory, processes and processor time for whole sandboxes, set \
         sandbox.accept_missing = [\"cgroup_limits\"]",
        error.hint()
    ))
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let mut draft: PathBuf = path.to_owned();
    draft.set_extension("new");
    fs::write(&draft, serde_json::to_vec(record)?)?;
    fs::rename(draft, path)
}

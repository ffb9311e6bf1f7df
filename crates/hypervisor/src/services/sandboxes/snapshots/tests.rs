//! What a start of the hypervisor makes of every state that a crash can leave, one by one.
//! Needs the `supervisor` program next to the tests, which copies and removes.

mod races;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::spec::HostIds;
use types::{Role, SandboxId, SandboxState, SnapshotId, SnapshotReason};

use super::super::testing::Installation;
use super::{engine, files};
use crate::store::{SnapshotRow, Standing};

/// A state, as it lies on the disk, with a mark that tells it from others. Its parts belong to
/// the sandbox.
fn state(dir: &Path, mark: &str, owner: Option<HostIds>) {
    let parts = dir.join("workspace");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&parts)
        .unwrap();
    std::fs::write(parts.join("mark"), mark).unwrap();
    if let Some(HostIds { uid, gid }) = owner {
        for path in [parts.join("mark"), parts] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

fn mark(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("workspace/mark")).unwrap()
}

struct World {
    installation: Installation,
    sandbox: SandboxId,
    owner: Option<HostIds>,
    dir: PathBuf,
}

impl World {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(toml: &str) -> Self {
        let installation = Installation::new(toml).await;
        let sandbox = installation.sandbox(Role::Live).await;
        let plane = installation.app.sandboxes.plane();
        let (dir, owner) = (plane.sandbox_dir(sandbox), engine::owner(plane, sandbox));
        let owner = owner.await.unwrap();
        state(&dir.join("state"), "present", owner);
        Self {
            installation,
            sandbox,
            owner,
            dir,
        }
    }

    fn row(&self, standing: Standing) -> SnapshotRow {
        SnapshotRow {
            id: SnapshotId::generate(),
            sandbox_id: self.sandbox,
            standing,
            name: None,
            reason: SnapshotReason::BeforeRestore,
            known_good: false,
            created_at: 1,
            bytes: 1,
            files: 1,
            generation: 0,
            version: "1".into(),
            replaces: None,
            was_running: false,
        }
    }

    fn state_of(&self, row: &SnapshotRow) -> PathBuf {
        let all = self.dir.join("snapshots");
        all.join(row.id.to_string()).join("state")
    }

    async fn put(&self, row: &SnapshotRow, mark: &str) {
        state(&self.state_of(row), mark, self.owner);
        self.installation.app.store.put_snapshot(row).await.unwrap();
    }

    /// What a start does, up to its end.
    async fn start(&self) -> Vec<SnapshotRow> {
        let sandboxes = &self.installation.app.sandboxes;
        let unfinished = sandboxes.reconcile_snapshots().await.unwrap();
        sandboxes.finish_reconciling(unfinished);
        loop {
            let rows = self.installation.app.store.snapshots(self.sandbox).await;
            let rows = rows.unwrap();
            if rows.iter().all(|row| row.standing == Standing::Ready) {
                return rows;
            }
            tokio::task::yield_now().await;
        }
    }

    fn present(&self) -> String {
        mark(&self.dir.join("state"))
    }
}

#[tokio::test]
async fn a_copy_that_was_cut_is_removed() {
    let world = World::new().await;
    for standing in [Standing::Making, Standing::Replacing, Standing::Removing] {
        let row = world.row(standing);
        world.put(&row, "half").await;
        assert_eq!(world.start().await, Vec::new(), "{standing:?}");
        assert!(!world.state_of(&row).exists());
    }
    assert_eq!(world.present(), "present");
}

#[tokio::test]
async fn a_restore_that_was_cut_before_the_exchange_is_undone() {
    let world = World::new().await;
    let mut row = world.row(Standing::Replacing);
    row.replaces = Some(files::inode(&world.dir.join("state")).unwrap());
    row.was_running = true;
    world.put(&row, "restored").await;
    assert_eq!(world.start().await, Vec::new());
    assert_eq!(world.present(), "present");
    assert!(!world.state_of(&row).exists());
    world.runs_again().await;
}

#[tokio::test]
async fn a_restore_that_was_cut_after_the_exchange_is_finished() {
    let world = World::new().await;
    let mut row = world.row(Standing::Replacing);
    row.replaces = Some(files::inode(&world.dir.join("state")).unwrap());
    row.was_running = true;
    world.put(&row, "restored").await;
    files::exchange(&world.dir.join("state"), &world.state_of(&row)).unwrap();
    let rows = world.start().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].standing, rows[0].replaces),
        (Standing::Ready, None)
    );
    assert_eq!(world.present(), "restored");
    assert_eq!(mark(&world.state_of(&row)), "present");
    world.runs_again().await;
}

impl World {
    /// The sandbox that a restore had stopped is started again, and once only.
    async fn runs_again(&self) {
        let sandboxes = Arc::clone(&self.installation.app.sandboxes);
        while sandboxes.status(self.sandbox).state != SandboxState::Running {
            tokio::task::yield_now().await;
        }
        loop {
            let rows = self.installation.app.store.snapshots(self.sandbox).await;
            if rows.unwrap().iter().all(|row| !row.was_running) {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_the_database_lost_is_found_and_anything_else_goes() {
    let world = World::new().await;
    let row = world.row(Standing::Ready);
    world.put(&row, "kept").await;
    let plane = world.installation.app.sandboxes.plane();
    files::write_manifest(plane, &row).unwrap();
    world
        .installation
        .app
        .store
        .forget_snapshot(row.id)
        .await
        .unwrap();
    let stray = world
        .dir
        .join("snapshots")
        .join(SnapshotId::generate().to_string());
    state(&stray.join("state"), "stray", world.owner);
    std::fs::copy(
        world.state_of(&row).parent().unwrap().join("manifest.json"),
        stray.join("manifest.json"),
    )
    .unwrap();
    assert_eq!(world.start().await, vec![row.clone()]);
    assert_eq!(mark(&world.state_of(&row)), "kept");
    assert!(!stray.exists(), "a manifest under another name is none");
    // And one whose files are gone is forgotten.
    std::fs::remove_dir_all(world.state_of(&row)).unwrap();
    while !world.start().await.is_empty() {}
}

#[tokio::test]
async fn files_of_an_older_layout_are_gathered() {
    let world = World::new().await;
    std::fs::remove_dir_all(world.dir.join("state")).unwrap();
    state(&world.dir, "older", world.owner);
    std::fs::create_dir(world.dir.join("home")).unwrap();
    // Cut in the middle: one part was moved already.
    std::fs::create_dir_all(world.dir.join("state.new/data")).unwrap();
    world.start().await;
    assert_eq!(world.present(), "older");
    for part in ["home", "data"] {
        assert!(world.dir.join("state").join(part).is_dir(), "{part}");
    }
}

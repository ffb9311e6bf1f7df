use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::{EntryType, FileError, MAX_ENTRIES, Precondition, WalkLimits, Workspace};

fn workspace() -> (tempfile::TempDir, Workspace) {
    let dir = tempfile::tempdir().unwrap();
    let workspace = Workspace::open(dir.path()).unwrap();
    (dir, workspace)
}

#[test]
fn a_write_keeps_permissions_and_refuses_what_is_no_file() {
    let (dir, workspace) = workspace();
    let path = dir.path().join("run.sh");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    workspace
        .write("run.sh", b"new", &Precondition::None)
        .unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o750
    );
    fs::create_dir(dir.path().join("d")).unwrap();
    symlink("run.sh", dir.path().join("link")).unwrap();
    for name in ["d", "link"] {
        assert!(matches!(
            workspace.write(name, b"x", &Precondition::None),
            Err(FileError::Kind(_))
        ));
    }
    // A link that stays inside can be read through.
    assert_eq!(workspace.read("link", 10).unwrap().0, b"new");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_pipe_does_not_hang_a_reader() {
    let (dir, workspace) = workspace();
    let root = fs::File::open(dir.path()).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        &root,
        "pipe",
        kind,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(matches!(
        workspace.read("pipe", 10),
        Err(FileError::Kind(_))
    ));
    assert_eq!(workspace.list("").unwrap().0[0].kind, EntryType::Other);
}

#[test]
fn no_process_directory_is_a_way_out() {
    let (dir, workspace) = workspace();
    symlink("/proc/self/root/etc", dir.path().join("magic")).unwrap();
    for path in ["magic/passwd", "/etc/passwd", "..", "a/../../x", "x\0y"] {
        assert!(workspace.read(path, 10_000).is_err(), "{path}");
    }
    for path in ["", ".", "d/..", "d/.", "/"] {
        assert!(workspace.remove(path).is_err(), "{path}");
        assert!(
            workspace.write(path, b"", &Precondition::None).is_err(),
            "{path}"
        );
    }
}

#[test]
fn removing_a_tree_follows_no_link_and_has_a_floor() {
    let (dir, workspace) = workspace();
    fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
    fs::create_dir(dir.path().join("kept")).unwrap();
    fs::write(dir.path().join("kept/x"), "").unwrap();
    symlink("../kept", dir.path().join("tree/link")).unwrap();
    workspace.remove("tree").unwrap();
    assert!(dir.path().join("kept/x").exists() && !dir.path().join("tree").exists());
    let deep = vec!["d"; 140].join("/");
    fs::create_dir_all(dir.path().join(&deep)).unwrap();
    assert!(matches!(workspace.remove("d"), Err(FileError::TooDeep)));
}

#[test]
fn listings_and_walks_are_bounded() {
    let (dir, workspace) = workspace();
    fs::create_dir(dir.path().join("many")).unwrap();
    for n in 0..=MAX_ENTRIES {
        fs::File::create(dir.path().join(format!("many/{n}"))).unwrap();
    }
    let (entries, more) = workspace.list("many").unwrap();
    assert_eq!((entries.len(), more), (MAX_ENTRIES, true));
    fs::create_dir_all(dir.path().join("src/.git/objects")).unwrap();
    fs::write(dir.path().join("src/a"), "").unwrap();
    let limits = WalkLimits {
        entries: 100,
        depth: 5,
    };
    let mut seen = Vec::new();
    let all = workspace.walk("src", limits, |found| {
        seen.push(found.path.to_owned());
        true
    });
    assert!(all.unwrap());
    assert_eq!(seen, [".git", "a"]);
    let mut count = 0;
    for (entries, everything) in [(1, false), (2, true)] {
        let limits = WalkLimits { entries, depth: 0 };
        let all = workspace.walk("", limits, |_| true).unwrap();
        assert_eq!(all, everything, "of two entries {entries} may be looked at");
    }
    let all = workspace.walk("", limits, |_| {
        count += 1;
        true
    });
    assert!(!all.unwrap() && count == 100);
}

//! The copier over trees that mean harm: what is copied, what is not, and what it can reach.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use isolation::copying::{CopyBounds, CopyEvent, CopyJob, CopyReport, CopySpec, FINISH};
use isolation::protocol::Refusal;
use isolation::spec::HostIds;

const BOUNDS: CopyBounds = CopyBounds {
    entries: 10_000,
    bytes: 64 << 20,
    depth: 64,
    keep_free: 1 << 20,
};

fn owner(uid: u32) -> Option<HostIds> {
    let root = rustix::process::geteuid().is_root();
    root.then_some(HostIds { uid, gid: uid })
}

/// A source and an empty target, as the hypervisor makes them: only their parts belong to
/// sandboxes.
struct World {
    _dir: tempfile::TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            source: dir.path().join("source"),
            target: dir.path().join("target"),
            _dir: dir,
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&world.source)
            .unwrap();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&world.target)
            .unwrap();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(world.from(""))
            .unwrap();
        world
    }

    fn from(&self, path: &str) -> PathBuf {
        self.source.join("workspace").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.target.join("workspace").join(path)
    }

    /// Gives the source to its sandbox.
    fn give(&self) {
        if let Some(HostIds { uid, .. }) = owner(61_301) {
            let done = Command::new("chown")
                .args(["-hR", &format!("{uid}:{uid}")])
                .arg(self.from(""))
                .status()
                .unwrap();
            assert!(done.success());
        }
    }

    fn spec(&self) -> CopySpec {
        CopySpec {
            source: self.source.clone(),
            target: self.target.clone(),
            source_ids: owner(61_301),
            target_ids: owner(61_302),
            parts: vec!["workspace".into(), "data".into()],
            live: false,
            bounds: BOUNDS,
        }
    }

    fn copy(&self) -> Result<CopyReport, Refusal> {
        self.give();
        Copier::start(&CopyJob::Copy(self.spec())).finish()
    }
}

struct Copier {
    child: Child,
    orders: Option<ChildStdin>,
    events: BufReader<ChildStdout>,
}

impl Copier {
    fn start(job: &CopyJob) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_supervisor"))
            .arg("copy")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut orders = child.stdin.take().unwrap();
        writeln!(orders, "{}", serde_json::to_string(job).unwrap()).unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            orders: Some(orders),
            events,
        }
    }

    fn next(&mut self) -> Option<CopyEvent> {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    fn until(&mut self, wanted: impl Fn(&CopyEvent) -> bool) -> CopyEvent {
        loop {
            let event = self.next().expect("the copier ended without a word");
            if wanted(&event) || matches!(event, CopyEvent::Failed { .. }) {
                return event;
            }
        }
    }

    fn finish(mut self) -> Result<CopyReport, Refusal> {
        let ended = self.until(|event| matches!(event, CopyEvent::Done { .. }));
        let status = self.child.wait().unwrap();
        match ended {
            CopyEvent::Done { report } => {
                assert!(status.success());
                Ok(report)
            }
            CopyEvent::Failed { refusal } => Err(refusal),
            other => panic!("{other:?}"),
        }
    }
}

fn refused(result: Result<CopyReport, Refusal>, code: &str) -> Refusal {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal:?}");
    refusal
}

fn mtime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn a_copy_has_what_the_source_has() {
    let world = World::new();
    fs::create_dir_all(world.from("deep/er/est")).unwrap();
    fs::write(world.from("deep/er/est/file"), "text").unwrap();
    fs::write(world.from("empty"), "").unwrap();
    fs::write(world.from("large"), vec![7; 3 << 20]).unwrap();
    fs::write(world.from(".hidden"), "h").unwrap();
    let odd = world.from("").join(OsStr::from_bytes(b"\xff\n\"\\ name"));
    fs::write(odd, "odd").unwrap();
    symlink("../nowhere/at all", world.from("link")).unwrap();
    fs::write(world.from("once"), "linked").unwrap();
    fs::hard_link(world.from("once"), world.from("twice")).unwrap();
    fs::set_permissions(world.from("once"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(world.from("empty"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::set_permissions(world.from("deep/er"), fs::Permissions::from_mode(0o555)).unwrap();
    let sparse = fs::File::create(world.from("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    rustix::io::pwrite(&sparse, b"in the middle", 512 << 20).unwrap();
    let attribute = rustix::fs::setxattr(
        world.from("large"),
        "user.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    );
    let report = world.copy().unwrap();

    assert_eq!(fs::read(world.to("deep/er/est/file")).unwrap(), b"text");
    assert_eq!(fs::read(world.to("large")).unwrap(), vec![7; 3 << 20]);
    let odd = world.to("").join(OsStr::from_bytes(b"\xff\n\"\\ name"));
    assert_eq!(fs::read(odd).unwrap(), b"odd");
    assert_eq!(
        fs::read_link(world.to("link")).unwrap(),
        Path::new("../nowhere/at all")
    );
    for name in [
        "deep/er/est/file",
        "empty",
        "large",
        "link",
        "deep/er",
        "deep",
        "",
    ] {
        assert_eq!(mtime(&world.to(name)), mtime(&world.from(name)), "{name}");
    }
    let mode = |name: &str| fs::metadata(world.to(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("empty"), 0o640, "set-id bits are dropped");
    assert_eq!((mode("once"), mode("deep/er")), (0o755, 0o555));
    let (once, twice) = (world.to("once"), world.to("twice"));
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_ne!(inode(&once), inode(&twice), "hard links become copies");
    assert_ne!(inode(&once), inode(&world.from("once")));
    let sparse = fs::metadata(world.to("sparse")).unwrap();
    assert_eq!(sparse.len(), 1 << 30);
    assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes");
    if attribute.is_ok() {
        let mut value = [0; 16];
        let length =
            rustix::fs::getxattr(world.to("large"), "user.note", value.as_mut_slice()).unwrap();
        assert_eq!(&value[..length], b"kept");
    }
    if let Some(HostIds { uid, .. }) = owner(61_302) {
        assert_eq!(fs::metadata(world.to("large")).unwrap().uid(), uid);
        assert_eq!(fs::symlink_metadata(world.to("link")).unwrap().uid(), uid);
    }
    assert_eq!(report.tally.files, 8);
    assert_eq!(report.tally.links, 1);
    assert_eq!(fs::read_dir(world.target.join("data")).unwrap().count(), 0);
}

#[test]
fn links_and_special_files_lead_nowhere() {
    let world = World::new();
    let secret = world.source.parent().unwrap().join("secret");
    fs::write(&secret, "of the host").unwrap();
    symlink(&secret, world.from("absolute")).unwrap();
    symlink("../../secret", world.from("relative")).unwrap();
    symlink("/etc", world.from("directory")).unwrap();
    symlink("/proc/self/root/etc/shadow", world.from("magic")).unwrap();
    let fifo = world.from("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let _socket = std::os::unix::net::UnixListener::bind(world.from("socket")).unwrap();
    let report = world.copy().unwrap();
    assert_eq!((report.tally.links, report.tally.skipped), (4, 2));
    for name in ["absolute", "relative", "directory", "magic"] {
        assert!(fs::symlink_metadata(world.to(name)).unwrap().is_symlink());
    }
    assert!(!world.to("fifo").exists() && !world.to("socket").exists());
}

#[test]
fn neither_half_can_reach_anything_else() {
    // A reader that is told to open what its user may read elsewhere on the host: the part
    // itself is a link out of the source, or another user's.
    let world = World::new();
    fs::remove_dir(world.from("")).unwrap();
    symlink("/etc", world.source.join("workspace")).unwrap();
    let refusal = Copier::start(&CopyJob::Copy(world.spec())).finish();
    refused(refusal, "internal");
    assert!(!world.to("passwd").exists());

    let mut spec = world.spec();
    spec.parts = vec!["../source".into()];
    refused(Copier::start(&CopyJob::Copy(spec)).finish(), "bad_spec");

    if owner(1).is_some() {
        let world = World::new();
        fs::write(world.from("roots"), "not the sandbox's").unwrap();
        world.give();
        std::os::unix::fs::chown(world.from("roots"), Some(0), Some(0)).unwrap();
        fs::set_permissions(world.from("roots"), fs::Permissions::from_mode(0o600)).unwrap();
        refused(
            Copier::start(&CopyJob::Copy(world.spec())).finish(),
            "unreadable",
        );
        let mut spec = world.spec();
        spec.source_ids = None;
        refused(Copier::start(&CopyJob::Copy(spec)).finish(), "bad_spec");
        let mut spec = world.spec();
        spec.target_ids = Some(HostIds { uid: 0, gid: 0 });
        refused(Copier::start(&CopyJob::Copy(spec)).finish(), "bad_spec");
    }
}

#[test]
fn what_its_owner_cannot_read_is_copied_and_stays_as_it_is() {
    let world = World::new();
    fs::write(world.from("closed"), "shut").unwrap();
    fs::create_dir(world.from("shut")).unwrap();
    fs::write(world.from("shut/in"), "inside").unwrap();
    fs::set_permissions(world.from("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    world.give();
    fs::set_permissions(world.from("shut"), fs::Permissions::from_mode(0o300)).unwrap();
    Copier::start(&CopyJob::Copy(world.spec()))
        .finish()
        .unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(fs::metadata(world.to("closed")).unwrap().len(), 4);
    assert_eq!(
        (mode(world.from("closed")), mode(world.to("closed"))),
        (0, 0)
    );
    assert_eq!(
        (mode(world.from("shut")), mode(world.to("shut"))),
        (0o300, 0o300)
    );
    if owner(1).is_some() {
        assert_eq!(fs::read(world.to("shut/in")).unwrap(), b"inside");
    }
}

#[test]
fn bounds_hold_and_say_which() {
    let world = World::new();
    for number in 0..30 {
        fs::write(world.from(&format!("{number}")), "x").unwrap();
    }
    fs::create_dir_all(world.from("a/b/c/d/e/f")).unwrap();
    fs::write(world.from("big"), vec![1; 2 << 20]).unwrap();
    world.give();
    let with = |change: &dyn Fn(&mut CopyBounds)| {
        let mut spec = world.spec();
        change(&mut spec.bounds);
        let result = Copier::start(&CopyJob::Copy(spec)).finish();
        fs::remove_dir_all(&world.target).unwrap();
        fs::create_dir(&world.target).unwrap();
        result
    };
    refused(with(&|bounds| bounds.entries = 20), "too_many_files");
    refused(with(&|bounds| bounds.bytes = 1 << 20), "too_large");
    let refusal = refused(with(&|bounds| bounds.depth = 5), "too_deep");
    assert!(refusal.message.contains("a/b/c/d"), "{refusal:?}");
    refused(with(&|bounds| bounds.keep_free = 1 << 60), "disk_full");
    with(&|_| ()).unwrap();
}

#[test]
fn a_live_copy_ends_with_what_stood_there_at_last() {
    let world = World::new();
    fs::create_dir_all(world.from("stays/in")).unwrap();
    for name in ["stays/in/old", "changes", "goes", "becomes-dir", "relinked"] {
        fs::write(world.from(name), "first").unwrap();
    }
    fs::create_dir_all(world.from("dir-goes/deep")).unwrap();
    fs::create_dir(world.from("becomes-file")).unwrap();
    fs::write(world.from("becomes-file/x"), "x").unwrap();
    world.give();
    // Long enough ago for change times to be trusted: the past cannot be made, so it is
    // awaited where the rule is tested, in `unchanged_files_are_copied_once`.
    let mut spec = world.spec();
    spec.live = true;
    let mut copier = Copier::start(&CopyJob::Copy(spec));
    copier.until(|event| matches!(event, CopyEvent::Ready));
    fs::write(world.from("changes"), "second, and longer").unwrap();
    fs::remove_file(world.from("goes")).unwrap();
    fs::remove_dir_all(world.from("dir-goes")).unwrap();
    fs::remove_file(world.from("becomes-dir")).unwrap();
    fs::create_dir(world.from("becomes-dir")).unwrap();
    fs::write(world.from("becomes-dir/y"), "y").unwrap();
    fs::remove_dir_all(world.from("becomes-file")).unwrap();
    fs::write(world.from("becomes-file"), "file").unwrap();
    fs::write(world.from("stays/in/new"), "new").unwrap();
    fs::remove_file(world.from("relinked")).unwrap();
    symlink("changes", world.from("relinked")).unwrap();
    fs::rename(world.from("stays"), world.from("moved")).unwrap();
    world.give();
    writeln!(copier.orders.as_mut().unwrap(), "{FINISH}").unwrap();
    let report = copier.finish().unwrap();
    let listing = |root: PathBuf| {
        let out = Command::new("sh")
            .args(["-c", "cd \"$0\" && find . -printf '%P %y %m %l\\n' | sort && find . -type f -exec cat {} +"])
            .arg(root)
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(listing(world.to("")), listing(world.from("")));
    assert!(report.passes >= 1);
}

#[test]
fn unchanged_files_are_copied_once() {
    let world = World::new();
    // Larger than what is copied through memory, and mapped: a store into the mapping is no
    // system call, and must be noticed all the same.
    for name in ["stored", "quiet"] {
        fs::write(world.from(name), vec![1; 1 << 20]).unwrap();
    }
    world.give();
    // Until the files are old enough for their change times to be trusted.
    let settled = fs::metadata(world.from("quiet")).unwrap().ctime() + 6;
    while rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec <= settled {
        std::thread::yield_now();
    }
    let mut mapper = Command::new("python3")
        .args([
            "-c",
            "import mmap, sys\n\
             f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0)\n\
             m[0] = 2; print('one', flush=True); sys.stdin.readline()\n\
             m[1] = 3; print('two', flush=True); sys.stdin.readline()\n",
        ])
        .arg(world.from("stored"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(mapper.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let mut spec = world.spec();
    spec.live = true;
    let mut copier = Copier::start(&CopyJob::Copy(spec));
    copier.until(|event| matches!(event, CopyEvent::Ready));
    writeln!(mapper.stdin.as_mut().unwrap()).unwrap();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "one\ntwo\n");
    writeln!(copier.orders.as_mut().unwrap(), "{FINISH}").unwrap();
    let report = copier.finish().unwrap();
    drop(mapper.stdin.take());
    mapper.wait().unwrap();
    assert_eq!(&fs::read(world.to("stored")).unwrap()[..3], &[2, 3, 1]);
    assert_eq!(fs::read(world.to("quiet")).unwrap(), vec![1; 1 << 20]);
    if report.passes > 1 {
        assert_eq!(
            report.last_files, 1,
            "the other had not changed: {report:?}"
        );
    }
}

#[test]
fn a_tree_that_changes_under_the_copier_gives_nothing_away() {
    let world = World::new();
    let secret = world.source.parent().unwrap().join("secret");
    fs::write(&secret, "of the host").unwrap();
    for number in 0..200 {
        fs::create_dir(world.from(&format!("d{number:03}"))).unwrap();
        fs::write(world.from(&format!("d{number:03}/secret")), "own").unwrap();
    }
    world.give();
    let outside = world.source.parent().unwrap().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let changing = std::thread::spawn({
        let (stop, root) = (std::sync::Arc::clone(&stop), world.from(""));
        move || {
            // Directories become links to where the secret lies, and directories again.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for number in 0..200 {
                    let (name, aside) = (root.join(format!("d{number:03}")), root.join("aside"));
                    fs::rename(&name, &aside).unwrap();
                    symlink(&outside, &name).unwrap();
                    fs::remove_file(&name).unwrap();
                    fs::rename(&aside, &name).unwrap();
                }
            }
        }
    });
    for round in 0..6 {
        let mut spec = world.spec();
        spec.target = world.target.join(format!("{round}"));
        fs::create_dir(&spec.target).unwrap();
        spec.live = true;
        let mut copier = Copier::start(&CopyJob::Copy(spec));
        // It may say at once, or later, that the tree does not stand still. What it never does is
        // go astray.
        if let CopyEvent::Failed { .. } = copier.until(|event| matches!(event, CopyEvent::Ready)) {
            copier.child.wait().unwrap();
            continue;
        }
        // A copier that has given up by itself does not read it.
        let _ = writeln!(copier.orders.as_mut().unwrap(), "{FINISH}");
        let _ = copier.finish();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    changing.join().unwrap();
    let found = Command::new("grep")
        .args(["-rl", "of the host"])
        .arg(&world.target)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}

#[test]
fn a_copier_whose_asker_is_gone_ends() {
    let world = World::new();
    fs::write(world.from("file"), "x").unwrap();
    world.give();
    let mut spec = world.spec();
    spec.live = true;
    let mut copier = Copier::start(&CopyJob::Copy(spec));
    copier.until(|event| matches!(event, CopyEvent::Ready));
    drop(copier.orders.take());
    let mut rest = String::new();
    copier.events.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("cancelled"), "{rest}");
    assert!(!copier.child.wait().unwrap().success());
}

#[test]
fn a_copy_never_writes_into_what_is_there_already() {
    let world = World::new();
    fs::create_dir(world.to("")).unwrap();
    fs::write(world.to("precious"), "older").unwrap();
    refused(world.copy(), "internal");
    assert_eq!(fs::read(world.to("precious")).unwrap(), b"older");
}

#[test]
fn a_tree_of_any_depth_is_removed() {
    let world = World::new();
    // Deeper than a path can be long, as a hostile program makes it: step by step.
    let made = Command::new("python3")
        .args([
            "-c",
            "import os, sys\nos.chdir(sys.argv[1])\n\
             for i in range(2500):\n os.mkdir('d'); open('f', 'w').close(); os.chdir('d')\n\
             os.chmod('.', 0)\n",
        ])
        .arg(world.from(""))
        .status()
        .unwrap();
    assert!(made.success());
    symlink("/etc", world.from("link")).unwrap();
    let measured = |world: &World| CopyJob::Measure {
        source: world.source.clone(),
        ids: owner(61_301),
        parts: vec!["workspace".into()],
        bounds: BOUNDS,
    };
    if let Some(HostIds { uid, .. }) = owner(61_301) {
        // chown(1) cannot go there; a tree of one owner is what there is in a sandbox.
        let given = Command::new("python3")
            .args([
                "-c",
                "import os, sys\nuid = int(sys.argv[2]); os.chdir(sys.argv[1])\n\
                 os.lchown('link', uid, uid)\n\
                 try:\n  while True:\n   os.chown('.', uid, uid); os.chown('f', uid, uid); os.chdir('d')\n\
                 except FileNotFoundError: pass\n",
            ])
            .arg(world.from(""))
            .arg(uid.to_string())
            .status()
            .unwrap();
        assert!(given.success());
    }
    refused(Copier::start(&measured(&world)).finish(), "too_deep");
    Copier::start(&CopyJob::Remove {
        dir: world.source.clone(),
        ids: owner(61_301),
    })
    .finish()
    .unwrap();
    assert!(!world.source.exists());
    assert!(Path::new("/etc/passwd").exists());
    // Removing what is gone is no error.
    Copier::start(&CopyJob::Remove {
        dir: world.source.clone(),
        ids: owner(61_301),
    })
    .finish()
    .unwrap();
}

/// Mounts what is to be copied from an image, in a mount namespace of its own, copies it there,
/// and prints how many bytes of the file system were in use before and after.
const ON_BTRFS: &str = r#"
set -e
mkfs.btrfs -q "$1" > /dev/null 2>&1
mount -o loop "$1" "$2" || exit 77
mkdir -m 700 "$2/source" "$2/target" "$2/source/workspace"
head -c 40000000 /dev/urandom > "$2/source/workspace/large"
chown -R 61301:61301 "$2/source/workspace"
used() { sync -f "$2"; df --output=used -B1 "$2" | tail -n 1; }
used "$@" >&2
"$3" copy
used "$@" >&2
cmp "$2/source/workspace/large" "$2/target/workspace/large" >&2
echo changed > "$2/target/workspace/large"
test "$(stat -c %s "$2/source/workspace/large")" = 40000000
"#;

#[test]
fn copies_share_blocks_where_the_file_system_can_and_change_on_their_own() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: mounting a file system takes root; blocks that are shared go unproved");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
    fs::File::create(&image)
        .unwrap()
        .set_len(400 << 20)
        .unwrap();
    fs::create_dir(&mount).unwrap();
    let spec = CopySpec {
        source: mount.join("source"),
        target: mount.join("target"),
        source_ids: owner(61_301),
        target_ids: owner(61_302),
        parts: vec!["workspace".into()],
        live: false,
        bounds: BOUNDS,
    };
    let mut script = Command::new("unshare")
        .args(["--mount", "sh", "-c", ON_BTRFS, "sh"])
        .args([&image, &mount])
        .arg(env!("CARGO_BIN_EXE_supervisor"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = script.stdin.take().unwrap();
    let job = CopyJob::Copy(spec);
    writeln!(orders, "{}", serde_json::to_string(&job).unwrap()).unwrap();
    let done = script.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.code() == Some(77) {
        eprintln!(
            "SKIPPED: no loop device can be mounted here; blocks that are shared go unproved: {said}"
        );
        return;
    }
    assert!(done.status.success(), "{said}");
    let events = String::from_utf8(done.stdout).unwrap();
    let last = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let CopyEvent::Done { report } = last else {
        panic!("{events}");
    };
    assert!(report.reflinked, "{report:?}");
    let used: Vec<u64> = said
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect();
    assert!(
        used[1] - used[0] < 5_000_000,
        "the copy took blocks: {used:?}"
    );
}

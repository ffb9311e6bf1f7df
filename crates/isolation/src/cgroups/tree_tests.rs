use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{Group, GroupLimits, Home, Tree, settle};
use crate::cgroups::CgroupError;

/// The files that a kernel puts into every group of version 2.
const FILES: &[&str] = &[
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.kill",
    "cpu.max",
    "cpu.weight",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
];

/// What a kernel would have made of `mkdir`.
fn kernel_makes(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for name in FILES {
        fs::write(dir.join(name), "").unwrap();
    }
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn under_version_2_processes_leave_before_children_get_limits() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("own.scope");
    let start = base.join("choir-test/alice/one");
    for dir in [&base, &base.join("hypervisor"), &base.join("choir-test")] {
        kernel_makes(dir);
    }
    for dir in [start.parent().unwrap(), &start] {
        kernel_makes(dir);
    }
    for name in ["supervisor", "guest", "commands", "commands/c1"] {
        kernel_makes(&start.join(name));
    }
    let own = std::process::id().to_string();
    fs::write(base.join("cgroup.procs"), format!("{own}\n")).unwrap();
    let home = Home {
        group: Group::V2 {
            dir: base.clone(),
            cpu: true,
        },
        is_root: false,
    };

    let tree = Tree::open_in(&home, "test").unwrap();
    assert_eq!(text(&base.join("hypervisor"), "cgroup.procs"), own);
    for dir in [&base, &base.join("choir-test")] {
        assert_eq!(text(dir, "cgroup.subtree_control"), "+memory +pids +cpu");
    }

    let user = GroupLimits {
        memory_bytes: Some(8 << 30),
        ..GroupLimits::default()
    };
    let sandbox = GroupLimits {
        memory_bytes: Some(4 << 30),
        processes: Some(500),
        cpu_millis: Some(1500),
        weight: None,
    };
    let group = tree.begin("alice", "one", &user, &sandbox, None).unwrap();
    assert_eq!(
        text(start.parent().unwrap(), "memory.max"),
        (8_u64 << 30).to_string()
    );
    assert_eq!(text(&start, "memory.max"), (4_u64 << 30).to_string());
    assert_eq!(text(&start, "memory.swap.max"), "0");
    assert_eq!(text(&start, "pids.max"), "500");
    assert_eq!(text(&start, "cpu.max"), "150000 100000");
    assert_eq!(text(&start, "cgroup.subtree_control"), "+memory +pids +cpu");

    settle(&group, &GroupLimits::default(), None).unwrap();
    assert_eq!(text(&start.join("supervisor"), "cgroup.procs"), "0");
    assert_eq!(text(&start.join("supervisor"), "cpu.weight"), "1000");
    assert_eq!(text(&start.join("guest"), "memory.oom.group"), "1");
    // No inner group holds a process: only the leaves do.
    for dir in [&start, &start.join("commands")] {
        assert_eq!(text(dir, "cgroup.procs"), "");
    }
    assert_eq!(
        tree.start("one").map(|group| group.dirs()[0].to_owned()),
        Some(start.clone())
    );

    fs::write(
        start.join("commands/c1/memory.events"),
        "low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n",
    )
    .unwrap();
    fs::write(
        start.join("commands/c1/memory.events.local"),
        "max 7\noom 2\noom_kill 0\n",
    )
    .unwrap();
    fs::write(start.join("commands/c1/pids.events"), "max 41\n").unwrap();
    let counts = group.child("commands").child("c1").counts();
    assert_eq!((counts.oom_kills, counts.memory_limit), (3, 2));
    assert_eq!((counts.failed_forks, counts.most_processes), (41, None));
}

#[test]
fn a_group_that_cannot_be_written_is_called_not_delegated() {
    let home = Home {
        group: Group::V2 {
            dir: "/proc/self".into(),
            cpu: false,
        },
        is_root: false,
    };
    let error = Tree::open_in(&home, "test").unwrap_err();
    assert!(!error.hint().is_empty());
    let missing = CgroupError::NotDelegated { dir: "/x".into() };
    assert!(
        missing
            .hint()
            .contains("systemd-run --user --scope -p Delegate=yes")
    );
}

/// With the kernel itself, where this process may.
#[test]
fn limits_hold_and_groups_go_away() {
    let name = format!("test-{}", std::process::id());
    let tree = match Tree::open(&name) {
        Ok(tree) => tree,
        Err(error) => {
            assert!(!error.hint().is_empty(), "{error}");
            return;
        }
    };
    let none = GroupLimits::default();
    let two = GroupLimits {
        processes: Some(2),
        ..none
    };
    let group = tree.begin("alice", "one", &none, &two, None).unwrap();
    let command = group.child("commands");
    command.create_inner().unwrap();
    let leaf = command.child("c1");
    leaf.create().unwrap();
    let mut child = run_in(
        &leaf,
        "i=0; while :; do sleep 60 & i=$((i+1)); [ $i -lt 8 ] || break; done; wait",
    );
    child.wait().unwrap();
    let counts = leaf.counts();
    assert!(counts.failed_forks > 0, "{counts:?}");
    let mut lasting = run_in(&leaf, "exec sleep 600");
    let until = Instant::now() + Duration::from_secs(20);
    while !leaf.processes().contains(&lasting.id()) {
        assert!(Instant::now() < until && lasting.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }

    assert_eq!(tree.sweep(&BTreeSet::from(["one".to_owned()])), 0);
    assert!(lasting.try_wait().unwrap().is_none());
    assert_eq!(tree.sweep(&BTreeSet::new()), 1);
    assert!(lasting.wait().unwrap().code().is_none());
    assert!(group.dirs().iter().all(|dir| !dir.exists()));
    assert!(group.parent().dirs().iter().all(|dir| !dir.exists()));
    assert!(tree.root().dirs().iter().all(|dir| !dir.exists()));
    assert!(group.remove(Duration::ZERO).is_ok());
}

fn run_in(group: &Group, script: &str) -> Child {
    let enter: String = group
        .dirs()
        .iter()
        .map(|dir| format!("echo $$ > {}/cgroup.procs; ", dir.display()))
        .collect();
    Command::new("sh")
        .args(["-c", &format!("{enter} {script}")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_start_that_is_slow_to_end_holds_up_no_other() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("choir-test");
    for dir in ["", "alice", "alice/one", "bob", "bob/two"] {
        kernel_makes(&root.join(dir));
    }
    let tree = Tree::at(Group::V2 {
        dir: root.clone(),
        cpu: true,
    });
    let none = GroupLimits::default();
    std::thread::scope(|scope| {
        // Files of a kernel vanish with their group; these stay, as processes would that do
        // not end.
        let ending = scope.spawn(|| tree.end("one"));
        while text(&root.join("alice/one"), "cgroup.kill").is_empty() {
            std::thread::yield_now();
        }
        tree.begin("bob", "two", &none, &none, None).unwrap();
        assert!(!ending.is_finished(), "the other one was waited for");
        fs::remove_dir_all(root.join("alice")).unwrap();
        ending.join().unwrap().unwrap();
    });
}

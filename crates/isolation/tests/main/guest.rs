use crate::harness::{Sandbox, launch, spec};

#[test]
fn a_guest_sees_only_what_it_was_given() {
    let script = r#"
        id -u; id -g; hostname; pwd
        env | sort
        ls /; ls /dev; ls /run/choir
        touch /workspace/mark /home/choir/mark /var/lib/choir/mark /tmp/mark /run/choir/app/mark && echo writable
        for path in / /etc /usr /run /run/choir/channel /proc/sys/kernel /choir/bin; do
            touch $path/mark 2>/dev/null && echo "wrote $path"
        done
        grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status
        cat /sys/class/net/lo/operstate 2>&1; cat /proc/net/dev | wc -l
        ls -l /proc/self/fd
        ulimit -c
        cat /proc/1/environ /proc/1/maps /proc/1/mem && echo read-init
        # Its owner may write this file: it is Landlock that keeps it read-only.
        (echo x > /proc/self/comm) 2>&1 | grep -q 'Permission denied' && echo landlocked
        exit 0
    "#;
    let sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    let output = sandbox.guest_output();
    println!("{output}");
    assert!(output.starts_with("1000\n1000\nchoir-test\n/workspace\nHOME=/home/choir\n"));
    assert!(!output.contains("canary"), "the host's environment leaked");
    assert!(!output.contains("read-init"));
    assert!(output.contains("landlocked"));
    assert!(output.contains("writable"));
    assert!(!output.contains("wrote "));
    assert_eq!(output.matches("0000000000000000").count(), 5);
    assert!(output.contains("NoNewPrivs:\t1") && output.contains("Seccomp:\t2"));
    assert!(
        !output
            .lines()
            .any(|line| ["root", "home/", "sys", "mnt", "boot"].contains(&line))
    );
    assert!(sandbox.dir.path().join("workspace/mark").exists());
    assert_eq!(sandbox.guest_exit().code, Some(0));
}

#[test]
fn a_guest_that_cannot_be_executed_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let spec = spec(dir.path(), &["/no/such/program"]);
    let refusal = launch(&spec).unwrap_err();
    assert_eq!(refusal.code, "guest_program");
    assert!(refusal.message.contains("/no/such/program: no such file"));
    assert!(refusal.hint.is_some());
    // Started by root, the supervisor may no longer remove the socket; the driver does.
    assert!(std::os::unix::net::UnixStream::connect(spec.run_dir.join("control.sock")).is_err());
}

#[test]
fn root_is_never_mapped() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let mut spec = spec(dir.path(), &["/bin/true"]);
    spec.host_ids = Some(isolation::spec::HostIds { uid: 0, gid: 0 });
    assert_eq!(launch(&spec).unwrap_err().code, "bad_spec");
    if rustix::process::geteuid().is_root() {
        spec.host_ids = None;
        assert_eq!(launch(&spec).unwrap_err().code, "bad_spec");
    }
}

#[test]
fn nothing_of_a_sandbox_stays_root_on_the_host() {
    let sandbox = Sandbox::start(&["/bin/sleep", "1000"]);
    let expected = match sandbox.spec.host_ids {
        Some(ids) => ids.uid,
        None => rustix::process::geteuid().as_raw(),
    };
    let family = family(sandbox.supervisor_pid());
    // The supervisor, the guest's and the workbench's first processes, and the guest.
    assert_eq!(family.len(), 4);
    for pid in family {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace()
                .skip(1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), vec![expected.to_string(); 4]);
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        // A workbench's capabilities reach no further than its own namespaces.
        let bench = field("Name:") == ["choir-workbench"];
        assert!(
            bench || field("CapEff:") == ["0000000000000000"],
            "{status}"
        );
    }
}

/// A process and all its descendants.
fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children
        .split_whitespace()
        .map(|child| child.parse().unwrap());
    std::iter::once(pid)
        .chain(children.flat_map(family))
        .collect()
}

#[test]
fn a_wall_that_cannot_be_built_refuses_the_start_and_says_which() {
    // Inside a runner no namespace can be made, so no sandbox can be built there either.
    let supervisor = env!("CARGO_BIN_EXE_supervisor");
    let sandbox = Sandbox::start_with(&["/bin/sleep", "1000"], |spec| {
        spec.extra_mounts.push(isolation::spec::Bind {
            source: supervisor.into(),
            target: "/opt/supervisor".into(),
        });
    });
    let mut inner = spec(std::path::Path::new("/tmp/inner"), &["/bin/true"]);
    inner.host_ids = None;
    inner.guest_binary = "/bin/true".into();
    inner.extra_mounts.clear();
    let mut command = crate::harness::runner(&[
        "/bin/sh",
        "-c",
        "mkdir -p /tmp/inner/run; exec /opt/supervisor",
    ]);
    command.stdin = Some(serde_json::to_string(&inner).unwrap());
    let outcome = sandbox.run(command);
    let refusal: isolation::protocol::Refusal = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (refusal.code.as_str(), outcome.exit.code),
        ("wall_missing", Some(1))
    );
    assert!(refusal.message.contains("namespaces"), "{refusal:?}");
    assert!(refusal.hint.is_some());
}

/// What may be written to; everything else is read-only.
const WRITABLE: &[&str] = &[
    "/workspace",
    "/home/choir",
    "/var/lib/choir",
    "/run/choir/app",
    "/tmp",
    "/dev/shm",
    "/dev/pts",
    "/proc",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// What must be covered or made read-only in `/proc` wherever the kernel has it.
const MASKED: &[&str] = &[
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/proc/keys",
    "/proc/bus",
    "/proc/fs",
];

fn check_mounts(mountinfo: &str) {
    let mut targets = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (target, options) = (fields[4], fields[5].split(',').collect::<Vec<_>>());
        targets.push(target);
        assert!(options.contains(&"nosuid"), "{line}");
        assert!(
            options.contains(&"ro") || WRITABLE.contains(&target),
            "{line}"
        );
        let device = target.starts_with("/dev/") || target.starts_with("/proc/");
        assert!(options.contains(&"nodev") || device, "{line}");
    }
    for masked in MASKED
        .iter()
        .filter(|path| std::path::Path::new(path).exists())
    {
        assert!(targets.contains(masked), "{masked} is not masked");
    }
    assert!(targets.contains(&"/"));
}

#[test]
fn every_mount_is_as_tight_as_it_can_be() {
    let sandbox = Sandbox::start(&["/bin/cat", "/proc/self/mountinfo"]);
    let output = sandbox.guest_output();
    check_mounts(&output.replace("[supervisor] guest exited with code 0\n", ""));
    let runner = sandbox
        .run(crate::harness::runner(&[
            "/bin/cat",
            "/proc/self/mountinfo",
        ]))
        .stdout;
    check_mounts(&runner);
    assert!(!runner.contains("/var/lib/choir") && !runner.contains("/run/choir/app"));
}

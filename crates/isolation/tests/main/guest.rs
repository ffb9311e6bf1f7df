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
    "#;
    let sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    let output = sandbox.guest_output();
    println!("{output}");
    assert!(output.starts_with("1000\n1000\nchoir-test\n/workspace\nHOME=/home/choir\n"));
    assert!(!output.contains("canary"), "the host's environment leaked");
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
    let mut spec = spec(dir.path(), &["/bin/true"]);
    spec.host_ids = Some(isolation::spec::HostIds { uid: 0, gid: 0 });
    assert_eq!(launch(&spec).unwrap_err().code, "bad_spec");
    if rustix::process::geteuid().is_root() {
        spec.host_ids = None;
        assert_eq!(launch(&spec).unwrap_err().code, "bad_spec");
    }
}

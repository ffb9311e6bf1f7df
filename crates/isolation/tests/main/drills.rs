//! The escape drills, inside each kind of place that untrusted code runs in.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::harness::{DRILL, Sandbox, runner, terminal};

/// Fewer drills than this are no battery.
const AT_LEAST: usize = 150;

const IDLE: &[&str] = &["/bin/sleep", "1000"];

/// What the host lays out for the drills to find.
struct Bait {
    abstract_name: String,
    port: u16,
    _listeners: (UnixListener, TcpListener),
}

impl Bait {
    fn lay() -> Self {
        let abstract_name = format!("choir-bait-{}", types::CommandId::generate());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let unix = UnixListener::bind_addr(&address).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        Self {
            abstract_name,
            port,
            _listeners: (unix, tcp),
        }
    }

    fn argv(&self, forbidden: &str) -> Vec<String> {
        let port = self.port.to_string();
        let pid = std::process::id().to_string();
        [
            DRILL,
            "--abstract-socket",
            &self.abstract_name,
            "--loopback-port",
            &port,
            "--host-pid",
            &pid,
            "--forbidden",
            forbidden,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

fn all_denied(output: &str) {
    let drills: Vec<serde_json::Value> = output
        .lines()
        .filter(|line| line.starts_with(r#"{"name""#))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let open: Vec<_> = drills
        .iter()
        .filter(|drill| drill["denied"] != true)
        .collect();
    assert!(open.is_empty(), "{open:#?}");
    assert!(
        drills.len() >= AT_LEAST,
        "only {} drills: {output}",
        drills.len()
    );
}

#[test]
fn every_drill_is_denied_in_a_guest() {
    let bait = Bait::lay();
    let sandbox = Sandbox::start_with(IDLE, |spec| {
        spec.guest.argv = bait.argv(&spec.run_dir.display().to_string());
    });
    all_denied(&sandbox.guest_output());
}

#[test]
fn every_drill_is_denied_in_a_runner() {
    let bait = Bait::lay();
    let sandbox = Sandbox::start(IDLE);
    let argv = bait.argv(&sandbox.spec.data.display().to_string());
    let mut spec = runner(&[]);
    spec.argv.clone_from(&argv);
    spec.channel = true;
    all_denied(&sandbox.run(spec).stdout);
}

#[test]
fn every_drill_is_denied_in_a_terminal() {
    let bait = Bait::lay();
    let sandbox = Sandbox::start(IDLE);
    let argv = bait.argv(&sandbox.spec.run_dir.display().to_string());
    let mut spec = terminal(&[]);
    spec.argv.clone_from(&argv);
    all_denied(&sandbox.run(spec).stdout);
}

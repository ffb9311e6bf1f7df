//! What is taken over, what is left alone and what is removed, with processes that stand for
//! supervisors.

use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use isolation::protocol::{GuestStatus, Reply, encode_json};
use types::CommandState;

use super::*;

/// A start whose supervisor is some process that runs.
struct World {
    dir: tempfile::TempDir,
    start: StartId,
    child: Child,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let start = StartId::generate();
        let child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let at = dir.path().join("run").join(start.to_string());
        fs::create_dir_all(&at).unwrap();
        let record = Record {
            sandbox_id: SandboxId::generate(),
            start_id: start,
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            nonce: Nonce::new("ab".repeat(16)),
            host_record: String::new(),
            process: Some(Process {
                pid: child.id(),
                start_ticks: start_ticks(child.id()).unwrap(),
            }),
        };
        record.write(&at).unwrap();
        Self { dir, start, child }
    }

    fn start_dir(&self) -> PathBuf {
        self.dir.path().join("run").join(self.start.to_string())
    }

    fn driver(&self) -> NamespaceDriver {
        let groups = self.dir.path().join("groups.json");
        NamespaceDriver {
            supervisor: PathBuf::from("/nonexistent"),
            run_dir: self.dir.path().join("run"),
            groups: Arc::new(Groups::open(&groups)),
        }
    }

    fn listens(&self) -> UnixListener {
        UnixListener::bind(self.start_dir().join("control.sock")).unwrap()
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_supervisor_of_another_release_is_left_running_until_it_is_stopped() {
    let mut world = World::new();
    let listener = world.listens();
    let (start, sandbox) = (world.start, SandboxId::generate());
    let pid = world.child.id();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let hello = Reply::Hello {
                version: isolation::protocol::VERSION + 1,
                pid,
                sandbox_id: sandbox,
                start_id: start,
                guest: GuestStatus {
                    state: CommandState::Running,
                    exit: None,
                },
                runners: Vec::new(),
                stopping: false,
                uncounted: false,
            };
            let mut socket = socket.unwrap();
            // A socket that is closed with something unread in it takes its answer along.
            let _ = io::Read::read(&mut socket, &mut [0; 4096]);
            let _ = io::Write::write_all(&mut socket, &encode_json(&hello).unwrap());
        }
    });
    let driver = world.driver();
    let mut found = driver.adopt().await;
    let left = found.pop().unwrap();
    assert_eq!(left.start_id, world.start);
    let error = left.started.err().unwrap();
    assert!(error.message.contains("speaks version 2"), "{error:?}");
    assert!(error.hint.unwrap().contains("choir sandbox stop"));
    assert!(world.runs() && world.start_dir().exists());
    // An order ends it, whatever it speaks.
    driver.stop(left.start_id, left.control, 0).await.unwrap();
    assert!(!world.runs() && !world.start_dir().exists());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_is_slow_is_tried_again_and_not_killed() {
    let mut world = World::new();
    // It never answers.
    let _listener = world.listens();
    let began = tokio::time::Instant::now();
    let found = world.driver().adopt().await;
    let error = found.into_iter().next().unwrap().started.err().unwrap();
    assert_eq!(error.code, "not_taken_over");
    assert!(began.elapsed() > Duration::from_secs(40), "four tries");
    assert!(world.runs() && world.start_dir().exists());
}

#[tokio::test]
async fn a_start_that_was_cut_before_its_supervisor_listened_is_removed() {
    let mut world = World::new();
    assert!(world.driver().adopt().await.is_empty());
    assert!(!world.runs() && !world.start_dir().exists());
}

#[test]
fn what_a_host_refuses_names_its_cause_and_a_remedy() {
    let cases = [
        (28, "disk"),
        (13, "data_dir"),
        (2, "doctor"),
        (24, "LimitNOFILE"),
        (11, "TasksMax"),
        (5, "log"),
    ];
    for (errno, remedy) in cases {
        let error = unavailable("cannot", &io::Error::from_raw_os_error(errno));
        let hint = error.hint.unwrap_or_default();
        assert!(hint.contains(remedy), "{errno}: {hint}");
    }
}

//! `app.sock` as a name that the sandbox controls.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gateway::{APP_SOCKET_NAME, AppSocketError};

use crate::bed::*;

async fn attempt(directory: &std::path::Path) -> Result<(), AppSocketError> {
    app_socket(directory).connect(PATIENCE).await.map(drop)
}

#[tokio::test]
async fn only_a_real_socket_is_connected_to() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join(APP_SOCKET_NAME);
    assert!(matches!(
        attempt(directory.path()).await,
        Err(AppSocketError::Missing)
    ));

    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("docker.sock");
    let _listener = UnixListener::bind(&other).unwrap();
    let not_a_socket = |found: &'static str| {
        move |result: Result<(), AppSocketError>| match result {
            Err(AppSocketError::NotASocket { found: what }) => assert_eq!(what, found),
            other => panic!("{found}: {other:?}"),
        }
    };

    symlink(&other, &name).unwrap();
    not_a_socket("symbolic link")(attempt(directory.path()).await);
    std::fs::remove_file(&name).unwrap();

    symlink("/proc/self/fd/0", &name).unwrap();
    not_a_socket("symbolic link")(attempt(directory.path()).await);
    std::fs::remove_file(&name).unwrap();

    rustix::fs::mknodat(
        rustix::fs::CWD,
        &name,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    not_a_socket("FIFO")(attempt(directory.path()).await);
    std::fs::remove_file(&name).unwrap();

    std::fs::create_dir(&name).unwrap();
    not_a_socket("directory")(attempt(directory.path()).await);
    std::fs::remove_dir(&name).unwrap();

    std::fs::write(&name, "x").unwrap();
    not_a_socket("regular file")(attempt(directory.path()).await);
    std::fs::remove_file(&name).unwrap();

    drop(UnixListener::bind(&name).unwrap());
    assert!(matches!(
        attempt(directory.path()).await,
        Err(AppSocketError::Refused)
    ));
    std::fs::remove_file(&name).unwrap();

    let _app = UnixListener::bind(&name).unwrap();
    attempt(directory.path()).await.unwrap();
}

#[tokio::test]
async fn a_socket_of_another_kind_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join(APP_SOCKET_NAME);
    let _datagram = std::os::unix::net::UnixDatagram::bind(&name).unwrap();
    assert!(matches!(
        attempt(directory.path()).await,
        Err(AppSocketError::Io(_))
    ));
}

#[tokio::test]
async fn a_full_backlog_ends_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join(APP_SOCKET_NAME)).unwrap();
    let socket = app_socket(directory.path());
    let mut connections = Vec::new();
    let deadline = Duration::from_millis(50);
    // Nobody accepts, so the backlog fills up, whatever its size.
    let error = loop {
        match socket.connect(deadline).await {
            Ok(stream) => connections.push(stream),
            Err(error) => break error,
        }
        assert!(connections.len() < 10_000);
    };
    assert!(matches!(error, AppSocketError::Timeout(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_swapped_all_the_time_never_leads_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("other.sock");
    let reached = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));

    let listener = UnixListener::bind(&other).unwrap();
    let count = Arc::clone(&reached);
    std::thread::spawn(move || {
        while listener.accept().is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let path = directory.path().to_owned();
    let own = UnixListener::bind(path.join("own")).unwrap();
    std::thread::spawn(move || while own.accept().is_ok() {});
    let stopped = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        symlink(&other, path.join("link")).unwrap();
        while !stopped.load(Ordering::SeqCst) {
            for source in ["own", "link"] {
                let next = path.join("next");
                std::fs::hard_link(path.join(source), &next).unwrap();
                std::fs::rename(&next, path.join(APP_SOCKET_NAME)).unwrap();
                // Renaming one hard link over another of the same file does nothing.
                let _ = std::fs::remove_file(&next);
            }
        }
    });
    let socket = app_socket(directory.path());
    let (mut good, mut bad) = (0, 0);
    within(async {
        while good < 200 || bad < 200 {
            match socket.connect(PATIENCE).await {
                Ok(_) => good += 1,
                Err(AppSocketError::NotASocket { .. }) => bad += 1,
                Err(AppSocketError::Missing) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    swapper.join().unwrap();
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_forwarded_request_tells_what_is_wrong_with_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let bed = Bed::with_directory(limits(), directory, Arc::default());
    let reply = bed.get("/").await;
    assert!(reply.starts_with("HTTP/1.1 502"), "{reply}");
    assert!(reply.contains("there is no app.sock"), "{reply}");
    symlink("/nonexistent", bed.socket_path()).unwrap();
    let reply = bed.get("/").await;
    assert!(reply.contains("symbolic link"), "{reply}");
}

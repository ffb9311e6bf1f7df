//! What several tests of this crate need.

use std::sync::mpsc;
use std::time::Duration;

/// What `work` comes to on another runtime, whose one thread for long work is taken. `None`
/// when it waits for that thread.
pub(crate) async fn without_a_thread_left<T: Send + 'static>(
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> Option<T> {
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (done, wait) = mpsc::channel::<()>();
        runtime.block_on(async {
            let taken = tokio::task::spawn_blocking(move || wait.recv());
            let found = tokio::time::timeout(Duration::from_secs(20), work()).await;
            drop(done);
            taken.await.unwrap().unwrap_err();
            found.ok()
        })
    });
    let ended = tokio::task::spawn_blocking(|| other.join().unwrap());
    ended.await.unwrap()
}

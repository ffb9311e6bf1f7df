//! Waiting for conditions, never for time to pass.

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it. Generous: it is only ever
/// reached by a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` finds something.
///
/// # Panics
/// It found nothing within [`PATIENCE`].
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits for a future.
///
/// # Panics
/// It took longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// The same for code that is not async.
///
/// # Panics
/// It found nothing within [`PATIENCE`].
pub fn until_blocking<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

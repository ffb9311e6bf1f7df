//! Chromium, driven by the scripts in `browser/`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::wait::PATIENCE;

/// Where the scripts are.
fn scripts() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/browser"))
}

/// Runs a script with one JSON document as its input and returns the one that it prints.
///
/// # Panics
/// Chromium or the scripts' packages are missing, or the script failed; the message has
/// its last words.
pub async fn run(script: &str, input: &Value) -> Value {
    run_within(script, input, PATIENCE).await
}

/// The same for a script that may take longer.
///
/// # Panics
/// As for [`run`].
pub async fn run_within(script: &str, input: &Value, patience: Duration) -> Value {
    let dir = scripts();
    assert!(
        dir.join("node_modules/playwright-core").is_dir(),
        "`npm ci` in {} installs what drives the browser; `cargo xtask test` does it",
        dir.display()
    );
    let mut child = Command::new("node")
        .arg(dir.join(script))
        .current_dir(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(input.to_string().as_bytes())
        .await
        .expect("the script reads its input");
    drop(stdin);
    let output = tokio::time::timeout(patience, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("waited {patience:?} in vain for {script}"))
        .expect("the script ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script}: {}\n{errors}",
        output.status
    );
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{script} gave no JSON: {error}\n{}\n{errors}",
            String::from_utf8_lossy(&output.stdout)
        )
    })
}

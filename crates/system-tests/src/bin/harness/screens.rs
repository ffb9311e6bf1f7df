//! Pictures for people.

use std::path::Path;

use serde_json::json;
use system_tests::account::parameter;
use system_tests::{Setup, browser};

/// Saves every page at both widths and in both themes.
pub(crate) async fn run(dir: &Path) {
    let dir = std::path::absolute(dir).expect("a directory");
    let installation = Setup::default().start().await;
    let input = json!({
        "control": installation.control(),
        "live": installation.runtime("alice"),
        "dev": installation.runtime("dev--alice"),
        "setup": parameter(installation.link(), "setup"),
        "user": "alice",
        "directory": dir,
    });
    let saved = browser::run("screens.mjs", &input).await;
    for file in saved.as_array().expect("a list of files") {
        println!("{}", file.as_str().unwrap_or_default());
    }
}

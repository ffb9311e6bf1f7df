//! What a hypervisor is trained with before it is installed.

use std::process::Stdio;

use system_tests::wait::within;
use tokio::process::Command;

/// A load whose calls fail would train what refuses them.
#[tokio::test]
async fn every_load_of_the_training_is_carried_out() {
    let trained = Command::new(env!("CARGO_BIN_EXE_harness"))
        .args(["train", "--millis", "100"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("the training", trained).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let loads = ["calls", "calls over TLS", "pages"];
    for load in loads {
        let counts: Vec<u64> = text
            .lines()
            .filter_map(|line| line.strip_prefix(load)?.strip_prefix(", "))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        let wanted = if load == "pages" { 2 } else { 4 };
        assert_eq!(counts.len(), wanted, "{text}");
        assert!(counts.iter().all(|count| *count > 0), "{text}");
    }
}

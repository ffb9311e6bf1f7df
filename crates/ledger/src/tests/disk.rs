//! A full disk, on a small file system of its own.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{HELPER_DIR, open, record};
use crate::{AppendError, Health, verify};

/// Runs in a process with a small file system. Does nothing in an ordinary test run.
#[test]
fn helper_that_fills_a_small_disk() {
    let Some(disk) = env::var_os(HELPER_DIR) else {
        return;
    };
    let disk = Path::new(&disk);
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; 64 * 1024]).unwrap();
    let dir = disk.join("audit");
    let ledger = open(&dir);
    let mut acknowledged = 0;
    let refused = loop {
        match ledger
            .append(&record("act").target("x".repeat(1000)))
            .wait()
        {
            Ok(receipt) => acknowledged = receipt.seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::DiskFull), "{refused}");
    assert_eq!(
        (ledger.health(), ledger.head().seq),
        (Health::Ok, acknowledged)
    );
    let report = verify(&dir).unwrap();
    assert!(report.ok && report.torn_bytes == 0, "{}", report.summary());
    // Still full: refused again, not taken half.
    let again = ledger
        .append(&record("act").target("x".repeat(1000)))
        .wait();
    assert!(matches!(again, Err(AppendError::DiskFull)));
    fs::remove_file(ballast).unwrap();
    assert_eq!(
        ledger.append(&record("act")).wait().unwrap().seq,
        acknowledged + 1
    );
    assert!(verify(&dir).unwrap().ok);
}

#[test]
fn a_full_disk_refuses_records_and_takes_them_again_once_there_is_space() {
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=256k none \"$0\" && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(temp.path())
        .arg(env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::disk::helper_that_fills_a_small_disk",
            "--nocapture",
        ])
        .env(HELPER_DIR, temp.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{errors}"
    );
}

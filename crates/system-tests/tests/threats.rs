//! `docs/threats.md` speaks of tests that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Fewer rows than this mean that the table was not understood.
const AT_LEAST: usize = 40;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every Rust file below the crates and xtask.
fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The names of all functions that carry a test attribute.
fn tests_of(source: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines
        .windows(4)
        .filter_map(|window| {
            let is_test =
                window[0].starts_with("#[test]") || window[0].starts_with("#[tokio::test");
            let function = window[1..].iter().find_map(|line| {
                line.strip_prefix("fn ")
                    .or_else(|| line.strip_prefix("async fn "))
            });
            function.filter(|_| is_test)?.split('(').next()
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// The drills that a file of the battery defines, in one of its two ways.
fn drills_of(source: &str) -> impl Iterator<Item = &str> {
    source.lines().map(str::trim).filter_map(|line| {
        let named = line
            .strip_prefix("name: \"")
            .and_then(|rest| rest.split('"').next());
        named.or_else(|| line.split_once(" => |").map(|(name, _)| name))
    })
}

#[test]
fn every_row_names_tests_that_exist() {
    let (mut files, mut battery) = (Vec::new(), Vec::new());
    sources(&root().join("crates"), &mut files);
    sources(&root().join("xtask"), &mut files);
    sources(&root().join("crates/isolation/src/bin/drill"), &mut battery);
    let tests: BTreeSet<&str> = files.iter().flat_map(|file| tests_of(file)).collect();
    let mut drills: BTreeSet<&str> = battery.iter().flat_map(|file| drills_of(file)).collect();
    drills.insert("inherited_descriptors");

    let table = std::fs::read_to_string(root().join("docs/threats.md")).unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .filter(|line| !line.starts_with("| threat |"))
        .collect();
    assert!(rows.len() >= AT_LEAST, "only {} rows", rows.len());
    for row in rows {
        let last = row
            .trim_end_matches([' ', '|'])
            .rsplit(" | ")
            .next()
            .unwrap();
        for name in last.split(", ") {
            let exists = match name.strip_prefix("drill:") {
                Some(drill) => drills.contains(drill),
                None => tests.contains(name.trim_matches('`')),
            };
            assert!(exists, "{name} does not exist, of the row: {row}");
        }
    }
}

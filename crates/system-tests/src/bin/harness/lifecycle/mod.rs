//! `cargo xtask bench lifecycle`: what starting, keeping, waking and taking over sandboxes
//! costs. One file per section; each measures its peers in the same run.

mod copies;
mod peers;
mod report;
mod scale;
mod start;
mod swap;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::ValueEnum;
use futures_util::FutureExt as _;
use serde_json::{Map, Value};

pub(crate) use report::Table;

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// From the request to the first proxied answer: starting, waking, and peers.
    Start,
    /// Memory, descriptors and wake-ups at 10, 50 and 100 sandboxes; taking 100 over after
    /// `kill -9`; a thousand stopped ones.
    Scale,
    /// Snapshot, restore and clone of 1 GB in 20,000 files; cp, rsync and tar.
    Copies,
    /// Swaps under load: the pointer, the first answer, the last socket; nginx's reload.
    Swap,
}

impl Section {
    async fn run(self) -> Vec<Table> {
        match self {
            Self::Start => start::run().await,
            Self::Scale => scale::run().await,
            Self::Copies => copies::run().await,
            Self::Swap => swap::run().await,
        }
    }
}

/// Runs sections, all of them when none is named. One that fails is named, keeps no other from
/// being measured, and makes the whole fail.
pub(crate) async fn run(sections: &[Section], as_json: bool) -> ExitCode {
    let all = Section::value_variants();
    let sections = if sections.is_empty() { all } else { sections };
    let mut document = Map::new();
    let mut failed = Vec::new();
    for section in sections {
        // It has said why by the time it is caught.
        let Ok(tables) = AssertUnwindSafe(section.run()).catch_unwind().await else {
            failed.push(format!("{section:?}").to_lowercase());
            continue;
        };
        for table in tables {
            if as_json {
                document.insert(table.name().to_owned(), table.into_json());
            } else {
                table.show();
            }
        }
    }
    if as_json {
        println!("{}", Value::Object(document));
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("not measured: {}", failed.join(", "));
    ExitCode::FAILURE
}

//! Records per second through the log: one at a time, and from many threads at once, where
//! one sync serves a group. `cargo bench -p ledger`; `LEDGER_BENCH_DIR` chooses the disk.

use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ledger::{Actor, Channel, Ledger, Options, Outcome, Record, verify};

const MEASURE: Duration = Duration::from_secs(2);
const IN_FLIGHT: usize = 64;

fn record() -> Record {
    Record::new(
        Timestamp::UNIX_EPOCH,
        Actor::Internal,
        Channel::Internal,
        "bench.append",
        Outcome::Succeeded,
    )
    .target("a target of ordinary length")
    .detail("argv", "cargo --version")
}

/// Each thread keeps `depth` appends in flight; gives records per second.
fn measure(ledger: &Ledger, threads: usize, depth: usize) -> f64 {
    let begin = Instant::now();
    let total: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0;
                    while begin.elapsed() < MEASURE {
                        let tickets: Vec<_> =
                            (0..depth).map(|_| ledger.append(&record())).collect();
                        done += tickets
                            .into_iter()
                            .filter_map(|ticket| ticket.wait().ok())
                            .count();
                    }
                    done
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .sum()
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = total as f64 / begin.elapsed().as_secs_f64();
    rate
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = env::var_os("LEDGER_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let ledger = Ledger::open(dir.path().join("audit"), Options::default())?;
    println!("alone      {:>9.0} records/s", measure(&ledger, 1, 1));
    println!("8 threads  {:>9.0} records/s", measure(&ledger, 8, 1));
    println!(
        "in groups  {:>9.0} records/s ({IN_FLIGHT} in flight on each of 4 threads)",
        measure(&ledger, 4, IN_FLIGHT)
    );
    let dir = ledger.dir().to_owned();
    drop(ledger);
    let begin = Instant::now();
    let report = verify(&dir)?;
    println!(
        "verify     {} records in {:.2} s, ok: {}",
        report.records,
        begin.elapsed().as_secs_f64(),
        report.ok
    );
    Ok(())
}

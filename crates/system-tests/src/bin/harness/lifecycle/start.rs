//! From the request to the first proxied answer.

use std::time::{Duration, Instant};

use serde_json::json;
use system_tests::http::Ask;
use system_tests::{Account, Setup};
use types::Role;

use super::peers;
use super::report::{TIMES, Table, quantile, times, two_digits};

/// Starts that are measured, of ours and of each peer.
pub(crate) const RUNS: usize = 50;

/// Pause between two questions for a page that is not there yet.
const ASK_AGAIN: Duration = Duration::from_millis(1);

pub(crate) async fn run() -> Vec<Table> {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    // The first one makes the directories and fills the page cache.
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    alice.stop(Role::Live).await;
    let mut started = Vec::new();
    let mut stopped = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        alice
            .control("POST", "/me/sandboxes/live/start", None)
            .await
            .expect(200);
        first_answer(&alice).await;
        started.push(begun.elapsed().as_secs_f64() * 1000.0);
        let begun = Instant::now();
        alice
            .control("POST", "/me/sandboxes/live/stop", None)
            .await
            .expect(200);
        stopped.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let mut woken = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let page = Ask::new("GET", &alice.host(Role::Live), "/").navigation();
        alice.client.send(page).await;
        first_answer(&alice).await;
        woken.push(begun.elapsed().as_secs_f64() * 1000.0);
        alice.stop(Role::Live).await;
    }
    let mut table = Table::new(
        "start",
        "From the request to the first proxied answer of the guest, one sandbox at a time",
        TIMES,
    );
    let mut ratios = Table::new(
        "start_ratios",
        "The medians of that: how many times a peer's it takes",
        &["peer", "start", "wake"],
    );
    let (start, wake) = (quantile(&mut started, 0.5), quantile(&mut woken, 0.5));
    table.push(times("start (explicit)", started));
    table.push(times("wake (navigation)", woken));
    table.push(times("stop", stopped));
    for (peer, mut values) in peers::starts(installation.binaries()).await {
        let median = quantile(&mut values, 0.5);
        let ratio = |ours: f64| two_digits(ours / median);
        ratios.push(json!({ "peer": peer, "start": ratio(start), "wake": ratio(wake) }));
        table.push(times(peer, values));
    }
    vec![table, ratios]
}

async fn first_answer(account: &Account) {
    loop {
        let answer = account.runtime(Role::Live, "GET", "/health", None).await;
        if answer.status == 200 {
            return;
        }
        assert_eq!(answer.status, 503, "{}", answer.text());
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

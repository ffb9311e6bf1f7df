//! What a hypervisor is trained with before it is built for good (`cargo xtask dist`): whatever
//! it does most often, each for a while.

use std::process::ExitCode;
use std::time::Duration;

use system_tests::certificates::Authority;
use system_tests::{Account, Setup};
use types::Role;

use super::client::{Load, load};
use super::places::{Place, Upstream};

/// Puts each load on it. Fails when a call failed: code that refuses is not to be trained.
pub(crate) async fn train(each: Duration) -> ExitCode {
    let authority = Authority::new(&["localhost"]);
    let clear = Upstream::start("bench", None);
    let tls = Upstream::start("tls", Some(&authority));
    let installation = Setup::default()
        .hostile_guest()
        .config(&Upstream::config(&[&clear, &tls]))
        .start()
        .await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    let places = [
        ("calls", Place::gateway(&installation, &alice, &clear).await),
        (
            "calls over TLS",
            Place::gateway(&installation, &alice, &tls).await,
        ),
        ("pages", Place::proxied(&installation, &alice)),
    ];
    let mut failed = 0;
    for (name, place) in &places {
        for (connections, streamed) in [(1, false), (16, false), (1, true), (16, true)] {
            if streamed && !place.streams() {
                continue;
            }
            let what = Load {
                connections,
                streamed,
                shared: false,
            };
            let seen = load(place, what, each).await;
            failed += seen.errors;
            println!(
                "{name}, {connections} connections{}: {}",
                if streamed { ", streamed" } else { "" },
                seen.count()
            );
        }
    }
    if failed > 0 {
        eprintln!("error: {failed} calls failed, of which nothing can be learned");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

//! The escape drills.

use std::process::ExitCode;

use serde_json::json;
use system_tests::Identity;
use system_tests::walls::{Place, battery};

/// Runs everything and closes with `N denied, M open`; as JSON that is in the document.
pub(crate) fn run(as_json: bool) -> ExitCode {
    let (mut denied, mut open) = (0_usize, 0_usize);
    let mut all = Vec::new();
    for identity in Identity::available() {
        for place in [Place::Sandbox, Place::Runner, Place::Terminal] {
            let drills = battery(identity, place);
            denied += drills.iter().filter(|drill| drill.denied).count();
            open += drills.iter().filter(|drill| !drill.denied).count();
            if !as_json {
                println!("{place:?}, as {}:", identity.name());
                println!("  {:<40} {:<8}  {:<8} seen", "drill", "expected", "answer");
                for drill in &drills {
                    let answer = if drill.denied { "denied" } else { "OPEN" };
                    println!(
                        "  {:<40} {:<8}  {answer:<8} {}",
                        drill.name, drill.expected, drill.seen
                    );
                }
            }
            all.push(json!({ "place": place, "identity": identity.name(), "drills": drills }));
        }
    }
    if as_json {
        println!(
            "{}",
            json!({ "batteries": all, "denied": denied, "open": open })
        );
    } else {
        println!("{denied} denied, {open} open");
    }
    if open == 0 && denied > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

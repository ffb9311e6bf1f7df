//! `choir sandbox explain`: what a sandbox may do, and why something was denied.

use std::fmt::Write as _;

use jiff::Timestamp;
use types::{Role, SandboxExplanation, Verdict};

use crate::Error;
use crate::client::Client;
use crate::output::{self, ago, printable};

pub(super) async fn explain(
    client: &Client,
    role: Role,
    json: bool,
    now: Timestamp,
) -> Result<String, Error> {
    let explanation: SandboxExplanation =
        client.get(&format!("/me/sandboxes/{role}/explain")).await?;
    Ok(if json {
        output::json(&explanation)
    } else {
        in_words(&explanation, now)
    })
}

fn in_words(explanation: &SandboxExplanation, now: Timestamp) -> String {
    let mut text = format!("{} is {}.\n", explanation.role, explanation.state);
    for topic in &explanation.topics {
        let _ = write!(text, "\n{}\n", printable(&topic.title));
        for point in &topic.points {
            let words = printable(&point.text);
            let _ = match point.verdict {
                Verdict::May => writeln!(text, "  + may {words}"),
                Verdict::MayNot => writeln!(text, "  - may not {words}"),
                Verdict::Fact => writeln!(text, "    {words}"),
                Verdict::Warning => writeln!(text, "  ! {words}"),
            };
        }
    }
    text.push_str("\nWhat was denied lately\n");
    if explanation.denied.is_empty() {
        text.push_str("    nothing\n");
    }
    for notice in &explanation.denied {
        let when = notice
            .last_at
            .parse::<Timestamp>()
            .map_or_else(|_| String::new(), |at| format!(", {}", ago(at, now)));
        let times = if notice.count > 1 {
            format!(", {} times", notice.count)
        } else {
            String::new()
        };
        let _ = writeln!(text, "  - {}{when}{times}", printable(&notice.message));
        if let Some(hint) = &notice.hint {
            let _ = writeln!(text, "    hint: {}", printable(hint));
        }
    }
    text
}

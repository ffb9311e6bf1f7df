//! `choir sandbox swap`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use types::{SwapOutcome, SwapRequest, SwapStatus, SwapView, UserName};

use crate::Error;
use crate::args::Swap;
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, printable};

/// Pause between two questions for the outcome.
const ASK_EVERY: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
struct Last {
    swap: Option<SwapStatus>,
}

pub(super) async fn run(client: &Client, asked: Swap, context: &mut Context) -> Result<u8, Error> {
    let path = match &asked.user {
        None => "/me/sandboxes/swap".to_owned(),
        Some(user) => of(user),
    };
    let request = SwapRequest {
        rollback: !asked.no_rollback,
    };
    let swapped: SwapView = client.post(&path, &request).await?;
    if !asked.wait {
        let text = if asked.json {
            output::json(&swapped)
        } else {
            done(&swapped, (context.now)())
        };
        context.io.print(&text)?;
        return Ok(0);
    }
    if !asked.json {
        context.io.print(&done(&swapped, (context.now)()))?;
    }
    let ended = loop {
        let last: Last = client.get(&path).await?;
        match last.swap {
            Some(status) if status.generation != swapped.generation => break None,
            Some(status) if status.outcome != SwapOutcome::OnTrial => break Some(status),
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    };
    let Some(status) = ended else {
        context
            .io
            .complain("Somebody swapped again before the outcome was known.\n")?;
        return Ok(1);
    };
    let text = if asked.json {
        output::json(&status)
    } else {
        outcome(&status)
    };
    context.io.print(&text)?;
    Ok(u8::from(status.outcome != SwapOutcome::Kept))
}

fn of(user: &UserName) -> String {
    format!("/admin/sandboxes/{user}/swap")
}

fn done(swapped: &SwapView, now: Timestamp) -> String {
    let mut text = format!(
        "Swapped in {} ms: what was dev is live now (generation {}).\n",
        swapped.took_ms, swapped.generation
    );
    let until = swapped
        .grace_until
        .as_deref()
        .and_then(|until| until.parse::<Timestamp>().ok());
    if let Some(until) = until {
        let left = until.duration_since(now).as_secs().max(0);
        text.push_str(&format!(
            "If it fails within the next {left} s it is taken back by itself.\n"
        ));
    }
    text
}

fn outcome(status: &SwapStatus) -> String {
    let mut text = match status.outcome {
        SwapOutcome::OnTrial => "It is still on trial",
        SwapOutcome::Kept => "The swap stands",
        SwapOutcome::RolledBack => "The swap was taken back",
        SwapOutcome::Stayed => "The new live failed, and the swap could not be taken back",
    }
    .to_owned();
    if let Some(reason) = &status.reason {
        text.push_str(": ");
        text.push_str(&printable(reason));
    }
    text.push_str(".\n");
    if status.outcome == SwapOutcome::RolledBack {
        text.push_str("It is dev again: choir sandbox logs dev\n");
    }
    text
}

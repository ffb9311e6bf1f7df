//! `choir usage`: what model calls took.

use serde::{Deserialize, Serialize};
use types::UsageView;

use super::Target;
use crate::Error;
use crate::args::{Usage, UsageBy};
use crate::context::Context;
use crate::output::{self, table};

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    usage: Vec<UsageView>,
}

pub(super) async fn run(
    target: &Target,
    command: Usage,
    context: &mut Context,
) -> Result<u8, Error> {
    let Usage {
        by,
        days,
        all,
        json,
    } = command;
    let owner = if all { "/admin" } else { "/me" };
    let path = format!("{owner}/usage?by={}&days={days}", by.as_str());
    let listed: Listed = target.client(context)?.get(&path).await?;
    let text = if json {
        output::json(&listed)
    } else {
        overview(&listed.usage, by, days)
    };
    context.io.print(&text)?;
    Ok(0)
}

fn overview(usage: &[UsageView], by: UsageBy, days: u32) -> String {
    if usage.is_empty() {
        return format!("No model calls in the last {days} days.\n");
    }
    let mut rows: Vec<_> = usage.iter().map(|row| cells(name(row, by), row)).collect();
    if usage.len() > 1 {
        let total = usage.iter().fold(empty(), |sum, row| UsageView {
            calls: sum.calls + row.calls,
            failures: sum.failures + row.failures,
            input_tokens: sum.input_tokens + row.input_tokens,
            output_tokens: sum.output_tokens + row.output_tokens,
            cached_tokens: sum.cached_tokens + row.cached_tokens,
            cost_usd: sum.cost_usd + row.cost_usd,
            ..sum
        });
        rows.push(cells("total".to_owned(), &total));
    }
    table(
        [
            by.title(),
            "CALLS",
            "FAILED",
            "INPUT",
            "CACHED",
            "OUTPUT",
            "COST",
        ],
        &rows,
    )
}

fn empty() -> UsageView {
    UsageView {
        day: None,
        user: None,
        sandbox: None,
        provider: None,
        model: None,
        calls: 0,
        failures: 0,
        input_tokens: 0,
        output_tokens: 0,
        cached_tokens: 0,
        cost_usd: 0.0,
    }
}

fn name(row: &UsageView, by: UsageBy) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    match by {
        UsageBy::Model => format!("{}/{}", or_none(&row.provider), or_none(&row.model)),
        UsageBy::Day => or_none(&row.day),
        UsageBy::Sandbox => match &row.user {
            Some(user) => format!("{} of {user}", or_none(&row.sandbox)),
            None => or_none(&row.sandbox),
        },
        UsageBy::Provider => or_none(&row.provider),
        UsageBy::User => or_none(&row.user),
    }
}

fn cells(name: String, row: &UsageView) -> [String; 7] {
    [
        name,
        row.calls.to_string(),
        row.failures.to_string(),
        row.input_tokens.to_string(),
        row.cached_tokens.to_string(),
        row.output_tokens.to_string(),
        format!("${:.4}", row.cost_usd),
    ]
}

//! `choir network …`.

use serde::{Deserialize, Serialize};
use types::{NetworkRuleView, NetworkView, NoticeKind, Role, SandboxNotice};

use super::Target;
use crate::Error;
use crate::args::Network;
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, printable, table};

#[derive(Serialize)]
struct NewRule<'a> {
    rule: &'a str,
    note: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Notices {
    notices: Vec<SandboxNotice>,
}

pub(super) async fn run(
    target: &Target,
    command: Network,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    let text = match command {
        Network::Rules { json } => {
            let view: NetworkView = client.get("/me/network").await?;
            if json {
                output::json(&view)
            } else {
                overview(&view)
            }
        }
        Network::Allow { rule, note, json } => {
            let new = NewRule {
                rule: &rule,
                note: &note,
            };
            let view: NetworkRuleView = client.post("/admin/network/rules", &new).await?;
            if json {
                output::json(&view)
            } else {
                format!(
                    "Commands with the network mode allowlist reach {} from now on.\n",
                    printable(&view.rule)
                )
            }
        }
        Network::Deny { rule } => deny(&client, &rule).await?,
        Network::Denials { role, json } => denials(&client, role, json).await?,
    };
    context.io.print(&text)?;
    Ok(0)
}

fn overview(view: &NetworkView) -> String {
    let mut text = format!(
        "A command that names no network mode gets {}; the widest that it may ask for is {}.\n\n",
        view.default, view.max
    );
    if view.rules.is_empty() {
        text.push_str(
            "The allowlist is empty. An administrator adds to it: choir network allow crates.io\n",
        );
        return text;
    }
    let rows: Vec<_> = view
        .rules
        .iter()
        .map(|rule| {
            [
                printable(&rule.rule),
                rule.source.to_string(),
                printable(rule.created_by.as_deref().unwrap_or("-")),
                printable(&rule.note),
            ]
        })
        .collect();
    text.push_str(&table(["RULE", "FROM", "BY", "NOTE"], &rows));
    text
}

/// Removes a rule by what it says, or by its id.
async fn deny(client: &Client, wanted: &str) -> Result<String, Error> {
    let view: NetworkView = client.get("/me/network").await?;
    let named = wanted.trim().trim_end_matches('.').to_ascii_lowercase();
    let found = view
        .rules
        .iter()
        .find(|rule| rule.rule == named || rule.id.is_some_and(|id| id.to_string() == named));
    let Some(rule) = found else {
        return Err(Error::NoRule(printable(wanted)));
    };
    let Some(id) = rule.id else {
        return Err(Error::ConfiguredRule(printable(&rule.rule)));
    };
    client.delete(&format!("/admin/network/rules/{id}")).await?;
    Ok(format!(
        "{} is off the allowlist; connections that only it allowed are closed.\n",
        printable(&rule.rule)
    ))
}

async fn denials(client: &Client, role: Option<Role>, json: bool) -> Result<String, Error> {
    let mut all = Vec::new();
    for role in role.map_or(Role::ALL.to_vec(), |role| vec![role]) {
        let Notices { notices } = client.get(&format!("/me/sandboxes/{role}/notices")).await?;
        all.extend(
            notices
                .into_iter()
                .filter(|notice| notice.kind == NoticeKind::NetworkDenied),
        );
    }
    all.sort_by(|a, b| b.last_at.cmp(&a.last_at));
    if json {
        return Ok(output::json(&Notices { notices: all }));
    }
    if all.is_empty() {
        return Ok("No connection was refused.\n".to_owned());
    }
    let mut text = String::new();
    for notice in &all {
        text.push_str(&format!(
            "{}  {}  {} times  {}\n",
            notice.last_at,
            notice.role,
            notice.count,
            printable(&notice.message)
        ));
        if let Some(hint) = &notice.hint {
            text.push_str(&format!("  {}\n", printable(hint)));
        }
    }
    Ok(text)
}

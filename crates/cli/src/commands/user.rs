//! `choir user …`: accounts.

use serde::{Deserialize, Serialize};
use serde_json::json;
use types::{UserName, UserView};

use super::Target;
use crate::Error;
use crate::args::User;
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, printable, table};

#[derive(Serialize, Deserialize)]
struct Listed {
    users: Vec<UserView>,
}

pub(super) async fn run(
    target: &Target,
    command: User,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    let text = match command {
        User::List { json } => {
            let listed: Listed = client.get("/admin/users").await?;
            if json {
                output::json(&listed)
            } else {
                overview(&listed.users)
            }
        }
        User::Disable { name, note, json } => {
            let body = json!({ "note": note });
            let done = format!(
                "{name} is disabled: signed out everywhere, API tokens and open invitations revoked, both\n\
                 sandboxes stopped. Files and passkeys stay. To undo: choir user enable {name}\n"
            );
            change(&client, &name, "disable", &body, json, done).await?
        }
        User::Enable { name, json } => {
            let done = format!("{name} may sign in again.\n");
            change(&client, &name, "enable", &json!({}), json, done).await?
        }
    };
    context.io.print(&text)?;
    Ok(0)
}

async fn change(
    client: &Client,
    name: &UserName,
    action: &str,
    body: &serde_json::Value,
    json: bool,
    done: String,
) -> Result<String, Error> {
    let path = format!("/admin/users/{name}/{action}");
    let view: UserView = client.post(&path, body).await?;
    Ok(if json { output::json(&view) } else { done })
}

fn overview(users: &[UserView]) -> String {
    let rows: Vec<_> = users
        .iter()
        .map(|user| {
            let rights = if user.is_admin { "admin" } else { "-" };
            let state = match &user.disabled {
                None => "enabled".to_owned(),
                Some(disabled) if disabled.note.is_empty() => {
                    format!("disabled {}", disabled.at)
                }
                Some(disabled) => format!("disabled {}: {}", disabled.at, disabled.note),
            };
            [
                user.name.to_string(),
                rights.to_owned(),
                user.created_at.clone(),
                printable(&state),
            ]
        })
        .collect();
    table(["NAME", "RIGHTS", "SINCE", "STATE"], &rows)
}

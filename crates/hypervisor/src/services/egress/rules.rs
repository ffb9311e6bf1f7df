//! The allowlist: what the configuration says, and what admins change while it runs.

use gateway::egress::{MAX_RULES, Rule, Rules};
use serde::Deserialize;
use types::{NetworkRuleId, NetworkRuleSource, NetworkRuleView, NetworkView};

use super::Networks;
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::store::{NetworkRuleRow, Store};

/// Longest note, in characters.
const MAX_NOTE: usize = 100;

/// A wish for a rule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleRequest {
    /// The rule, such as `crates.io` or `*.example.com:8443`.
    pub(crate) rule: String,
    /// What it is for, for people.
    #[serde(default)]
    pub(crate) note: String,
}

fn view(row: NetworkRuleRow) -> NetworkRuleView {
    NetworkRuleView {
        id: Some(row.id),
        rule: row.rule,
        source: NetworkRuleSource::Admin,
        note: row.note,
        created_by: row.created_by,
        created_at: Some(rfc3339(row.created_at)),
    }
}

fn of_config(rule: &Rule) -> NetworkRuleView {
    NetworkRuleView {
        id: None,
        rule: rule.to_string(),
        source: NetworkRuleSource::Config,
        note: String::new(),
        created_by: None,
        created_at: None,
    }
}

impl Networks {
    /// Puts the rules of configuration and database in place. Connections that no rule allows
    /// any more are cut.
    ///
    /// # Errors
    /// The database failed; the rules stay as they were.
    pub(crate) async fn publish(&self, config: &Config, store: &Store) -> Result<(), Error> {
        // One at a time, so that an older reading never replaces a newer one.
        let _turn = self.publishing.lock().await;
        let added = store.network_rules().await?;
        let added = added.into_iter().filter_map(|row| {
            let rule = row.rule.parse();
            if rule.is_err() {
                tracing::error!(
                    rule = row.rule,
                    "the database holds an invalid network rule"
                );
            }
            rule.ok()
        });
        let all = config.network.allow.iter().cloned().chain(added);
        self.egress().set_rules(Rules::new(all));
        Ok(())
    }
}

/// What commands may reach, for whoever runs them.
///
/// # Errors
/// Nobody is signed in, or the database failed.
pub(crate) async fn overview(app: &App, actor: &Actor) -> Result<NetworkView, Error> {
    actor.allow(Scope::Sandboxes)?;
    let network = &app.config.network;
    Ok(NetworkView {
        default: network.default,
        max: network.max,
        rules: all(app).await?,
    })
}

/// The rules, those of the configuration first.
///
/// # Errors
/// Not an admin, or the database failed.
pub(crate) async fn list(app: &App, actor: &Actor) -> Result<Vec<NetworkRuleView>, Error> {
    actor.require_admin()?;
    all(app).await
}

async fn all(app: &App) -> Result<Vec<NetworkRuleView>, Error> {
    let added = app.store.network_rules().await?;
    let fixed = app.config.network.allow.iter().map(of_config);
    Ok(fixed.chain(added.into_iter().map(view)).collect())
}

/// Adds a rule; it holds from now on.
///
/// # Errors
/// Not an admin, no rule, there is the same one already, too many, or the ledger cannot take
/// the record.
pub(crate) async fn add(
    app: &App,
    actor: &Actor,
    request: &RuleRequest,
) -> Result<NetworkRuleView, Error> {
    let user = actor.require_admin()?;
    let rule: Rule = request.rule.parse().map_err(|error| {
        Error::bad_request(format!(
            "this is no network rule: {error}; valid is for example crates.io, *.crates.io or git.example.com:8443"
        ))
    })?;
    let note = request.note.trim();
    if note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "a note has at most {MAX_NOTE} printable characters"
        )));
    }
    if app.config.network.allow.contains(&rule) {
        return Err(Error::conflict("the configuration has this rule already"));
    }
    if all(app).await?.len() >= MAX_RULES {
        return Err(Error::conflict(format!(
            "there are {MAX_RULES} network rules already; remove one first"
        )));
    }
    let id = NetworkRuleId::generate();
    let entry = Entry::allowed("network.rule.add", rule.to_string())
        .with("id", id.to_string())
        .with("note", note);
    app.audit.record(actor, entry).await?;
    let (now, text) = (app.clock.now_ms(), rule.to_string());
    app.store
        .add_network_rule(id, &text, note, user.id, now)
        .await?;
    let plane = app.sandboxes.plane();
    plane.networks.publish(&app.config, &app.store).await?;
    Ok(NetworkRuleView {
        id: Some(id),
        rule: text,
        source: NetworkRuleSource::Admin,
        note: note.to_owned(),
        created_by: Some(user.name.to_string()),
        created_at: Some(rfc3339(now)),
    })
}

/// Removes a rule; connections that no other rule allows are cut before this returns.
///
/// # Errors
/// Not an admin, there is none of this id, or the ledger cannot take the record.
pub(crate) async fn remove(app: &App, actor: &Actor, id: NetworkRuleId) -> Result<(), Error> {
    actor.require_admin()?;
    let rules = app.store.network_rules().await?;
    let rule = rules
        .into_iter()
        .find(|row| row.id == id)
        .ok_or(Error::NotFound("network rule"))?;
    let entry = Entry::allowed("network.rule.remove", rule.rule).with("id", id.to_string());
    app.audit.record(actor, entry).await?;
    let removed = app.store.remove_network_rule(id).await?;
    let plane = app.sandboxes.plane();
    plane.networks.publish(&app.config, &app.store).await?;
    if removed {
        Ok(())
    } else {
        Err(Error::NotFound("network rule"))
    }
}

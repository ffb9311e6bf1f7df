//! `choir sandbox snapshot`, `snapshots`, `restore` and `clone`.

use std::io::Read;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use types::{
    CopyOutcome, CopyPhase, CopyProgress, CopyUpdate, Role, SnapshotReason, SnapshotView,
    SnapshotsView,
};

use super::Nothing;
use super::sandbox::base;
use crate::Error;
use crate::args::snapshots::{At, Clone, Restore, Snapshot, Snapshots};
use crate::client::Client;
use crate::context::Context;
use crate::output::{self, ago, printable, table};

/// How many characters of a snapshot's id tell it from others: the end, which is random.
const SHORT_ID: usize = 12;

#[derive(Serialize)]
struct Take<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize, Default)]
struct Change<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_good: Option<bool>,
}

/// `choir sandbox snapshot`.
pub(super) async fn take(
    client: &Client,
    asked: Snapshot,
    context: &mut Context,
) -> Result<u8, Error> {
    let role = asked.one.of.role();
    let of = format!("{}/{role}", base(asked.one.user.as_ref()));
    let body = Take {
        name: asked.name.as_deref(),
    };
    let path = format!("{of}/snapshots");
    let mut outcome = follow(client, &of, &path, &body, context).await?;
    if asked.known_good {
        let path = format!("{of}/snapshots/{}", outcome.snapshot.id);
        let change = Change {
            known_good: Some(true),
            ..Change::default()
        };
        outcome.snapshot = client.patch(&path, &change).await?;
    }
    let text = if asked.one.json {
        output::json(&outcome)
    } else {
        format!(
            "took snapshot {} of {role}: {}, {} files, in {}{}\n",
            outcome.snapshot.id,
            size(outcome.bytes),
            outcome.files,
            seconds(outcome.took_ms),
            stood_still(role, outcome.frozen_ms),
        )
    };
    context.io.print(&text)?;
    Ok(0)
}

/// `choir sandbox snapshots …`.
pub(super) async fn manage(
    client: &Client,
    command: Snapshots,
    context: &mut Context,
) -> Result<u8, Error> {
    let text = match command {
        Snapshots::List(one) => {
            let of = format!("{}/{}", base(one.user.as_ref()), one.of.role());
            let listed: SnapshotsView = client.get(&format!("{of}/snapshots")).await?;
            if one.json {
                output::json(&listed)
            } else {
                overview(&listed, (context.now)())
            }
        }
        Snapshots::Mark(one) => mark(client, &one.id, &one.at, Some(true), None).await?,
        Snapshots::Unmark(one) => mark(client, &one.id, &one.at, Some(false), None).await?,
        Snapshots::Rename { one, name } => {
            mark(client, &one.id, &one.at, None, Some(&name)).await?
        }
        Snapshots::Delete { one, yes } => {
            let role = one.at.role;
            let of = format!("{}/{role}", base(one.at.user.as_ref()));
            let snapshot = find(client, &of, &one.id).await?;
            let question = format!("Delete {} of {role} for good?", called(&snapshot));
            if !yes && !confirm(&question, context)? {
                return Ok(1);
            }
            let path = format!("{of}/snapshots/{}", snapshot.id);
            client.delete(&path).await?;
            format!("deleted {}\n", called(&snapshot))
        }
    };
    context.io.print(&text)?;
    Ok(0)
}

/// `choir sandbox restore`.
pub(super) async fn restore(
    client: &Client,
    asked: Restore,
    context: &mut Context,
) -> Result<u8, Error> {
    let role = asked.at.role;
    let of = format!("{}/{role}", base(asked.at.user.as_ref()));
    let snapshot = match &asked.id {
        Some(id) => find(client, &of, id).await?,
        None => last_good(client, &of).await?,
    };
    let question = format!(
        "Put {} in the place of what is in {role}? What is there now is kept as a snapshot.",
        called(&snapshot)
    );
    if !asked.yes && !confirm(&question, context)? {
        return Ok(1);
    }
    let path = format!("{of}/snapshots/{}/restore", snapshot.id);
    let outcome = follow(client, &of, &path, &Nothing {}, context).await?;
    let what = format!("{role} is what it was in {}", called(&snapshot));
    report(&what, &outcome, role, asked.json, context)
}

/// `choir sandbox clone`.
pub(super) async fn clone(
    client: &Client,
    asked: Clone,
    context: &mut Context,
) -> Result<u8, Error> {
    let question = "Make dev a copy of live? What dev is now is kept as a snapshot.";
    if !asked.yes && !confirm(question, context)? {
        return Ok(1);
    }
    let base = base(asked.user.as_ref());
    let path = format!("{base}/clone");
    let outcome = follow(client, &format!("{base}/dev"), &path, &Nothing {}, context).await?;
    report(
        "dev is a copy of live",
        &outcome,
        Role::Dev,
        asked.json,
        context,
    )
}

fn report(
    what: &str,
    outcome: &CopyOutcome,
    role: Role,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let text = if json {
        output::json(outcome)
    } else {
        format!(
            "{what}: {}, {} files, in {}, {role} down for {}{}\nwhat was there before: choir sandbox restore{} {}\n",
            size(outcome.bytes),
            outcome.files,
            seconds(outcome.took_ms),
            seconds(outcome.down_ms),
            stood_still(Role::Live, outcome.frozen_ms),
            if role == Role::Live {
                ""
            } else {
                " --role dev"
            },
            outcome.snapshot.id,
        )
    };
    context.io.print(&text)?;
    Ok(0)
}

/// Follows copying to its end. Ctrl-C cancels it, as long as that changes nothing.
async fn follow(
    client: &Client,
    of: &str,
    path: &str,
    body: &impl Serialize,
    context: &mut Context,
) -> Result<CopyOutcome, Error> {
    let mut presses = (context.interrupts)();
    let mut updates = client.post_stream(path, body).await?;
    let mut meter = Meter::default();
    loop {
        let update = tokio::select! {
            update = updates.line::<CopyUpdate>() => update?,
            Some(()) = presses.recv() => {
                match client.tell(&format!("{of}/snapshots/cancel"), &Nothing {}).await {
                    // It may have ended meanwhile; its last line is on the way.
                    Ok(()) | Err(Error::Refused(_)) => continue,
                    Err(error) => return Err(error),
                }
            }
        };
        match update {
            Some(CopyUpdate::Progress(progress)) => meter.show(&progress, context)?,
            Some(CopyUpdate::Done(outcome)) => {
                meter.clear(context)?;
                return Ok(*outcome);
            }
            Some(CopyUpdate::Failed(problem)) => {
                meter.clear(context)?;
                return Err(Error::Refused(problem));
            }
            None => return Err(client.unexpected("the answer ended early".to_owned())),
        }
    }
}

/// A line that tells how far copying is, on a terminal.
#[derive(Default)]
struct Meter {
    shown: usize,
}

impl Meter {
    fn show(&mut self, progress: &CopyProgress, context: &mut Context) -> Result<(), Error> {
        if !context.io.stdout_is_terminal {
            return Ok(());
        }
        let text = words(progress);
        let blank = " ".repeat(self.shown.saturating_sub(text.len()));
        context.io.complain(&format!("\r{text}{blank}"))?;
        self.shown = text.len();
        Ok(())
    }

    fn clear(&self, context: &mut Context) -> Result<(), Error> {
        if self.shown > 0 {
            let blank = " ".repeat(self.shown);
            context.io.complain(&format!("\r{blank}\r"))?;
        }
        Ok(())
    }
}

fn words(progress: &CopyProgress) -> String {
    match progress.phase {
        CopyPhase::Counting => "counting files".to_owned(),
        CopyPhase::Copying => format!(
            "copying: {} of {}, {} of {} files",
            size(progress.bytes),
            size(progress.total_bytes.max(progress.bytes)),
            progress.files,
            progress.total_files.max(progress.files),
        ),
        CopyPhase::Frozen => "the sandbox stands still for the last changes".to_owned(),
        CopyPhase::Syncing => "waiting for the disk".to_owned(),
        CopyPhase::Replacing => "putting the files in place".to_owned(),
        CopyPhase::Starting => "starting the sandbox".to_owned(),
    }
}

async fn mark(
    client: &Client,
    id: &str,
    at: &At,
    known_good: Option<bool>,
    name: Option<&str>,
) -> Result<String, Error> {
    let of = format!("{}/{}", base(at.user.as_ref()), at.role);
    let snapshot = find(client, &of, id).await?;
    let path = format!("{of}/snapshots/{}", snapshot.id);
    let change = Change { name, known_good };
    let changed: SnapshotView = client.patch(&path, &change).await?;
    let state = if changed.known_good {
        ", known good"
    } else {
        ""
    };
    Ok(format!("{}{state}\n", called(&changed)))
}

/// The snapshot that an id, the end of one, or a name tells.
async fn find(client: &Client, of: &str, text: &str) -> Result<SnapshotView, Error> {
    let listed: SnapshotsView = client.get(&format!("{of}/snapshots")).await?;
    let fits = |snapshot: &&SnapshotView| {
        let id = snapshot.id.to_string();
        id == text
            || (text.len() >= 4 && id.ends_with(text))
            || snapshot.name.as_deref() == Some(text)
    };
    let mut found = listed.snapshots.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => Err(Error::Snapshot(format!(
            "several snapshots are called {}; give the id: choir sandbox snapshots list",
            printable(text)
        ))),
        (None, _) => Err(Error::Snapshot(format!(
            "there is no snapshot {}; see: choir sandbox snapshots list",
            printable(text)
        ))),
    }
}

/// The latest one that is marked.
async fn last_good(client: &Client, of: &str) -> Result<SnapshotView, Error> {
    let listed: SnapshotsView = client.get(&format!("{of}/snapshots")).await?;
    let found = listed.snapshots.into_iter().find(|it| it.known_good);
    found.ok_or_else(|| {
        Error::Snapshot(
            "no snapshot is marked as known good; name one: choir sandbox restore ID".to_owned(),
        )
    })
}

fn confirm(question: &str, context: &mut Context) -> Result<bool, Error> {
    if !context.io.stdin_is_terminal {
        return Err(Error::Snapshot(
            "nobody can be asked here; say --yes if it is meant".to_owned(),
        ));
    }
    context.io.complain(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    let mut byte = [0];
    // One line, and no more of what is typed ahead.
    while matches!(context.io.stdin.read(&mut byte), Ok(1)) && byte != *b"\n" {
        answer.extend(byte.map(char::from));
    }
    let yes = matches!(answer.trim(), "y" | "Y" | "yes");
    if !yes {
        context.io.complain("nothing was done\n")?;
    }
    Ok(yes)
}

fn overview(listed: &SnapshotsView, now: Timestamp) -> String {
    let mut text = if listed.snapshots.is_empty() {
        "No snapshots. Take one: choir sandbox snapshot\n".to_owned()
    } else {
        let rows: Vec<_> = listed
            .snapshots
            .iter()
            .map(|snapshot| {
                let taken = snapshot.created_at.parse::<Timestamp>();
                [
                    short(snapshot),
                    printable(&label(snapshot)),
                    taken.map_or_else(|_| "-".to_owned(), |at| ago(at, now)),
                    size(snapshot.bytes),
                    snapshot.files.to_string(),
                    if snapshot.known_good { "yes" } else { "-" }.to_owned(),
                ]
            })
            .collect();
        table(
            ["ID", "NAME", "TAKEN", "SIZE", "FILES", "KNOWN GOOD"],
            &rows,
        )
    };
    text.push_str(&format!(
        "\n{} of {} snapshots, {} of {}\n",
        listed.snapshots.len(),
        listed.max_count,
        size(listed.used_bytes),
        size(listed.max_bytes)
    ));
    if let Some(progress) = &listed.under_way {
        text.push_str(&format!(
            "under way: {} ({})\n",
            progress.kind.as_str(),
            words(progress)
        ));
    }
    text
}

fn label(snapshot: &SnapshotView) -> String {
    snapshot.name.clone().unwrap_or_else(|| {
        match snapshot.reason {
            SnapshotReason::Manual => "-",
            SnapshotReason::BeforeRestore => "(before a restore)",
            SnapshotReason::BeforeClone => "(before a clone)",
        }
        .to_owned()
    })
}

fn called(snapshot: &SnapshotView) -> String {
    match &snapshot.name {
        Some(name) => format!("snapshot {} ({})", short(snapshot), printable(name)),
        None => format!("snapshot {}", short(snapshot)),
    }
}

fn short(snapshot: &SnapshotView) -> String {
    let id = snapshot.id.to_string();
    let from = id.len().saturating_sub(SHORT_ID);
    id.get(from..).unwrap_or_default().to_owned()
}

/// Only what is copied while it runs stands still: for a clone that is live.
fn stood_still(role: Role, frozen_ms: u64) -> String {
    if frozen_ms == 0 {
        return String::new();
    }
    format!("; {role} stood still for {frozen_ms} ms")
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", Duration::from_millis(ms).as_secs_f64())
}

/// A size for people, in powers of 1024.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = UNITS[0];
    for next in UNITS.iter().skip(1) {
        if tenths < 10 * 1024 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_for_people() {
        let shown = [0, 1023, 1024, 1536, 10 << 20, 3 << 30, u64::MAX].map(size);
        assert_eq!(
            shown[..6],
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 MiB", "3.0 GiB"]
        );
        assert!(shown[6].ends_with("TiB"));
    }
}

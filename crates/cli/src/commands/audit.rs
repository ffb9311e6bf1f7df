//! `choir audit …`.

use std::path::PathBuf;

use ledger::{Actor, Entry, Filter, Reader, Report};

use super::Target;
use crate::Error;
use crate::args::Audit;
use crate::context::Context;
use crate::output::{self, line, printable};

/// Widths of a record's columns; a longer cell pushes the rest of its line aside. They are
/// fixed because a log that is followed has no end to measure.
const WIDTHS: [usize; 6] = [6, 20, 14, 22, 9, 0];

pub(super) async fn run(
    target: &Target,
    command: Audit,
    context: &mut Context,
) -> Result<u8, Error> {
    match command {
        Audit::Tail {
            count,
            follow,
            dir,
            json,
        } => tail(target, count, follow, dir, json, context).await,
        Audit::Verify { dir, json } => verify(target, dir, json, context).await,
    }
}

async fn tail(
    target: &Target,
    count: u64,
    follow: bool,
    dir: Option<PathBuf>,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    if let Some(dir) = dir {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let entries = Reader::new(dir)
            .tail(count, &Filter::default())
            .map_err(Error::Ledger)?;
        print_titles(json, context)?;
        for entry in entries {
            print(&entry, json, context)?;
        }
        return Ok(0);
    }
    let client = target.client(context)?;
    let query = if follow { "&follow=true" } else { "" };
    let mut entries = client
        .stream(&format!("/admin/audit?tail={count}{query}"))
        .await?;
    print_titles(json, context)?;
    while let Some(entry) = entries.line::<Entry>().await? {
        print(&entry, json, context)?;
    }
    Ok(0)
}

fn print_titles(json: bool, context: &mut Context) -> Result<(), Error> {
    if json {
        return Ok(());
    }
    let titles = ["SEQ", "TIME", "ACTOR", "ACTION", "OUTCOME", "TARGET"].map(str::to_owned);
    context.io.print(&line(&WIDTHS, &titles))
}

fn print(entry: &Entry, json: bool, context: &mut Context) -> Result<(), Error> {
    if json {
        // The types are our own, with text for keys.
        let mut text = serde_json::to_string(entry).unwrap_or_default();
        text.push('\n');
        return context.io.print(&text);
    }
    let record = &entry.record;
    let actor = match &record.actor {
        Actor::Nobody => "-".to_owned(),
        Actor::User(user) => user.name.clone(),
        Actor::Sandbox { .. } => "sandbox".to_owned(),
        Actor::Runner { .. } => "runner".to_owned(),
        Actor::Internal => "hypervisor".to_owned(),
    };
    let mut target = record.target.clone().unwrap_or_default();
    if let Some(subject) = &record.subject
        && subject.name != actor
    {
        target = format!("{target} (of {})", subject.name)
            .trim_start()
            .to_owned();
    }
    if let Some(reason) = &record.reason {
        target = format!("{target}: {reason}")
            .trim_start_matches(": ")
            .to_owned();
    }
    let cells = [
        entry.seq.to_string(),
        record.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        printable(&actor),
        printable(&record.action),
        record.outcome.as_str().to_owned(),
        printable(&target),
    ];
    context.io.print(&line(&WIDTHS, &cells))
}

async fn verify(
    target: &Target,
    dir: Option<PathBuf>,
    json: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let report: Report = match dir {
        Some(dir) => ledger::verify(&dir).map_err(Error::Ledger)?,
        None => target.client(context)?.get("/admin/audit/verify").await?,
    };
    let text = if json {
        output::json(&report)
    } else {
        describe(&report)
    };
    context.io.print(&text)?;
    Ok(u8::from(!report.ok))
}

fn describe(report: &Report) -> String {
    let mut text = match &report.fault {
        None => format!("The audit log is whole: {} records", report.records),
        Some(fault) => {
            format!(
                "The audit log has a fault.\n{}\nBefore it: {} records",
                printable(&fault.to_string()),
                report.records
            )
        }
    };
    if let (Some(first), Some(last)) = (report.first_seq, report.last_seq) {
        text.push_str(&format!(" ({first} to {last})"));
    }
    let plural = if report.segments == 1 { "" } else { "s" };
    text.push_str(&format!(" in {} segment{plural}.\n", report.segments));
    if let Some(log) = report.log {
        text.push_str(&format!("log:  {log}\nhead: {}\n", report.head));
    }
    if report.torn_bytes > 0 {
        text.push_str(&format!(
            "The last {} bytes are of a record that was never acknowledged.\n",
            report.torn_bytes
        ));
    }
    text
}

//! What was measured, in words: the table, the targets, and which calls failed.

use std::time::Duration;

use serde_json::{Value, json};

/// Calls of nginx, and of streams, that the gateway has to reach.
const SHARE: f64 = 0.6;

/// What it may add to a call at one connection, and to the first event, in microseconds.
const ADDED_US: f64 = 100.0;
const ADDED_FIRST_US: f64 = 1000.0;

/// Processor time of a call in microseconds, and memory in MiB.
const CPU_US: f64 = 25.0;
const RSS_MIB: f64 = 64.0;

/// How much slower a neighbour's slowest calls may get.
const FAIRNESS: f64 = 2.0;

/// What the gateway is held to, and whether it is met.
pub(super) fn targets(rows: &[Value], after: &[Value]) -> Vec<Value> {
    let mut targets = Vec::new();
    let mut add = |what: String, value: &Value, wanted: f64, at_least: bool| {
        // Without nginx or the gateway there is nothing to compare.
        let Some(value) = value.as_f64() else { return };
        let met = if at_least {
            value >= wanted
        } else {
            value < wanted
        };
        targets.push(json!({
            "what": what, "value": value, "wanted": wanted, "at_least": at_least, "met": met,
        }));
    };
    for row in rows.iter().filter(|row| row["place"] == "gateway") {
        let one = row["connections"] == 1;
        let streamed = row["load"] == "stream";
        let load = format!(
            "{}, {} conns",
            row["load"].as_str().unwrap_or_default(),
            row["connections"]
        );
        add(
            format!("calls to nginx ({load})"),
            &row["to_nginx"]["per_second"],
            SHARE,
            true,
        );
        if one && !streamed {
            add(
                format!("added p50 µs ({load})"),
                &row["added_p50_us"],
                ADDED_US,
                false,
            );
        }
        if one && streamed {
            add(
                format!("added first event µs ({load})"),
                &row["added_first_byte_us"],
                ADDED_FIRST_US,
                false,
            );
        }
        if !streamed {
            add(
                format!("cpu µs a call ({load})"),
                &row["cpu_us"],
                CPU_US,
                false,
            );
        }
    }
    for one in after.iter().filter(|one| one["place"] == "gateway") {
        match one["what"].as_str() {
            Some("memory") => add(
                format!("RSS MiB after 64 conns for {} s", one["after_s"]),
                &one["rss_mib"],
                RSS_MIB,
                false,
            ),
            _ => add(
                "a neighbour's p99 beside a loud sandbox, to its quiet one".to_owned(),
                &one["ratio_p99"],
                FAIRNESS,
                false,
            ),
        }
    }
    targets
}

/// One line for each measurement in which calls failed.
pub(super) fn failures(rows: &[Value], after: &[Value]) -> Vec<String> {
    rows.iter()
        .chain(after)
        .filter(|one| one["errors"] != 0)
        .map(|one| {
            let what = one["what"].as_str().or(one["load"].as_str());
            let how = match one["failed_with"].as_u64() {
                Some(status @ 1..) => format!("the first with status {status}"),
                _ => "the first cut short".to_owned(),
            };
            format!(
                "{}, {} ({} conns): {} calls, {how}",
                one["place"].as_str().unwrap_or_default(),
                what.unwrap_or_default(),
                one["connections"].as_u64().unwrap_or(64),
                one["errors"],
            )
        })
        .collect()
}

pub(super) fn show(rows: &[Value], after: &[Value], targets: &[Value], seconds: Duration) {
    println!(
        "Model calls to one upstream, {} s each; the gateway checks the token, bounds calls, tokens and money\n\
         of sandbox, user and provider, searches replies for its key, reads the usage and writes a record and\n\
         a log line per call; nginx writes its access log. \"x\" columns: nginx's value is 1\n",
        seconds.as_secs()
    );
    let columns = [
        ("/load", "load", 7),
        ("/connections", "conns", 6),
        ("/place", "through", 10),
        ("/per_second", "calls/s", 8),
        ("/to_nginx/per_second", "x", 5),
        ("/p50_us", "p50 µs", 8),
        ("/to_nginx/p50_us", "x", 6),
        ("/added_p50_us", "added", 7),
        ("/p99_us", "p99 µs", 8),
        ("/to_nginx/p99_us", "x", 6),
        ("/first_byte_p50_us", "first µs", 9),
        ("/added_first_byte_us", "added", 7),
        ("/cpu_us", "cpu µs", 7),
        ("/to_nginx/cpu_us", "x", 6),
        ("/rss_mib", "RSS MiB", 8),
        ("/to_nginx/rss_mib", "x", 6),
        ("/errors", "errors", 6),
    ];
    for (_, title, width) in columns {
        print!("{title:>width$} ");
    }
    println!();
    for row in rows {
        for (key, _, width) in columns {
            print!("{:>width$} ", row.pointer(key).map_or("-".to_owned(), text));
        }
        println!();
    }
    println!();
    for one in after {
        let place = one["place"].as_str().unwrap_or_default();
        if one["what"] == "memory" {
            println!(
                "{place}: {} MiB resident after 64 connections for {} s",
                one["rss_mib"], one["after_s"]
            );
        } else {
            println!(
                "{place}: one connection has a p99 of {} µs alone, {} µs beside 64 others: {} times",
                text(&one["quiet_p99_us"]),
                text(&one["beside_p99_us"]),
                one["ratio_p99"]
            );
        }
    }
    println!("\nWhat the gateway is held to:");
    for target in targets {
        println!(
            "{:>8}  {:<58} {:>8}, wanted {} {}",
            if target["met"] == true {
                "met"
            } else {
                "NOT MET"
            },
            target["what"].as_str().unwrap_or_default(),
            text(&target["value"]),
            if target["at_least"] == true {
                "≥"
            } else {
                "<"
            },
            text(&target["wanted"]),
        );
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string().trim_end_matches(".0").to_owned(),
    }
}

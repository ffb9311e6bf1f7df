//! What is said about a start that ended on its own.

use std::sync::Arc;
use std::time::Duration;

use types::{CommandExit, LimitedResource};

use crate::driver::StartError;
use crate::instance::Instance;

/// Lines of a guest's log that an error carries.
const LOG_LINES: usize = 20;

/// Longest such line, in characters.
const LOG_LINE: usize = 400;

/// A start that ended on its own.
pub(super) struct Crash {
    pub(super) lived: Duration,
    pub(super) exit: CommandExit,
    pub(super) log: Vec<String>,
    /// The crashed start, whose supervisor and commands are still there.
    pub(super) left: Option<Arc<Instance>>,
}

impl Crash {
    /// Whether it was stopped for what it keeps on disk. Another start would not help: its
    /// owner has to delete something.
    pub(super) fn is_over_disk(&self) -> bool {
        self.exit.limit.is_some_and(|limit| {
            matches!(
                limit.resource,
                LimitedResource::DiskBytes | LimitedResource::DiskEntries
            )
        })
    }

    /// The error after the given number of crashes in a row; `given_up` when no restart follows.
    pub(super) fn into_error(self, crashes: u32, given_up: bool) -> StartError {
        let mut error = exited_early(&self.exit);
        if self.is_over_disk() {
            error.code = "disk_full".to_owned();
            error.hint = Some(
                "start it and delete files, in the desktop or in a terminal; it is stopped again \
                 only if it keeps more than now"
                    .to_owned(),
            );
        } else if given_up {
            error.code = "crash_loop".to_owned();
            error.message = format!(
                "{} ({crashes} times in a row); it is not started again by itself",
                error.message
            );
        }
        with_log(error, self.log)
    }
}

/// Why a start did not get as far as health.
pub(super) enum Fault {
    /// It could not be built, or did not answer in time. Another try would end the same way.
    Refused(StartError),
    /// The guest ended by itself.
    Crashed(Box<Crash>),
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        Self::Refused(error)
    }
}

/// The error with the end of the guest's log, whose last line stands in the message too.
pub(super) fn with_log(mut error: StartError, log: Vec<String>) -> StartError {
    if let Some(last) = log.last() {
        error.message = format!("{}; its last words: {last}", error.message);
    }
    error.log = log;
    error
}

fn exited_early(exit: &CommandExit) -> StartError {
    if let Some(limit) = &exit.limit {
        return StartError::new(
            "guest_exited",
            format!("the guest runtime was ended: {limit}"),
        )
        .with_hint("see its notices in the console");
    }
    let how = match (exit.code, exit.signal, &exit.error) {
        (_, _, Some(error)) => format!("could not be run: {error}"),
        (Some(code), _, _) => format!("exited with code {code}"),
        (_, Some(signal), _) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    };
    StartError::new("guest_exited", format!("the guest runtime {how}"))
        .with_hint("see its log: choir sandbox logs")
}

/// The end of the guest's log.
pub(super) async fn last_log_lines(instance: &Instance) -> Vec<String> {
    instance
        .control()
        .log_tail()
        .await
        .map(|text| lines_of(&text))
        .unwrap_or_default()
}

/// The last lines of a text, without those of our own supervisor, which say what the error
/// says already.
fn lines_of(text: &str) -> Vec<String> {
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control())
                .take(LOG_LINE)
                .collect::<String>()
        })
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with("[supervisor] guest "))
        .collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    lines.into_iter().skip(from).collect()
}

#[cfg(test)]
mod tests {
    use super::{LOG_LINE, LOG_LINES, lines_of};

    #[test]
    fn a_log_is_cut_to_its_last_lines_without_control_characters() {
        let mut text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        text.push_str("\u{1b}[31mred\r\n\n");
        text.push_str(&"x".repeat(10_000));
        text.push_str("\n[supervisor] guest exited with code 3\n");
        let lines = lines_of(&text);
        assert_eq!(lines.len(), LOG_LINES);
        assert_eq!(lines[LOG_LINES - 2], "[31mred");
        assert_eq!(lines[LOG_LINES - 1].len(), LOG_LINE);
    }
}

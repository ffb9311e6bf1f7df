//! `read_file`, `list_files`, `search_files`.

use std::fmt::Write as _;
use std::io::Read;

use serde::Deserialize;

use super::{Answer, Tools, relative};
use crate::files::{EntryType, FileError, WalkLimits};

/// Largest file that is read for the model.
const MAX_READ: u64 = 2 * 1024 * 1024;
/// Largest file that is searched.
const MAX_SEARCHED: u64 = 1024 * 1024;
/// Most entries of a listing.
const MAX_LISTED: usize = 500;
/// Most lines of a search.
const MAX_MATCHES: usize = 200;
/// Longest piece of a matching line.
const MAX_LINE: usize = 240;
/// How far a search or a recursive listing goes.
const LIMITS: WalkLimits = WalkLimits {
    entries: 20_000,
    depth: 24,
};

#[derive(Deserialize)]
pub(super) struct ReadFile {
    path: String,
    first_line: Option<usize>,
    lines: Option<usize>,
}

#[derive(Deserialize)]
pub(super) struct ListFiles {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
}

#[derive(Deserialize)]
pub(super) struct SearchFiles {
    query: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    ignore_case: bool,
}

impl Tools {
    pub(super) async fn read_file(&self, arguments: ReadFile) -> Result<Answer, String> {
        let path = relative(&arguments.path).to_owned();
        let (bytes, _) = self
            .blocking(move |workspace| workspace.read(&path, MAX_READ))
            .await
            .map_err(|error| explain(&arguments.path, &error))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| format!("{} is not text (UTF-8)", arguments.path))?;
        if arguments.first_line.is_none() && arguments.lines.is_none() {
            return Ok(Answer::good(text));
        }
        let first = arguments.first_line.unwrap_or(1).max(1);
        let wanted: Vec<_> = text
            .split_inclusive('\n')
            .skip(first - 1)
            .take(arguments.lines.unwrap_or(usize::MAX))
            .collect();
        if wanted.is_empty() {
            return Err(format!(
                "{} has {} lines",
                arguments.path,
                text.lines().count()
            ));
        }
        Ok(Answer::good(wanted.concat()))
    }

    pub(super) async fn list_files(&self, arguments: ListFiles) -> Result<Answer, String> {
        let path = relative(&arguments.path).to_owned();
        let recursive = arguments.recursive;
        let text = self
            .blocking(move |workspace| {
                let mut text = String::new();
                let mut listed = 0;
                let mut line = |path: &str, kind: EntryType, size: u64| {
                    listed += 1;
                    let _infallible = match kind {
                        EntryType::Dir => writeln!(text, "{path}/"),
                        EntryType::Symlink => writeln!(text, "{path} (link)"),
                        EntryType::File => writeln!(text, "{path} ({size} bytes)"),
                        EntryType::Other => writeln!(text, "{path} (not a file)"),
                    };
                    listed < MAX_LISTED
                };
                let all = if recursive {
                    workspace.walk(&path, LIMITS, |found| {
                        line(found.path, found.kind, found.size)
                    })?
                } else {
                    let (entries, more) = workspace.list(&path)?;
                    entries
                        .iter()
                        .all(|entry| line(&entry.name, entry.kind, entry.size))
                        && !more
                };
                if !all {
                    text.push_str("[… there is more …]\n");
                }
                Ok(text)
            })
            .await
            .map_err(|error| explain(&arguments.path, &error))?;
        Ok(Answer::good(if text.is_empty() {
            "(empty)".to_owned()
        } else {
            text
        }))
    }

    pub(super) async fn search_files(&self, arguments: SearchFiles) -> Result<Answer, String> {
        if arguments.query.is_empty()
            || arguments.query.len() > 1000
            || arguments.query.contains('\n')
        {
            return Err("a query has 1 to 1000 bytes and no line end".to_owned());
        }
        let path = relative(&arguments.path).to_owned();
        let fold = arguments.ignore_case;
        let query = if fold {
            arguments.query.to_lowercase()
        } else {
            arguments.query
        };
        let text = self
            .blocking(move |workspace| {
                let mut text = String::new();
                let mut matches = 0;
                let all = workspace.walk(&path, LIMITS, |found| {
                    if found.kind != EntryType::File || found.size > MAX_SEARCHED {
                        return true;
                    }
                    let mut bytes = Vec::new();
                    let read = found
                        .open()
                        .and_then(|file| Ok(file.take(MAX_SEARCHED).read_to_end(&mut bytes)?));
                    // Unreadable, or not text.
                    let (Ok(_), Ok(content)) = (read, std::str::from_utf8(&bytes)) else {
                        return true;
                    };
                    for (at, line) in content.lines().enumerate() {
                        let hit = if fold {
                            line.to_lowercase().contains(&query)
                        } else {
                            line.contains(&query)
                        };
                        if hit {
                            matches += 1;
                            let shown: String = line.trim().chars().take(MAX_LINE).collect();
                            let _infallible = writeln!(text, "{}:{}: {shown}", found.path, at + 1);
                        }
                        if matches >= MAX_MATCHES {
                            return false;
                        }
                    }
                    true
                })?;
                if !all {
                    text.push_str("[… there may be more; search in a directory of it …]\n");
                }
                Ok(text)
            })
            .await
            .map_err(|error| explain(&arguments.path, &error))?;
        Ok(Answer::good(if text.is_empty() {
            "nothing matches".to_owned()
        } else {
            text
        }))
    }
}

pub(super) fn explain(path: &str, error: &FileError) -> String {
    let path: String = path.chars().take(300).collect();
    format!("{path:?}: {error}")
}

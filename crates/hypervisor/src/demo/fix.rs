//! `fix the failing test`: run it, find what it names, try the obvious small changes one
//! after the other, keep the first that helps, and say so when none does.

use serde_json::json;

use super::code;
use super::failure::{self, Failure, SOURCE_EXTENSIONS};
use super::planner::{Outcome, Replay, Stop, shorten};

/// Failures mended one after another in one instruction.
const MAX_ROUNDS: usize = 4;

/// Changes tried for one failure; each costs a patch and a test run.
const MAX_ATTEMPTS: usize = 8;

/// Files read for one failure.
const MAX_FILES: usize = 6;

/// Characters of a test's output that a final answer repeats.
const QUOTED_OUTPUT: usize = 800;

/// A file of the workspace, as read.
struct Source {
    path: String,
    text: String,
}

/// A way to mend the failure.
struct Candidate {
    path: String,
    old: String,
    new: String,
    name: String,
    rank: u8,
}

pub(super) fn fix(replay: &mut Replay, command: Option<&str>) -> Result<String, Stop> {
    let command = match command {
        Some(command) => command.to_owned(),
        None => detect(replay)?,
    };
    let line = fresh(&command);
    let mut outcome = replay.run(&format!("I run the test: `{command}`."), &line)?;
    if outcome.ok {
        return Ok(format!(
            "`{command}` passes already; there was nothing to fix."
        ));
    }
    let mut changed = Vec::new();
    for _ in 0..MAX_ROUNDS {
        match mend(replay, &line, &outcome)? {
            None => break,
            Some((what, after)) => {
                changed.push(what);
                outcome = after;
            }
        }
        if outcome.ok {
            return Ok(format!(
                "`{command}` passes now. What I changed:\n\n{}",
                changed.join("\n")
            ));
        }
    }
    let tail = last_chars(outcome.text.trim_end(), QUOTED_OUTPUT);
    let so_far = if changed.is_empty() {
        "I changed nothing.".to_owned()
    } else {
        format!("What I changed on the way:\n\n{}", changed.join("\n"))
    };
    Err(Stop::GiveUp(format!(
        "`{command}` still fails, and none of the small changes I know makes it pass. {so_far}\n\
         The end of its output:\n```\n{tail}\n```"
    )))
}

/// The command line that really runs `command`.
///
/// Python takes a compiled file for current when the source's time (in seconds) and size are
/// those it was compiled from, and both are after a quick change of one character. So what
/// was compiled before goes, and nothing is compiled to a file.
fn fresh(command: &str) -> String {
    let mut words = command.split_whitespace();
    if words.any(|word| word.starts_with("python") || word.starts_with("pytest")) {
        format!(
            "find . -maxdepth 4 -name __pycache__ -prune -exec rm -r {{}} +; PYTHONDONTWRITEBYTECODE=1 {command}"
        )
    } else {
        command.to_owned()
    }
}

/// The test command that the files at the top of the workspace suggest.
fn detect(replay: &mut Replay) -> Result<String, Stop> {
    let listing = replay.call(
        "I look for the project's tests.",
        "list_files",
        &json!({"path": "."}),
    )?;
    let has = |name: &str| {
        words(&listing.text).any(|word| word == name || word.ends_with(&format!("/{name}")))
    };
    let python = words(&listing.text).any(|word| word.ends_with(".py"));
    let command = if has("Cargo.toml") {
        "cargo test"
    } else if has("package.json") {
        "npm test"
    } else if has("test.sh") {
        "sh test.sh"
    } else if python {
        "python3 -m unittest"
    } else {
        return Err(Stop::GiveUp(
            "I found no Cargo.toml, package.json, test.sh or Python file; say: fix the failing test with <command>"
                .to_owned(),
        ));
    };
    Ok(command.to_owned())
}

fn words(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .split(|c: char| c.is_whitespace() || "\"',[]{}".contains(c))
        .map(|word| word.trim_end_matches(['/', '*']))
        .filter(|word| !word.is_empty())
}

/// Mends the first failure; `None` when no known change helps. A change that does not
/// help is taken back.
fn mend(
    replay: &mut Replay,
    command: &str,
    outcome: &Outcome,
) -> Result<Option<(String, Outcome)>, Stop> {
    let Some(failure) = failure::read(&outcome.text) else {
        return Ok(None);
    };
    let candidates = candidates(replay, &failure)?;
    for candidate in candidates.into_iter().take(MAX_ATTEMPTS) {
        let Candidate {
            path,
            old,
            new,
            name,
            ..
        } = candidate;
        let say = format!(
            "The test names `{name}`. In {path} I try `{}`.",
            last_line(&new)
        );
        if !replay.patch(&say, &path, &old, &new)?.ok {
            continue;
        }
        let after = replay.run("I run the test again.", command)?;
        let (before, now) = (
            failure::failing(&outcome.text),
            failure::failing(&after.text),
        );
        let improved = !now.is_empty() && now.len() < before.len() && now.is_subset(&before);
        // A runner that stops at the first failure names another one then.
        let moved_on = before.len() == 1
            && now.len() == 1
            && before != now
            && compares_elsewhere(&failure, &after.text);
        if after.ok || improved || moved_on {
            let what = format!(
                "- {path}: `{}` became `{}`",
                last_line(&old),
                last_line(&new)
            );
            return Ok(Some((what, after)));
        }
        replay.patch("That did not help; I take it back.", &path, &new, &old)?;
    }
    Ok(None)
}

/// Whether the output reports a comparison at another place than the failure did.
fn compares_elsewhere(failure: &Failure, output: &str) -> bool {
    failure::read(output).is_some_and(|next| next.values.is_some() && next.places != failure.places)
}

fn last_line(text: &str) -> String {
    shorten(text.lines().next_back().unwrap_or_default().trim(), 120)
}

fn last_chars(text: &str, chars: usize) -> &str {
    let skip = text.chars().count().saturating_sub(chars);
    text.char_indices()
        .nth(skip)
        .and_then(|(at, _)| text.get(at..))
        .unwrap_or_default()
}

/// Reads the files that the failure leads to, and lists changes of the functions it names.
fn candidates(replay: &mut Replay, failure: &Failure) -> Result<Vec<Candidate>, Stop> {
    let mut sources: Vec<Source> = Vec::new();
    let mut texts = Vec::new();
    for place in &failure.places {
        load(replay, &mut sources, &place.path)?;
        if let Some(source) = sources.iter().find(|source| source.path == place.path)
            && place.line > 0
        {
            texts.push(statement_at(&source.text, place.line));
        }
    }
    let call = texts.first().cloned();
    texts.extend(failure.lines.iter().cloned());
    let names = code::called(&texts);
    let mut found = matching(&sources, &names, call.as_deref(), failure);
    if found.is_empty() {
        for path in elsewhere(replay, &names)? {
            load(replay, &mut sources, &path)?;
        }
        found = matching(&sources, &names, call.as_deref(), failure);
    }
    Ok(found)
}

fn load(replay: &mut Replay, sources: &mut Vec<Source>, path: &str) -> Result<(), Stop> {
    if sources.len() < MAX_FILES && !sources.iter().any(|source| source.path == path) {
        let outcome = replay.read(path)?;
        if outcome.ok {
            sources.push(Source {
                path: path.to_owned(),
                text: without_numbers(&outcome.text),
            });
        }
    }
    Ok(())
}

/// Takes away line numbers, if the tool puts them before every line.
fn without_numbers(text: &str) -> String {
    let stripped: Option<Vec<_>> = text
        .lines()
        .enumerate()
        .map(|(at, line)| {
            let rest = line.trim_start().strip_prefix(&(at + 1).to_string())?;
            rest.strip_prefix('\t')
                .or_else(|| rest.strip_prefix("| "))
                .or_else(|| rest.strip_prefix(": "))
        })
        .collect();
    stripped.map_or_else(|| text.to_owned(), |lines| lines.join("\n"))
}

/// The statement that begins on a line (counted from 1), joined until its parentheses close.
fn statement_at(text: &str, line: usize) -> String {
    const MAX_LINES: usize = 8;
    let mut statement = String::new();
    for part in text.lines().skip(line - 1).take(MAX_LINES) {
        statement.push_str(part.trim());
        if statement.matches('(').count() <= statement.matches(')').count() {
            break;
        }
        statement.push(' ');
    }
    statement
}

/// Source files that hold a definition of one of the names, tests last.
fn elsewhere(replay: &mut Replay, names: &[String]) -> Result<Vec<String>, Stop> {
    const SEARCHES: usize = 3;
    let mut paths: Vec<String> = Vec::new();
    for name in names.iter().take(SEARCHES) {
        let say = format!("I look for `{name}`.");
        let outcome = replay.call(&say, "search_files", &json!({"query": name}))?;
        for line in outcome.text.lines() {
            let Some((path, rest)) = line.split_once(':') else {
                continue;
            };
            let text = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
            let path = path.trim().trim_start_matches("./");
            let source = path
                .rsplit_once('.')
                .is_some_and(|(_, end)| SOURCE_EXTENSIONS.contains(&end));
            if source && code::defines(text, name) && !paths.iter().any(|have| have == path) {
                paths.push(path.to_owned());
            }
        }
        if !paths.is_empty() {
            break;
        }
    }
    paths.sort_by_key(|path| path.contains("test"));
    Ok(paths)
}

fn matching(
    sources: &[Source],
    names: &[String],
    call: Option<&str>,
    failure: &Failure,
) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (order, name) in names.iter().enumerate() {
        for source in sources {
            let lines: Vec<&str> = source.text.lines().collect();
            let Some(body) = code::function(&lines, name) else {
                continue;
            };
            if is_test(&lines, body.start) {
                continue;
            }
            for change in code::changes(&lines, body, name, call, failure) {
                let Some((old, new)) = unique(&source.text, &lines, change.line, &change.new)
                else {
                    continue;
                };
                let rank = change
                    .rank
                    .saturating_add(u8::try_from(order.min(3)).unwrap_or(3) * 10);
                found.push(Candidate {
                    path: source.path.clone(),
                    old,
                    new,
                    name: name.clone(),
                    rank,
                });
            }
        }
    }
    found.sort_by_key(|candidate| candidate.rank);
    found
}

/// A test is never changed to make it pass.
fn is_test(lines: &[&str], head: usize) -> bool {
    let line = lines.get(head).copied().unwrap_or_default();
    let before = head
        .checked_sub(1)
        .and_then(|at| lines.get(at))
        .copied()
        .unwrap_or_default();
    before.contains("#[test]") || before.contains("::test]") || line.contains("def test_")
}

/// The line with as many lines before it as make it unique in the file.
fn unique(text: &str, lines: &[&str], at: usize, new: &str) -> Option<(String, String)> {
    for from in (0..=at).rev() {
        let before = lines.get(from..at)?;
        let join = |last: &str| {
            before
                .iter()
                .copied()
                .chain([last])
                .collect::<Vec<_>>()
                .join("\n")
        };
        let old = join(lines.get(at)?);
        if text.matches(&old).count() == 1 {
            return Some((old, join(new)));
        }
    }
    None
}

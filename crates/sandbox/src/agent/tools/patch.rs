//! Changes to a text: an exact replacement, or the hunks of a unified diff. Nothing is
//! guessed: what does not apply exactly is an error that says why.

/// Lines that a hunk may have moved since the diff was made.
const MAX_OFFSET: usize = 10_000;

/// Why a change does not apply.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PatchError {
    #[error("give either `old` and `new`, or `patch`")]
    Arguments,
    #[error("`old` is empty; use write_file to write a whole file")]
    Empty,
    #[error(
        "`old` does not occur in the file; read it again and copy the text exactly, with its white space{0}"
    )]
    Absent(&'static str),
    #[error("`old` occurs {0} times; give more of the text around it so that it is unique")]
    Ambiguous(usize),
    #[error("`old` and `new` are the same")]
    Same,
    #[error("the patch has no hunk; a hunk begins with @@ -a,b +c,d @@")]
    NoHunk,
    #[error("line {0} of the patch begins with none of ' ', '+', '-', '@@'")]
    Line(usize),
    #[error("hunk {hunk} does not apply: the file has no such lines{near}; read it again")]
    Hunk { hunk: usize, near: String },
    #[error("hunk {0} applies in several places equally well; give more lines around the change")]
    HunkAmbiguous(usize),
}

/// Replaces a text that occurs exactly once.
pub(super) fn replace_once(text: &str, old: &str, new: &str) -> Result<String, PatchError> {
    if old.is_empty() {
        return Err(PatchError::Empty);
    }
    if old == new {
        return Err(PatchError::Same);
    }
    match text.matches(old).count() {
        0 => {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let white_space = squeezed(text).contains(&squeezed(old));
            Err(PatchError::Absent(if white_space {
                " (only its white space differs)"
            } else {
                ""
            }))
        }
        1 => Ok(text.replacen(old, new, 1)),
        count => Err(PatchError::Ambiguous(count)),
    }
}

#[derive(Debug, Default)]
struct Hunk<'patch> {
    /// Line of the old file at which it begins, counted from 0; none when it does not say.
    at: Option<usize>,
    old: Vec<&'patch str>,
    new: Vec<&'patch str>,
}

/// Applies the hunks of a unified diff. Line numbers are a hint; the lines have to match.
pub(super) fn apply(text: &str, patch: &str) -> Result<String, PatchError> {
    let hunks = parse(patch)?;
    let ends = text.ends_with('\n') || text.is_empty();
    let mut lines: Vec<&str> = text.lines().collect();
    let mut from = 0;
    // What earlier hunks added or removed moves later ones.
    let mut moved = 0isize;
    for (number, hunk) in hunks.iter().enumerate() {
        let expected = hunk.at.map(|at| at.saturating_add_signed(moved));
        let at = locate(&lines, hunk, from, expected).map_err(|places| match places {
            0 => PatchError::Hunk {
                hunk: number + 1,
                near: near(hunk),
            },
            _ => PatchError::HunkAmbiguous(number + 1),
        })?;
        lines.splice(at..at + hunk.old.len(), hunk.new.iter().copied());
        from = at + hunk.new.len();
        moved += hunk.new.len().cast_signed() - hunk.old.len().cast_signed();
    }
    let mut result = lines.join("\n");
    if ends && !result.is_empty() {
        result.push('\n');
    }
    Ok(result)
}

fn near(hunk: &Hunk<'_>) -> String {
    hunk.old
        .iter()
        .find(|line| !line.trim().is_empty())
        .map(|line| {
            format!(
                " (near {:?})",
                line.trim().chars().take(80).collect::<String>()
            )
        })
        .unwrap_or_default()
}

/// Where the hunk's lines stand: at the expected line, else at the only other place.
fn locate(
    lines: &[&str],
    hunk: &Hunk<'_>,
    from: usize,
    expected: Option<usize>,
) -> Result<usize, usize> {
    let matches = |at: usize| {
        lines
            .get(at..at + hunk.old.len())
            .is_some_and(|found| found == hunk.old)
    };
    if let Some(at) = expected.filter(|at| *at >= from && matches(*at)) {
        return Ok(at);
    }
    if hunk.old.is_empty() {
        // Pure insertion without context: only the line number can say where.
        return expected.map(|at| at.clamp(from, lines.len())).ok_or(0);
    }
    let near = |at: &usize| expected.is_none_or(|expected| at.abs_diff(expected) <= MAX_OFFSET);
    let places: Vec<_> = (from..=lines.len().saturating_sub(hunk.old.len()))
        .filter(|at| near(at) && matches(*at))
        .collect();
    match places.as_slice() {
        [only] => Ok(*only),
        places => Err(places.len()),
    }
}

fn parse(patch: &str) -> Result<Vec<Hunk<'_>>, PatchError> {
    let mut hunks: Vec<Hunk<'_>> = Vec::new();
    for (number, line) in patch.lines().enumerate() {
        if line.starts_with("@@") {
            hunks.push(Hunk {
                at: start(line),
                ..Hunk::default()
            });
            continue;
        }
        let Some(hunk) = hunks.last_mut() else {
            // File names and other headers before the first hunk.
            continue;
        };
        match line.split_at_checked(1) {
            Some((" ", rest)) => {
                hunk.old.push(rest);
                hunk.new.push(rest);
            }
            Some(("-", rest)) => hunk.old.push(rest),
            Some(("+", rest)) => hunk.new.push(rest),
            // `\ No newline at end of file`.
            Some(("\\", _)) => {}
            // An empty context line whose blank was lost.
            None => {
                hunk.old.push("");
                hunk.new.push("");
            }
            _ => return Err(PatchError::Line(number + 1)),
        }
    }
    if hunks.is_empty() {
        Err(PatchError::NoHunk)
    } else {
        Ok(hunks)
    }
}

/// The line of `@@ -12,3 +12,4 @@`, counted from 0. A hunk that removes nothing names the
/// line after which it inserts.
fn start(header: &str) -> Option<usize> {
    let old = header
        .split_whitespace()
        .find_map(|part| part.strip_prefix('-'))?;
    let (line, count) = old.split_once(',').unwrap_or((old, "1"));
    let line: usize = line.parse().ok()?;
    if count == "0" {
        Some(line)
    } else {
        line.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::{PatchError, apply, replace_once};

    const TEXT: &str = "one\ntwo\nthree\nfour\n";

    #[test]
    fn replaces_what_is_there_exactly_once() {
        assert_eq!(
            replace_once(TEXT, "two\nthree", "2\n3").unwrap(),
            "one\n2\n3\nfour\n"
        );
        assert_eq!(replace_once(TEXT, "o", "0"), Err(PatchError::Ambiguous(3)));
        assert_eq!(replace_once(TEXT, "", "0"), Err(PatchError::Empty));
        assert_eq!(replace_once(TEXT, "two", "two"), Err(PatchError::Same));
        let error = replace_once(TEXT, "two  \nthree", "2")
            .unwrap_err()
            .to_string();
        assert!(error.contains("only its white space differs"), "{error}");
    }

    #[test]
    fn applies_hunks_in_order() {
        let patch = "--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n one\n+one and a half\n two\n@@ -4 +5 @@\n-four\n+4\n";
        assert_eq!(
            apply(TEXT, patch).unwrap(),
            "one\none and a half\ntwo\nthree\n4\n"
        );
    }

    #[test]
    fn finds_a_hunk_that_moved_but_not_one_that_changed() {
        let moved = "@@ -1,1 +1,1 @@\n-three\n+3\n";
        assert_eq!(apply(TEXT, moved).unwrap(), "one\ntwo\n3\nfour\n");
        let changed = "@@ -3,1 +3,1 @@\n-trois\n+3\n";
        let error = apply(TEXT, changed).unwrap_err();
        assert_eq!(
            error,
            PatchError::Hunk {
                hunk: 1,
                near: " (near \"trois\")".into()
            }
        );
        let twice = "@@ -9 +9 @@\n-a\n+b\n";
        assert_eq!(apply("a\nx\na\n", twice), Err(PatchError::HunkAmbiguous(1)));
    }

    #[test]
    fn inserts_into_an_empty_file_and_says_what_is_no_patch() {
        assert_eq!(apply("", "@@ -0,0 +1,2 @@\n+a\n+b\n").unwrap(), "a\nb\n");
        assert_eq!(apply(TEXT, "hello"), Err(PatchError::NoHunk));
        assert_eq!(apply(TEXT, "@@ -1 +1 @@\nhello"), Err(PatchError::Line(2)));
    }

    #[test]
    fn keeps_a_missing_newline_at_the_end() {
        assert_eq!(apply("a\nb", "@@ -1 +1 @@\n-a\n+c\n").unwrap(), "c\nb");
    }
}

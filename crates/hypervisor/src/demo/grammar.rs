//! The grammar of the demo provider: `docs/demo-provider.md` is its reference.

/// Instructions that one prompt may hold; what follows is refused, not ignored.
pub(super) const MAX_INSTRUCTIONS: usize = 32;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Run a command line.
    Run(String),
    /// Create or replace a file.
    Create { path: String, content: String },
    /// Replace a text in a file.
    Change {
        path: String,
        old: String,
        new: String,
    },
    /// Show a file.
    Read(String),
    /// Run the tests, and mend what they name.
    FixTest { command: Option<String> },
    /// Keep a note.
    Remember(String),
    /// Look for notes.
    Recall(String),
}

/// Reads a whole prompt.
///
/// # Errors
/// The first piece that is not in the grammar.
pub(super) fn parse(prompt: &str) -> Result<Vec<Instruction>, String> {
    let mut instructions = Vec::new();
    for piece in split(prompt) {
        if instructions.len() == MAX_INSTRUCTIONS {
            return Err(format!("more than {MAX_INSTRUCTIONS} instructions"));
        }
        instructions.push(instruction(&piece).ok_or(piece)?);
    }
    if instructions.is_empty() {
        Err(String::new())
    } else {
        Ok(instructions)
    }
}

/// Cuts a prompt at line ends and at ` then `, but not inside quotes, backticks or a fence.
fn split(prompt: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut lines = prompt.lines();
    while let Some(line) = lines.next() {
        let mut parts = split_then(line);
        if let Some(last) = parts.last_mut()
            && let Some((head, "")) = last
                .split_once("```")
                .map(|(head, rest)| (head, rest.trim_matches(char::is_alphanumeric)))
        {
            // A fenced block: the content of a file, up to the closing fence.
            let block: Vec<_> = lines
                .by_ref()
                .take_while(|line| line.trim() != "```")
                .collect();
            *last = format!("{head}```{}```", block.join("\n"));
        }
        pieces.extend(parts);
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn split_then(line: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut current = String::new();
    let mut quote = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if quote.is_none() {
            let cut = [", and then ", ", then ", " and then ", " then ", "; then "]
                .iter()
                .find_map(|cut| rest.strip_prefix(cut));
            if let Some(after) = cut {
                parts.push(tidy(&std::mem::take(&mut current)));
                rest = after;
                continue;
            }
        }
        match quote {
            Some(open) if open == c => quote = None,
            None if c == '"' || c == '`' => quote = Some(c),
            _ => {}
        }
        current.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    if quote.is_some() && parts.is_empty() {
        // An unbalanced quote protects nothing; the line is one piece.
        return vec![tidy(line)];
    }
    parts.push(tidy(&current));
    parts
}

/// Drops list markers and politeness.
fn tidy(piece: &str) -> String {
    let mut text = piece.trim();
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if digits.len() < text.len()
        && let Some(rest) = digits
            .strip_prefix(". ")
            .or_else(|| digits.strip_prefix(") "))
    {
        text = rest.trim_start();
    }
    for marker in ["- ", "* ", "then ", "Then ", "please ", "Please "] {
        text = text.strip_prefix(marker).unwrap_or(text).trim_start();
    }
    text.to_owned()
}

fn instruction(text: &str) -> Option<Instruction> {
    let rest = |word: &str| after_word(text, word);
    if let Some(command) = rest("run") {
        return non_empty(unquote_backticks(command)).map(Instruction::Run);
    }
    if let Some(spec) = rest("create") {
        let (path, content) = spec.split_once(':')?;
        return Some(Instruction::Create {
            path: a_path(path)?,
            content: content_of(content),
        });
    }
    if let Some(spec) = rest("change") {
        return change(spec);
    }
    if let Some(path) = rest("read").or_else(|| rest("show")) {
        return a_path(path).map(Instruction::Read);
    }
    for opening in [
        "fix the failing tests",
        "fix the failing test",
        "fix failing tests",
        "fix the tests",
        "fix the test",
    ] {
        if let Some(tail) = strip_ignoring_case(text, opening) {
            let tail = tail.trim().trim_end_matches(['.', '!']).trim_end();
            if tail.is_empty() {
                return Some(Instruction::FixTest { command: None });
            }
            let command = strip_ignoring_case(tail, "with ")?;
            let command = non_empty(unquote_backticks(command))?;
            return Some(Instruction::FixTest {
                command: Some(command),
            });
        }
    }
    if let Some(note) = rest("remember") {
        return non_empty(note).map(Instruction::Remember);
    }
    if let Some(query) = rest("recall") {
        return non_empty(query).map(Instruction::Recall);
    }
    None
}

fn change(spec: &str) -> Option<Instruction> {
    let (old, rest) = quoted(spec)?;
    let rest = strip_ignoring_case(rest.trim_start(), "to")?;
    let (new, rest) = quoted(rest.trim_start())?;
    let path = strip_ignoring_case(rest.trim_start(), "in ")?;
    (!old.is_empty()).then_some(())?;
    Some(Instruction::Change {
        path: a_path(path)?,
        old,
        new,
    })
}

/// A text in double quotes, with `\"`, `\\`, `\n` and `\t`, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((unescape(body.get(..at)?), body.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => plain.push('\n'),
            Some('t') => plain.push('\t'),
            Some(other @ ('"' | '\\')) => plain.push(other),
            Some(other) => plain.extend(['\\', other]),
            None => plain.push('\\'),
        }
    }
    plain
}

/// A file's content: a fence and backticks are taken as they are, anything else has escapes.
fn content_of(text: &str) -> String {
    let text = text.strip_prefix(' ').unwrap_or(text);
    let trimmed = text.trim();
    let mut content = if let Some(block) = trimmed
        .strip_prefix("```")
        .and_then(|t| t.strip_suffix("```"))
    {
        block.to_owned()
    } else if let Some((quoted, "")) = quoted(trimmed) {
        quoted
    } else if trimmed.len() > 1 && trimmed.starts_with('`') && trimmed.ends_with('`') {
        trimmed.trim_matches('`').to_owned()
    } else {
        unescape(text.trim_end())
    };
    if !content.is_empty() && !content.ends_with('\n') {
        content.push('\n');
    }
    content
}

fn after_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = strip_ignoring_case(text, word)?;
    let rest = match rest.chars().next()? {
        ':' => rest.strip_prefix(':')?,
        c if c.is_whitespace() => rest,
        _ => return None,
    };
    Some(rest.trim())
}

fn strip_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| text.get(prefix.len()..))
        .flatten()
}

fn unquote_backticks(text: &str) -> &str {
    let text = text.trim();
    match text.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
        Some((inner, tail)) if tail.trim_matches(['.', ' ']).is_empty() => inner.trim(),
        _ => text,
    }
}

fn a_path(text: &str) -> Option<String> {
    let path = text.trim().trim_matches(['`', '"']);
    let path = path
        .strip_prefix("/workspace/")
        .or_else(|| path.strip_prefix("./"))
        .unwrap_or(path);
    (!path.is_empty() && !path.chars().any(char::is_whitespace)).then(|| path.to_owned())
}

fn non_empty(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Instruction, parse};

    fn one(prompt: &str) -> Instruction {
        let mut all = parse(prompt).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn reads_every_form() {
        assert_eq!(
            one("run: cargo --version"),
            Instruction::Run("cargo --version".into())
        );
        assert_eq!(
            one("Run `echo a then b`."),
            Instruction::Run("echo a then b".into())
        );
        assert_eq!(
            one("create notes/a.txt: hello\\nworld"),
            Instruction::Create {
                path: "notes/a.txt".into(),
                content: "hello\nworld\n".into()
            }
        );
        assert_eq!(
            one(r#"change "a \"b\"" to "c" in src/x.rs"#),
            Instruction::Change {
                path: "src/x.rs".into(),
                old: "a \"b\"".into(),
                new: "c".into()
            }
        );
        assert_eq!(
            one("read /workspace/README.md"),
            Instruction::Read("README.md".into())
        );
        assert_eq!(
            one("fix the failing test"),
            Instruction::FixTest { command: None }
        );
        assert_eq!(
            one("Fix the failing test with `sh test.sh`."),
            Instruction::FixTest {
                command: Some("sh test.sh".into())
            }
        );
        assert_eq!(
            one("remember: I like tea"),
            Instruction::Remember("I like tea".into())
        );
        assert_eq!(one("recall tea"), Instruction::Recall("tea".into()));
    }

    #[test]
    fn a_sequence_is_cut_at_lines_and_at_then_outside_quotes() {
        let all = parse("1. create a.txt: \"x then y\" then run: cat a.txt\n- read a.txt").unwrap();
        assert_eq!(
            all,
            [
                Instruction::Create {
                    path: "a.txt".into(),
                    content: "x then y\n".into()
                },
                Instruction::Run("cat a.txt".into()),
                Instruction::Read("a.txt".into()),
            ]
        );
    }

    #[test]
    fn a_fence_holds_a_file_of_several_lines() {
        let all =
            parse("create a.py: ```python\nprint(1)\nprint(2)\n```\nrun: python3 a.py").unwrap();
        assert_eq!(
            all,
            [
                Instruction::Create {
                    path: "a.py".into(),
                    content: "print(1)\nprint(2)\n".into()
                },
                Instruction::Run("python3 a.py".into()),
            ]
        );
    }

    #[test]
    fn names_the_piece_it_does_not_understand() {
        assert_eq!(
            parse("run: ls then write me a poem"),
            Err("write me a poem".into())
        );
        assert_eq!(parse("runner"), Err("runner".into()));
        assert_eq!(parse("  "), Err(String::new()));
    }
}

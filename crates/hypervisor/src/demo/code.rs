//! Just enough understanding of source text: where a function is, what small changes to
//! it are plausible, and what a simple expression would yield after such a change.

use std::collections::HashMap;
use std::ops::Range;

use super::failure::Failure;

/// Changes of one function that are worth a test run.
const MAX_CHANGES: usize = 64;

/// Operators and words, each with what it is commonly mistaken for.
const SWAPS: &[(&str, &[&str])] = &[
    ("<=", &["<", ">="]),
    (">=", &[">", "<="]),
    ("==", &["!="]),
    ("!=", &["=="]),
    ("&&", &["||"]),
    ("||", &["&&"]),
    ("+", &["-", "*"]),
    ("-", &["+"]),
    ("*", &["+", "/"]),
    ("/", &["*"]),
    ("%", &["/"]),
    ("<", &[">", "<="]),
    (">", &["<", ">="]),
    ("and", &["or"]),
    ("or", &["and"]),
    ("true", &["false"]),
    ("false", &["true"]),
    ("True", &["False"]),
    ("False", &["True"]),
    ("min", &["max"]),
    ("max", &["min"]),
    ("to_uppercase", &["to_lowercase"]),
    ("to_lowercase", &["to_uppercase"]),
    ("upper", &["lower"]),
    ("lower", &["upper"]),
];

/// One change of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Index of the line.
    pub(super) line: usize,
    pub(super) new: String,
    /// Smaller is tried earlier.
    pub(super) rank: u8,
}

/// The lines of the function `name`, its head included.
pub(super) fn function(lines: &[&str], name: &str) -> Option<Range<usize>> {
    let start = lines.iter().position(|line| defines(line, name))?;
    let head = lines.get(start)?;
    let end = if is_python(head) {
        let indent = indent_of(head);
        lines
            .iter()
            .enumerate()
            .skip(start + 1)
            .find(|(_, line)| !line.trim().is_empty() && indent_of(line) <= indent)
            .map_or(lines.len(), |(at, _)| at)
    } else {
        braces_end(lines, start)
    };
    Some(start..end)
}

fn is_python(head: &str) -> bool {
    head.trim_start()
        .trim_start_matches("async ")
        .starts_with("def ")
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn braces_end(lines: &[&str], start: usize) -> usize {
    let mut depth = 0_i32;
    let mut opened = false;
    for (at, line) in lines.iter().enumerate().skip(start) {
        for c in line.chars() {
            match c {
                '{' => {
                    depth += 1;
                    opened = true;
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        if opened && depth <= 0 || !opened && line.trim_end().ends_with(';') {
            return at + 1;
        }
    }
    lines.len()
}

/// Whether the line is the head of a function of that name, in one of the languages.
pub(super) fn defines(line: &str, name: &str) -> bool {
    let line = line.trim_start();
    for keyword in [
        "fn ",
        "def ",
        "function ",
        "const ",
        "let ",
        "func ",
        "sub ",
    ] {
        for (at, _) in line.match_indices(keyword) {
            let before = line.get(..at).unwrap_or_default();
            if !before.is_empty() && !before.ends_with(' ') {
                continue;
            }
            let rest = line.get(at + keyword.len()..).unwrap_or_default();
            if let Some(tail) = rest.strip_prefix(name) {
                let tail = tail.trim_start();
                let value = matches!(keyword, "const " | "let ");
                if value
                    && (tail.starts_with('=') && (tail.contains("=>") || tail.contains("function")))
                    || !value && (tail.starts_with(['(', '<', '{']))
                {
                    return true;
                }
            }
        }
    }
    // `name() {` of a shell, `name(a, b) {` of a class in JavaScript.
    line.strip_prefix(name).is_some_and(|tail| {
        tail.trim_start().starts_with('(') && tail.trim_end().ends_with('{') && tail.contains(')')
    })
}

/// Names that the failure and the lines it points at call, nearest first.
pub(super) fn called(texts: &[String]) -> Vec<String> {
    const NOT_THE_SUBJECT: &[&str] = &[
        "assert",
        "assert_eq",
        "assert_ne",
        "assertEqual",
        "assertEquals",
        "assertTrue",
        "assertFalse",
        "equal",
        "strictEqual",
        "deepEqual",
        "deepStrictEqual",
        "expect",
        "toBe",
        "toEqual",
        "ok",
        "test",
        "it",
        "describe",
        "print",
        "println",
        "format",
        "panic",
        "vec",
        "String",
        "from",
        "to_string",
        "to_owned",
        "into",
        "Some",
        "Ok",
        "Err",
        "str",
        "int",
        "len",
        "list",
        "range",
        "if",
        "while",
        "for",
        "fn",
        "def",
        "function",
        "echo",
        "unwrap",
        "main",
        "self",
        "File",
        "in",
        "code",
    ];
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        let known = names.iter().any(|have| have == name);
        if !known && name.len() > 1 && !NOT_THE_SUBJECT.contains(&name) {
            names.push(name.to_owned());
        }
    };
    for text in texts {
        for (at, _) in text.match_indices('(') {
            add(last_identifier(text.get(..at).unwrap_or_default()));
        }
    }
    // Without a call there are words: `add 2 3: expected 5, got -1`, `test_add`, `adds`.
    for text in texts {
        for word in text.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            if word.starts_with(|c: char| c.is_alphabetic()) {
                add(word.strip_prefix("test_").unwrap_or(word));
            }
        }
    }
    names
}

fn last_identifier(text: &str) -> &str {
    let text = text.trim_end_matches('!');
    let start = text
        .char_indices()
        .rev()
        .take_while(|(_, c)| c.is_alphanumeric() || *c == '_')
        .last()
        .map_or(text.len(), |(at, _)| at);
    text.get(start..).unwrap_or_default()
}

/// Plausible changes of the lines `body`, the likeliest first.
pub(super) fn changes(
    lines: &[&str],
    body: Range<usize>,
    name: &str,
    call: Option<&str>,
    failure: &Failure,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let one_line = body.len() == 1;
    for at in body.clone() {
        let Some(line) = lines.get(at) else { continue };
        let from = if at == body.start {
            if one_line {
                body_offset(line)
            } else {
                line.len()
            }
        } else {
            0
        };
        if is_comment(line) {
            continue;
        }
        for (new, rank) in variants(line, from, failure) {
            if new != **line
                && !changes
                    .iter()
                    .any(|have: &Change| have.line == at && have.new == new)
            {
                changes.push(Change {
                    line: at,
                    new,
                    rank,
                });
            }
        }
    }
    if let Some(values) = &failure.values {
        for change in &mut changes {
            judge(change, lines, &body, name, call, values);
        }
    }
    changes.sort_by_key(|change| change.rank);
    changes.truncate(MAX_CHANGES);
    changes
}

fn body_offset(line: &str) -> usize {
    line.find('{')
        .or_else(|| line.find("=>"))
        .map_or(line.len(), |at| at + 1)
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("//")
        || line.starts_with('#')
        || line.starts_with("/*")
        || line.starts_with("\"\"\"")
}

fn variants(line: &str, from: usize, failure: &Failure) -> Vec<(String, u8)> {
    let mut found = Vec::new();
    for at in token_starts(line, from) {
        let rest = line.get(at..).unwrap_or_default();
        let Some((token, others)) = SWAPS.iter().find(|(token, _)| token_is(line, at, token))
        else {
            if let Some(number) = integer(rest)
                && !previous_is_word(line, at)
            {
                found.extend(number_variants(line, at, number, failure));
            }
            continue;
        };
        for (index, other) in others.iter().enumerate() {
            let rank = if index == 0 { 2 } else { 3 };
            found.push((splice(line, at, token.len(), other), rank));
        }
    }
    if let Some((first, second)) = &failure.values {
        let pairs = [(first, second, 1), (second, first, 4)];
        for (got, expected, rank) in
            pairs
                .into_iter()
                .take(if failure.second_expected { 1 } else { 2 })
        {
            found.extend(
                text_variants(line, from, got, expected)
                    .into_iter()
                    .map(|new| (new, rank)),
            );
        }
    }
    found
}

fn token_starts(line: &str, from: usize) -> Vec<usize> {
    let mut in_text = None;
    let mut starts = Vec::new();
    for (at, c) in line.char_indices() {
        match in_text {
            Some(open) if c == open => in_text = None,
            None if c == '"' || c == '\'' => in_text = Some(c),
            // A shell computes inside double quotes; there only `$((` counts.
            None if at >= from && !c.is_whitespace() => starts.push(at),
            Some('"') if at >= from && line.contains("$((") => starts.push(at),
            _ => {}
        }
    }
    starts
}

fn previous_is_word(line: &str, at: usize) -> bool {
    line.get(..at)
        .and_then(|head| head.chars().next_back())
        .is_some_and(|c| c.is_alphanumeric() || "_$.".contains(c))
}

fn token_is(line: &str, at: usize, token: &str) -> bool {
    let Some(tail) = line.get(at..).and_then(|rest| rest.strip_prefix(token)) else {
        return false;
    };
    let before = line.get(..at).and_then(|head| head.chars().next_back());
    let after = tail.chars().next();
    if token.starts_with(char::is_alphabetic) {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        return !before.is_some_and(word) && !after.is_some_and(word);
    }
    // `->`, `=>`, `+=`, `--`, `**`, `//` and generics are other tokens.
    let joined = |c: char| "+-*/%<>=!&|".contains(c);
    if before.is_some_and(joined) || after.is_some_and(joined) {
        return false;
    }
    let spaced = before.is_some_and(char::is_whitespace);
    let operand = before.is_some_and(|c| c.is_alphanumeric() || ")]".contains(c));
    match token {
        "<" | ">" => !before.is_some_and(char::is_alphanumeric),
        "&&" | "||" => spaced,
        "*" => spaced || operand,
        // ` -x` is an option or a sign, ` /x` a path.
        "-" | "/" => operand || spaced && !after.is_some_and(char::is_alphabetic),
        _ => true,
    }
}

fn integer(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let follows = text.get(end..).and_then(|tail| tail.chars().next());
    let whole = !follows.is_some_and(|c| c == '.' || c == '_');
    text.get(..end).filter(|digits| !digits.is_empty() && whole)
}

fn number_variants(line: &str, at: usize, number: &str, failure: &Failure) -> Vec<(String, u8)> {
    let mut found = Vec::new();
    if let Some((first, second)) = &failure.values {
        for (got, expected, rank) in [(first, second, 1), (second, first, 4)] {
            if number == got && expected.parse::<i64>().is_ok() {
                found.push((splice(line, at, number.len(), expected), rank));
            }
        }
    }
    if let Ok(value) = number.parse::<u32>() {
        found.push((
            splice(line, at, number.len(), &value.saturating_add(1).to_string()),
            5,
        ));
        if let Some(less) = value.checked_sub(1) {
            found.push((splice(line, at, number.len(), &less.to_string()), 5));
        }
    }
    found
}

/// Replaces what the two texts do not share where the line holds it.
fn text_variants(line: &str, from: usize, got: &str, expected: &str) -> Vec<String> {
    let (Some(got), Some(expected)) = (unquote(got), unquote(expected)) else {
        return Vec::new();
    };
    let body = line.get(from..).unwrap_or_default();
    let mut found = Vec::new();
    if !got.is_empty() && body.contains(got) {
        found.push(splice(
            line,
            from + body.find(got).unwrap_or_default(),
            got.len(),
            expected,
        ));
    }
    let prefix = shared(got.chars(), expected.chars());
    let suffix = shared(
        got.get(prefix..).unwrap_or_default().chars().rev(),
        expected.get(prefix..).unwrap_or_default().chars().rev(),
    );
    let middle = |text: &str| {
        text.get(prefix..text.len().saturating_sub(suffix))
            .map(str::to_owned)
    };
    let (Some(wrong), Some(right)) = (middle(got), middle(expected)) else {
        return found;
    };
    if wrong.len() > 1
        && let Some(at) = body.find(&wrong)
    {
        found.push(splice(line, from + at, wrong.len(), &right));
    }
    // What surrounds the difference finds its place: `Hello Bob` for `Hello, Bob`.
    let left = got.get(..prefix).unwrap_or_default();
    let anchor: String = {
        let tail: Vec<_> = left.chars().rev().take(4).collect();
        tail.into_iter().rev().collect()
    };
    let anchored = format!("{anchor}{wrong}");
    if anchor.len() > 1
        && let Some(at) = body.find(&anchored)
    {
        found.push(splice(line, from + at + anchor.len(), wrong.len(), &right));
    } else if wrong.is_empty()
        && suffix == 0
        && let Some(at) = body.rfind('"')
        && body.matches('"').count() > 1
    {
        found.push(splice(line, from + at, 0, &right));
    }
    found
}

fn unquote(text: &str) -> Option<&str> {
    let open = text.chars().next().filter(|c| "\"'`".contains(*c))?;
    text.strip_prefix(open)?.strip_suffix(open)
}

fn shared(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
    a.zip(b)
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

fn splice(line: &str, at: usize, length: usize, new: &str) -> String {
    let head = line.get(..at).unwrap_or_default();
    let tail = line.get(at + length..).unwrap_or_default();
    format!("{head}{new}{tail}")
}

/// Moves a change to the front when the changed expression yields what was expected for
/// the very call that failed, and to the back when it yields something else.
fn judge(
    change: &mut Change,
    lines: &[&str],
    body: &Range<usize>,
    name: &str,
    call: Option<&str>,
    values: &(String, String),
) {
    let Some(call) = call else { return };
    let Some(head) = lines.get(body.start) else {
        return;
    };
    let Some(arguments) =
        arguments(call, name).map(|list| list.iter().map(|a| a.parse().ok()).collect())
    else {
        return;
    };
    let Some::<Vec<i64>>(arguments) = arguments else {
        return;
    };
    let Some(parameters) = self::arguments(head, name) else {
        return;
    };
    if parameters.len() != arguments.len() {
        return;
    }
    let bound: HashMap<String, i64> = parameters
        .iter()
        .map(|parameter| {
            parameter
                .split(':')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        })
        .zip(arguments)
        .collect();
    let expression = change
        .new
        .trim()
        .trim_start_matches("return ")
        .trim_end_matches([';', ' ']);
    let Some(result) =
        super::arithmetic::evaluate(expression, &bound).map(|value| value.to_string())
    else {
        return;
    };
    // When both values could have been the expected one, either match will do: the one that
    // the unchanged code yields cannot be reached by a change that alters the result.
    change.rank = if result == values.1 || result == values.0 {
        0
    } else {
        9
    };
}

/// The arguments of the first call (or the parameters of the head) of `name` in the text.
fn arguments(text: &str, name: &str) -> Option<Vec<String>> {
    let at = text.match_indices(name).find(|(at, _)| {
        text.get(at + name.len()..)
            .is_some_and(|tail| tail.starts_with('('))
            && !text.get(..*at).is_some_and(|head| {
                head.chars()
                    .next_back()
                    .is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
    })?;
    let inner = text.get(at.0 + name.len() + 1..)?;
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in inner.chars() {
        match c {
            ')' if depth == 0 => {
                parts.retain(|part| !part.trim().is_empty());
                return Some(
                    parts
                        .into_iter()
                        .map(|part| part.trim().to_owned())
                        .collect(),
                );
            }
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    None
}

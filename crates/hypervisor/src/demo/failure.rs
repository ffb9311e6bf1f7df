//! Reads what a failing test says: where it failed, and what it expected and got.

use std::collections::BTreeSet;

/// Places and names that one failure may yield.
const MAX_PLACES: usize = 12;

/// A line of a file that a failure names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: String,
    /// Counted from 1; 0 when only the file is named.
    pub(super) line: usize,
}

/// What the output of a test run says about its first failure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Failure {
    pub(super) places: Vec<Place>,
    /// The two values that should have been equal, in the order they were printed.
    pub(super) values: Option<(String, String)>,
    /// Whether the output itself says that the second value is the expected one.
    pub(super) second_expected: bool,
    /// Lines that speak of the failure; they may name functions.
    pub(super) lines: Vec<String>,
}

/// The first failure in the output, or `None` when nothing in it looks like one.
pub(super) fn read(output: &str) -> Option<Failure> {
    let mut failure = Failure::default();
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    for (at, line) in lines.iter().enumerate() {
        if begins_report(line) {
            // The report of one failing test. The first one that compares values counts.
            if failure.values.is_some() {
                break;
            }
            failure.places.clear();
            failure.lines.clear();
        }
        let found_values = failure.values.is_some();
        if !found_values || failure.places.is_empty() {
            for place in places(line) {
                if failure.places.len() < MAX_PLACES && !failure.places.contains(&place) {
                    failure.places.push(place);
                }
            }
        }
        if found_values {
            continue;
        }
        if let Some((values, second_expected)) = values(line, lines.get(at + 1).copied()) {
            failure.values = Some(values);
            failure.second_expected = second_expected;
            failure.lines.push((*line).to_owned());
        }
        let speaks = ["assert", "expect", "FAIL", "panicked at"]
            .iter()
            .any(|word| line.contains(word));
        if speaks && failure.lines.len() < MAX_PLACES {
            failure.lines.push((*line).to_owned());
        }
    }
    let useful = !failure.places.is_empty() || failure.values.is_some();
    useful.then_some(failure)
}

/// Which tests fail, as the runner names them; without names, the lines that compare values.
/// A change is an improvement when this becomes a proper subset of what it was.
pub(super) fn failing(output: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    let named: BTreeSet<_> = lines
        .iter()
        .filter(|line| names_failing_test(line))
        .map(|line| without_duration(line))
        .collect();
    if !named.is_empty() {
        return named;
    }
    let compared = lines
        .iter()
        .enumerate()
        .filter(|(at, line)| values(line, lines.get(at + 1).copied()).is_some());
    compared.map(|(_, line)| (*line).to_owned()).collect()
}

fn names_failing_test(line: &str) -> bool {
    line.starts_with("FAIL: ")
        || line.starts_with("ERROR: ")
        || (line.starts_with("FAILED ") && line.contains("::"))
        || line.starts_with("not ok ")
        || line.starts_with("✖ ")
        || (line.starts_with("test ") && line.ends_with("... FAILED"))
}

/// `✖ adds (0.7ms)` is the same test however long it took.
fn without_duration(line: &str) -> String {
    match line.rsplit_once(" (") {
        Some((name, took)) if took.ends_with("ms)") => name.to_owned(),
        _ => line.to_owned(),
    }
}

fn begins_report(line: &str) -> bool {
    line.starts_with("FAIL: ")
        || line.starts_with("ERROR: ")
        || line.starts_with("✖ ")
        || line.starts_with("not ok ")
        || (line.starts_with("---- ") && line.ends_with(" ----"))
}

/// `left: 1` / `right: 2`, `1 != 2`, `1 !== 2`, `expected 2, got 1` and their relatives.
fn values(line: &str, next: Option<&str>) -> Option<((String, String), bool)> {
    if let (Some(left), Some(right)) = (
        line.strip_prefix("left: "),
        next.and_then(|next| next.strip_prefix("right: ")),
    ) {
        // `assert_eq!` does not say which side was expected.
        return Some(((left.trim().to_owned(), right.trim().to_owned()), false));
    }
    if let Some(rest) = line.strip_prefix("AssertionError:")
        && let Some((got, expected)) = rest.split_once(" != ")
    {
        let expected = expected
            .split_once(" : ")
            .map_or(expected, |(value, _)| value);
        return Some(((got.trim().to_owned(), expected.trim().to_owned()), false));
    }
    if let Some((got, expected)) = line.split_once(" !== ")
        && !got.contains(['(', '='])
    {
        return Some(((got.trim().to_owned(), expected.trim().to_owned()), true));
    }
    let lower = line.to_ascii_lowercase();
    let expected_at = lower.find("expected")?;
    let expected = value_after(line, expected_at + "expected".len())?;
    let got = ["got", "but was", "received", "actual", "found", "was"]
        .iter()
        .find_map(|word| {
            let at = find_word(&lower, word)?;
            value_after(line, at + word.len())
        })?;
    Some(((got, expected), true))
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word)
        .find(|(at, _)| {
            let before = text.get(..*at).and_then(|head| head.chars().next_back());
            let after = text
                .get(at + word.len()..)
                .and_then(|tail| tail.chars().next());
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        })
        .map(|(at, _)| at)
}

/// The value that follows: quoted text, or a word without its punctuation.
fn value_after(line: &str, at: usize) -> Option<String> {
    let rest = line.get(at..)?.trim_start_matches([':', '=', ' ']);
    let rest = rest.strip_prefix("to be ").unwrap_or(rest);
    let open = rest.chars().next()?;
    if let '"' | '\'' | '`' = open {
        let inner = rest.get(1..)?;
        let end = inner.find(open)?;
        return rest.get(..end + 2).map(str::to_owned);
    }
    let word: String = rest
        .chars()
        .take_while(|c| !c.is_whitespace() && !",;)".contains(*c))
        .collect();
    let word = word.trim_end_matches('.');
    (!word.is_empty()).then(|| word.to_owned())
}

/// Places such as `src/lib.rs:12:9`, `File "a.py", line 3` and `file:///workspace/a.js:5:1`.
fn places(line: &str) -> Vec<Place> {
    let mut found = Vec::new();
    if let Some((path, rest)) = line
        .split_once("File \"")
        .and_then(|(_, rest)| rest.split_once('"'))
    {
        let line = rest.strip_prefix(", line ").map_or(0, leading_number);
        found.extend(place(path, line));
        return found;
    }
    for word in line.split(|c: char| c.is_whitespace() || "()[]'\"`,".contains(c)) {
        let word = word.strip_prefix("file://").unwrap_or(word);
        let mut parts = word.split(':');
        let path = parts.next().unwrap_or_default();
        let line = parts.next().map_or(0, leading_number);
        found.extend(place(path, line));
    }
    found
}

fn leading_number(text: &str) -> usize {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Accepts files that look like sources of the workspace.
fn place(path: &str, line: usize) -> Option<Place> {
    let path = path.strip_prefix("/workspace/").unwrap_or(path);
    let path = path.strip_prefix("./").unwrap_or(path);
    let name = path.rsplit('/').next()?;
    let (stem, extension) = name.rsplit_once('.')?;
    let source = SOURCE_EXTENSIONS.contains(&extension) && !stem.is_empty();
    let foreign = path.starts_with('/')
        || path.contains("://")
        || ["node_modules/", "target/", "/.cargo/", "node:internal"]
            .iter()
            .any(|part| path.contains(part))
        || !path
            .chars()
            .all(|c| c.is_alphanumeric() || "._-/+@".contains(c));
    (source && !foreign).then(|| Place {
        path: path.to_owned(),
        line,
    })
}

/// Endings of files that hold code the demo can read.
pub(super) const SOURCE_EXTENSIONS: &[&str] = &[
    "rs", "py", "js", "mjs", "cjs", "ts", "sh", "bash", "rb", "go", "c", "java", "lua", "pl",
];

#[cfg(test)]
mod tests {
    use super::{Place, failing, read};

    fn place(path: &str, line: usize) -> Place {
        Place {
            path: path.into(),
            line,
        }
    }

    #[test]
    fn reads_rust() {
        let failure = read(
            "running 1 test\ntest tests::adds ... FAILED\n\n---- tests::adds stdout ----\n\n\
             thread 'tests::adds' (12) panicked at src/lib.rs:12:9:\n\
             assertion `left == right` failed\n  left: -1\n right: 5\n",
        )
        .unwrap();
        assert_eq!(failure.places, [place("src/lib.rs", 12)]);
        assert_eq!(failure.values, Some(("-1".into(), "5".into())));
    }

    #[test]
    fn reads_python() {
        let failure = read(
            "FAIL: test_add (test_calc.CalcTest.test_add)\n------\nTraceback (most recent call last):\n\
             \x20 File \"/workspace/test_calc.py\", line 7, in test_add\n    self.assertEqual(add(2, 3), 5)\n\
             AssertionError: -1 != 5\n",
        )
        .unwrap();
        assert_eq!(failure.places, [place("test_calc.py", 7)]);
        assert_eq!(failure.values, Some(("-1".into(), "5".into())));
    }

    #[test]
    fn reads_node() {
        let failure = read(
            "AssertionError [ERR_ASSERTION]: Expected values to be strictly equal:\n\n6 !== 8\n\n\
             \x20   at TestContext.<anonymous> (file:///workspace/calc.test.js:6:10)\n\
             \x20   at node:internal/test_runner/test:1:1\n",
        )
        .unwrap();
        assert_eq!(failure.places, [place("calc.test.js", 6)]);
        assert_eq!(failure.values, Some(("6".into(), "8".into())));
        assert!(failure.second_expected);
    }

    #[test]
    fn reads_a_shell_script() {
        let failure = read("calc.sh: add 2 3: expected 5, got -1.\n").unwrap();
        assert_eq!(failure.places, [place("calc.sh", 0)]);
        assert_eq!(failure.values, Some(("-1".into(), "5".into())));
        let failure = read("greet.sh:3: expected \"Hello, Bob\" got \"Hello Bob\"").unwrap();
        assert_eq!(
            failure.values,
            Some(("\"Hello Bob\"".into(), "\"Hello, Bob\"".into()))
        );
    }

    #[test]
    fn of_several_failures_the_first_is_read_and_all_are_named() {
        let output = "FF\n======\nFAIL: test_add (t.T.test_add)\n------\n  File \"/workspace/t.py\", line 6, in test_add\n\
             \x20   self.assertEqual(add(2, 3), 5)\nAssertionError: -1 != 5\n\n======\nFAIL: test_greet (t.T.test_greet)\n------\n\
             \x20 File \"/workspace/t.py\", line 9, in test_greet\nAssertionError: 'a' != 'b'\n\nFAILED (failures=2)\n";
        let failure = read(output).unwrap();
        assert_eq!(failure.places, [place("t.py", 6)]);
        assert_eq!(failure.values, Some(("-1".into(), "5".into())));
        assert_eq!(failing(output).len(), 2);
        let node = "✖ adds (1.2ms)\n✔ greets (0.1ms)\n✖ failing tests:\n";
        assert!(failing(node).contains("✖ adds"));
    }

    #[test]
    fn success_is_no_failure() {
        assert_eq!(
            read("running 3 tests\n...\ntest result: ok. 3 passed; 0 failed\n"),
            None
        );
    }
}

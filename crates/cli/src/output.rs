//! How results look.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// Text from elsewhere without anything that a terminal would obey. Line ends and tabs become
/// spaces, so that a cell stays one line.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if matches!(c, '\n' | '\t') {
                ' '
            } else {
                harmless(c)
            }
        })
        .collect()
}

/// The same for whole lines: ends of lines and tabs stay.
pub(crate) fn printable_lines(text: &str) -> String {
    text.chars()
        .map(|c| {
            if matches!(c, '\n' | '\t') {
                c
            } else {
                harmless(c)
            }
        })
        .collect()
}

/// Control characters, and those that change the direction of what is read, become visible.
fn harmless(c: char) -> char {
    let turns = matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || turns {
        '\u{fffd}'
    } else {
        c
    }
}

/// Columns under their titles, two spaces apart. Cells are made printable.
pub(crate) fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| printable(cell)))
        .collect();
    let mut widths = titles.map(|title| title.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&widths, titles.map(str::to_owned).as_slice());
    for row in &rows {
        text.push_str(&line(&widths, row));
    }
    text
}

/// One line of a table. What follows the last filled cell is left out.
pub(crate) fn line(widths: &[usize], cells: &[String]) -> String {
    let mut text = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        let _ = write!(text, "{cell:<width$}  ");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// JSON for scripts and for people.
pub(crate) fn json(value: &impl Serialize) -> String {
    // What is serialized here are our own types, whose maps have text for keys.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// How long ago, in the largest unit that says it well.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{ago, printable, printable_lines, table};

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[31mb\r\nc\u{202e}d"),
            "a\u{fffd}[31mb\u{fffd} c\u{fffd}d"
        );
        assert_eq!(printable_lines("a\u{7}\n\tb"), "a\u{fffd}\n\tb");
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            ["ä".to_owned(), "long cell".to_owned(), String::new()],
            ["bb".to_owned(), "x".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(["A", "B", "C"], &rows),
            "A   B          C\nä   long cell\nbb  x          y\n"
        );
    }

    #[test]
    fn times_are_told_in_one_unit() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (seconds, text) in [
            (0, "0s ago"),
            (59, "59s ago"),
            (60, "1m ago"),
            (7200, "2h ago"),
            (200_000, "2d ago"),
        ] {
            assert_eq!(ago(at(0), at(seconds)), text);
        }
        assert_eq!(ago(at(100), at(0)), "0s ago");
    }
}

//! Tables that are read by people and by programs.

use serde_json::{Value, json};

/// One table: rows of JSON objects, shown in the order of `columns`.
#[derive(Debug)]
pub(crate) struct Table {
    name: &'static str,
    title: String,
    columns: &'static [&'static str],
    rows: Vec<Value>,
}

impl Table {
    /// An empty table. `name` is its key in the JSON document; each column is the key of a
    /// row's value, and carries its unit (`p50_ms`).
    pub(crate) fn new(
        name: &'static str,
        title: impl Into<String>,
        columns: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            title: title.into(),
            columns,
            rows: Vec::new(),
        }
    }

    /// Its key in the JSON document.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Adds a row: an object with a value per column.
    pub(crate) fn push(&mut self, row: Value) {
        self.rows.push(row);
    }

    /// The whole as JSON.
    pub(crate) fn into_json(self) -> Value {
        json!({ "title": self.title, "rows": self.rows })
    }

    /// Prints it.
    pub(crate) fn show(&self) {
        println!("\n{}", self.title);
        let cell = |row: &Value, column: &str| match &row[column] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => format!("{float:.1}"),
                _ => number.to_string(),
            },
            other => other.to_string(),
        };
        let widths: Vec<usize> = self
            .columns
            .iter()
            .map(|column| {
                let cells = self.rows.iter().map(|row| cell(row, column).len());
                cells.max().unwrap_or(0).max(column.len())
            })
            .collect();
        let line = |cells: Vec<String>| {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, (cell, width))| match at {
                    // The first names the row.
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            println!("{}", padded.join("  "));
        };
        line(
            self.columns
                .iter()
                .map(|column| (*column).to_owned())
                .collect(),
        );
        for row in &self.rows {
            line(
                self.columns
                    .iter()
                    .map(|column| cell(row, column))
                    .collect(),
            );
        }
    }
}

/// The value below which `share` (0 to 1) of the values lie; they are sorted for it.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "few values, and a share of them"
    )]
    let at = (share * (values.len() - 1) as f64).ceil() as usize;
    values[at.min(values.len() - 1)]
}

/// A ratio as it is shown: to two digits after the point.
pub(crate) fn two_digits(ratio: f64) -> Value {
    // As text, since other figures have one digit.
    Value::String(format!("{ratio:.2}"))
}

/// Least, median, p99 and most of times in milliseconds, as the columns of a row.
pub(crate) fn times(what: &str, mut values: Vec<f64>) -> Value {
    json!({
        "what": what,
        "runs": values.len(),
        "min_ms": quantile(&mut values, 0.0),
        "p50_ms": quantile(&mut values, 0.5),
        "p99_ms": quantile(&mut values, 0.99),
        "max_ms": quantile(&mut values, 1.0),
    })
}

/// The columns of [`times`].
pub(crate) const TIMES: &[&str] = &["what", "runs", "min_ms", "p50_ms", "p99_ms", "max_ms"];

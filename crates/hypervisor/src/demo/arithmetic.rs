//! Evaluates the integer expressions that tests of small functions are made of.

use std::collections::HashMap;

/// Deepest nesting that is followed; source text is the sandbox's, not ours.
const MAX_DEPTH: usize = 32;

/// The value of `text` with the given variables, when it is nothing but integers,
/// variables, parentheses and `+ - * / %`.
pub(super) fn evaluate(text: &str, variables: &HashMap<String, i64>) -> Option<i64> {
    let mut parser = Parser {
        rest: text,
        variables,
    };
    let value = parser.sum(0)?;
    parser.rest.trim().is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
    variables: &'a HashMap<String, i64>,
}

impl Parser<'_> {
    fn take(&mut self, wanted: &[char]) -> Option<char> {
        self.rest = self.rest.trim_start();
        let c = self.rest.chars().next().filter(|c| wanted.contains(c))?;
        self.rest = self.rest.get(1..)?;
        Some(c)
    }

    fn sum(&mut self, depth: usize) -> Option<i64> {
        let mut value = self.product(depth)?;
        while let Some(operator) = self.take(&['+', '-']) {
            let right = self.product(depth)?;
            value = if operator == '+' {
                value.checked_add(right)?
            } else {
                value.checked_sub(right)?
            };
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<i64> {
        let mut value = self.atom(depth)?;
        while let Some(operator) = self.take(&['*', '/', '%']) {
            let right = self.atom(depth)?;
            value = match operator {
                '*' => value.checked_mul(right)?,
                '/' => value.checked_div(right)?,
                _ => value.checked_rem(right)?,
            };
        }
        Some(value)
    }

    fn atom(&mut self, depth: usize) -> Option<i64> {
        if depth == MAX_DEPTH {
            return None;
        }
        if self.take(&['(']).is_some() {
            let value = self.sum(depth + 1)?;
            self.take(&[')'])?;
            return Some(value);
        }
        if self.take(&['-']).is_some() {
            return self.atom(depth + 1)?.checked_neg();
        }
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.parse()
            .ok()
            .or_else(|| self.variables.get(word).copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::evaluate;

    #[test]
    fn computes_and_refuses_what_it_does_not_know() {
        let bound = HashMap::from([("a".to_owned(), 2), ("b".to_owned(), 3)]);
        assert_eq!(evaluate("a + b * 2", &bound), Some(8));
        assert_eq!(evaluate("(a - b) * -2", &bound), Some(2));
        assert_eq!(evaluate("a / 0", &bound), None);
        assert_eq!(evaluate("a + c", &bound), None);
        assert_eq!(evaluate("a.pow(2)", &bound), None);
        assert_eq!(evaluate(&"(".repeat(100_000), &bound), None);
    }
}

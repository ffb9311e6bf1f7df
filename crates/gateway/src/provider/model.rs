//! The `model` of a JSON request, read while it streams by.

use std::sync::{Arc, Mutex, PoisonError};

/// Longest model name that is kept, in bytes.
const MAX_MODEL: usize = 128;

/// Follows a JSON text just far enough to find the string `model` of the top-level object,
/// holding nothing but that. It is for log lines: what it makes of broken JSON is nobody's
/// decision, and a name with escapes or invisible characters is left out.
pub(crate) struct ModelScanner {
    found: Model,
    depth: usize,
    place: Place,
    text: Vec<u8>,
    escaped: bool,
    state: State,
}

/// Where the scanner puts what it finds.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Mutex<Option<String>>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    InString,
    AfterBackslash,
    Done,
}

/// What a string at the top level would be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Key,
    ModelValue,
    Other,
}

impl Model {
    pub(crate) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, model: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = model;
    }
}

impl ModelScanner {
    pub(crate) fn new() -> Self {
        Self {
            found: Model::default(),
            depth: 0,
            place: Place::Other,
            text: Vec::new(),
            escaped: false,
            state: State::Between,
        }
    }

    pub(crate) fn model(&self) -> Model {
        self.found.clone()
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.state {
                State::Done => return,
                State::Between => self.between(*byte),
                State::AfterBackslash => self.state = State::InString,
                State::InString => match byte {
                    b'\\' => {
                        self.escaped = true;
                        self.state = State::AfterBackslash;
                    }
                    b'"' => self.end_of_string(),
                    _ if self.depth == 1
                        && self.place != Place::Other
                        && self.text.len() <= MAX_MODEL =>
                    {
                        self.text.push(*byte);
                    }
                    _ => {}
                },
            }
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                if self.depth == 0 {
                    if byte == b'[' {
                        self.state = State::Done;
                        return;
                    }
                    self.place = Place::Key;
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.state = State::Done;
                }
            }
            b',' if self.depth == 1 => self.place = Place::Key,
            b'"' => {
                self.text.clear();
                self.escaped = false;
                self.state = State::InString;
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ if self.depth == 0 => self.state = State::Done,
            _ => {}
        }
    }

    fn end_of_string(&mut self) {
        self.state = State::Between;
        if self.depth != 1 {
            return;
        }
        match self.place {
            Place::Key => {
                let is_model = !self.escaped && self.text == b"model";
                self.place = if is_model {
                    Place::ModelValue
                } else {
                    Place::Other
                };
            }
            Place::ModelValue => {
                let printable = !self.escaped
                    && self.text.len() <= MAX_MODEL
                    && self.text.iter().all(u8::is_ascii_graphic);
                let model = printable
                    .then(|| String::from_utf8(std::mem::take(&mut self.text)).ok())
                    .flatten();
                // Of two, parsers take the last.
                self.found.set(model);
                self.place = Place::Other;
            }
            Place::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(text: &str, chunk: usize) -> Option<String> {
        let mut scanner = ModelScanner::new();
        let model = scanner.model();
        for chunk in text.as_bytes().chunks(chunk) {
            scanner.feed(chunk);
        }
        model.get()
    }

    #[test]
    fn the_top_level_model_is_found_wherever_it_stands() {
        for (text, expected) in [
            (r#"{"model":"gpt-x"}"#, Some("gpt-x")),
            (
                r#" { "messages" : [{"model":"no"}], "model" : "yes" } "#,
                Some("yes"),
            ),
            (r#"{"a":"\"model\":\"no\"","model":"yes"}"#, Some("yes")),
            (r#"{"a":"model","model":"yes"}"#, Some("yes")),
            (r#"{"tools":{"model":"no"}}"#, None),
            (r#"[{"model":"no"}]"#, None),
            (r#"{"model":"a","model":"b"}"#, Some("b")),
            (r#"{"model":{"model":"no"}}"#, None),
            (r#"{"model":"a\nb"}"#, None),
            (r#"{"model":null}"#, None),
            ("model", None),
            ("", None),
        ] {
            for chunk in [1, 3, 1000] {
                assert_eq!(model(text, chunk).as_deref(), expected, "{text}");
            }
        }
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(MAX_MODEL + 1));
        assert_eq!(model(&long, 7), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            ModelScanner::new().feed(&bytes);
        }
    }
}

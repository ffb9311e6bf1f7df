//! Server-sent events (WHATWG HTML §9.2), as far as model providers use them.

use super::StreamFault;

/// Longest line; a chunk of tool arguments is far shorter.
const MAX_LINE: usize = 1024 * 1024;

/// Splits bytes, however they arrive, into the `data` of events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

impl Parser {
    /// Takes the next bytes and yields the data of the events that they completed.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, StreamFault> {
        let mut events = Vec::new();
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    if let Some(event) = self.end_line()? {
                        events.push(event);
                    }
                }
                byte => {
                    if self.line.len() >= MAX_LINE {
                        return Err(StreamFault::Malformed("a line that does not end"));
                    }
                    self.line.push(*byte);
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<String>, StreamFault> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            let complete = std::mem::take(&mut self.has_data);
            return if complete {
                String::from_utf8(data)
                    .map(Some)
                    .map_err(|_| StreamFault::Malformed("text that is not UTF-8"))
            } else {
                Ok(None)
            };
        }
        // Comments, `event:`, `id:` and `retry:` say nothing that the data does not.
        let Some(value) = line.strip_prefix(b"data:") else {
            return Ok(None);
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if self.data.len() + value.len() > MAX_LINE {
            return Err(StreamFault::Malformed("an event that does not end"));
        }
        self.data.extend_from_slice(value);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Parser;

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_the_bytes_arrive(cuts in proptest::collection::vec(1usize..12, 1..20)) {
            let text = ": hello\r\nevent: x\r\ndata: {\"a\":1}\r\n\r\ndata:two\ndata: lines\n\n\ndata: é[DONE]\r\r";
            let mut parser = Parser::default();
            let mut events = Vec::new();
            let mut rest = text.as_bytes();
            for size in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                events.extend(parser.push(piece).unwrap());
                rest = after;
            }
            prop_assert_eq!(events, ["{\"a\":1}", "two\nlines", "é[DONE]"]);
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _either = Parser::default().push(&bytes);
        }
    }

    #[test]
    fn a_line_that_does_not_end_is_refused() {
        assert!(
            Parser::default()
                .push(&vec![b'x'; super::MAX_LINE + 1])
                .is_err()
        );
    }
}

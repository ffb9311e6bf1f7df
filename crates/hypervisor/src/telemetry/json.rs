//! One event as one line of JSON: `timestamp`, `level`, the event's own fields, `target`.
//!
//! A line is written for every request and every model call, so it is written in one pass,
//! without an intermediate map of its fields.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats events as JSON lines.
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        writer.write_str("{\"timestamp\":\"")?;
        write_now(&mut writer)?;
        writer.write_str("\",\"level\":\"")?;
        writer.write_str(metadata.level().as_str())?;
        writer.write_char('"')?;
        let mut members = Members {
            writer: &mut writer,
            outcome: Ok(()),
        };
        event.record(&mut members);
        members.outcome?;
        writer.write_str(",\"target\":\"")?;
        Escaped(&mut writer).write_str(metadata.target())?;
        writer.write_str("\"}\n")
    }
}

/// Writes the present moment in RFC 3339 with microseconds. All but these change once a
/// second, and are kept until then.
fn write_now(writer: &mut Writer<'_>) -> fmt::Result {
    thread_local! {
        static SECOND: Cell<(i64, [u8; SECOND_LENGTH])> = const { Cell::new((i64::MIN, [0; SECOND_LENGTH])) };
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (mut of, mut text) = SECOND.get();
    if of != seconds {
        let whole = Timestamp::from_second(seconds).unwrap_or_default();
        let shown = whole.to_string();
        let Some(shown) = shown.as_bytes().first_chunk::<SECOND_LENGTH>() else {
            return Err(fmt::Error);
        };
        (of, text) = (seconds, *shown);
        SECOND.set((of, text));
    }
    writer.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)?;
    write!(writer, ".{:06}Z", now.subsec_micros())
}

/// `2026-01-01T00:00:00`
const SECOND_LENGTH: usize = 19;

/// Writes each field of an event as a member of the object.
struct Members<'a, 'w> {
    writer: &'a mut Writer<'w>,
    outcome: fmt::Result,
}

impl Members<'_, '_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.outcome.is_err() {
            return;
        }
        let writer = &mut *self.writer;
        let name = field.name();
        // A raw identifier is named without its prefix.
        let name = name.strip_prefix("r#").unwrap_or(name);
        self.outcome = writer
            .write_str(",\"")
            .and_then(|()| Escaped(writer).write_str(name))
            .and_then(|()| writer.write_str("\":"))
            .and_then(|()| value(writer));
    }
}

impl Visit for Members<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |writer| {
            writer.write_char('"')?;
            Escaped(writer).write_str(value)?;
            writer.write_char('"')
        });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |writer| {
            writer.write_str(if value { "true" } else { "false" })
        });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field, |writer| {
            if value.is_finite() {
                // With a point or an exponent, so that it reads as what it is.
                write!(writer, "{value:?}")
            } else {
                writer.write_str("null")
            }
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |writer| {
            writer.write_char('"')?;
            write!(Escaped(writer), "{value:?}")?;
            writer.write_char('"')
        });
    }
}

/// Escapes what stands inside a JSON string (RFC 8259 §7).
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        loop {
            // What has to be escaped is ASCII and stands at a boundary of characters.
            let (plain, after) = rest.split_at(plain_length(rest.as_bytes()).min(rest.len()));
            self.0.write_str(plain)?;
            let Some(byte) = after.as_bytes().first() else {
                return Ok(());
            };
            match byte {
                b'"' => self.0.write_str("\\\"")?,
                b'\\' => self.0.write_str("\\\\")?,
                b'\n' => self.0.write_str("\\n")?,
                b'\r' => self.0.write_str("\\r")?,
                b'\t' => self.0.write_str("\\t")?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            rest = after.get(1..).unwrap_or_default();
        }
    }
}

/// How many bytes stand at the beginning of a text that need no escape; eight are looked at
/// at once.
fn plain_length(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    // The top bit of some byte is set where a byte of `word` is zero; false alarms are possible
    // behind such a byte, and are looked at one by one.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & TOPS;
    let mut at = 0;
    while let Some(eight) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_ne_bytes(*eight);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        if below_space | quote | backslash != 0 {
            break;
        }
        at += 8;
    }
    let rest = text.get(at..).unwrap_or_default();
    let plain = |byte: &u8| *byte >= 0x20 && *byte != b'"' && *byte != b'\\';
    at + rest.iter().take_while(|byte| plain(byte)).count()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use serde_json::Value;
    use tracing_subscriber::fmt::MakeWriter;

    use super::JsonLines;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The lines that `work` logs, each of them read as JSON.
    fn lines(work: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(kept.clone())
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = kept.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn every_kind_of_field_is_a_member_of_its_type() {
        let seen = lines(|| {
            let absent: Option<u64> = None;
            tracing::warn!(
                text = "a",
                count = 7_u64,
                below = -3,
                share = 0.5,
                odd = f64::NAN,
                yes = true,
                absent,
                shown = %"x\"y",
                r#type = "t",
                "it \"happened\""
            );
        });
        let [line] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["text"], "a");
        assert_eq!(line["count"], 7);
        assert_eq!(line["below"], -3);
        assert_eq!(line["share"], 0.5);
        assert_eq!(line["odd"], Value::Null);
        assert_eq!(line["yes"], true);
        assert_eq!(line.get("absent"), None);
        assert_eq!(line["shown"], "x\"y");
        assert_eq!(line["type"], "t");
        assert_eq!(line["message"], "it \"happened\"");
        assert_eq!(line["target"], module_path!());
        let at: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(at);
        assert!(age.as_secs().abs() < 60, "{at}");
    }

    proptest! {
        #[test]
        fn any_text_stays_one_line_and_comes_back(text in "\\PC*|[\\x00-\\x7f]*") {
            let seen = lines(|| tracing::info!(text, "m"));
            prop_assert_eq!(seen.len(), 1);
            prop_assert_eq!(seen[0]["text"].as_str().unwrap(), text);
        }
    }
}

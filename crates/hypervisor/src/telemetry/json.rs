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
        thread_local! {
            static LINE: Cell<String> = const { Cell::new(String::new()) };
        }
        // Taken, not borrowed: what is formatted may log by itself.
        let mut line = LINE.take();
        line.clear();
        let metadata = event.metadata();
        line.push_str("{\"timestamp\":\"");
        push_now(&mut line)?;
        line.push_str("\",\"level\":\"");
        line.push_str(metadata.level().as_str());
        line.push('"');
        let mut members = Members {
            line: &mut line,
            outcome: Ok(()),
        };
        event.record(&mut members);
        members.outcome?;
        line.push_str(",\"target\":\"");
        push_escaped(&mut line, metadata.target());
        line.push_str("\"}\n");
        let written = writer.write_str(&line);
        if line.capacity() <= KEPT {
            LINE.set(line);
        }
        written
    }
}

/// Longest line whose memory is used again, in bytes.
const KEPT: usize = 16 << 10;

/// Adds the present moment in RFC 3339 with microseconds. All but these change once a
/// second, and are kept until then.
fn push_now(line: &mut String) -> fmt::Result {
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
    let mut fraction = *b".000000Z";
    let mut rest = now.subsec_micros();
    for digit in fraction.iter_mut().skip(1).take(6).rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    for part in [&text[..], &fraction] {
        line.push_str(std::str::from_utf8(part).map_err(|_| fmt::Error)?);
    }
    Ok(())
}

/// `2026-01-01T00:00:00`
const SECOND_LENGTH: usize = 19;

/// Writes each field of an event as a member of the object.
struct Members<'a> {
    line: &'a mut String,
    outcome: fmt::Result,
}

impl Members<'_> {
    fn name(&mut self, field: &Field) -> &mut String {
        let name = field.name();
        // A raw identifier is named without its prefix.
        let name = name.strip_prefix("r#").unwrap_or(name);
        self.line.push_str(",\"");
        push_escaped(self.line, name);
        self.line.push_str("\":");
        self.line
    }

    fn number(&mut self, field: &Field, value: impl itoa::Integer) {
        self.name(field).push_str(itoa::Buffer::new().format(value));
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let line = self.name(field);
        line.push('"');
        push_escaped(line, value);
        line.push('"');
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field)
            .push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let line = self.name(field);
        if value.is_finite() {
            // With a point or an exponent, so that it reads as what it is.
            line.push_str(zmij::Buffer::new().format_finite(value));
        } else {
            line.push_str("null");
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let line = self.name(field);
        line.push('"');
        let written = write!(Escaped(line), "{value:?}");
        line.push('"');
        self.outcome = self.outcome.and(written);
    }
}

/// Escapes what stands inside a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_escaped(self.0, text);
        Ok(())
    }
}

/// Adds what stands inside a JSON string (RFC 8259 §7).
fn push_escaped(line: &mut String, text: &str) {
    let mut rest = text;
    loop {
        // What has to be escaped is ASCII and stands at a boundary of characters.
        let (plain, after) = rest.split_at(plain_length(rest.as_bytes()).min(rest.len()));
        line.push_str(plain);
        let Some(byte) = after.as_bytes().first() else {
            return;
        };
        match byte {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            // Writing to a string does not fail.
            byte => drop(write!(line, "\\u{byte:04x}")),
        }
        rest = after.get(1..).unwrap_or_default();
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
    let may_need = |eight: &[u8; 8]| {
        let word = u64::from_ne_bytes(*eight);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        below_space | quote | backslash != 0
    };
    let mut at = 0;
    while let Some(eight) = text.get(at..).and_then(<[u8]>::first_chunk::<8>)
        && !may_need(eight)
    {
        at += 8;
    }
    // The last eight of what is longer, some of them for the second time.
    if text.len() - at < 8
        && let Some(eight) = text.last_chunk::<8>()
        && !may_need(eight)
    {
        return text.len();
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

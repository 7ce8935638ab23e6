//! Reads JSON log lines and formats them for people.

use std::fmt::Write;

use prost_types::Timestamp;
use serde_json::{Map, Value};

/// A line of a JSON log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine(Map<String, Value>);

impl LogLine {
    /// Reads a line; `None` if it is not a JSON object.
    pub fn parse(line: &str) -> Option<Self> {
        if !line.starts_with('{') {
            return None;
        }
        serde_json::from_str(line).ok().map(Self)
    }

    /// Seconds since the Unix epoch.
    pub fn time(&self) -> Option<f64> {
        self.0.get("time")?.as_f64()
    }

    /// A text field, such as `level` or `phase`; empty if there is none.
    pub fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Its time in RFC 3339 to the millisecond; empty if it has none.
    pub fn timestamp(&self) -> String {
        let Some(time) = self.time() else { return String::new() };
        let millis = (time * 1000.0).round() as i64;
        let nanos = i32::try_from(millis.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
        let mut text = Timestamp { seconds: millis.div_euclid(1000), nanos }.to_string();
        if nanos == 0 {
            text = text.replace('Z', ".000Z");
        }
        text
    }

    /// Its message, then its other fields except time, level, target and those in `omit`.
    pub fn message(&self, omit: &[&str]) -> String {
        let mut shown = plain(self.text("message"));
        let head = ["time", "level", "target", "message"];
        for (name, value) in &self.0 {
            if !head.contains(&name.as_str()) && !omit.contains(&name.as_str()) {
                // JSON escapes control characters.
                let _ = write!(shown, " {}={value}", plain(name));
            }
        }
        shown
    }

    /// The line for a terminal: time, level, message, fields.
    pub fn human(&self) -> String {
        format!("{} {:>5} {}", self.timestamp(), plain(self.text("level")), self.message(&[]))
    }
}

/// A text without control characters, which could change what a terminal shows.
pub fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_as_text() {
        let line = r#"{"time":1764400000.5,"level":"INFO","target":"t","job":"j1","step":3,"phase":"r00.sft","message":"step"}"#;
        let line = LogLine::parse(line).unwrap();
        let fields = r#"step job="j1" step=3 phase="r00.sft""#;
        assert_eq!(line.human(), format!("2025-11-29T07:06:40.500Z  INFO {fields}"));
        assert_eq!(line.message(&["job", "phase"]), "step step=3");
        assert_eq!(
            (line.time(), line.text("phase"), line.text("step")),
            (Some(1_764_400_000.5), "r00.sft", "")
        );
        let whole = LogLine::parse(r#"{"time":1764400000}"#).unwrap();
        assert_eq!(whole.timestamp(), "2025-11-29T07:06:40.000Z");
        for text in ["", "plain", "{ torn", "42", "[]"] {
            assert_eq!(LogLine::parse(text), None);
        }
    }

    #[test]
    fn a_line_cannot_write_to_the_terminal() {
        let line =
            LogLine::parse(r#"{"message":"a\u001b[2Jb","x":"\u001b]0;t\u0007","\u001b[1m":1}"#).unwrap();
        assert!(!line.human().chars().any(char::is_control), "{:?}", line.human());
        assert_eq!(plain("a\tb\u{1b}[31m"), "a\tb\u{fffd}[31m");
    }
}

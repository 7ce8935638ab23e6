//! Spans of time as a job file writes them: `90m`, `2h30m`, `7d`.

use std::time::Duration;

use super::SpecError;
use super::check::path;

/// Units, largest first, in seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
/// Maximum, in seconds: 365 days.
const MAX: u64 = 365 * 86_400;

/// Parses a span of at least a second; `None` if it is left out.
pub(super) fn parse(at: &str, field: &str, text: &str) -> Result<Option<Duration>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    let expected = "a time from 1s to 365d, such as 90m or 2h30m";
    let refusal = |_| SpecError::field(&path(at, field), format!("{text:?}"), expected);
    parse_duration(text).map(Some).map_err(refusal)
}

/// Parses a span in the job file's notation, for command line options.
///
/// # Errors
/// The text is not a span from a second to 365 days.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span = seconds(text).filter(|seconds| (1..=MAX).contains(seconds));
    span.map(Duration::from_secs)
        .ok_or_else(|| "write a time from 1s to 365d, such as 90m or 2h30m".to_owned())
}

/// Numbers with units, each unit at most once and larger ones first.
fn seconds(text: &str) -> Option<u64> {
    let (mut rest, mut sum, mut units) = (text, 0_u64, UNITS.iter());
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, size) = units.find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(count.checked_mul(*size)?)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    Some(sum)
}

/// The text of an optional span, as it is parsed; empty for `None`.
pub(super) fn text(span: Option<Duration>) -> String {
    span.map(duration_text).unwrap_or_default()
}

/// A span in the job file's notation, to the second.
pub fn duration_text(span: Duration) -> String {
    let mut left = span.as_secs();
    let mut text = String::new();
    for (name, size) in UNITS {
        if left >= size {
            text += &format!("{}{name}", left / size);
            left %= size;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (given, secs, written) in [
            ("90m", 5400, "1h30m"),
            ("2h30m", 9000, "2h30m"),
            ("7d", 604_800, "7d"),
            ("1s", 1, "1s"),
            ("0d1h", 3600, "1h"),
            ("365d", 31_536_000, "365d"),
        ] {
            let span = parse("", "timeout", given).unwrap();
            assert_eq!(span, Some(Duration::from_secs(secs)), "{given}");
            assert_eq!(text(span), written);
            assert_eq!(parse("", "timeout", written).unwrap(), span, "it reads back");
        }
        assert_eq!((parse("", "timeout", "").unwrap(), text(None)), (None, String::new()));
    }

    #[test]
    fn other_texts_are_refused_with_an_example() {
        let huge = "9".repeat(30) + "d";
        for text in
            ["90", "m", "1.5h", "-1h", "1h 30m", "30m2h", "1h1h", "0s", "366d", "1w", " 1h", "1é", &huge]
        {
            let error = parse("", "timeout", text).unwrap_err().to_string();
            assert!(error.starts_with("timeout: found ") && error.contains("2h30m"), "{text}: {error}");
        }
    }
}

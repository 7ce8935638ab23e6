//! Parsing of durations.

use std::time::Duration;

/// A period, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval(pub(crate) Option<Duration>);

/// Parses a duration such as `90s`, `15m`, `24h` or `7d`.
///
/// # Errors
/// The text is not a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("found {text:?}, expected a duration such as 90s, 15m, 24h or 7d");
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// Parses a period longer than zero, or `off`.
///
/// # Errors
/// The text is neither.
pub(crate) fn interval(text: &str) -> Result<Interval, String> {
    match text {
        "off" => Ok(Interval(None)),
        text => match duration(text)? {
            Duration::ZERO => Err("found a period of zero; expected a longer one, or off".to_owned()),
            period => Ok(Interval(Some(period))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("15m", 900), (" 24h", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "24", "h", "1.5h", "-1h", "1h30m", "99999999999999999999d", "9999999999999999999d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(interval("off"), Ok(Interval(None)));
        assert_eq!(interval("24h"), Ok(Interval(Some(Duration::from_secs(86_400)))));
        assert!(interval("0s").is_err() && interval("never").is_err());
    }
}

//! Parsing of sizes.

/// Parses a size such as `80GiB`, `24 GB` or a plain number of bytes.
///
/// # Errors
/// The text is not a size.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim());
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err(format!("found the unit {unit:?}, expected KiB, MiB, GiB, KB, MB or GB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err(format!("found {text:?}, expected a size such as 80GiB")),
    }
}

/// A size, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SizeOrOff(pub(crate) Option<u64>);

/// Parses a size, or `off`.
///
/// # Errors
/// The text is neither.
pub(crate) fn bytes_or_off(text: &str) -> Result<SizeOrOff, String> {
    match text.trim() {
        "off" => Ok(SizeOrOff(None)),
        text => bytes(text).map(|size| SizeOrOff(Some(size))).map_err(|error| format!("{error}, or off")),
    }
}

/// A number of bytes in its largest unit: 512 B, 1.5 MiB.
pub(crate) fn text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1024.0 of a unit is shown as one of the next.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        let sizes = [0, 1023, 1024, 1536 << 10, (1 << 20) - 1, 3 << 40, u64::MAX].map(text);
        let expected = ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 MiB", "3.0 TiB", "16777216.0 TiB"];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes("80GiB"), Ok(80 << 30));
        assert_eq!(bytes(" 24 GB "), Ok(24_000_000_000));
        assert_eq!(bytes("1.5gib"), Ok(3 << 29));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["80 apples", "GiB", "", "-3GiB", "0GiB", "1.2.3MB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bytes_or_off("off"), Ok(SizeOrOff(None)));
        assert_eq!(bytes_or_off("16MiB"), Ok(SizeOrOff(Some(16 << 20))));
        assert!(bytes_or_off("no").unwrap_err().ends_with(", or off"));
    }
}

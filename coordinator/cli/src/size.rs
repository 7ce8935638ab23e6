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
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err(format!("found the unit {unit:?}, expected MiB, GiB, MB or GB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err(format!("found {text:?}, expected a size such as 80GiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes("80GiB"), Ok(80 << 30));
        assert_eq!(bytes(" 24 GB "), Ok(24_000_000_000));
        assert_eq!(bytes("1.5gib"), Ok(3 << 29));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["80 apples", "GiB", "", "-3GiB", "0GiB", "1.2.3MB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}

//! The date in templates.
//!
//! Training and sampling must render the same text every day, so the date is fixed to the one that Llama's
//! templates fall back to.

use super::Error;

/// Friday, 26 July 2024, midnight, as `datetime.strftime` writes it in the C locale.
pub(super) fn format(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next();
        let flag = directive.filter(|flag| matches!(flag, '-' | '_' | '0' | '^' | '#'));
        if flag.is_some() {
            directive = characters.next();
        }
        let found = || [flag, directive].into_iter().flatten().collect::<String>();
        let unsupported = || Error::unsupported(format!("strftime_now with %{}", found()));
        let value = directive.and_then(expand).ok_or_else(unsupported)?;
        match flag {
            None => text.push_str(value),
            Some('^') => text.push_str(&value.to_uppercase()),
            Some(pad)
                if !value.is_empty()
                    && value.bytes().all(|digit| digit.is_ascii_digit() || digit == b' ') =>
            {
                let digits = value.trim_start_matches(['0', ' ']);
                let digits = if digits.is_empty() { "0" } else { digits };
                let missing = value.len() - digits.len();
                let fill = match pad {
                    '_' => " ",
                    '0' => "0",
                    '-' => "",
                    _ => return Err(unsupported()),
                };
                text.push_str(&fill.repeat(missing));
                text.push_str(digits);
            }
            _ => return Err(unsupported()),
        }
    }
    Ok(text)
}

fn expand(directive: char) -> Option<&'static str> {
    Some(match directive {
        'a' => "Fri",
        'A' => "Friday",
        'b' | 'h' => "Jul",
        'B' => "July",
        'c' => "Fri Jul 26 00:00:00 2024",
        'C' => "20",
        'd' | 'e' => "26",
        'D' | 'x' => "07/26/24",
        'f' => "000000",
        'F' => "2024-07-26",
        'g' | 'y' => "24",
        'G' | 'Y' => "2024",
        'H' | 'M' | 'S' => "00",
        'I' => "12",
        'j' => "208",
        'k' => " 0",
        'l' => "12",
        'm' => "07",
        'n' => "\n",
        'p' => "AM",
        'P' => "am",
        'r' => "12:00:00 AM",
        'R' => "00:00",
        't' => "\t",
        'T' | 'X' => "00:00:00",
        'u' | 'w' => "5",
        'U' => "29",
        'V' | 'W' => "30",
        // Without a time zone.
        'z' | 'Z' => "",
        '%' => "%",
        _ => return None,
    })
}

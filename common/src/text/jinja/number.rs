//! Numbers: their order, and reading them from text, as Python does.

use super::Error;
use std::cmp::Ordering;

#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

pub(super) fn overflow() -> Error {
    Error::unsupported("an integer of more than 127 bits")
}

/// `None` if one of them is NaN.
pub(super) fn compare(left: Number, right: Number) -> Option<Ordering> {
    match (left, right) {
        (Number::Int(left), Number::Int(right)) => Some(left.cmp(&right)),
        (Number::Int(left), Number::Float(right)) => compare_mixed(left, right),
        (Number::Float(left), Number::Int(right)) => compare_mixed(right, left).map(Ordering::reverse),
        (Number::Float(left), Number::Float(right)) => left.partial_cmp(&right),
    }
}

/// Exact, as in Python: no rounding of the integer.
fn compare_mixed(integer: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float.abs() >= 1.7e38 {
        return Some(if float > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let whole = float.floor();
    let order = integer.cmp(&(whole as i128));
    Some(if order == Ordering::Equal && float > whole { Ordering::Less } else { order })
}

/// Like `int(text, base)`; `None` where Python raises ValueError.
pub(super) fn parse_integer(text: &str, base: u32) -> Option<i128> {
    let text = super::strings::trim(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).filter(|_| !prefix.is_empty()).unwrap_or(&lower);
    let well_placed = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if digits.starts_with(['+', '-']) || !well_placed {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// Like `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = super::strings::trim(text);
    let well_placed = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    let plain = text.replace('_', "").to_lowercase();
    let named = matches!(plain.trim_start_matches(['+', '-']), "inf" | "infinity" | "nan");
    let numeric = plain.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | '+' | '-'));
    (well_placed && (named || numeric)).then(|| plain.parse().ok()).flatten()
}

/// Like `int(value)` of a float.
pub(super) fn truncate(value: f64) -> Option<Result<i128, Error>> {
    if !value.is_finite() {
        return None;
    }
    Some(if value.abs() < 1.7e38 { Ok(value.trunc() as i128) } else { Err(overflow()) })
}

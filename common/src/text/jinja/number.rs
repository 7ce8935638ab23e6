//! Numbers as Python computes with them.

use super::Error;
use super::ast::Operator;
use super::value::Value;
use std::cmp::Ordering;

fn overflow() -> Error {
    Error::unsupported("an integer of more than 127 bits")
}

/// As an integer; `True` is one.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Int(value) => Some(*value),
        Value::Bool(value) => Some(i128::from(*value)),
        _ => None,
    }
}

pub(super) fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(value) => Some(*value),
        _ => integer(value).map(|value| value as f64),
    }
}

/// The order of two numbers; `None` where one is NaN or none is a number.
pub(super) fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (Some(left), None) => compare_mixed(left, float(right)?),
        (None, Some(right)) => compare_mixed(right, float(left)?).map(Ordering::reverse),
        (None, None) => float(left)?.partial_cmp(&float(right)?),
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

/// Arithmetic on two numbers; `None` where one is none.
pub(super) fn binary(operator: Operator, left: &Value, right: &Value) -> Option<Result<Value, Error>> {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => Some(integers(operator, left, right)),
        _ => Some(floats(operator, float(left)?, float(right)?)),
    }
}

fn integers(operator: Operator, left: i128, right: i128) -> Result<Value, Error> {
    if right == 0 && matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod) {
        return Err(Error::new(match operator {
            Operator::Div => "division by zero",
            _ => "integer division or modulo by zero",
        }));
    }
    let value = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Sub => left.checked_sub(right),
        Operator::Mul => left.checked_mul(right),
        Operator::Div => {
            // The quotient is rounded once, from exact integers.
            let exact = 1i128 << 53;
            return match left.abs() <= exact && right.abs() <= exact {
                true => Ok(Value::Float(left as f64 / right as f64)),
                false => Err(Error::unsupported("division of integers beyond 2^53")),
            };
        }
        Operator::FloorDiv => left.checked_div_euclid(right).map(|_| {
            let quotient = left / right;
            if left % right != 0 && (left < 0) != (right < 0) { quotient - 1 } else { quotient }
        }),
        Operator::Mod => left
            .checked_rem(right)
            .map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }),
        Operator::Pow if right < 0 => {
            if left == 0 {
                return Err(Error::new("0.0 cannot be raised to a negative power"));
            }
            return Ok(Value::Float((left as f64).powf(right as f64)));
        }
        Operator::Pow => u32::try_from(right).ok().and_then(|power| left.checked_pow(power)),
    };
    value.map(Value::Int).ok_or_else(overflow)
}

fn floats(operator: Operator, left: f64, right: f64) -> Result<Value, Error> {
    let divides = matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if divides && right == 0.0 {
        return Err(Error::new("float division by zero"));
    }
    Ok(Value::Float(match operator {
        Operator::Add => left + right,
        Operator::Sub => left - right,
        Operator::Mul => left * right,
        Operator::Div => left / right,
        Operator::FloorDiv => divmod(left, right).0,
        Operator::Mod => divmod(left, right).1,
        Operator::Pow => {
            if left == 0.0 && right < 0.0 {
                return Err(Error::new("0.0 cannot be raised to a negative power"));
            }
            if left < 0.0 && right.fract() != 0.0 {
                return Err(Error::unsupported("a complex number"));
            }
            let power = left.powf(right);
            if power.is_infinite() && left.is_finite() && right.is_finite() {
                return Err(Error::new("Numerical result out of range"));
            }
            power
        }
    }))
}

/// As CPython's `float_divmod`.
fn divmod(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest != 0.0 {
        if (right < 0.0) != (rest < 0.0) {
            rest += right;
            quotient -= 1.0;
        }
    } else {
        rest = 0f64.copysign(right);
    }
    let floored = if quotient != 0.0 {
        let floored = quotient.floor();
        if quotient - floored > 0.5 { floored + 1.0 } else { floored }
    } else {
        0f64.copysign(left / right)
    };
    (floored, rest)
}

pub(super) fn negative(value: &Value) -> Option<Result<Value, Error>> {
    match value {
        Value::Float(value) => Some(Ok(Value::Float(-value))),
        _ => integer(value).map(|value| value.checked_neg().map(Value::Int).ok_or_else(overflow)),
    }
}

pub(super) fn absolute(value: &Value) -> Option<Result<Value, Error>> {
    match value {
        Value::Float(value) => Some(Ok(Value::Float(value.abs()))),
        _ => integer(value).map(|value| value.checked_abs().map(Value::Int).ok_or_else(overflow)),
    }
}

/// As `int(text, base)`; `None` where Python raises ValueError.
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

/// As `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = super::strings::trim(text);
    let well_placed = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    let plain = text.replace('_', "").to_lowercase();
    let named = matches!(plain.trim_start_matches(['+', '-']), "inf" | "infinity" | "nan");
    let numeric = plain.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | '+' | '-'));
    (well_placed && (named || numeric)).then(|| plain.parse().ok()).flatten()
}

/// As `int(value)` of a float.
pub(super) fn truncate(value: f64) -> Option<Result<i128, Error>> {
    if !value.is_finite() {
        return None;
    }
    Some(if value.abs() < 1.7e38 { Ok(value.trunc() as i128) } else { Err(overflow()) })
}
